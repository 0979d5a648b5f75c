"""What makes the features of locations: an encoder, how a config looks with it, and what of its tokens is needed.

All that encoding needs to know. A model with a bank and a student without one look through the same eyes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.config import Config

if TYPE_CHECKING:
    from cmrcnet.models.image_encoder import ImageEncoder
    from cmrcnet.models.trained_model import TrainedModel


@dataclass(frozen=True, eq=False)
class Sight:
    """How locations are looked at.

    Parameters
    ----------
    encoder : ImageEncoder
        Frozen.
    config : Config
        Its `features` and `patch`, and device and precision of `train`.
    condense : callable
        From tokens (locations, tokens, dim) to what is needed of them, (locations, width) float32.
    width : int
        Of what `condense` gives for a plain patch, one without views.
    name : str
        Fingerprint of whatever `condense` depends on, the encoder included.
    """

    encoder: ImageEncoder
    config: Config
    condense: Callable[[np.ndarray], np.ndarray]
    width: int
    name: str

    @property
    def views(self) -> int:
        """Number of views; 0 for a plain patch."""
        return len(self.config.features.views_um)

    @property
    def numbers_kept(self) -> int:
        """Numbers that are kept of a location while a slide is encoded."""
        return self.views * self.encoder.dim if self.views else self.width


def sight_of_model(model: TrainedModel) -> Sight:
    """A model's: the embedding that searches the bank, then the reduced features that its head needs, if any.

    Parameters
    ----------
    model : TrainedModel
        `split` takes the two apart again.
    """

    def condense(tokens: np.ndarray) -> np.ndarray:
        seen = [model.embed_tokens(tokens)]
        if model.head is not None:
            seen.append(model.head.reduction.apply(tokens))
        return np.concatenate(seen, axis=1)

    components = 0 if model.head is None else model.head.reduction.directions.shape[1]
    width = model.config.model.embedding_dim + components
    return Sight(model.encoder, model.config, condense, width, model.fingerprint)


def split(seen: np.ndarray, model: TrainedModel) -> tuple[np.ndarray, np.ndarray | None]:
    """Queries and reduced features from what a model's sight gives.

    Parameters
    ----------
    seen : array, shape (locations, embedding + components)
    model : TrainedModel

    Returns
    -------
    queries : numpy.ndarray, shape (locations, embedding), float32
        To search the bank with.
    features : numpy.ndarray, shape (locations, components), float32, or None
        None where the model has no head.
    """
    length = model.config.model.embedding_dim
    queries = np.ascontiguousarray(seen[:, :length])
    return queries, None if model.head is None else np.ascontiguousarray(seen[:, length:])


def plain_sight(encoder: ImageEncoder, config: Config) -> Sight:
    """A student's: the tokens of its views laid side by side, or the mean token of a plain patch; not reduced yet.

    Parameters
    ----------
    encoder : ImageEncoder
    config : Config
    """
    return Sight(encoder, config, flat if config.features.views_um else mean_token, encoder.dim, encoder.fingerprint())


def flat(tokens: np.ndarray) -> np.ndarray:
    """Tokens (locations, tokens, dim) side by side: (locations, tokens x dim) float32."""
    return np.asarray(tokens, np.float32).reshape(len(tokens), -1)


def mean_token(tokens: np.ndarray) -> np.ndarray:
    """Mean of the tokens: (locations, dim) float32."""
    return np.asarray(tokens, np.float32).mean(axis=1)
