"""Features of the locations of a slide: encoded once, chunk by chunk, and read some locations at a time.

With several scales (the default config) the tokens of a location depend on all locations of the slide, through their
neighbourhood and the standardisation of the section: one vector a scale and location is kept, and tokens are made of
them when they are read. Without scales a location stands alone, and only the projection of its tokens is kept (for a
model its embedding and the inputs of its heads), which is a hundred times smaller than its tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from cmrcnet.config import Config
from cmrcnet.features.extract import FeatureSpec, extract_chunks
from cmrcnet.features.resumable import ResumableFeatures
from cmrcnet.features.tokens import SectionTokens
from cmrcnet.slides.slide import Slide, known_scale
from cmrcnet.storage.hashing import fingerprint

if TYPE_CHECKING:
    from cmrcnet.models.image_encoder import ImageEncoder
    from cmrcnet.models.trained_model import TrainedModel
    from cmrcnet.storage.cache import TokenCache


@dataclass(frozen=True, eq=False)
class LocationEncoder:
    """A frozen encoder, what it extracts at a location, and the projection of its tokens to features.

    Parameters
    ----------
    encoder : ImageEncoder
    config : Config
        Its `features` and `patch`, and device and precision of `train`.
    project : callable
        From tokens (locations, tokens, dim) to features (locations, width) float32.
    width : int
        Of the features of a plain patch, one without scales.
    name : str
        Fingerprint of everything that `project` depends on, the encoder included.
    """

    encoder: ImageEncoder
    config: Config
    project: Callable[[np.ndarray], np.ndarray]
    width: int
    name: str

    @property
    def scales(self) -> int:
        """Number of scales; 0 for a plain patch."""
        return len(self.config.features.scales_um)

    @property
    def values_per_location(self) -> int:
        """Numbers that are kept of a location while a slide is encoded."""
        return self.scales * self.encoder.dim if self.scales else self.width

    @classmethod
    def of_model(cls, model: TrainedModel) -> LocationEncoder:
        """For a trained model: its embedding, followed by the inputs of its heads.

        Parameters
        ----------
        model : TrainedModel
        """

        def project(tokens: np.ndarray) -> np.ndarray:
            features = [model.embed_tokens(tokens)]
            if model.head is not None:
                features.append(model.head.reduction.apply(tokens))
            return np.concatenate(features, axis=1)

        inputs = 0 if model.head is None else model.head.reduction.directions.shape[1]
        width = model.config.model.embedding_dim + inputs
        return cls(model.encoder, model.config, project, width, model.fingerprint)

    @classmethod
    def of_student(cls, encoder: ImageEncoder, config: Config) -> LocationEncoder:
        """For a student: the tokens of its scales side by side, or the mean token of a plain patch, not reduced.

        Parameters
        ----------
        encoder : ImageEncoder
        config : Config
        """

        def project(tokens: np.ndarray) -> np.ndarray:
            values = np.asarray(tokens, np.float32)
            return values.reshape(len(values), -1) if config.features.scales_um else values.mean(axis=1)

        return cls(encoder, config, project, encoder.dim, encoder.fingerprint())


class LocationFeatures:
    """Features of locations of one slide.

    Parameters
    ----------
    encoder : LocationEncoder
    slide : Slide
    centre_px : array, shape (locations, 2)
        x, y in level-0 pixels.
    folder : Path, optional
        Where they are kept, and where a killed run continues; in memory when left out.
    """

    def __init__(
        self, encoder: LocationEncoder, slide: Slide, centre_px: np.ndarray, folder: Path | None = None
    ) -> None:
        self._encoder, self._slide, self._centre_px = encoder, slide, centre_px
        config = encoder.config.to_dict()
        looks = {name: config[name] for name in ("features", "patch")} | {"precision": config["train"]["precision"]}
        self.name = fingerprint(encoder.name, looks, slide.fingerprint(), slide.mpp, centre_px)
        """Fingerprint of everything that the features depend on: neither bank nor genes."""
        width = encoder.encoder.dim if encoder.scales else encoder.width
        self.tmp = ResumableFeatures((max(encoder.scales, 1), len(centre_px), width), self.name, folder)
        self._tokens: SectionTokens | None = None

    def encode(self, cache: TokenCache | None = None, batch: int | Literal["auto"] = "auto") -> None:
        """Encode what is not kept yet.

        Parameters
        ----------
        cache : TokenCache, optional
            Asked first, and given what is encoded.
        batch : int or "auto"
            Patches a forward pass.
        """
        tmp, spec = self.tmp, FeatureSpec.of(self._encoder.config)
        where = (self._encoder.encoder, self._slide, self._centre_px)
        for rows, layer, values in extract_chunks(*where, spec, done=tmp.has, cache=cache, batch=batch):
            tmp.keep(rows, values if self._encoder.scales else self._encoder.project(values), layer)
        if self._encoder.scales:
            self._tokens = SectionTokens(tmp.values(), self._centre_px * known_scale(self._slide), spec)

    def take(self, rows: slice) -> np.ndarray:
        """Features of some locations, once all are encoded.

        Parameters
        ----------
        rows : slice
            Of `centre_px`, without a step.

        Returns
        -------
        numpy.ndarray, shape (locations, width), float32
            As the encoder projects their tokens.
        """
        if self._tokens is None:
            return np.array(self.tmp.values()[rows, 0])
        return self._encoder.project(self._tokens.take(rows))
