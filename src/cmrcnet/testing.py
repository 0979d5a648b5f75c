"""Assertions for the tests of new slide formats, readers and predictors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.config import Config
from cmrcnet.genes.table import check_prediction_table
from cmrcnet.slides.section import Section
from cmrcnet.slides.slide import WHITE, Slide, known_scale
from cmrcnet.slides.table_kinds import check_values

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["assert_prediction_table", "assert_section", "assert_slide", "quick_config"]


def assert_slide(slide: Slide) -> None:
    """Assert that a slide fulfils the `Slide` protocol: sizes, padding, equal parts, a stable fingerprint."""
    assert isinstance(slide, Slide), f"{type(slide).__name__} lacks an attribute or method of Slide"
    assert slide.downsamples[0] == 1, "downsamples must start with level 0"
    assert list(slide.downsamples) == sorted(slide.downsamples), "downsamples must not fall"
    width, height = min(slide.width_px, 97), min(slide.height_px, 61)
    x, y = (slide.width_px - width) // 2, (slide.height_px - height) // 2
    region = slide.read(x, y, width, height)
    assert region.dtype == np.uint8, f"read() gave {region.dtype}, not uint8"
    assert region.shape == (height, width, 3), f"read() gave {region.shape}, not (height, width, 3)"
    part = slide.read(x + width // 2, y + height // 3, 5, 4)
    expected = region[height // 3 : height // 3 + 4, width // 2 : width // 2 + 5]
    assert np.array_equal(part[: expected.shape[0], : expected.shape[1]], expected), "a part differs from the whole"
    corner = slide.read(-7, -5, 9, 8)
    assert corner.shape == (8, 9, 3), "a region over the corner has another shape than asked for"
    assert (corner[:5] == WHITE).all() and (corner[:, :7] == WHITE).all(), "outside the slide must be white"
    assert np.array_equal(corner[5:, 7:], slide.read(0, 0, 2, 3)), "padding moves the pixels"
    beyond = slide.read(slide.width_px + 10, slide.height_px + 10, 4, 3)
    assert (beyond == WHITE).all(), "beyond the slide must be white"
    assert slide.fingerprint() == slide.fingerprint(), "the fingerprint must not change"
    for level in range(len(slide.downsamples)):
        assert slide.read(0, 0, 6, 4, level).shape == (4, 6, 3), f"level {level} gave another shape than asked for"


def assert_section(section: Section) -> None:
    """Assert that a section can be trained on: raw counts, a known scale, spots on the slide, unique genes."""
    check_values(
        section.counts,
        section.table_kind,
        section.name,
        barcodes=section.spots.barcodes,
        features=section.genes,
    )
    assert known_scale(section.slide) > 0
    assert section.spots.diameter_um > 0, "the spots' diameter must be above 0"
    assert len(set(section.genes)) == len(section.genes), "genes are named twice"
    x, y = section.spots.centre_px.T
    inside = (x >= 0) & (y >= 0) & (x <= section.slide.width_px) & (y <= section.slide.height_px)
    assert inside.all(), f"{(~inside).sum()} spots lie outside the picture"


def assert_prediction_table(table: AnnData) -> None:
    """Assert that a table is a valid prediction table, also after it was written and read."""
    import tempfile
    from pathlib import Path

    import anndata

    check_prediction_table(table)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.h5ad"
        table.write_h5ad(path)
        again = anndata.read_h5ad(path)
    check_prediction_table(again)
    assert np.array_equal(np.asarray(table.X), np.asarray(again.X), equal_nan=True), "X changed on disk"
    assert list(table.obs_names) == list(again.obs_names), "the locations changed on disk"
    assert list(table.var_names) == list(again.var_names), "the genes changed on disk"


def quick_config() -> Config:
    """Return a config that trains in about a second: a tiny encoder with random weights, one scale, one epoch.

    Examples
    --------
    >>> from cmrcnet.testing import quick_config
    >>> quick_config().train.epochs
    1
    """
    return Config.load("tiny").override(
        {
            "model.encoder": "timm:test_vit",
            "model.weights": "random",
            "model.blocks": [],
            "model.embedding_dim": 16,
            "model.fusion_dim": 16,
            "patch.size_px": 160,
            "features.scales_um": [],
            "features.augmentations": 1,
            "panel.n_hvg": 20,
            "evaluation.set_size": 10,
            "train.epochs": 1,
            "train.device": "cpu",
            "head.k": 4,
        }
    )
