"""A prediction table whose right pictures are known: genes are gradients over a grid with a hole."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pytest

from cmrcnet.export.stored_prediction import StoredPrediction
from cmrcnet.genes.table import prediction_table
from cmrcnet.search.exact import Neighbours
from cmrcnet.slides.section import Spots
from cmrcnet.slides.slide import ArraySlide

COLUMNS, ROWS, PITCH_PX, MPP = 7, 5, 100, 0.5
GENES = ("ACROSS", "DOWN", "UNMEASURED")


def gradient_table() -> anndata.AnnData:
    """34 of 35 locations; ACROSS is the column, DOWN the row, UNMEASURED is NaN on the left."""
    row, column = (index.ravel() for index in np.meshgrid(np.arange(ROWS), np.arange(COLUMNS), indexing="ij"))
    kept = (row != 2) | (column != 3)
    row, column = row[kept], column[kept]
    mean = np.column_stack([column, row, np.where(column < 2, np.nan, 1)]).astype(np.float32)
    pixels = np.full((ROWS * PITCH_PX, COLUMNS * PITCH_PX, 3), (200, 120, 180), np.uint8)
    return prediction_table(
        mean,
        mean * 0.1,
        genes=GENES,
        spots=Spots(
            tuple(f"x{c:05d}y{r:05d}" for r, c in zip(row, column, strict=True)),
            (np.column_stack([column, row]) + 0.5) * PITCH_PX,
            PITCH_PX * MPP,
        ),
        slide=ArraySlide(pixels, MPP, "gradient"),
        neighbours=Neighbours(np.zeros((34, 2), np.int64), np.full((34, 2), 0.75, np.float32)),
        provenance={},
        reliability={"ACROSS": 0.5},
    )


@pytest.fixture(scope="session")
def stored(tmp_path_factory) -> Path:
    """The table's file."""
    path = tmp_path_factory.mktemp("table") / "gradient.h5ad"
    gradient_table().write_h5ad(path)
    return path


@pytest.fixture
def prediction(stored):
    with StoredPrediction(stored) as table:
        yield table
