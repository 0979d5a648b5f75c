"""A prediction made by hand, on disk, with the cohort of its bank and the section that was measured on its slide."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cmrcnet.export.stored_prediction import StoredPrediction
from cmrcnet.genes.table import prediction_table
from cmrcnet.slides.section import Cohort, Section, Spots
from cmrcnet.slides.slide import ArraySlide
from cmrcnet.viewer.overlay import PredictedSlide, predicted_slide

pytest.importorskip("bokeh", reason="needs cmrcnet[view]")

GENES = tuple(f"GENE{number}" for number in range(12))
SPOTS, K = 12, 5


def section(name: str, patient: str) -> Section:
    """Random counts at 12 spots, three rows of four, of a slide of coloured noise: 400 x 400 px of half a um."""
    rng = np.random.default_rng(list(name.encode()))
    pixels = rng.integers(60, 256, (400, 400, 3)).astype(np.uint8)
    centres = np.stack(np.meshgrid(np.arange(4) * 90 + 60, np.arange(3) * 120 + 70), axis=-1).reshape(-1, 2)
    counts = sparse.csr_matrix(rng.poisson(3.0, (SPOTS, len(GENES))).astype(np.float32))
    spots = Spots(tuple(f"spot{number}" for number in range(SPOTS)), centres, 30.0)
    return Section(name, patient, ArraySlide(pixels, 0.5, name), spots, counts, GENES, "zero")


@pytest.fixture(scope="session")
def small_bank_cohort() -> Cohort:
    """The bank's sections A1 and B1, and C1, whose slide is predicted."""
    return Cohort.of([section("A1", "A"), section("B1", "B"), section("C1", "C")], "small")


def write_table(path: Path, held_out: Section, cohort: Cohort) -> Path:
    """A prediction table of a section at its spots, from a bank of A1 and B1."""
    rng = np.random.default_rng(3)
    near = SimpleNamespace(ids=rng.integers(0, 2 * SPOTS, (SPOTS, K)), similarity=rng.uniform(0.2, 0.9, (SPOTS, K)))
    mean = rng.gamma(2.0, 1.0, (SPOTS, len(GENES)))
    provenance = {"head_weights": {"retrieval": 1.0}, "patch_px": 64, "patch_mpp": 0.5}
    table = prediction_table(
        mean, mean / 3, genes=GENES, spots=held_out.spots, slide=held_out.slide, neighbours=near, provenance=provenance
    )  # fmt: skip
    table.obsm["neighbour_weight"] = np.full((SPOTS, K), 1 / K)
    bank = [cohort.read(name) for name in ("A1", "B1")]
    table.uns["cmrcnet"]["neighbour_spots"] = pd.DataFrame(
        {
            "section": np.repeat([each.name for each in bank], SPOTS),
            "patient": np.repeat([each.patient for each in bank], SPOTS),
            "barcode": [barcode for each in bank for barcode in each.spots.barcodes],
            "x": np.concatenate([each.spots.centre_px[:, 0] for each in bank]),
            "y": np.concatenate([each.spots.centre_px[:, 1] for each in bank]),
        },
        index=[str(row) for row in range(2 * SPOTS)],
    )
    table.write_h5ad(path)
    return path


@pytest.fixture(scope="session")
def stored_path(tmp_path_factory, small_bank_cohort) -> Path:
    """The prediction table of C1."""
    return write_table(tmp_path_factory.mktemp("view") / "C1.h5ad", small_bank_cohort.read("C1"), small_bank_cohort)


@pytest.fixture
def viewed(stored_path, small_bank_cohort) -> PredictedSlide:
    """It with its slide and what was measured there."""
    return predicted_slide(StoredPrediction(stored_path), cohort=small_bank_cohort, truth="C1")
