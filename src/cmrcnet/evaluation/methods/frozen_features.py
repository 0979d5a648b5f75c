"""Frozen features of any location: the mean of the config's image tokens, and simpler features as controls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from cmrcnet.config import Config
from cmrcnet.slides.section import Spots
from cmrcnet.slides.slide import Slide
from cmrcnet.storage.hashing import fingerprint

if TYPE_CHECKING:
    from cmrcnet.models.image_encoder import ImageEncoder
    from cmrcnet.storage.cache import TokenCache

FeatureKind = Literal["config", "last", "untrained", "colour"]
"""See `PooledFeatures.of`."""

_SPOTS_AT_A_TIME = 256
_COLOUR_FORMAT = 1  # counts up when the same patches would give other statistics


@dataclass(frozen=True, eq=False)
class PooledFeatures:
    """Features of any location on any slide, computed once and remembered.

    They come from the config's encoder as it is before any training, also where the config trains it: frozen
    features know no expression, so the test section's may be computed like any other's.
    """

    config: Config
    cache: TokenCache | None
    encoders: dict[str, ImageEncoder] = field(default_factory=dict, repr=False)
    known: dict[tuple[str, str], np.ndarray] = field(default_factory=dict, repr=False)

    def of(self, slide: Slide, spots: Spots, kind: FeatureKind = "config") -> np.ndarray:
        """Features of one kind: (spots, dim) float32.

        Parameters
        ----------
        kind : {"config", "last", "untrained", "colour"}
            The config's: mean token of each spot's patch, or all its scales. Or of one patch a spot: mean token of the
            encoder's last output, as HEST-Bench takes it; mean token of the same encoder and blocks with random
            weights; mean, deviation and 16-bin histogram of each channel (dim 54).
        """
        key = kind, fingerprint(slide.fingerprint(), spots.location_px, spots.first_location)
        if key not in self.known:
            if kind == "colour":
                found = self._colour(slide, spots)
            elif kind == "config" and self.config.features.scales_um:
                found = self._scales(slide, spots)
            else:
                found = self._pooled(kind, slide, spots)
            self.known[key] = spots.pooled(found)
        return self.known[key]

    def _scales(self, slide: Slide, spots: Spots) -> np.ndarray:
        from cmrcnet.features.extract import extract
        from cmrcnet.features.spec import FeatureSpec

        encoder = self._encoder("config")
        spec = FeatureSpec.of(self.config, encoder)
        tokens = extract(encoder, slide, spots.location_px, spec, cache=self.cache)
        return np.asarray(tokens, np.float32).reshape(len(tokens), -1)

    def _pooled(self, kind: str, slide: Slide, spots: Spots) -> np.ndarray:
        """Mean token of each spot's patch, from the encoder of this kind."""
        from cmrcnet.features.extract import extract
        from cmrcnet.features.spec import FeatureSpec

        run, engine = self.config.train, self.config.features.engine
        spec = FeatureSpec(patch=self.config.patch, engine=engine, device=run.device, precision=run.precision)
        tokens = extract(self._encoder(kind), slide, spots.location_px, spec, cache=self.cache)
        starts = range(0, len(tokens), _SPOTS_AT_A_TIME)
        return np.concatenate([np.asarray(tokens[i : i + _SPOTS_AT_A_TIME], np.float32).mean(axis=1) for i in starts])

    def _colour(self, slide: Slide, spots: Spots) -> np.ndarray:
        from cmrcnet.features.extract import location_key
        from cmrcnet.slides.patches import crop_patches

        name = fingerprint("colour", _COLOUR_FORMAT, location_key(slide, spots.location_px, self.config.patch))
        shape = (len(spots.location_px), WIDTH)
        known = self.cache.get("tokens", name, shape, np.float32) if self.cache is not None else None
        if known is not None:
            return np.array(known)
        patches = crop_patches(slide, spots.location_px, self.config.patch)
        found = np.concatenate([colour_statistics(some) for some in patches])
        if self.cache is not None:
            self.cache.put("tokens", name, shape, np.float32, [found])
        return found

    def _encoder(self, kind: str) -> ImageEncoder:
        if kind not in self.encoders:
            from cmrcnet.models.encoders import create_image_encoder

            model = self.config.model
            # Where the config's own encoder is random, the untrained one has other random weights.
            self.encoders[kind] = create_image_encoder(
                model.encoder,
                weights="random" if kind == "untrained" else model.weights,
                blocks=() if kind == "last" else model.blocks,
                depth=model.encoder_depth,
                heads=model.encoder_heads,
                seed=self.config.train.seed + (1 if kind == "untrained" else 0),
            )
        return self.encoders[kind]


BINS = 16
"""Of each channel's histogram."""

WIDTH = 3 * (2 + BINS)
"""Numbers a patch: mean, deviation and histogram of red, green and blue."""


def colour_statistics(patches: np.ndarray) -> np.ndarray:
    """Colour statistics (patches, 54) float32 of patches (patches, height, width, 3) uint8.

    Three means and three standard deviations (population form), both as shares of 255; then the shares of pixels in 16
    equal bins of red, of green, of blue.
    """
    pixels = patches.reshape(len(patches), -1, 3)
    mean = pixels.mean(axis=1, dtype=np.float64) / 255
    deviation = pixels.std(axis=1, dtype=np.float64) / 255
    bins = pixels.astype(np.int64) * BINS // 256
    slot = bins + BINS * np.arange(3) + 3 * BINS * np.arange(len(patches))[:, None, None]
    counts = np.bincount(slot.ravel(), minlength=len(patches) * 3 * BINS).reshape(len(patches), 3 * BINS)
    return np.concatenate([mean, deviation, counts / pixels.shape[1]], axis=1).astype(np.float32)
