"""The page without a browser: what the widgets change, what a click and a region show."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from bokeh.document import Document

from cmrcnet.errors import BadOption, UnknownName
from cmrcnet.export.stored_prediction import StoredPrediction
from cmrcnet.viewer import document as room
from cmrcnet.viewer import panel
from cmrcnet.viewer.document import Page
from cmrcnet.viewer.overlay import predicted_slide
from cmrcnet.viewer.saved_page import saved_page


@pytest.fixture
def page(viewed, small_bank_cohort) -> Page:
    return Page(viewed, cohort=small_bank_cohort)


def test_the_document_holds_every_part(page):
    doc = Document()
    page.add_to(doc)
    names = [root.name for root in doc.roots]
    assert names == ["top", "controls", "panel predicted", "panel measured", "panel error", "side"]
    assert doc.title == "C1, predicted expression"
    predicted, measured = page.panels[0].figure, page.panels[1].figure
    assert predicted.x_range is measured.x_range and predicted.y_range is measured.y_range  # linked


def test_another_gene_changes_the_values_and_the_titles(page):
    gene = page.slide.prediction.genes[3]
    page.genes.value = [gene]
    np.testing.assert_array_equal(page.panels[0].source.data["value"], page.slide.prediction.column(gene))
    np.testing.assert_array_equal(page.panels[1].source.data["value"], page.slide.measured("Expression", gene))
    assert [panel.figure.title.text for panel in page.panels] == [
        f"{gene}, predicted", f"{gene}, measured", f"{gene}, predicted minus measured",
    ]  # fmt: skip
    low, high = page.panels[2].mapper.low, page.panels[2].mapper.high
    assert low == -high  # no error is white
    page.scale.value = room.COUNTS
    np.testing.assert_allclose(page.panels[0].source.data["value"], np.expm1(page.slide.prediction.column(gene)))


def test_ranges_are_shared_own_or_fixed(page):
    one, two = page.panels[0].mapper, page.panels[1].mapper
    assert (one.low, one.high) == (two.low, two.high)
    page.range.value = room.EACH
    assert (one.low, one.high) != (two.low, two.high)
    page.range.value, page.low.value, page.high.value = room.FIXED, 1.0, 3.0
    assert (one.low, one.high, two.low, two.high) == (1.0, 3.0, 1.0, 3.0)


def test_a_click_shows_the_measured_tissue_and_the_genes(page):
    page.go_to("spot4")
    card = page.location.text
    assert "Location spot4" in card and card.count("data:image/jpeg") == 1 + 5  # its own patch, and k of spots
    assert "Patients behind it" in card and "mean of spots" in card and page.gene in card
    assert page.panels[0].mark.data["x"] == [page.slide.centre_um[4, 0]]
    page.go_to("spot99")
    assert "There is no location spot99." in page.location.text


def test_names_in_cards_are_escaped(page):
    page.go_to("<script>alert(1)</script>")
    assert "<script>" not in page.location.text


def test_a_region_is_compared_with_the_rest_or_another(page):
    page.draw_region("A", np.array([[0, 0], [90, 0], [90, 200], [0, 200]]))  # the left half of 200 um
    assert "6 locations, against the rest (6 locations)" in page.region.text
    assert "Region A" in page.region.text and "the rest" in page.region.text and "smooth" in page.region.text
    assert len(json.loads(page.geojson.data["text"][0])["features"]) == 1 and not page.download.disabled
    page.draw_region("B", np.array([[0, 0], [1, 0], [1, 1]]))
    assert "0 locations lie in what it is compared with" in page.region.text
    page.clear_regions()
    assert page.region.text == "" and page.download.disabled


def test_many_locations_are_pooled_to_a_raster(monkeypatch, stored_path, small_bank_cohort):
    monkeypatch.setattr(panel, "GLYPHS", 3)
    page = Page(predicted_slide(StoredPrediction(stored_path), cohort=small_bank_cohort))
    (image,) = page.panels[0].source.data["image"]
    values = page.slide.prediction.column(page.gene)
    assert np.nanmin(image) >= values.min() and np.nanmax(image) <= values.max() and np.isfinite(image).any()


def test_two_predictions_stand_beside_each_other(viewed, stored_path):
    other = predicted_slide(StoredPrediction(stored_path))
    page = Page(viewed, other=other)
    assert [panel.kind for panel in page.panels] == ["predicted", "measured", "error", "second"]
    assert page.panels[-1].figure.x_range is page.panels[0].figure.x_range  # of the same slide


def test_a_saved_page_is_one_file_that_says_what_it_leaves_out(page, monkeypatch):
    page.go_to("spot4")
    html = saved_page(page)
    assert "Location spot4" in html and "Left out: deep zoom (the slide is a picture of 400 px)" in html
    assert not re.search(r"""<(script|link|img)[^>]+(src|href)=["']?(http|/)""", html)
    monkeypatch.setattr("cmrcnet.viewer.saved_page.LARGEST_MB", 1)
    with pytest.raises(BadOption, match="The page would have 2 MB, and 1 are allowed; leave out"):
        saved_page(page)


def test_an_unknown_gene_is_refused(viewed):
    with pytest.raises(UnknownName, match="There is no gene in the prediction 'MADEUP'"):
        Page(viewed, gene="MADEUP")
