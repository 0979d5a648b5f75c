"""From a slide to a table of image features: LazySlide against patches and dense features, the same encoder and pitch.

    python benchmarks/large_slide.py --out slide.svs --side 8192 --tissue C6.jpg --mpp 0.6877
    python benchmarks/tile_features.py slide.svs --out docs/benchmarks/tile_features.json

EfficientNet-Lite0, blocks 4, 7, 10, 14, mean token, one orientation; LazySlide (0.13, `pip install lazyslide`) is given
the same torch module. Each way runs in a process of its own, one after the other: imports, tissue, tiles or grid,
pixels, network, table on disk. LazySlide's own tissue and tiles are used, so that the number of locations differs a
little: compare locations a second.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import anndata
import torch

import cmrcnet
from cmrcnet.config import Config
from cmrcnet.models.image_encoder import mean_token
from cmrcnet.slides.slide import PatchScale
from cmrcnet.slides.tissue import make_query_grid

WAYS = ("LazySlide", "LazySlide, amp bf16", "patches, torch float32", "patches", "dense")


def default_encoder() -> cmrcnet.ImageEncoder:
    """The frozen encoder of the default config."""
    model = Config.load("default").model
    return cmrcnet.create_image_encoder(model.encoder, blocks=model.blocks)


def by_lazyslide(slide: Path, side_um: float, pitch_um: float, amp: bool) -> anndata.AnnData:
    """Tiles and features by LazySlide, as its own documentation has it."""
    import lazyslide as zs
    import wsidata

    encoder, mpp = default_encoder().eval(), PatchScale().showing(side_um).mpp
    wsi = wsidata.open_wsi(str(slide), store=None)
    zs.pp.find_tissues(wsi)
    zs.pp.tile_tissues(wsi, 224, mpp=mpp, stride_px=round(pitch_um / mpp))
    how = {"amp": True, "autocast_dtype": torch.bfloat16} if amp else {}
    zs.tl.feature_extraction(
        wsi,
        lambda images: mean_token(encoder, images, 1),
        transform=lambda tile: encoder.prepare(tile[None])[0],
        key_added="features",
        pbar=False,
        **how,
    )
    return wsi.tables["features"]


def by_cmrcnet(slide: Path, side_um: float, pitch_um: float, way: str) -> anndata.AnnData:
    """Grid and features by this package, nothing cached."""
    plain = {"engine": "torch", "precision": "float32"} if way.endswith("float32") else {}
    spec = cmrcnet.FeatureSpec(scales_um=(side_um,), method="dense" if way == "dense" else "patches", **plain)
    with cmrcnet.open_slide(slide) as opened:
        spots = make_query_grid(opened, None, None, pitch_um)[0]
        features = cmrcnet.extract(default_encoder(), opened, spots.centre_px, spec)
    return anndata.AnnData(features[:, 0], obsm={"spatial": spots.centre_px})


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("--sides-um", type=float, nargs="+", default=[112.0, 350.0])
    parser.add_argument("--pitch-um", type=float, default=100.0)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--table", type=Path, help="one way alone, in this process, into this file")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.table:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        (side_um,), (way,) = given.sides_um, given.ways
        if way.startswith("LazySlide"):
            table = by_lazyslide(given.slide, side_um, given.pitch_um, "amp" in way)
        else:
            table = by_cmrcnet(given.slide, side_um, given.pitch_um, way)
        table.write_h5ad(given.table)
        return
    found: dict[str, dict[str, dict[str, float]]] = {}
    for side_um in given.sides_um:
        rows = found[f"{side_um:g} um, pitch {given.pitch_um:g} um"] = {}
        for way in given.ways:
            with tempfile.TemporaryDirectory() as scratch:
                table, start = Path(scratch) / "table.h5ad", time.perf_counter()
                words = ["--table", table, "--ways", way, "--sides-um", side_um, "--pitch-um", given.pitch_um]
                command = [sys.executable, __file__, given.slide, *words]
                _, status, used = os.wait4(os.spawnv(os.P_NOWAIT, sys.executable, [str(word) for word in command]), 0)
                if status:
                    raise SystemExit(f"{way} ended with status {status}")
                seconds, count = time.perf_counter() - start, anndata.read_h5ad(table).n_obs
            rows[way] = {
                "locations": count,
                "seconds": round(seconds, 1),
                "locations_per_s": round(count / seconds, 1),
                "cpu_ms_per_location": round(1000 * (used.ru_utime + used.ru_stime) / count, 1),
                "peak_gb": round(used.ru_maxrss * 1024 / 1e9, 2),
            }
            print(side_um, way, rows[way], flush=True)
            if given.out:
                given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
