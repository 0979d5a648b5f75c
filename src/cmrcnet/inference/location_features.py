"""Features of the locations of a slide: encoded once, chunk by chunk, and read some locations at a time.

With scales (the default config) the tokens of a location depend on all locations of the slide, through their
neighbourhood and the standardisation of the section: one vector a scale and location is kept, and tokens are made of
them when they are read. Without scales a location stands alone, and only the projection of its tokens is kept (for a
model its embedding and the inputs of its heads), which is a hundred times smaller than its tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from cmrcnet.config import Config
from cmrcnet.errors import BadOption
from cmrcnet.features.engine import choose_engine, release_engines
from cmrcnet.features.extract import chunk_numbers, extract_chunks, features_key
from cmrcnet.features.resumable import ResumableFeatures
from cmrcnet.features.spec import STATISTICS, FeatureSpec
from cmrcnet.features.tokens import SectionTokens, check_standardised
from cmrcnet.slides.section import Spots
from cmrcnet.slides.slide import Slide, known_scale
from cmrcnet.storage.hashing import fingerprint
from cmrcnet.uncertainty.ood import STATISTIC_NAMES

if TYPE_CHECKING:
    from cmrcnet.models.image_encoder import ImageEncoder
    from cmrcnet.models.trained_model import TrainedModel
    from cmrcnet.storage.cache import TokenCache


@dataclass(frozen=True, eq=False)
class LocationEncoder:
    """A frozen encoder, what it extracts at a location, and the projection of its tokens to features."""

    encoder: ImageEncoder
    spec: FeatureSpec
    """With its engine chosen."""
    project: Callable[[np.ndarray], np.ndarray]
    """From tokens (locations, tokens, dim) to features (locations, width) float32."""
    width: int
    """Of the features of a plain patch, one without scales."""
    name: str
    """Fingerprint of everything that `project` depends on, the encoder included."""

    @property
    def kept_shape(self) -> tuple[int, int]:
        """Layers and width of what is kept of a location: the mean token of each scale, or the features."""
        scales = len(self.spec.scales_um)
        return (scales, self.encoder.dim) if scales else (1, self.width)

    @classmethod
    def of_model(cls, model: TrainedModel, *, searches: bool = True) -> LocationEncoder:
        """Make a trained model's: features are its embedding, unless nothing is searched, and the heads' inputs."""

        def project(tokens: np.ndarray) -> np.ndarray:
            features = [model.embed_tokens(tokens)] if searches else []
            if model.head is not None:
                features.append(model.head.pca.apply(tokens))
            return np.concatenate(features, axis=1)

        inputs = 0 if model.head is None else model.head.pca.directions.shape[1]
        width = model.config.model.embedding_dim * searches + inputs
        spec = choose_engine(model.encoder, FeatureSpec.of(model.config, model.encoder))
        name = model.fingerprint if searches else fingerprint(model.fingerprint, "without embedding")
        return cls(model.encoder, spec, project, width, name)

    @classmethod
    def of_student(cls, encoder: ImageEncoder, config: Config) -> LocationEncoder:
        """Make a student's: features are the tokens of its scales side by side, or the mean token of a plain patch."""
        spec = choose_engine(encoder, FeatureSpec.of(config, encoder))

        def project(tokens: np.ndarray) -> np.ndarray:
            values = np.asarray(tokens, np.float32)
            return values.reshape(len(values), -1) if spec.scales_um else values.mean(axis=1)

        return cls(encoder, spec, project, encoder.dim, encoder.fingerprint())


def split_features(features: np.ndarray, model: TrainedModel) -> tuple[np.ndarray, np.ndarray | None]:
    """Split features of `LocationEncoder.of_model` into embeddings, to search the bank with, and inputs of the heads.

    Returns (locations, embedding), and (locations, components) or None where the model has no heads.
    """
    length = model.config.model.embedding_dim
    queries = np.ascontiguousarray(features[:, :length])
    return queries, None if model.head is None else np.ascontiguousarray(features[:, length:])


class LocationFeatures:
    """Features of locations of one slide, and on request the image statistics of the out-of-distribution detector.

    Parameters
    ----------
    spots : Spots
        Locations; of regions and slides, whose features are means, the members are encoded.
    anchor_px : array, shape (anchors, 2), optional
        Anchors of a fine map (`features.tokens`), whole locations, for dense features; the locations themselves when
        left out.
    window_um : float, optional
        Side of the locations' windows, with anchors; that of whole locations when left out.
    folder : Path, optional
        Where they are kept, and where a killed run continues; in memory when left out.
    """

    def __init__(
        self,
        encoder: LocationEncoder,
        slide: Slide,
        spots: Spots,
        folder: Path | None = None,
        *,
        anchor_px: np.ndarray | None = None,
        window_um: float | None = None,
        with_statistics: bool = False,
    ) -> None:
        spec, centre_px, self._spots = encoder.spec, spots.location_px, spots
        if spots.members is not None and not spec.scales_um:
            want = "one scale or more: regions and slides have the mean of the features of their locations"
            raise BadOption("features.scales_um", "none", want=want)
        counts = np.full(len(centre_px), spec.sub_windows if window_um is None else spec.sub_windows_in(window_um))
        self._anchors = 0
        if anchor_px is not None and spec.method == "dense":  # by patches they would have to be encoded
            self._anchors = len(anchor_px)
            centre_px = np.concatenate([anchor_px, centre_px])
            counts = np.concatenate([np.full(self._anchors, spec.sub_windows), counts])
        check_standardised(spec, self._anchors or len(centre_px), slide.name)
        self._encoder, self._slide, self._centre_px, self._sub_windows = encoder, slide, centre_px, counts
        facts = asdict(spec) | {"device": ""}  # the device changes nothing but rounding
        layers, width = encoder.kept_shape
        key = features_key(encoder.encoder, slide, centre_px, spec, counts)
        self.name = fingerprint(encoder.name, facts, key, self._anchors, spots.first_location)
        """Fingerprint of everything that the features depend on: neither bank nor genes."""
        chunks = np.stack([chunk_numbers(slide, centre_px, encoder.spec, layer) for layer in range(layers)])
        self.kept = ResumableFeatures((layers, len(centre_px), width), self.name, folder, chunks)
        self._statistics: ResumableFeatures | None = None
        if with_statistics:
            beside = None if folder is None else folder / "statistics"
            chunks = chunk_numbers(slide, centre_px, encoder.spec, STATISTICS)[None]
            self._statistics = ResumableFeatures((1, len(centre_px), len(STATISTIC_NAMES)), self.name, beside, chunks)
        self._tokens: SectionTokens | None = None

    def encode(self, cache: TokenCache | None = None, batch: int | Literal["auto"] = "auto") -> None:
        """Encode what is not kept yet, `batch` patches a forward pass; the cache is asked first."""
        encoder, spec = self._encoder, self._encoder.spec
        stores = {layer: (self.kept, layer) for layer in range(encoder.kept_shape[0])}
        if self._statistics is not None:
            stores[STATISTICS] = (self._statistics, 0)

        def done(rows: slice | np.ndarray, layer: int) -> bool:
            store, number = stores[layer]
            return store.has(rows, number)

        how = {"layers": tuple(stores), "done": done, "cache": cache, "batch": batch, "sub_windows": self._sub_windows}
        for rows, layer, values in extract_chunks(encoder.encoder, self._slide, self._centre_px, spec, **how):
            store, number = stores[layer]
            plain = layer != STATISTICS and not spec.scales_um
            store.keep(rows, encoder.project(values) if plain else values, number)
        release_engines()  # more than a gigabyte after large tiles, while the features are read
        if spec.scales_um:
            location_um, anchors = self._centre_px * known_scale(self._slide), self._anchors or None
            self._tokens = SectionTokens(self.kept.values(), location_um, spec, anchors, self._sub_windows)

    def take(self, rows: slice) -> np.ndarray:
        """Features (spots, width) float32 of some of the spots, once all are encoded; a slice, no step."""
        spots, which = self._spots, rows
        rows = slice(int(spots.first_location[rows.start]), int(spots.first_location[rows.stop]))
        rows = slice(rows.start + self._anchors, rows.stop + self._anchors)
        if self._tokens is None:
            return np.array(self.kept.values()[rows, 0])
        return self._encoder.project(spots.pooled(self._tokens.take(rows), which))

    def statistics(self) -> np.ndarray | None:
        """Return the image statistics of all spots, (spots, 9) float32; None where they were not requested."""
        if self._statistics is None:
            return None
        return self._spots.pooled(np.array(self._statistics.values()[self._anchors :, 0]))
