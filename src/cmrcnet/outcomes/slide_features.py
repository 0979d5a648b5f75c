"""Image features of a slide's locations for comparison: an encoder trained on ImageNet, and the model's embedding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cmrcnet.config import Config
from cmrcnet.errors import Incompatible
from cmrcnet.evaluation.methods.frozen_features import PooledFeatures
from cmrcnet.evaluation.protocol.folds import refuse_seen
from cmrcnet.export.stored_prediction import StoredPrediction
from cmrcnet.inference.location_features import LocationEncoder, LocationFeatures, split_features
from cmrcnet.models.trained_model import TrainedModel
from cmrcnet.slides.section import Spots
from cmrcnet.slides.slide import Slide
from cmrcnet.storage.cache import TokenCache


class SlideFeatures:
    """Computes the pooled vectors "imagenet" and, with a model, "embedding" of slides.

    Parameters
    ----------
    cache : TokenCache or None
        Where features are kept.
    patients : sequence of str
        Of the outcome cohort; a model that has seen one of them is refused.
    model : TrainedModel, optional
        The expression model.

    Raises
    ------
    Leakage
    """

    def __init__(self, cache: TokenCache | None, patients: Sequence[str], model: TrainedModel | None = None) -> None:
        self._cache, self._model = cache, model
        self._frozen = PooledFeatures(Config.load("default"), cache)
        self._encoder = None
        if model is not None:
            seen = model.provenance.patients
            refuse_seen("The model", seen_sections=(), seen_patients=seen, sections=(), patients=patients)
            self._encoder = LocationEncoder.of_model(model)

    def of(self, slide: Slide, table: StoredPrediction) -> dict[str, np.ndarray]:
        """Mean features over the table's locations on tissue.

        Raises
        ------
        Incompatible
            The slide is not the one that was predicted.
        Leakage
            The model was trained on a section that is called as the slide.
        """
        if self._model is not None:
            seen, names = self._model.provenance.sections, dict.fromkeys((slide.name, str(table.facts["slide"])))
            refuse_seen("The model", seen_sections=seen, seen_patients=(), sections=names)
        if slide.fingerprint() != table.facts["slide_fingerprint"]:
            raise Incompatible(slide.name, f"{table.path} was predicted on another slide", "name that one as image")
        tissue = table.obs["in_tissue"].to_numpy() == 1
        names = tuple(map(str, table.obs.index[tissue]))
        spots = Spots(names, table.centre_px[tissue], float(table.facts["spot_diameter_um"]))
        found = {"imagenet": self._frozen.of(slide, spots, "last").mean(axis=0, dtype=np.float64)}
        if self._encoder is not None and self._model is not None:
            located = LocationFeatures(self._encoder, slide, spots)
            located.encode(self._cache)
            embedding, _ = split_features(located.take(slice(0, len(spots))), self._model)
            found["embedding"] = embedding.mean(axis=0, dtype=np.float64)
        return found
