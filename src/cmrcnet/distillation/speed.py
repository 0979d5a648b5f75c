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

PLACES, ENCODED = 512, 32
"""Places that search and head are timed on, and those of them that are encoded as well, at most."""
_TIMES = 3


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
        Plain values; each time is the shortest of three.
    """
    few = spots.take(np.arange(min(ENCODED, len(spots))))
    teacher = plan_prediction(model, bank, slide, spots=few)
    pupil = plan_student(student, slide, spots=few)
    encoded, head, whole = {}, {}, {}
    for name, plan in (("teacher", teacher), ("student", pupil)):
        seen = _encode(plan)
        many = np.resize(np.arange(len(seen)), PLACES)
        encoded[name] = _shortest(lambda plan=plan: _encode(plan), 1) / len(few)
        head[name] = _shortest(lambda plan=plan, seen=seen[many]: plan.block(slice(0, PLACES), seen), _TIMES) / PLACES
        whole[name] = encoded[name] + head[name]
    return {
        "places": PLACES,
        "places_encoded": len(few),
        "k": teacher.readout.k,
        "bank_spots": len(bank),
        "genes": len(bank.genes),
        "search": "exact" if bank.search is None else bank.search["kind"],
        "teacher_passes": passes_a_place(model.recipe),
        "student_passes": passes_a_place(student.recipe),
        "teacher_seconds": head["teacher"],
        "student_seconds": head["student"],
        "times_faster": head["teacher"] / head["student"],
        "teacher_whole_seconds": whole["teacher"],
        "student_whole_seconds": whole["student"],
        "times_faster_whole": whole["teacher"] / whole["student"],
    }


def _encode(plan: Plan) -> np.ndarray:
    """Encode the plan's places, without any cache."""
    features = PlaceFeatures(plan.sight, plan.slide, plan.places.centre_px)
    features.encode()
    return features.take(slice(0, len(plan.places)))


def _shortest(job: Callable[[], object], times: int) -> float:
    """Seconds of the quickest of so many runs."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        job()
        taken.append(time.perf_counter() - start)
    return min(taken)
