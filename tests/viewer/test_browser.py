"""The viewer in real Chromium, without a screen: every interaction, two widths, the keyboard alone, a saved page."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

from cmrcnet.export.stored_prediction import StoredPrediction
from cmrcnet.slides.section import Cohort
from cmrcnet.viewer import panel
from cmrcnet.viewer.document import Page
from cmrcnet.viewer.overlay import predicted_slide
from cmrcnet.viewer.saved_page import saved_page
from cmrcnet.viewer.server import Viewer
from tests.viewer.conftest import section, write_table

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


def drag(page, places) -> None:
    """Press at the first place, move over all, release."""
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def settles(page, value, wanted) -> bool:
    """Whether a value gets (nearly) the wanted one, in the frames to come."""
    for _ in range(SLOW // 100):
        if value() == wanted:
            return True
        page.wait_for_timeout(100)
    return False


def scales(page) -> list[float]:
    """Micrometres a pixel of every panel, across and down."""
    return page.evaluate(
        "() => Bokeh.documents[0].roots().filter((each) => each.name.startsWith('panel')).flatMap((each) =>"
        " [(each.x_range.end - each.x_range.start) / each.inner_width,"
        " (each.y_range.end - each.y_range.start) / each.inner_height])"
    )


def middle(page, kind: str) -> list[float]:
    return page.evaluate(
        f"(kind) => {{ const {{x_range: x, y_range: y}} = ({PANEL})(kind).root;"
        " return [(x.start + x.end) / 2, (y.start + y.end) / 2, x.end - x.start]; }",
        kind,
    )


def title(page, kind: str = "predicted") -> str:
    return page.evaluate(f"(kind) => ({PANEL})(kind).root.title.text", kind)


def test_a_gene_a_click_a_region_and_linked_panels(chromium, viewed, viewer):
    viewed.prediction.obs["interval_scale"] = 1.0
    viewed.prediction.var["interval_low"], viewed.prediction.var["interval_high"] = -0.25, 0.5
    with opened(chromium, viewer.url) as (page, faults, asked):
        palette = f"(kind) => ({PANEL})(kind).root.below[1].color_mapper.palette"
        ends = [page.evaluate(palette, kind)[::255] for kind in ("predicted", "measured", "error")]
        assert ends == [["#440154", "#FDE724"]] * 2 + [["#7f3b08", "#2d004b"]]  # viridis, orange to violet
        page.get_by_label("Genes by reliability").select_option("GENE5")
        page.wait_for_function(f"() => ({PANEL})('measured').root.title.text === 'GENE5, measured'")
        assert title(page) == "GENE5, predicted" and title(page, "error") == "GENE5, predicted minus measured"

        page.mouse.click(*page.evaluate(PLACE, ["measured", 6]))
        page.get_by_role("heading", name="Location spot6").wait_for()
        page.get_by_text("mean of spots").wait_for()
        assert page.get_by_alt_text("Patch of spot").count() == 5

        page.get_by_role("button", name="Region A").click()
        corners = [page.evaluate(PLACE, ["predicted", row]) for row in (0, 1, 9, 8)]
        outer = zip(corners, ((-12, -12), (12, -12), (12, 12), (-12, 12)), strict=True)
        drag(page, [(x + right, y + down) for (x, y), (right, down) in outer])
        page.get_by_text("6 locations, against the rest (6 locations)").wait_for()
        largest = page.locator(".side table tbody tr").first.locator("th, td").all_inner_texts()
        gene, rows, rest = largest[0], [0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]
        values = viewed.prediction.column(gene)
        mean, other = values[rows].mean(), values[rest].mean()
        lower = (values[rows] - 0.25).clip(0).mean()
        assert largest[2] == f"{mean:.2f} ({lower:.2f} to {mean + 0.5:.2f})"
        assert largest[3:5] == [f"{other:.2f}", f"{mean - other:+.2f}"]
        with page.expect_download() as saved:
            page.get_by_role("button", name="Save GeoJSON").click()
        (feature,) = json.loads(Path(saved.value.path()).read_text())["features"]
        outline = feature["geometry"]["coordinates"][0]
        assert saved.value.suggested_filename == "regions.geojson" and outline[0] == outline[-1]
        assert all(0 < x < 200 and 0 < y < 350 for x, y in outline)  # spots 0 to 9: x 60 and 150, y 70 to 310 px

        page.get_by_role("button", name="Zoom in").click()
        spans = page.evaluate(f"() => ['predicted', 'error'].map((each) => ({PANEL})(each).root.x_range.end)")
        assert spans[0] == spans[1] < 200
        assert faults == [] and all(url.startswith((viewer.url, "data:", "blob:")) for url in asked)


def test_two_slides_move_together_until_they_are_unlinked(chromium, viewed, small_bank_cohort, tmp_path):
    second = section("D1", "D")
    table = write_table(tmp_path / "D1.h5ad", second, small_bank_cohort)
    both = Cohort.of([*small_bank_cohort, second], "four")
    with (
        StoredPrediction(table) as stored,
        Viewer(viewed, other=predicted_slide(stored, cohort=both), cohort=both) as viewer,
        opened(chromium, viewer.url) as (page, faults, _),
    ):
        assert title(page, "second").endswith("predicted (D1)")
        page.get_by_role("button", name="Zoom in").click()
        start, before = page.evaluate(PLACE, ["predicted", 5]), middle(page, "predicted")
        drag(page, [start, [start[0] + 40, start[1] + 25]])
        assert settles(page, lambda: middle(page, "predicted")[0] < before[0], True)
        assert settles(page, lambda: middle(page, "second"), pytest.approx(middle(page, "predicted")))  # of one size
        moved = middle(page, "predicted")
        assert moved[1] > before[1] and moved[2] == pytest.approx(before[2])
        page.get_by_role("button", name="Link the two slides").click()
        drag(page, [start, [start[0] - 40, start[1]]])
        assert settles(page, lambda: middle(page, "predicted")[0] > moved[0], True)
        page.wait_for_timeout(200)
        assert middle(page, "second") == pytest.approx(moved)
        page.mouse.click(*page.evaluate(PLACE, ["second", 5]))
        page.get_by_text("Location spot5").wait_for()
        marks = "(kind) => (PANEL)(kind).root.renderers.at(-2).data_source.data.x.length".replace("PANEL", PANEL)
        assert [page.evaluate(marks, kind) for kind in ("predicted", "second")] == [0, 1] and faults == []


def test_many_locations_are_a_raster_that_gets_finer(chromium, monkeypatch, viewed):
    monkeypatch.setattr(panel, "GLYPHS", 3)
    with Viewer(viewed) as viewer, opened(chromium, viewer.url) as (page, faults, _):
        source = f"({PANEL})('predicted').root.renderers.find((e) => e.data_source?.data.image).data_source.data"
        shown = f"() => Array.from({source}.image[0]).filter((each) => !isNaN(each))"
        before = page.evaluate(shown)
        page.get_by_label("Genes by reliability").select_option("GENE9")
        page.wait_for_function(f"() => ({PANEL})('predicted').root.title.text === 'GENE9, predicted'")
        after = page.evaluate(shown)
        assert len(after) == len(before) > 12
        assert set(after) == {float(value) for value in viewed.prediction.column("GENE9")} != set(before)
        wide = page.evaluate(f"() => {source}.dw[0]")
        for _ in range(4):
            page.get_by_role("button", name="Zoom in").click()
        page.wait_for_function(f"(wide) => {source}.dw[0] < wide", arg=wide)
        assert faults == []


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
        assert box["width"] >= 380 and box["height"] >= 320
        for row in (0, 11):
            x, y = page.evaluate(PLACE, ["predicted", row])
            assert box["x"] < x < box["x"] + box["width"] and box["y"] < y < box["y"] + box["height"]
        assert faults == []


def test_no_change_of_size_stretches_the_tissue(chromium, viewer):
    with opened(chromium, viewer.url) as (page, faults, _):
        first = scales(page)
        for width in (420, 1000, 1280):
            page.set_viewport_size({"width": width, "height": 800})
            assert settles(page, lambda: page.evaluate("() => innerWidth"), width)
            assert settles(page, lambda: scales(page), pytest.approx(first, rel=0.01))
        page.evaluate(f"() => {{ ({PANEL})('predicted').root.x_range.setv({{start: NaN, end: NaN}}) }}")
        assert settles(page, lambda: scales(page), pytest.approx(first, rel=0.01)) and faults == []


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
