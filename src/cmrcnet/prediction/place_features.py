"""What the model sees of each place of a slide: encoded once, part by part, and read some places at a time.

With views (the default recipe) a place's tokens depend on all places of the slide, through their neighbourhood and
the section's standardisation: the draft keeps one vector a view and place, and tokens are made of them when they are
read. Without views a place is looked at by itself: the draft keeps its embedding and, where the readout needs them, its
reduced features, which are a hundred times smaller than its tokens.
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
from cmrcnet.prediction.plan import PredictionPlan
from cmrcnet.tissue.slide import known_scale

if TYPE_CHECKING:
    from cmrcnet.encoding.token_cache import TokenCache


class PlaceFeatures:
    """Features of the places of a plan.

    Parameters
    ----------
    plan : PredictionPlan
    folder : Path, optional
        Where they are kept, and where a killed run goes on; in memory when left out.
    """

    def __init__(self, plan: PredictionPlan, folder: Path | None = None) -> None:
        self._plan = plan
        model, views = plan.model, len(plan.model.recipe.features.views_um)
        width = model.encoder.dim
        if not views:
            components = 0 if model.readout is None else model.readout.reduction.directions.shape[1]
            width = model.recipe.model.embedding_dim + components
        self.draft = FeatureDraft((max(views, 1), len(plan.places), width), plan.features_name, folder)
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
        plan, draft = self._plan, self.draft
        model, run = plan.model, plan.model.recipe.train
        how = {"cache": cache, "batch": batch, "device": run.device, "precision": run.precision}
        where = (model.encoder, plan.slide, plan.places.centre_px)
        if not model.recipe.features.views_um:
            for rows, tokens in encode_parts(*where, model.scale, done=draft.has, **how):
                seen = [model.embed_tokens(tokens)]
                if model.readout is not None:
                    seen.append(model.readout.reduction.apply(tokens))
                draft.keep(rows, np.concatenate(seen, axis=1))
            return
        turns = model.recipe.features.orientations
        for rows, view, values in view_parts(
            *where, view_scales(model.recipe), orientations=turns, done=draft.has, **how
        ):
            draft.keep(rows, values, view)
        place_um = plan.places.centre_px * known_scale(plan.slide)
        self._tokens = SectionTokens(draft.values(), place_um, model.recipe.features)

    def take(self, rows: slice) -> tuple[np.ndarray, np.ndarray | None]:
        """What some places look like, once all are encoded.

        Parameters
        ----------
        rows : slice

        Returns
        -------
        queries : numpy.ndarray, shape (places, embedding), float32
            To search the bank with.
        features : numpy.ndarray, shape (places, components), float32, or None
            Reduced, for the readout; None where the model has none.
        """
        model = self._plan.model
        if self._tokens is None:
            kept = np.array(self.draft.values()[rows, 0])
            length = model.recipe.model.embedding_dim
            return np.ascontiguousarray(kept[:, :length]), None if model.readout is None else kept[:, length:]
        tokens = self._tokens.take(rows)
        reduced = None if model.readout is None else model.readout.reduction.apply(tokens)
        return model.embed_tokens(tokens), reduced
