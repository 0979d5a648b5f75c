"""Slides with a planted region programme: made prediction tables, without any picture being encoded."""

from __future__ import annotations

import numpy as np
import pandas as pd

from cmrcnet.datasets.synthetic_anatomy import smooth_noise
from cmrcnet.outcomes.cohort import OutcomeCohort, cohort_of_table
from cmrcnet.outcomes.pooling import SlideStack, SlideValues, with_slides

SIDE = 8
GENES = ("IMMUNE1", "IMMUNE2", "IMMUNE3", "TUMOUR1", "TUMOUR2", "FAT1", "FAT2", "STEADY1")
SIGNATURES = {"immune": GENES[:3], "tumour": GENES[3:5], "fat": GENES[5:7]}


def made_slides(
    patients: int = 120, *, strength: float = 2.0, confounded: bool = False, seed: int = 0, twice: int = 3
) -> tuple[pd.DataFrame, list[SlideValues]]:
    """Patients whose hazard falls with the share of immune regions; the first `twice` have two slides.

    `confounded`: the hazard follows the scanner in place of the tissue; the scanner tints the picture and, as a stain
    does, shifts every predicted gene. Column `oracle` is the log hazard that was planted.
    """
    rng = np.random.default_rng(seed)
    centres = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1).reshape(-1, 2) * 100.0 + 50
    slides, oracle = [], np.empty(patients)
    scanner = rng.integers(0, 2, patients)
    for patient in range(patients):
        level = rng.normal()
        for number in range(2 if patient < twice else 1):
            fields = [smooth_noise(rng, (SIDE, SIDE), 1.5).ravel() for _ in range(3)]
            inside = np.stack([fields[0] + level > 0.7, fields[1] > 0, fields[2] > 0.5]).astype(float)
            truth = np.repeat(inside, [3, 2, 2], axis=0).T
            values = np.column_stack([1 + truth, np.ones(SIDE**2)]) + rng.normal(0, 0.3, (SIDE**2, len(GENES)))
            if confounded:
                values = values + 0.3 * scanner[patient]
            tint = np.array([200, 150, 190]) - (25 * scanner[patient] if confounded else 0)
            picture = np.clip(tint + rng.normal(0, 6, (SIDE * 4, SIDE * 4, 3)), 0, 255).astype(np.uint8)
            facts = {"units": "log", "model_fingerprint": "m", "slide_fingerprint": (patient, number)}
            name = f"s{patient}-{number}"
            from cmrcnet.outcomes.pooling import slide_colour

            pooled = {"colour": slide_colour(picture, 25.0, centres, 100.0)}
            expression = values.astype(np.float32)
            slides.append(
                SlideValues(name, f"p{patient}", GENES, centres, 100.0, expression, picture, 25.0, facts, pooled)
            )
        oracle[patient] = scanner[patient] * 2.0 if confounded else -strength * inside[0].mean() * 4
    hazard = np.exp(oracle - oracle.mean())
    life, left = rng.exponential(1 / hazard), rng.exponential(2.5, patients)
    table = pd.DataFrame({"patient": [f"p{i}" for i in range(patients)], "months": np.minimum(life, left) + 1e-3})
    table["dead"], table["oracle"] = (life <= left).astype(float), oracle
    table["age"] = rng.normal(60, 8, patients)
    return table, slides


def made_cohort(patients: int = 120, **options) -> tuple[OutcomeCohort, pd.DataFrame]:
    table, slides = made_slides(patients, **options)
    cohort = cohort_of_table(
        table, name="made slides", time="months", event="dead", clinical=["age"], features=[], leave_out=["oracle"]
    )
    return with_slides(cohort, SlideStack.of(slides, cohort.cases), SIGNATURES), table
