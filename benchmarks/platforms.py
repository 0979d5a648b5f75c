"""Two real sections in the layout of every platform: inspected, trained on, predicted and drawn.

    python benchmarks/platforms.py COHORT.csv FIRST SECOND --out docs/benchmarks/platforms.json

FIRST and SECOND are sections of a cohort of `legacy_st`, of two patients. Of each a window of 10 x 10 locations is
cut, with its H&E and the most counted genes that both measure, and written by the makers of `tests/readers/` in the
documented layout of every platform, under a rotation of its own. Each platform then goes through the command line:
inspect, train on FIRST, index, predict the slide of SECOND from its picture at the spots that the reader placed. Counts
and positions that the reader gives are compared with the section that was written. OUT gets the figures, and
the picture beside it three panels a platform: the H&E, measured and predicted expression of one gene.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import anndata

import cmrcnet
from cmrcnet.cli import app
from cmrcnet.genes.table import scaling_of
from cmrcnet.slides.patches import thumbnail
from tests.readers.one_section import PLATFORMS, write_platform
from tests.readers.written_formats import Made

WINDOW, MARGIN_UM, GENES = 10, 220.0, 1000
"""Side of the window in array locations, picture around its outer spots, and genes that are written."""


def source(cohort: Path, names: tuple[str, str]) -> list[Made]:
    """Both windows, with the same genes."""
    sections = [cmrcnet.read_cohort(cohort).read(name) for name in names]
    shared = sorted(set(sections[0].genes) & set(sections[1].genes))
    columns = [[section.genes.index(gene) for gene in shared] for section in sections]
    total = sum(np.asarray(s.counts.sum(axis=0)).ravel()[c] for s, c in zip(sections, columns, strict=True))
    most = np.sort(np.argsort(-total, kind="stable")[:GENES])
    return [
        window(section, [shared[i] for i in most], np.array(column)[most])
        for section, column in zip(sections, columns, strict=True)
    ]


def window(section: cmrcnet.Section, genes: list[str], columns: np.ndarray) -> Made:
    """The window with most spots."""
    array = np.array([[float(part) for part in name.split("x")] for name in section.spots.barcodes])
    corners = [(x, y) for x in np.unique(array[:, 0]) for y in np.unique(array[:, 1])]
    inside = [((array >= corner) & (array < np.add(corner, WINDOW))).all(axis=1) for corner in corners]
    kept = np.flatnonzero(max(inside, key=np.count_nonzero))
    mpp = float(section.slide.mpp or 0)
    centres = section.spots.centre_px[kept]
    low = np.maximum(np.floor(centres.min(axis=0) - MARGIN_UM / mpp), 0).astype(int)
    high = np.ceil(centres.max(axis=0) + MARGIN_UM / mpp).astype(int)
    width, height = np.minimum(high, (section.slide.width_px, section.slide.height_px)) - low
    return Made(
        barcodes=[section.spots.barcodes[i] for i in kept],
        array_xy=array[kept],
        centre_px=centres - low,
        genes=genes,
        counts=section.counts[kept][:, columns].toarray().astype(int),
        image=section.slide.read(*map(int, (*low, width, height))),
        mpp=mpp,
        pitch_um=200.0,
    )


def through(platform: str, made: list[Made], folder: Path, config: str, gene: str) -> tuple[dict, dict]:
    """Figures of one platform, and what is drawn of it."""
    rows = []
    for name, patient, section in zip("AB", ("anna", "bert"), made, strict=True):
        row = write_platform(platform, folder / name, section)
        paths = {key: f"{name}/{row[key]}" for key in ("counts", "spots", "image") if row.get(key)}
        if row.get("affine", "").endswith(".csv"):
            paths["affine"] = f"{name}/{row['affine']}"
        rows.append({"section": name, "patient": patient, **row, **paths})
    table = folder / "cohort.csv"
    table.write_text("".join(",".join(cells) + "\n" for cells in (list(rows[0]), *(r.values() for r in rows))))
    model, bank, out = folder / "model", folder / "bank", folder / "B.h5ad"
    begun = time.perf_counter()
    said = command("inspect", table, "--quick")
    command("train", table, "--config", config, "--out", model, "--without", "B")
    command("index", model, table, "--without", "B", "--out", bank)
    command("predict", model, table, "--section", "B", "--bank", bank, "--out", out)
    seconds = time.perf_counter() - begun
    cohort = cmrcnet.read_cohort(table)
    figures: dict = {"platform": platform, "inspect": "none" if "Problems: none" in said else said, "s": round(seconds)}
    for name, section in zip("AB", made, strict=True):
        figures[name] = compared(cohort.read(name), section)
    read = cohort.read("B")
    prediction = anndata.read_h5ad(out)[list(read.spots.barcodes)]
    measured = np.asarray(
        cmrcnet.normalize(read.counts, scaling_of(prediction).target_sum)[:, read.genes.index(gene)].todense()
    ).ravel()
    predicted = np.asarray(prediction.X)[:, list(prediction.var_names).index(gene)]
    figures["pearson_of_" + gene] = round(float(np.corrcoef(measured, predicted)[0, 1]), 3)
    return figures, {"read": read, "measured": measured, "predicted": predicted}


def compared(read: cmrcnet.Section, made: Made) -> dict:
    """What the reader gives next to what was written; tables of molecules list no spot or gene without counts."""
    apart = np.linalg.norm(read.spots.centre_px[:, None] - made.centre_px, axis=2)
    nearest = apart.argmin(axis=1)
    column_of = {gene: column for column, gene in enumerate(read.genes)}
    found = np.zeros_like(made.counts)
    for column, gene in enumerate(made.genes):
        if gene in column_of:
            found[nearest, column] = read.counts[:, column_of[gene]].toarray().ravel()
    same = len(set(nearest)) == len(nearest) and set(read.genes) <= set(made.genes)
    return {
        "spots": len(read.spots),
        "genes": len(read.genes),
        "written": list(made.counts.shape),
        "counted": [int((made.counts.sum(axis=axis) > 0).sum()) for axis in (1, 0)],
        "counts_equal": bool(same and np.array_equal(found, made.counts)),
        "largest_shift_um": round(float(apart.min(axis=1).max() * made.mpp), 1),
        "um_per_px_over_true": round(float(read.slide.mpp or 0) / made.mpp, 4),
    }


def command(*words: object) -> str:
    """Run one command of cmrcnet; its output. A failed one ends the run."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = app.main(list(map(str, words)))
    if code not in (0, 1):
        raise SystemExit(f"cmrcnet {' '.join(map(str, words))}: exit code {code}")
    return said.getvalue()


def draw(drawn: dict[str, dict], gene: str, out: Path) -> None:
    """Small multiples: a platform three panels: H&E with locations, measured, predicted."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    across = min(3, len(drawn))
    down = -(-len(drawn) // across)
    figure, axes = plt.subplots(down, 3 * across, figsize=(3 * across * 1.5, down * 1.75), squeeze=False)
    for axis in axes.ravel():
        axis.axis("off")
    for number, (platform, parts) in enumerate(drawn.items()):
        row, column = divmod(number, across)
        panels = axes[row, 3 * column : 3 * column + 3]
        read = parts["read"]
        downsample = max(read.slide.width_px, read.slide.height_px) / 130
        tissue = thumbnail(read.slide, downsample)
        x, y = (read.spots.centre_px / (read.slide.width_px / tissue.shape[1])).T
        values = (None, parts["measured"], parts["predicted"])
        for axis, title, value in zip(panels, (platform, f"{gene} measured", "predicted"), values, strict=True):
            axis.imshow(tissue if value is None else np.full_like(tissue, 255))
            if value is None:
                axis.scatter(x, y, s=7, facecolors="none", edgecolors="#0046ff", linewidths=0.6)
            else:
                low, high = np.percentile(value, [2, 98])
                axis.scatter(x, y, s=12, c=value, cmap="viridis", vmin=low, vmax=max(high, low + 1e-6), linewidths=0)
            axis.set_title(title, fontsize=7, pad=2)
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.97, 0.04, 0.12)
    figure.savefig(out, dpi=90)
    plt.close(figure)
    with Image.open(out) as picture:
        reduced = picture.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    reduced.save(out, optimize=True)


def main() -> None:
    """Run all platforms, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("sections", nargs=2)
    parser.add_argument("--platforms", nargs="+", default=list(PLATFORMS), choices=list(PLATFORMS))
    parser.add_argument("--gene", help="drawn; the most counted one when left out")
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--keep", type=Path, help="folder for all that is written, instead of a temporary one")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    made = source(asked.cohort, tuple(asked.sections))
    gene = asked.gene or made[0].genes[int(made[0].counts.sum(axis=0).argmax())]
    figures, drawn = [], {}
    work = asked.keep or Path(tempfile.mkdtemp())
    for platform in asked.platforms:
        shutil.rmtree(work / platform, ignore_errors=True)
        found, parts = through(platform, made, work / platform, asked.config, gene)
        print(json.dumps(found), flush=True)
        figures.append(found)
        drawn[platform] = parts
        draw({platform: parts}, gene, work / f"{platform}.png")
    asked.out.write_text(
        json.dumps({"sections": asked.sections, "config": asked.config, "platforms": figures}, indent=1)
    )
    draw(drawn, gene, asked.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
