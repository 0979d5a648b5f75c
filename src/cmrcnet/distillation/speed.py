"""How long a place takes a teacher and its student: in one process, on the same places, all genes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cmrcnet.distillation.student_look import passes_a_place
from cmrcnet.model.student import Student
from cmrcnet.model.trained_model import TrainedModel
from cmrcnet.prediction.bank import ReferenceBank
from cmrcnet.prediction.place_features import PlaceFeatures
from cmrcnet.prediction.plan import Plan, plan_prediction
from cmrcnet.prediction.student_plan import plan_student
from cmrcnet.tissue.slide import Slide
from cmrcnet.tissue.spots import Spots

PLACES, ENCODED = 512, 16
"""Places that search and head are timed on, and those of them that are encoded as well, at most."""
_ROUNDS = 3
"""Teacher and student are timed in turn, so many times, and the quickest counts: other work on the machine, which comes
and goes, then weighs on both alike."""


def measure_speed(
    model: TrainedModel, bank: ReferenceBank, student: Student, slide: Slide, spots: Spots
) -> dict[str, Any]:
    """Seconds a place, without and with encoding.

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
    many = np.resize(np.arange(len(few)), PLACES)
    encoding, saying = dict.fromkeys(plans, np.inf), dict.fromkeys(plans, np.inf)
    for _ in range(_ROUNDS):
        for name, plan in plans.items():
            saying[name] = min(saying[name], _seconds(plan.block, slice(0, PLACES), seen[name][many]) / PLACES)
            if name == "teacher" or not alike:
                encoding[name] = min(encoding[name], _seconds(_encode, plan) / len(few))
    if alike:
        encoding["student"] = encoding["teacher"]
    whole = {name: encoding[name] + saying[name] for name in plans}
    return {
        "places": PLACES,
        "places_encoded": len(few),
        "k": teacher.readout.k,
        "bank_spots": len(bank),
        "genes": len(bank.genes),
        "search": "exact" if bank.search is None else bank.search["kind"],
        "teacher_passes": passes_a_place(model.recipe),
        "student_passes": passes_a_place(student.recipe),
        "teacher_seconds": saying["teacher"],
        "student_seconds": saying["student"],
        "times_faster": saying["teacher"] / saying["student"],
        "teacher_whole_seconds": whole["teacher"],
        "student_whole_seconds": whole["student"],
        "times_faster_whole": whole["teacher"] / whole["student"],
    }


def _encode(plan: Plan) -> np.ndarray:
    """Encode the plan's places, without any cache."""
    features = PlaceFeatures(plan.sight, plan.slide, plan.places.centre_px)
    features.encode()
    return features.take(slice(0, len(plan.places)))


def _looks(plan: Plan) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """What encoding a place depends on."""
    recipe = plan.sight.recipe.to_dict()
    return plan.sight.encoder.fingerprint(), recipe["features"], recipe["patch"]


def _seconds(job: Callable[..., object], *given: object) -> float:
    start = time.perf_counter()
    job(*given)
    return time.perf_counter() - start
