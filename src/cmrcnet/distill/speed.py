"""How long a location takes a teacher and its student: in one process, on the same locations, all genes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cmrcnet.distill.student_config import passes_per_location
from cmrcnet.inference.location_features import LocationFeatures
from cmrcnet.inference.predictor import PredictOptions, Predictor, make_predictor
from cmrcnet.models.student import Student
from cmrcnet.models.trained_model import TrainedModel
from cmrcnet.retrieval.bank import ReferenceBank
from cmrcnet.slides.section import Spots
from cmrcnet.slides.slide import Slide

LOCATIONS, ENCODED = 512, 16
"""Locations that search and head are timed on, and those of them that are encoded as well, at most."""
_ROUNDS = 3
"""Teacher and student are timed in turn, so many times, and the quickest counts: other work on the machine, which comes
and goes, then weighs on both alike."""


def measure_speed(
    model: TrainedModel, bank: ReferenceBank, student: Student, slide: Slide, spots: Spots
) -> dict[str, Any]:
    """Seconds a location, without and with encoding.

    Parameters
    ----------
    model : TrainedModel
    bank : ReferenceBank
        Searched as it stands.
    student : Student
    slide : Slide
    spots : Spots
        On this slide; the first of them are predicted, over and over where they are few.

    Returns
    -------
    dict
        Plain values. Where both look alike, their encoding is the same work and is timed once.
    """
    few = spots.take(np.arange(min(ENCODED, len(spots))))
    options = PredictOptions()
    predictors = {"teacher": make_predictor(model, bank, options), "student": make_predictor(student, None, options)}
    alike = _looks(predictors["teacher"]) == _looks(predictors["student"])
    seen = {name: _encode(predictor, slide, few) for name, predictor in predictors.items()}
    many = np.resize(np.arange(len(few)), LOCATIONS)
    encoding, saying = dict.fromkeys(predictors, np.inf), dict.fromkeys(predictors, np.inf)
    for _ in range(_ROUNDS):
        for name, predictor in predictors.items():
            saying[name] = min(saying[name], _seconds(predictor.predict_chunk, seen[name][many]) / LOCATIONS)
            if name == "teacher" or not alike:
                encoding[name] = min(encoding[name], _seconds(_encode, predictor, slide, few) / len(few))
    if alike:
        encoding["student"] = encoding["teacher"]
    whole = {name: encoding[name] + saying[name] for name in predictors}
    return {
        "locations": LOCATIONS,
        "locations_encoded": len(few),
        "k": model.config.head.within(len(bank)).k,
        "bank_spots": len(bank),
        "genes": len(bank.genes),
        "search": "exact" if bank.index is None else bank.index["kind"],
        "teacher_passes": passes_per_location(model.config),
        "student_passes": passes_per_location(student.config),
        "teacher_seconds": saying["teacher"],
        "student_seconds": saying["student"],
        "times_faster": saying["teacher"] / saying["student"],
        "teacher_whole_seconds": whole["teacher"],
        "student_whole_seconds": whole["student"],
        "times_faster_whole": whole["teacher"] / whole["student"],
    }


def _encode(predictor: Predictor, slide: Slide, locations: Spots) -> np.ndarray:
    """Features of the locations, without any cache."""
    features = LocationFeatures(predictor.encoder, slide, locations.centre_px)
    features.encode()
    return features.take(slice(0, len(locations)))


def _looks(predictor: Predictor) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """What encoding a location depends on."""
    config = predictor.encoder.config.to_dict()
    return predictor.encoder.encoder.fingerprint(), config["features"], config["patch"]


def _seconds(job: Callable[..., object], *given: object) -> float:
    start = time.perf_counter()
    job(*given)
    return time.perf_counter() - start
