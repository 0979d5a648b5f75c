"""Values over a slide, and their raster against the obvious one."""

from __future__ import annotations

import numpy as np
import pytest

from cmrcnet.analysis.localisation import measured_expression
from cmrcnet.errors import BadOption, ScaleError, UnknownName
from cmrcnet.export.stored_prediction import StoredPrediction
from cmrcnet.slides.slide import ArraySlide
from cmrcnet.viewer import overlay
from cmrcnet.viewer.overlay import cell_um, colour_range, genes_by_reliability, predicted_slide, raster


def grid(columns: int, rows: int, side: float) -> np.ndarray:
    x, y = np.meshgrid(np.arange(columns), np.arange(rows))
    return (np.stack([x.ravel(), y.ravel()], 1) + 0.5) * side + (37.3, 11.9)


def test_cells_of_a_grid_are_its_locations():
    values = np.arange(12, dtype=np.float32)
    found = raster(grid(4, 3, 50.0), values, 50.0, (37.3, 11.9, 237.3, 161.9))
    size = round(50 / cell_um(50.0, 200, 150))
    assert size == overlay.FINEST
    np.testing.assert_array_equal(found.cells, np.repeat(np.repeat(values.reshape(3, 4), size, 0), size, 1))
    np.testing.assert_allclose(found[1:], (37.3, 11.9, 237.3, 161.9))


@pytest.mark.parametrize("cells", [1024, 40, 12])
def test_a_raster_equals_the_obvious_one(monkeypatch, cells):
    monkeypatch.setattr(overlay, "RASTER_PX", cells)
    rng = np.random.default_rng(1)
    centres, values = rng.uniform(0, 1000, (150, 2)), rng.normal(size=150).astype(np.float32)
    values[:9] = np.nan
    found = raster(centres, values, 40.0, (200.0, 100.0, 900.0, 700.0))
    rows, columns = found.cells.shape
    cell = (found.right - found.left) / columns
    assert max(rows, columns) <= cells + 1 and found.left <= 200 and found.bottom >= 700
    middle = found.left + (np.arange(columns) + 0.5) * cell, found.top + (np.arange(rows) + 0.5) * cell
    half = max(40.0, cell) / 2
    for row in range(0, rows, max(1, rows // 40)):
        for column in range(0, columns, max(1, columns // 40)):
            away = np.abs(centres - (middle[0][column], middle[1][row]))
            near = values[(away < half).all(axis=1) & np.isfinite(values)]
            expected = near.mean() if len(near) else np.nan
            np.testing.assert_allclose(found.cells[row, column], expected, rtol=1e-5, atol=1e-6)


def test_a_colour_range_is_never_empty():
    assert colour_range(np.array([np.nan])) == (0, 1)
    assert colour_range(np.array([2.0, 2.0])) == (1.5, 2.5)
    assert colour_range(np.arange(101.0)) == (1.0, 99.0)
    assert colour_range(np.r_[np.zeros(999), 1.0]) == (0.0, 1.0)  # rare, and still shown


def test_values_are_those_of_the_table_and_of_the_section(viewed, small_bank_cohort):
    gene = viewed.prediction.genes[1]
    np.testing.assert_array_equal(viewed.values("Expression", gene).values, viewed.prediction.rows(slice(None))[:, 1])
    spread = viewed.prediction.rows(slice(None), "neighbour_std")[:, 1]
    np.testing.assert_array_equal(viewed.values("Spread among the neighbours", gene).values, spread)
    section = small_bank_cohort.read("C1")
    measured = measured_expression(section, [gene])[gene].to_numpy()
    np.testing.assert_allclose(viewed.measured("Expression", gene), measured, rtol=1e-6)
    predicted = viewed.values("Expression", gene).values
    np.testing.assert_allclose(viewed.error(predicted, measured), predicted - measured, rtol=1e-5)
    with pytest.raises(UnknownName, match="There is no quantity in this prediction 'Beauty'"):
        viewed.values("Beauty", gene)


def test_intervals_follow_the_tables_formula(viewed):
    viewed.prediction.obs["interval_scale"] = np.linspace(1, 2, len(viewed.prediction))
    viewed.prediction.var["interval_low"], viewed.prediction.var["interval_high"] = -9.0, 0.5
    gene = viewed.prediction.genes[0]
    mean = viewed.prediction.column(gene)
    lower, upper = viewed.interval(mean[[3], None], np.array([3]), [gene])
    assert lower[0, 0] == 0  # not below
    np.testing.assert_allclose(upper[0, 0], mean[3] + (1 + 3 / 11) * 0.5, rtol=1e-6)
    width = viewed.values("Width of the interval", gene)
    np.testing.assert_allclose(width.values[3], upper[0, 0] - lower[0, 0], rtol=1e-6)


def test_genes_stand_in_the_order_of_their_reliability(viewed):
    viewed.prediction.var["reliability"] = [0.1, np.nan, 0.5, -0.2, *[np.nan] * (len(viewed.prediction.genes) - 4)]
    viewed.prediction.var["grade"] = [
        "C",
        "not measured",
        "A",
        "D",
        *["not measured"] * (len(viewed.prediction.genes) - 4),
    ]
    listed = genes_by_reliability(viewed.prediction)
    assert [gene for gene, _ in listed[:5]] == [viewed.prediction.genes[i] for i in (2, 0, 3, 1, 4)]
    assert listed[0][1].split() == ["A", "0.50", "GENE2"] and listed[3][1].split() == ["–", "–", "GENE1"]


def test_another_slide_or_section_is_refused(stored_path, small_bank_cohort):
    other = ArraySlide(np.full((400, 400, 3), 9, np.uint8), 0.5, "other")
    with StoredPrediction(stored_path) as table:
        with pytest.raises(BadOption, match="slide is 'other'; wanted the slide that was predicted"):
            predicted_slide(table, slide=other)
        with pytest.raises(BadOption, match="truth is 'A1'; wanted a section measured on the predicted slide"):
            predicted_slide(table, slide=small_bank_cohort.read("C1").slide, cohort=small_bank_cohort, truth="A1")
        with pytest.raises(BadOption, match="truth is 'C1'; wanted a section together with a cohort"):
            predicted_slide(table, truth="C1")
        pixels = small_bank_cohort.read("C1").slide.read(0, 0, 400, 400)
        with pytest.raises(ScaleError, match=r"C1 is said to show 0\.51 um per px, but it was predicted at 0\.5;"):
            predicted_slide(table, slide=ArraySlide(pixels, 0.51, "C1"))
        nearly = predicted_slide(table, slide=ArraySlide(pixels, 0.504, "C1"))
        np.testing.assert_allclose(nearly.centre_um / 0.504, table.centre_px)  # placed by pixels, over the same ones
        alone = predicted_slide(table)  # the picture in the table
        assert not alone.deep and alone.tiles.width_um == pytest.approx(200.0)
