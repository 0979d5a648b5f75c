"""The viewer in real Chromium, without a screen: every interaction, two widths, the keyboard alone, a saved page."""

from __future__ import annotations

import shutil
from contextlib import contextmanager

import pytest

from cmrcnet.viewer.document import Page
from cmrcnet.viewer.saved_page import saved_page
from cmrcnet.viewer.server import Viewer

playwright = pytest.importorskip("playwright.sync_api", reason="needs cmrcnet[browser]")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

SLOW = 30_000
"""Milliseconds until a test gives up on a busy machine."""
READY = "() => window.Bokeh?.documents[0]?.is_idle"
PANEL = """(kind) => {
    const root = Bokeh.documents[0].roots().find((each) => each.name === `panel ${kind}`);
    return {root, view: Bokeh.index.find_one(root)};
}"""
PLACE = f"""([kind, row]) => {{
    const {{root, view}} = ({PANEL})(kind);
    const {{x, y}} = root.renderers.find((each) => each.data_source?.data.name).data_source.data;
    const box = view.canvas_view.el.getBoundingClientRect();
    return [box.left + view.frame.x_scale.compute(x[row]), box.top + view.frame.y_scale.compute(y[row])];
}}"""


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def viewer(viewed, small_bank_cohort):
    with Viewer(viewed, cohort=small_bank_cohort) as running:
        yield running


@contextmanager
def opened(chromium, url: str, width: int = 1280):
    """The page, ready, and the lists that its faults and requests go to."""
    page, faults, asked = chromium.new_page(viewport={"width": width, "height": 800}), [], []
    page.set_default_timeout(SLOW)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    page.wait_for_function(READY)
    yield page, faults, asked
    page.close()


def title(page, kind: str = "predicted") -> str:
    return page.evaluate(f"(kind) => ({PANEL})(kind).root.title.text", kind)


def test_a_gene_a_click_a_region_and_linked_panels(chromium, viewer):
    with opened(chromium, viewer.url) as (page, faults, asked):
        page.get_by_label("Genes, most reliable first").select_option("GENE5")
        page.wait_for_function(f"() => ({PANEL})('measured').root.title.text === 'GENE5, measured'")
        assert title(page) == "GENE5, predicted" and title(page, "error") == "GENE5, predicted minus measured"

        page.mouse.click(*page.evaluate(PLACE, ["measured", 6]))
        page.get_by_role("heading", name="Location spot6").wait_for()
        page.get_by_text("mean of spots").wait_for()
        assert page.get_by_alt_text("Patch of spot").count() == 5

        page.get_by_role("button", name="Region A").click()
        corners = [page.evaluate(PLACE, ["predicted", row]) for row in (0, 2, 10, 8)]
        for number, (x, y) in enumerate([*corners, corners[0]]):
            page.mouse.move(x + (12 if number in (1, 2) else -12), y + (12 if number in (2, 3) else -12), steps=3)
            if number == 0:
                page.mouse.down()
        page.mouse.up()
        page.get_by_text("9 locations, against the rest (3 locations)").or_(
            page.get_by_text("3 locations lie in")
        ).wait_for()
        with page.expect_download() as saved:
            page.get_by_role("button", name="Save GeoJSON").click()
        assert saved.value.suggested_filename == "regions.geojson"

        page.get_by_role("button", name="Zoom in").click()
        spans = page.evaluate(f"() => ['predicted', 'error'].map((each) => ({PANEL})(each).root.x_range.end)")
        assert spans[0] == spans[1] < 200
        assert faults == [] and all(url.startswith((viewer.url, "data:", "blob:")) for url in asked)


def test_the_keyboard_alone_is_enough(chromium, viewer):
    with opened(chromium, viewer.url) as (page, faults, _):
        reached = set()
        for _ in range(25):
            page.keyboard.press("Tab")
            inner = "(e) => { while (e.shadowRoot?.activeElement) e = e.shadowRoot.activeElement; return e; }"
            reached.add(
                page.evaluate(
                    f"() => {{ const e = ({inner})(document.activeElement); return e.tagName + (e.type ?? '') }}"
                )
            )
        assert {"SELECTselect-one", "INPUTtext", "SELECTselect-multiple", "BUTTONbutton"} <= reached
        page.get_by_label("Search a gene").focus()
        page.keyboard.type("gene1")
        page.wait_for_function("() => Bokeh.documents[0].is_idle")
        page.keyboard.press("Enter")
        page.wait_for_function(f"() => ({PANEL})('predicted').root.title.text === 'GENE1, predicted'")
        page.get_by_label("Go to location").focus()
        page.keyboard.type("spot3")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="Location spot3").wait_for()
        assert faults == []


def test_on_a_narrow_screen_everything_is_in_one_column(chromium, viewer):
    with opened(chromium, viewer.url, width=420) as (page, faults, _):
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 420
        tops = [page.locator(each).bounding_box()["y"] for each in (".top", ".stage", ".side", ".controls")]
        assert tops == sorted(tops)
        box = page.locator(".panel").first.bounding_box()
        assert box["width"] >= 380 and box["height"] >= 320 and faults == []


def test_a_saved_page_needs_no_network(chromium, viewed, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(saved_page(Page(viewed, tile_url="tiles")), encoding="utf-8")
    with opened(chromium, file.as_uri()) as (page, faults, asked):
        page.get_by_label("Expression").select_option("GENE7")
        assert title(page) == "GENE7, predicted"
        values = "root.renderers.find((e) => e.data_source?.data.name).data_source.data.value"
        shown = page.evaluate(f"() => Array.from(({PANEL})('predicted').{values})")
        assert shown == pytest.approx(viewed.prediction.column("GENE7").tolist())
        assert page.get_by_text("Left out: deep zoom").count() == 1
        assert faults == [] and [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
