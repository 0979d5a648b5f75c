"""The frozen features that every baseline sees: the mean of the recipe's image tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.fingerprint import fingerprint
from cmrcnet.recipe import Recipe
from cmrcnet.tissue.slide import Slide
from cmrcnet.tissue.spots import Spots

if TYPE_CHECKING:
    from cmrcnet.encoding.token_cache import TokenCache
    from cmrcnet.model.image_encoder import ImageEncoder

_SPOTS_AT_A_TIME = 256


class PooledFeatures:
    """Features of any place on any slide, computed once and remembered.

    They come from the recipe's encoder as it is before any training, also where the recipe trains it: frozen
    features know no expression, so the test section's may be computed like any other's.

    Parameters
    ----------
    recipe : Recipe
    cache : TokenCache or None
    """

    def __init__(self, recipe: Recipe, cache: TokenCache | None) -> None:
        self._recipe, self._cache = recipe, cache
        self._encoder: ImageEncoder | None = None
        self._known: dict[str, np.ndarray] = {}

    def of(self, slide: Slide, spots: Spots) -> np.ndarray:
        """Mean token of each spot's patch: (spots, dim) float32."""
        key = fingerprint(slide.fingerprint(), spots.centre_px)
        if key not in self._known:
            self._known[key] = self._pool(slide, spots)
        return self._known[key]

    def _pool(self, slide: Slide, spots: Spots) -> np.ndarray:
        from cmrcnet.encoding.spot_tokens import spot_tokens

        tokens = spot_tokens(self._frozen_encoder(), slide, spots.centre_px, self._recipe, cache=self._cache)
        if self._recipe.features.views_um:
            return np.asarray(tokens, np.float32).reshape(len(tokens), -1)
        blocks = range(0, len(tokens), _SPOTS_AT_A_TIME)
        return np.concatenate([np.asarray(tokens[b : b + _SPOTS_AT_A_TIME], np.float32).mean(axis=1) for b in blocks])

    def _frozen_encoder(self) -> ImageEncoder:
        if self._encoder is None:
            from cmrcnet.model.encoder_registry import create_image_encoder

            model = self._recipe.model
            self._encoder = create_image_encoder(
                model.encoder,
                weights=model.weights,
                blocks=model.blocks,
                depth=model.encoder_depth,
                heads=model.encoder_heads,
                seed=self._recipe.train.seed,
            )
        return self._encoder
