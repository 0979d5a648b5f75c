"""Draw the figure of the README: one section's tissue, measured and predicted expression, and `neighbour_std`.

    python docs/make_pictures.py COHORT.csv PREDICTION.h5ad SECTION GENE docs/images/section.png

PREDICTION.h5ad is the held-out prediction of that section from a run folder of `cmrcnet evaluate`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import anndata
import matplotlib.pyplot as plt
import numpy as np

import cmrcnet
from cmrcnet.slides.patches import thumbnail


def draw(cohort: Path, prediction: Path, name: str, gene: str, out: Path) -> None:
    """Four panels side by side."""
    section = cmrcnet.read_cohort(cohort).read(name)
    table = anndata.read_h5ad(prediction)[list(section.spots.barcodes)]
    target_sum = float(table.uns["cmrcnet"]["target_sum"])
    truth = cmrcnet.normalize(section.counts, target_sum)[:, section.genes.index(gene)].toarray().ravel()
    column = list(table.var_names).index(gene)
    predicted, neighbour_std = np.asarray(table.X)[:, column], np.asarray(table.layers["neighbour_std"])[:, column]
    shrink = section.slide.width_px / 1200
    tissue = thumbnail(section.slide, shrink)
    x, y = (section.spots.centre_px / (section.slide.width_px / tissue.shape[1])).T
    pad = 60
    frame = (x.min() - pad, x.max() + pad, y.max() + pad, y.min() - pad)
    r = np.corrcoef(truth, predicted)[0, 1]

    figure, axes = plt.subplots(1, 4, figsize=(14, 4.1), constrained_layout=True)
    panels = [
        ("H&E", None, None),
        (f"{gene}, measured", truth, "viridis"),
        (f"{gene}, predicted (r = {r:.2f})", predicted, "viridis"),
        ("neighbour standard deviation", neighbour_std, "magma"),
    ]
    for axis, (title, values, colours) in zip(axes, panels, strict=True):
        axis.imshow(tissue, alpha=1 if values is None else 0.45)
        low, high = (0, 1) if values is None else np.percentile(values, [2, 98])
        size = 0 if values is None else 42
        dots = axis.scatter(x, y, c=x if values is None else values, s=size, cmap=colours, vmin=low, vmax=high, lw=0)
        bar = figure.colorbar(dots, ax=axis, orientation="horizontal", shrink=0.7, pad=0.02, label="log expression")
        bar.ax.set_visible(values is not None)  # an invisible bar keeps the four panels aligned
        axis.set(title=title, xlim=frame[:2], ylim=frame[2:], xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    draw(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4], Path(sys.argv[5]))
