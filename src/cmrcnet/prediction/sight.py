"""What makes the features of places: an encoder, how a recipe looks with it, and what of its tokens is needed.

All that encoding needs to know. A model with a bank and a student without one look through the same eyes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.recipe import Recipe

if TYPE_CHECKING:
    from cmrcnet.model.image_encoder import ImageEncoder
    from cmrcnet.model.trained_model import TrainedModel


@dataclass(frozen=True, eq=False)
class Sight:
    """How places are looked at.

    Parameters
    ----------
    encoder : ImageEncoder
        Frozen.
    recipe : Recipe
        Its `features` and `patch`, and device and precision of `train`.
    condense : callable
        From tokens (places, tokens, dim) to what is needed of them, (places, width) float32.
    width : int
        Of what `condense` gives for a plain patch, one without views.
    name : str
        Fingerprint of whatever `condense` depends on, the encoder included.
    """

    encoder: ImageEncoder
    recipe: Recipe
    condense: Callable[[np.ndarray], np.ndarray]
    width: int
    name: str

    @property
    def views(self) -> int:
        """Number of views; 0 for a plain patch."""
        return len(self.recipe.features.views_um)

    @property
    def numbers_kept(self) -> int:
        """Numbers that are kept of a place while a slide is encoded."""
        return self.views * self.encoder.dim if self.views else self.width


def sight_of_model(model: TrainedModel) -> Sight:
    """A model's: the embedding that searches the bank, then the reduced features that its readout needs, if any.

    Parameters
    ----------
    model : TrainedModel
        `split` takes the two apart again.
    """

    def condense(tokens: np.ndarray) -> np.ndarray:
        seen = [model.embed_tokens(tokens)]
        if model.readout is not None:
            seen.append(model.readout.reduction.apply(tokens))
        return np.concatenate(seen, axis=1)

    components = 0 if model.readout is None else model.readout.reduction.directions.shape[1]
    width = model.recipe.model.embedding_dim + components
    return Sight(model.encoder, model.recipe, condense, width, model.fingerprint)


def split(seen: np.ndarray, model: TrainedModel) -> tuple[np.ndarray, np.ndarray | None]:
    """Queries and reduced features from what a model's sight gives.

    Parameters
    ----------
    seen : array, shape (places, embedding + components)
    model : TrainedModel

    Returns
    -------
    queries : numpy.ndarray, shape (places, embedding), float32
        To search the bank with.
    features : numpy.ndarray, shape (places, components), float32, or None
        None where the model has no readout.
    """
    length = model.recipe.model.embedding_dim
    queries = np.ascontiguousarray(seen[:, :length])
    return queries, None if model.readout is None else np.ascontiguousarray(seen[:, length:])


def plain_sight(encoder: ImageEncoder, recipe: Recipe) -> Sight:
    """A student's: the tokens of its views laid side by side, or the mean token of a plain patch; not reduced yet.

    Parameters
    ----------
    encoder : ImageEncoder
    recipe : Recipe
    """
    return Sight(encoder, recipe, flat if recipe.features.views_um else mean_token, encoder.dim, encoder.fingerprint())


def flat(tokens: np.ndarray) -> np.ndarray:
    """Tokens (places, tokens, dim) side by side: (places, tokens x dim) float32."""
    return np.asarray(tokens, np.float32).reshape(len(tokens), -1)


def mean_token(tokens: np.ndarray) -> np.ndarray:
    """Mean of the tokens: (places, dim) float32."""
    return np.asarray(tokens, np.float32).mean(axis=1)
