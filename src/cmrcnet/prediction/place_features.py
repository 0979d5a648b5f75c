"""What is seen of each place of a slide: encoded once, part by part, and read some places at a time.

With views (the default recipe) a place's tokens depend on all places of the slide, through their neighbourhood and
the section's standardisation: the draft keeps one vector a view and place, and tokens are made of them when they are
read. Without views a place is looked at by itself: the draft keeps what its sight makes of its tokens (for a model its
embedding and, where the readout needs them, its reduced features), which is a hundred times smaller than its tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from cmrcnet.encoding.encode import encode_parts
from cmrcnet.encoding.feature_draft import FeatureDraft
from cmrcnet.encoding.section_tokens import SectionTokens
from cmrcnet.encoding.spot_tokens import view_scales
from cmrcnet.encoding.view_features import view_parts
from cmrcnet.fingerprint import fingerprint
from cmrcnet.prediction.sight import Sight
from cmrcnet.tissue.slide import Slide, known_scale

if TYPE_CHECKING:
    from cmrcnet.encoding.token_cache import TokenCache


class PlaceFeatures:
    """Features of places of a slide.

    Parameters
    ----------
    sight : Sight
        How they are looked at.
    slide : Slide
    centre_px : array, shape (places, 2)
    folder : Path, optional
        Where they are kept, and where a killed run goes on; in memory when left out.
    """

    def __init__(self, sight: Sight, slide: Slide, centre_px: np.ndarray, folder: Path | None = None) -> None:
        self._sight, self._slide, self._centre_px = sight, slide, centre_px
        width = sight.encoder.dim if sight.views else sight.width
        shape = (max(sight.views, 1), len(centre_px), width)
        self.draft = FeatureDraft(shape, features_name(sight, slide, centre_px), folder)
        self._tokens: SectionTokens | None = None

    def encode(self, cache: TokenCache | None = None, batch: int | Literal["auto"] = "auto") -> None:
        """Encode what the draft does not hold yet.

        Parameters
        ----------
        cache : TokenCache, optional
            Asked first, and given what is encoded.
        batch : int or "auto"
            Patches a forward pass.
        """
        sight, draft, recipe = self._sight, self.draft, self._sight.recipe
        how = {"cache": cache, "batch": batch, "device": recipe.train.device, "precision": recipe.train.precision}
        where = (sight.encoder, self._slide, self._centre_px)
        if not sight.views:
            for rows, tokens in encode_parts(*where, recipe.patch, done=draft.has, **how):
                draft.keep(rows, sight.condense(tokens))
            return
        turns = recipe.features.orientations
        for rows, view, values in view_parts(*where, view_scales(recipe), orientations=turns, done=draft.has, **how):
            draft.keep(rows, values, view)
        place_um = self._centre_px * known_scale(self._slide)
        self._tokens = SectionTokens(draft.values(), place_um, recipe.features)

    def take(self, rows: slice) -> np.ndarray:
        """What some places look like, once all are encoded.

        Parameters
        ----------
        rows : slice

        Returns
        -------
        numpy.ndarray, shape (places, width), float32
            As the sight condenses their tokens.
        """
        if self._tokens is None:
            return np.array(self.draft.values()[rows, 0])
        return self._sight.condense(self._tokens.take(rows))


def features_name(sight: Sight, slide: Slide, centre_px: np.ndarray) -> str:
    """Name of the features of places: whatever they depend on, so neither bank nor genes.

    Parameters
    ----------
    sight : Sight
    slide : Slide
    centre_px : array, shape (places, 2)
    """
    recipe = sight.recipe.to_dict()
    looks = {name: recipe[name] for name in ("features", "patch")} | {"precision": recipe["train"]["precision"]}
    return fingerprint(sight.name, looks, slide.fingerprint(), slide.um_per_px, centre_px)
