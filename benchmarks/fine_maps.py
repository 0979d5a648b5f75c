"""Maps finer than a spot, against the truth of synthetic tissue.

    python benchmarks/fine_maps.py --out docs/benchmarks/fine_maps.json

Two models are trained on the spots of four synthetic patients, a preset and the same with
`features.window_um: 28`, and predict a section of another patient. Its truth is known at any size. For regions of
tissue finer than a spot and coarser ones (`structure`), the mean over genes of the correlation with the truth of 28 um
at a pitch of 28 um is compared: of coarse maps, repeated or interpolated, of fine grids of whole windows, and of fine
windows by each head. Then the mean over the 16 fine windows in a spot against the prediction of the whole spot.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import argparse
import json
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
from scipy.interpolate import NearestNDInterpolator, griddata

import cmrcnet
from cmrcnet.datasets.synthetic import synthetic_section, synthetic_truth
from cmrcnet.errors import CmrcnetWarning
from cmrcnet.genes.spatial_stats import pearson_per_gene
from cmrcnet.inference.predict import predict
from cmrcnet.slides.section import Spots
from cmrcnet.slides.tissue import make_query_grid

WINDOW_UM, WHOLE_UM, COARSE_UM = 28.0, 112.0, 100.0
HEADS = ("ridge", "kernel", "retrieval", "ensemble")
TISSUE = {"patients": 4, "spots": 120, "genes": 120, "mpp": 0.5}


def in_spots(spots: Spots, mpp: float) -> Spots:
    """Centres of the windows that fill the square of each spot."""
    steps = (np.arange(4) - 1.5) * WINDOW_UM / mpp
    apart = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    centres = (spots.centre_px[:, None] + apart).reshape(-1, 2)
    return Spots(tuple(f"{name}-{i}" for name in spots.barcodes for i in range(len(apart))), centres, WINDOW_UM)


def measure(structure: float, seed: int, preset: str, cache: cmrcnet.TokenCache) -> dict:
    """Every figure for tissue whose regions have this size."""
    cohort = cmrcnet.synthetic_cohort(**TISSUE, seed=seed, structure=structure)
    config = cmrcnet.Config.load(preset)
    models = {"whole": config, "divided": config.override({"features.window_um": WINDOW_UM})}
    ask = {}
    for name, each in models.items():
        model = cmrcnet.fit(cohort, each, cache=cache)
        ask[name] = partial(predict, model, bank=cmrcnet.build_bank(model, cohort, cache=cache), cache=cache)

    section = synthetic_section(seed, spots=TISSUE["spots"], genes=TISSUE["genes"], mpp=0.5, structure=structure)
    slide = section.slide
    fine, tissue, _ = make_query_grid(slide, None, None, WINDOW_UM)
    truth = synthetic_truth(section, fine.centre_px, diameter_um=WINDOW_UM)
    shown = np.array(truth.kinds) == "morphology"

    def score(values: np.ndarray) -> float:
        return round(float(np.nanmean(pearson_per_gene(truth.expected, values)[shown])), 4)

    columns = list(truth.genes)
    coarse = ask["whole"](slide, mask=tissue, grid_um=COARSE_UM, genes=columns)
    at, values = coarse.obsm["spatial"], np.asarray(coarse.X)
    repeated = NearestNDInterpolator(at, values)(fine.centre_px)
    linear = griddata(at, values, fine.centre_px, "linear")
    linear = np.where(np.isnan(linear), repeated, linear)
    expected = synthetic_truth(section, at).expected
    best = np.nan_to_num(griddata(at, expected, fine.centre_px, "linear"))
    outside = np.isnan(griddata(at, expected[:, 0], fine.centre_px, "linear"))
    best[outside] = NearestNDInterpolator(at, expected)(fine.centre_px)[outside]
    found = {
        "coarse, repeated": score(repeated),
        "coarse, interpolated": score(linear),
        "the truth of 100 um, interpolated": score(best),
    }
    fine_of = partial(ask["divided"], slide, spots=fine, mask=tissue, genes=columns)
    found["fine grid, whole windows"] = score(ask["whole"](slide, mask=tissue, grid_um=WINDOW_UM, genes=columns).X)
    for window in (112.0, 84.0, 56.0):
        found[f"windows of {window:g} um, ridge"] = score(fine_of(window_um=window, head="ridge").X)
    for head in HEADS:
        found[f"windows of 28 um, {head}"] = score(fine_of(window_um=WINDOW_UM, head=head).X)

    apart, parts = {}, in_spots(section.spots, slide.mpp)
    spots_of = partial(ask["divided"], slide, mask=tissue, genes=columns)
    for head in HEADS:
        whole = np.asarray(spots_of(spots=section.spots, window_um=WHOLE_UM, head=head).X, np.float64)
        split = np.asarray(spots_of(spots=parts, window_um=WINDOW_UM, head=head).X, np.float64)
        off = split.reshape(len(whole), -1, whole.shape[1]).mean(axis=1) - whole
        off = (off / whole.std(axis=0))[:, shown]
        apart[head] = {
            "root mean square": float(f"{np.sqrt((off**2).mean()):.2g}"),
            "largest": float(f"{np.abs(off).max():.2g}"),
            "clipped at 0": round(float((split == 0).mean()), 4),
        }
    plain = ask["divided"](slide, spots=section.spots, genes=columns, mask=tissue).X
    of_spots = synthetic_truth(section).expected
    spots = {
        "whole": ask["whole"](slide, spots=section.spots, genes=columns, mask=tissue).X,
        "divided": plain,
    }
    at_spots = {
        name: round(float(np.nanmean(pearson_per_gene(of_spots, each)[shown])), 4) for name, each in spots.items()
    }
    return {
        "structure": structure,
        "seed": seed,
        "locations": len(fine),
        "correlation with the truth of 28 um": found,
        "correlation at spots, ensemble": at_spots,
        "mean over a spot minus the spot's prediction, in deviations of the gene": apart,
    }


def main() -> None:
    """Run and print or write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--structures", type=float, nargs="+", default=[0.25, 0.5, 1.0])
    parser.add_argument("--preset", default="default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore", CmrcnetWarning)
    rows, start = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for structure in options.structures:
            for seed in options.seeds:
                rows.append(measure(structure, seed, options.preset, cmrcnet.TokenCache(Path(folder))))
                print(json.dumps(rows[-1], indent=1), flush=True)
    result = {"preset": options.preset, "tissue": TISSUE, "seconds": round(time.perf_counter() - start), "rows": rows}
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
