"""How long a location takes a teacher and its student: in one process, on the same locations, all genes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cmrcnet.distill.student_config import passes_per_location
from cmrcnet.inference.location_features import LocationFeatures
from cmrcnet.inference.plan import Plan, plan_prediction
from cmrcnet.inference.student_plan import plan_student
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
    teacher = plan_prediction(model, bank, slide, spots=few)
    pupil = plan_student(student, slide, spots=few)
    plans: dict[str, Plan] = {"teacher": teacher, "student": pupil}
    alike = _looks(teacher) == _looks(pupil)
    seen = {name: _encode(plan) for name, plan in plans.items()}
    many = np.resize(np.arange(len(few)), LOCATIONS)
    encoding, saying = dict.fromkeys(plans, np.inf), dict.fromkeys(plans, np.inf)
    for _ in range(_ROUNDS):
        for name, plan in plans.items():
            saying[name] = min(saying[name], _seconds(plan.block, slice(0, LOCATIONS), seen[name][many]) / LOCATIONS)
            if name == "teacher" or not alike:
                encoding[name] = min(encoding[name], _seconds(_encode, plan) / len(few))
    if alike:
        encoding["student"] = encoding["teacher"]
    whole = {name: encoding[name] + saying[name] for name in plans}
    return {
        "locations": LOCATIONS,
        "locations_encoded": len(few),
        "k": teacher.head.k,
        "bank_spots": len(bank),
        "genes": len(bank.genes),
        "search": "exact" if bank.search is None else bank.search["kind"],
        "teacher_passes": passes_per_location(model.config),
        "student_passes": passes_per_location(student.config),
        "teacher_seconds": saying["teacher"],
        "student_seconds": saying["student"],
        "times_faster": saying["teacher"] / saying["student"],
        "teacher_whole_seconds": whole["teacher"],
        "student_whole_seconds": whole["student"],
        "times_faster_whole": whole["teacher"] / whole["student"],
    }


def _encode(plan: Plan) -> np.ndarray:
    """Encode the plan's locations, without any cache."""
    features = LocationFeatures(plan.sight, plan.slide, plan.locations.centre_px)
    features.encode()
    return features.take(slice(0, len(plan.locations)))


def _looks(plan: Plan) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """What encoding a location depends on."""
    config = plan.sight.config.to_dict()
    return plan.sight.encoder.fingerprint(), config["features"], config["patch"]


def _seconds(job: Callable[..., object], *given: object) -> float:
    start = time.perf_counter()
    job(*given)
    return time.perf_counter() - start
