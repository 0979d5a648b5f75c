"""The viewer in real Chromium: seconds from a request to what is drawn, for 10^4, 10^5 and 10^6 locations.

    python benchmarks/viewer.py --out docs/benchmarks/viewer.json

Made tables (a grid, 256 genes; 64 at 10^6) over a made slide of 16,384 px, served as `cmrcnet view` does. Measured in
the page: from the address to the first view with the slide and the overlay drawn; from choosing a gene to its values
drawn, ten genes, the first time that each is read; from zooming in to the finer raster; and at 10^5 the same by the
obvious way, all locations drawn one by one. Chromium draws without a graphics card. Needs cmrcnet[browser] and an
installed Chromium.
"""

from __future__ import annotations

import argparse
import json
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
from cmrcnet.slides.section import Spots
from cmrcnet.slides.slide import ArraySlide
from cmrcnet.viewer import overlay, panel
from cmrcnet.viewer.overlay import predicted_slide
from cmrcnet.viewer.server import Viewer

SIDE_PX, MPP = 16_384, 0.5
DRAWN = """(wanted) => new Promise((done) => {
    const root = Bokeh.documents[0].roots().find((each) => each.name === "panel predicted");
    const look = () => {
        if (root.title.text.startsWith(wanted) && Bokeh.documents[0].is_idle) requestAnimationFrame(() => done(true));
        else requestAnimationFrame(look);
    };
    look();
})"""


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


def measure(browser, path: Path, slide: ArraySlide) -> dict[str, float]:
    """Seconds of one table."""
    start = time.perf_counter()
    with StoredPrediction(path) as table:
        viewed = predicted_slide(table, slide=slide)
        with Viewer(viewed) as viewer:
            up = time.perf_counter() - start
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.set_default_timeout(60_000)
            start = time.perf_counter()
            page.goto(viewer.url, wait_until="commit")
            page.wait_for_function("() => window.Bokeh?.documents[0]?.is_idle")
            page.evaluate(DRAWN, "GENE0")
            first = time.perf_counter() - start
            page.wait_for_timeout(8_000)  # scanpy is loaded beside it
            changes = []
            for gene in [f"GENE{i}" for i in range(1, 11)]:
                start = time.perf_counter()
                page.get_by_label("Genes by reliability").select_option(gene)
                page.evaluate(DRAWN, gene)
                changes.append(time.perf_counter() - start)
            zoom = None
            if page.evaluate("() => !!Bokeh.documents[0].roots()[2].renderers[1].data_source.data.image"):
                source = "Bokeh.documents[0].roots()[2].renderers[1].data_source.data"
                before = page.evaluate(f"() => {source}.dw[0]")
                start = time.perf_counter()
                for _ in range(3):
                    page.get_by_role("button", name="Zoom in").click()
                page.wait_for_function(f"(before) => {source}.dw[0] < before", arg=before)
                page.evaluate(DRAWN, "GENE10")
                zoom = round(time.perf_counter() - start, 3)
            page.close()
    return {
        "server_up_s": round(up, 2),
        "first_view_s": round(first, 2),
        "gene_change_median_s": round(statistics.median(changes), 3),
        "gene_change_worst_s": round(max(changes), 3),
        "finer_after_zoom_s": zoom,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--locations", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    options = parser.parse_args()
    pixels = np.random.default_rng(0).integers(120, 256, (SIDE_PX // 16, SIDE_PX // 16, 3)).astype(np.uint8)
    slide = ArraySlide(np.repeat(np.repeat(pixels, 16, axis=0), 16, axis=1), MPP, "made")
    found = {"cores": os.cpu_count(), "load_before": round(os.getloadavg()[0], 1)}
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for locations in options.locations:
            path = make_table(Path(folder), locations, 64 if locations > 200_000 else 256, slide)
            found[f"{locations}"] = measure(browser, path, slide)
            print(locations, found[f"{locations}"], flush=True)
            if 10_000 < locations <= 100_000:
                overlay.GLYPHS = panel.GLYPHS = locations
                found[f"{locations}, one by one"] = measure(browser, path, slide)
                overlay.GLYPHS = panel.GLYPHS = 10_000
                print("one by one", found[f"{locations}, one by one"], flush=True)
            path.unlink()
        browser.close()
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
