"""The viewer in real Chromium: seconds from a request to what is drawn, for 10^4, 10^5 and 10^6 locations.

    python benchmarks/viewer.py --out docs/benchmarks/viewer.json
    python benchmarks/viewer.py --out docs/benchmarks/viewer.json --locations --prediction C6.h5ad --with C4.h5ad \\
        --cohort cohort.csv --truth C6

Made tables (a grid, 256 genes; 64 at 10^6) over a made slide of 16,384 px, served as `cmrcnet view` does. Measured in
the page: from the address to the first view with the slide and the overlay drawn; from choosing a gene to its values
drawn, ten genes, the first time that each is read; from zooming in to the finer raster; from a click to the card of the
location; from the end of a lasso to the table of its genes; and at 10^5 the first three by the obvious way, all
locations drawn one by one. With PREDICTION the same of your own tables: the measured spots behind a location, three
linked panels, two slides. Chromium draws without a graphics card. Needs cmrcnet[browser] and an installed Chromium.
What OUT holds of other sizes is kept.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from playwright.sync_api import sync_playwright

from cmrcnet.export.stored_prediction import StoredPrediction
from cmrcnet.export.table_file import TableFile
from cmrcnet.genes.table import prediction_table
from cmrcnet.readers.cohort import read_cohort
from cmrcnet.slides.section import Spots
from cmrcnet.slides.slide import ArraySlide
from cmrcnet.viewer import overlay, panel
from cmrcnet.viewer.overlay import predicted_slide
from cmrcnet.viewer.server import Viewer

SIDE_PX, MPP = 16_384, 0.5
PANEL = """const [root] = Bokeh.documents[0].roots().filter((each) => each.name === "panel predicted");
    const overlay = root.renderers.find((each) => each.data_source?.data.image || each.data_source?.data.name);"""
DRAWN = f"""(wanted) => new Promise((done) => {{
    {PANEL}
    const look = () => {{
        if (root.title.text.startsWith(wanted) && Bokeh.documents[0].is_idle) requestAnimationFrame(() => done(true));
        else requestAnimationFrame(look);
    }};
    look();
}})"""
MIDDLE = f"""() => {{
    {PANEL}
    const view = Bokeh.index.find_one(root), box = view.canvas_view.el.getBoundingClientRect();
    const {{x_range, y_range}} = root;
    return [box.left + view.frame.x_scale.compute((x_range.start + x_range.end) / 2),
            box.top + view.frame.y_scale.compute((y_range.start + y_range.end) / 2)];
}}"""


def make_table(folder: Path, locations: int, genes: int, slide: ArraySlide) -> Path:
    """A sealed table of a square grid whose genes are waves over the slide."""
    across = int(np.sqrt(locations))
    pitch = SIDE_PX / across
    x, y = (np.stack(np.meshgrid(np.arange(across), np.arange(across)), -1).reshape(-1, 2).T + 0.5) * pitch
    spots = Spots(tuple(f"{i}" for i in range(across**2)), np.stack([x, y], 1), pitch * MPP)
    names = [f"GENE{i}" for i in range(genes)]
    reliability = dict(zip(names, np.linspace(0.9, -0.1, genes), strict=True))
    frame = prediction_table(
        None, None, genes=names, spots=spots, slide=slide, neighbours=None, provenance={}, reliability=reliability
    )  # fmt: skip
    path = folder / f"{locations}.h5ad"
    table, waves = TableFile(path, len(spots)), (1 + np.arange(genes)) / SIDE_PX
    for start in range(0, len(spots), 1 << 15):
        rows = slice(start, min(start + (1 << 15), len(spots)))
        mean = (np.sin(np.outer(x[rows], waves)) + np.cos(np.outer(y[rows], waves)) + 2).astype(np.float32)
        table.write(rows, mean, layers={"neighbour_std": mean / 4})
    table.finish(frame)
    return path


def measure(browser, viewer: Viewer, gene: str, genes: list[str], *, attributed: bool, width: int = 1280) -> dict:
    """Seconds of each interaction with a running viewer, which shows `gene` first."""
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.set_default_timeout(60_000)
    seconds = {}

    def since(start: float) -> float:
        return round(time.perf_counter() - start, 3)

    start = time.perf_counter()
    page.goto(viewer.url, wait_until="commit")
    page.wait_for_function("() => window.Bokeh?.documents[0]?.is_idle")
    page.evaluate(DRAWN, gene)
    seconds["first_view_s"] = since(start)
    page.wait_for_timeout(8_000)  # scanpy is loaded beside it
    changes = []
    for other in genes:
        start = time.perf_counter()
        page.get_by_label("Genes by reliability").select_option(other)
        page.evaluate(DRAWN, f"{other}, predicted")
        changes.append(since(start))
    seconds["gene_change_median_s"] = round(statistics.median(changes), 3)
    seconds["gene_change_worst_s"] = max(changes)
    if page.evaluate(f"() => {{ {PANEL} return !!overlay.data_source.data.image; }}"):
        wide = f"() => {{ {PANEL} return overlay.data_source.data.dw[0]; }}"
        before = page.evaluate(wide)
        start = time.perf_counter()
        for _ in range(3):
            page.get_by_role("button", name="Zoom in").click()
        page.wait_for_function(f"(before) => ({wide})() < before", arg=before)
        page.evaluate(DRAWN, genes[-1])
        seconds["finer_after_zoom_s"] = since(start)
        page.get_by_role("button", name="Whole slide").click()
        page.wait_for_timeout(1_000)
    page.evaluate("() => scrollTo(0, 0)")
    x, y = page.evaluate(MIDDLE)
    start = time.perf_counter()
    page.mouse.click(x, y)
    page.locator("aside h2").get_by_text("Location").wait_for()
    seconds["card_after_click_s"] = since(start)
    if attributed:
        page.get_by_text("mean of spots").wait_for()
        seconds["measured_tissue_after_click_s"] = since(start)
    page.get_by_role("button", name="Region A").click()
    page.evaluate("() => scrollTo(0, 0)")
    around = [(x + 60 * math.cos(turn / 8 * math.pi), y + 60 * math.sin(turn / 8 * math.pi)) for turn in range(16)]
    page.mouse.move(*around[0])
    page.mouse.down()
    for corner in around[1:]:
        page.mouse.move(*corner)
    start = time.perf_counter()
    page.mouse.up()
    page.get_by_text("against the rest").wait_for()
    seconds["genes_after_lasso_s"] = since(start)
    start = time.perf_counter()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save GeoJSON").click()
    saved.value.path()
    seconds["geojson_s"] = since(start)
    page.close()
    return seconds


def made(browser, path: Path, slide: ArraySlide) -> dict:
    """Seconds of one made table."""
    start = time.perf_counter()
    with StoredPrediction(path) as table, Viewer(predicted_slide(table, slide=slide)) as viewer:
        up = round(time.perf_counter() - start, 2)
        genes = [f"GENE{number}" for number in range(11)]
        return {"server_up_s": up, **measure(browser, viewer, genes[0], genes[1:], attributed=False)}


def own(browser, options: argparse.Namespace) -> dict:
    """Seconds of own tables: with what was measured, at two widths; and beside another slide."""
    cohort = read_cohort(options.cohort)
    with StoredPrediction(options.prediction) as table, StoredPrediction(options.other) as second:
        slide = predicted_slide(table, cohort=cohort, truth=options.truth)
        other = predicted_slide(second, cohort=cohort)
        ranked = [gene for gene, _ in overlay.genes_by_reliability(table)][:11]
        found: dict = {"locations": [len(table), len(second)], "genes": len(table.genes)}
        for width in (1280, 420):
            with Viewer(slide, cohort=cohort) as viewer:
                seconds = measure(browser, viewer, ranked[0], ranked[1:], attributed=True, width=width)
            found[f"three panels, {width} px"] = seconds
        with Viewer(predicted_slide(table, cohort=cohort), other=other, cohort=cohort) as viewer:
            found["two slides, 1280 px"] = measure(browser, viewer, ranked[0], ranked[1:], attributed=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--locations", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--prediction", type=Path)
    parser.add_argument("--with", dest="other", type=Path)
    parser.add_argument("--cohort", type=Path)
    parser.add_argument("--truth")
    options = parser.parse_args()
    pixels = np.random.default_rng(0).integers(120, 256, (SIDE_PX // 16, SIDE_PX // 16, 3)).astype(np.uint8)
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))

    def keep(name: str, seconds: dict) -> None:
        found[name] = {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1), **seconds}
        print(name, found[name], flush=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        if options.prediction:
            keep("own", own(browser, options))
        if options.locations:
            slide = ArraySlide(np.repeat(np.repeat(pixels, 16, axis=0), 16, axis=1), MPP, "made")
        for locations in options.locations:
            path = make_table(Path(folder), locations, 64 if locations > 200_000 else 256, slide)
            keep(f"{locations}", made(browser, path, slide))
            if 10_000 < locations <= 100_000:
                overlay.GLYPHS = panel.GLYPHS = locations
                keep(f"{locations}, one by one", made(browser, path, slide))
                overlay.GLYPHS = panel.GLYPHS = 10_000
            path.unlink()
        browser.close()


if __name__ == "__main__":
    main()
