"""What is seen of each location of a slide: encoded once, part by part, and read some locations at a time.

With views (the default config) a location's tokens depend on all locations of the slide, through their neighbourhood
and
the section's standardisation: the tmp keeps one vector a view and place, and tokens are made of them when they are
read. Without views a location is looked at by itself: the tmp keeps what its sight makes of its tokens (for a model its
embedding and, where the head needs them, its reduced features), which is a hundred times smaller than its tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from cmrcnet.features.encode import encode_parts
from cmrcnet.features.resumable import ResumableFeatures
from cmrcnet.features.section_tokens import SectionTokens
from cmrcnet.features.spot_tokens import view_scales
from cmrcnet.features.view_features import view_parts
from cmrcnet.inference.feature_spec import Sight
from cmrcnet.slides.slide import Slide, known_scale
from cmrcnet.storage.hashing import fingerprint

if TYPE_CHECKING:
    from cmrcnet.storage.cache import TokenCache


class LocationFeatures:
    """Features of locations of a slide.

    Parameters
    ----------
    sight : Sight
        How they are looked at.
    slide : Slide
    centre_px : array, shape (locations, 2)
    folder : Path, optional
        Where they are kept, and where a killed run goes on; in memory when left out.
    """

    def __init__(self, sight: Sight, slide: Slide, centre_px: np.ndarray, folder: Path | None = None) -> None:
        self._sight, self._slide, self._centre_px = sight, slide, centre_px
        width = sight.encoder.dim if sight.views else sight.width
        shape = (max(sight.views, 1), len(centre_px), width)
        self.tmp = ResumableFeatures(shape, features_name(sight, slide, centre_px), folder)
        self._tokens: SectionTokens | None = None

    def encode(self, cache: TokenCache | None = None, batch: int | Literal["auto"] = "auto") -> None:
        """Encode what the tmp does not hold yet.

        Parameters
        ----------
        cache : TokenCache, optional
            Asked first, and given what is encoded.
        batch : int or "auto"
            Patches a forward pass.
        """
        sight, tmp, config = self._sight, self.tmp, self._sight.config
        how = {"cache": cache, "batch": batch, "device": config.train.device, "precision": config.train.precision}
        where = (sight.encoder, self._slide, self._centre_px)
        if not sight.views:
            for rows, tokens in encode_parts(*where, config.patch, done=tmp.has, **how):
                tmp.keep(rows, sight.condense(tokens))
            return
        turns = config.features.orientations
        for rows, view, values in view_parts(*where, view_scales(config), orientations=turns, done=tmp.has, **how):
            tmp.keep(rows, values, view)
        location_um = self._centre_px * known_scale(self._slide)
        self._tokens = SectionTokens(tmp.values(), location_um, config.features)

    def take(self, rows: slice) -> np.ndarray:
        """What some locations look like, once all are encoded.

        Parameters
        ----------
        rows : slice

        Returns
        -------
        numpy.ndarray, shape (locations, width), float32
            As the sight condenses their tokens.
        """
        if self._tokens is None:
            return np.array(self.tmp.values()[rows, 0])
        return self._sight.condense(self._tokens.take(rows))


def features_name(sight: Sight, slide: Slide, centre_px: np.ndarray) -> str:
    """Name of the features of locations: whatever they depend on, so neither bank nor genes.

    Parameters
    ----------
    sight : Sight
    slide : Slide
    centre_px : array, shape (locations, 2)
    """
    config = sight.config.to_dict()
    looks = {name: config[name] for name in ("features", "patch")} | {"precision": config["train"]["precision"]}
    return fingerprint(sight.name, looks, slide.fingerprint(), slide.mpp, centre_px)
