"""Dense features against patches on one real section: seconds, pixels through the network, pitch, halo.

    python benchmarks/dense_features.py C6.jpg --mpp 0.6877 --out docs/benchmarks/dense_features.json
    python benchmarks/dense_features.py C6.jpg --mpp 0.6877 --parts halo --out docs/benchmarks/dense_features.json

Parts, each with ratios within one run:

- ``ways``: a grid of locations (`--pitch-um`) encoded by dense, and some of it (`--few`) by patches, whose cost is in
  proportion; scale by scale, no image statistics, nothing cached, the slide decoded before;
- ``pitch``: dense at `--pitch-um` and at a quarter of it, all scales, with the image statistics of the alarm;
- ``halo``: differences of features between tiles of 448 px and one tile over all, whose halo covers what the network
  can see, in deviations of the feature over the locations around the middle of the tissue;
- ``statistics``: how far image statistics by dense are from those of patches, in deviations within the section.

With `--out`, the figures of the parts that ran are put into the file; those of others are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import torch

import cmrcnet
from cmrcnet.config import Config
from cmrcnet.features import dense
from cmrcnet.features.engine import choose_engine
from cmrcnet.features.extract import extract, extract_chunks
from cmrcnet.features.spec import STATISTICS, FeatureSpec
from cmrcnet.models.image_encoder import ImageEncoder
from cmrcnet.slides.slide import PatchScale, Slide, known_scale
from cmrcnet.slides.tissue import make_query_grid
from cmrcnet.uncertainty.ood import image_statistics

HALOS = (0, 56, 112, 160, 192, 224)
SMALL_TILE, WHOLE, SEEN = 448, 1 << 20, 416


def seconds(work: Callable[[], object]) -> float:
    """How long it takes, once."""
    start = time.perf_counter()
    work()
    return round(time.perf_counter() - start, 2)


def pixels_dense(slide: Slide, centres: np.ndarray, spec: FeatureSpec) -> int:
    """Pixels of all tiles' inputs, all scales and orientations."""
    total = 0
    for number, scale in enumerate(spec.scales):
        grid = dense.PixelGrid(slide, scale.mpp, dense.ALIGN_PX)
        for rows in dense.tiles_of_layer(slide, centres, spec, number):
            corners = centres[rows] / grid.px_of_slide - scale.size_px / 2
            low, high = corners.min(axis=0) - dense.HALO_PX, corners.max(axis=0) + scale.size_px + dense.HALO_PX
            total += int(np.prod([len(grid.blocks(a, b)) * grid.block_px for a, b in zip(low, high, strict=True)]))
    return total * spec.augmentations


def ways(
    encoder: ImageEncoder, slide: Slide, centres: np.ndarray, specs: Callable[..., FeatureSpec], few: int
) -> dict[str, Any]:
    """Patches by torch in float32 (eager), patches and dense by the engine of this machine, scale by scale."""
    some = centres[:: max(1, len(centres) // few)]
    found: dict[str, Any] = {"locations": len(centres), "of which by patches": len(some)}

    def milliseconds(spec: FeatureSpec, at: np.ndarray) -> float:
        extract(encoder, slide, at[:1], spec)  # converted before the clock starts
        return round(1000 * seconds(lambda: extract(encoder, slide, at, spec)) / len(at), 2)

    for side in specs().scales_um:
        eager = specs(scales_um=(side,), engine="torch", precision="float32")
        engine = choose_engine(encoder, specs(scales_um=(side,)))
        tiles = choose_engine(encoder, specs(scales_um=(side,), method="dense"))
        took = {
            f"patches, {eager.engine} {eager.precision}": milliseconds(eager, some),
            f"patches, {engine.engine} {engine.precision}": milliseconds(engine, some),
            f"dense, {tiles.engine} {tiles.precision}": milliseconds(tiles, centres),
        }
        slowest, *_, dense_way = took.values()
        found[f"{side:g} um"] = {
            "milliseconds a location": took,
            "pixels a location": {
                "patches": eager.patch.size_px**2 * eager.augmentations,
                "dense": pixels_dense(slide, centres, tiles) // len(centres),
            },
            "dense, times faster than eager patches": round(slowest / dense_way, 2),
        }
        print(side, found[f"{side:g} um"], flush=True)
    return found


def pitch(encoder: ImageEncoder, slide: Slide, pitch_um: float, specs: Callable[..., FeatureSpec]) -> dict[str, Any]:
    """A grid and one four times as fine."""
    found, spec = {}, specs(method="dense")
    layers = (*range(len(spec.scales)), STATISTICS)
    for step in (pitch_um, pitch_um / 4):
        centres = make_query_grid(slide, None, None, step)[0].centre_px
        took = seconds(lambda at=centres: list(extract_chunks(encoder, slide, at, spec, layers=layers)))
        found[f"{step:g} um"] = {"locations": len(centres), "seconds": took}
        print(step, found[f"{step:g} um"], flush=True)
    coarse, fine = found.values()
    return found | {"times as long": round(fine["seconds"] / coarse["seconds"], 2)}


def halo(encoder: ImageEncoder, slide: Slide, centres: np.ndarray, side_um: float) -> dict[str, Any]:
    """Differences to one tile, by block."""
    scale = PatchScale().showing(side_um)
    near = np.abs(centres - np.median(centres, axis=0)) * known_scale(slide) < 1000 * scale.mpp
    centres = centres[near.all(axis=1)]
    spec = FeatureSpec(scales_um=(side_um,), method="dense", device="cpu", engine="torch", precision="float32")
    before = dense.TILE_PX, dense.HALO_PX
    dense.TILE_PX, dense.HALO_PX = WHOLE, SEEN
    whole = extract(encoder, slide, centres, spec)[:, 0]
    dense.TILE_PX = SMALL_TILE
    ends = np.cumsum([0, *(encoder.config.blocks[block] for block in encoder.blocks)])
    found: dict[str, Any] = {"locations": len(centres), "tile_px": SMALL_TILE}
    for dense.HALO_PX in HALOS:
        start = time.perf_counter()
        apart = (extract(encoder, slide, centres, spec)[:, 0] - whole) / whole.std(axis=0)
        took = round(time.perf_counter() - start, 2)
        correlation = 1 - np.square(apart).mean(axis=0) / 2
        found[f"{dense.HALO_PX} px"] = {"seconds": took} | {
            f"block {block}": {
                "deviations, root mean square": float(f"{np.sqrt(np.square(apart[:, a:b]).mean()):.2g}"),
                "deviations, at most": float(f"{np.abs(apart[:, a:b]).max():.2g}"),
                "correlation": round(float(correlation[a:b].mean()), 6),
            }
            for block, a, b in zip(encoder.blocks, ends, ends[1:], strict=False)
        }
        print(dense.HALO_PX, found[f"{dense.HALO_PX} px"], flush=True)
    dense.TILE_PX, dense.HALO_PX = before
    return found


def statistics(encoder: ImageEncoder, slide: Slide, centres: np.ndarray, spec: FeatureSpec) -> dict[str, Any]:
    """Image statistics both ways, and their seconds."""
    found = np.empty((len(centres), 9), np.float32)
    start = time.perf_counter()
    for chunk in extract_chunks(encoder, slide, centres, spec, layers=(STATISTICS,)):
        found[chunk.rows] = chunk.values
    middle = time.perf_counter()
    wanted = image_statistics(slide, centres)
    took = middle - start, time.perf_counter() - middle
    apart = (found - wanted) / wanted.std(axis=0)
    return {
        "locations": len(centres),
        "seconds dense, patches": [round(each, 2) for each in took],
        "shift of the medians in deviations": [round(float(each), 3) for each in np.median(apart, axis=0)],
        "root mean square in deviations": [round(float(each), 3) for each in np.sqrt(np.square(apart).mean(axis=0))],
    }


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("--mpp", type=float, required=True)
    parser.add_argument("--config", default="default", help="preset or YAML file whose encoder and scales are used")
    parser.add_argument("--augmentations", type=int, default=1, help="orientations; both ways cost in proportion")
    parser.add_argument("--few", type=int, default=100, help="locations that are encoded by patches")
    parser.add_argument("--pitch-um", type=float, default=100.0)
    parser.add_argument("--parts", nargs="+", default=["ways", "pitch", "statistics"])
    parser.add_argument("--out", type=Path, help="where the figures are written as JSON")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    config = Config.load(options.config)
    encoder = cmrcnet.create_image_encoder(config.model.encoder, blocks=config.model.blocks)
    slide = cmrcnet.open_slide(options.image, mpp=options.mpp)
    centres = make_query_grid(slide, None, None, options.pitch_um)[0].centre_px

    def specs(**how: Any) -> FeatureSpec:
        plain = {"scales_um": config.features.scales_um, "augmentations": options.augmentations, "device": "cpu"}
        return FeatureSpec(**plain | how)

    measure: dict[str, Callable[[], dict[str, Any]]] = {
        "ways": lambda: ways(encoder, slide, centres, specs, options.few),
        "pitch": lambda: pitch(encoder, slide, options.pitch_um, specs),
        "halo": lambda: halo(encoder, slide, centres, specs().scales_um[0]),
        "statistics": lambda: statistics(encoder, slide, centres, specs(method="dense")),
    }
    extract(encoder, slide, centres[:2], specs(method="patches"))  # decodes and warms up
    command = f"python benchmarks/dense_features.py {options.image.name} --mpp {options.mpp} --parts"
    figures: dict[str, Any] = {}
    for part in options.parts:
        figures[part] = measure[part]() | {
            "command": f"{command} {part} --augmentations {options.augmentations}",
            "tile, halo": [dense.TILE_PX, dense.HALO_PX],
            "peak memory so far, GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        }
        print(json.dumps({part: figures[part]}, indent=1), flush=True)
    if options.out:
        known = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
        options.out.write_text(json.dumps(known | figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
