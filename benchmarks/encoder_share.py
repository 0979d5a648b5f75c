"""What a whole-slide prediction costs beside its encoder, in one run on the CPU.

    python benchmarks/encoder_share.py --slide SLIDE.svs --out docs/benchmarks/encoder_share.json

Config `paper` (ViT-B/32 of random weights): some hundred locations of a tiled, compressed pyramid are predicted into an
.h5ad with all 15,000 genes of a bank of 5,000 spots: tissue found, patches read, encoded, searched, averaged, written.
Bare: the same encoder on the same number of patches that lie in memory already, in batches of the same size, and
nothing else. The two take turns, so that a busy machine slows both alike. Wanted: everything but the encoder costs at
most 20 % of the encoder's own time. Without --slide one of 8,192 x 8,192 px is made (`benchmarks/large_slide.py`).
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import argparse
import cProfile
import json
import platform
import pstats
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from large_slide import synthetic_tissue, write_large_slide
from made_bank import made_bank, made_model

from cmrcnet.config import Config
from cmrcnet.features.device import choose_batch
from cmrcnet.inference.predict import predict_to_file
from cmrcnet.inference.predictor import PredictOptions, make_predictor
from cmrcnet.slides.patches import crop_patches
from cmrcnet.slides.slide import open_slide
from cmrcnet.slides.tissue import find_tissue, patch_grid

GENES, SPOTS = 15_000, 5_000
MOST = 0.20


def measure(slide_path: Path, folder: Path, locations: int, rounds: int) -> dict:
    """Seconds of the whole and of the bare encoder, and where the rest goes."""
    model = made_model(Config.load("paper").override({"model.weights": "random"}), GENES)
    bank = made_bank(model, SPOTS, GENES)
    with open_slide(slide_path) as slide:
        grid = patch_grid(slide, find_tissue(slide), pitch_um=100.0)
    chosen = grid.take(np.arange(min(locations, len(grid))))
    batch = choose_batch("auto", torch.device("cpu"))

    def whole() -> float:
        start = time.perf_counter()
        with open_slide(slide_path) as slide:
            predictor = make_predictor(model, bank, PredictOptions(spots=chosen))
            predict_to_file(predictor, slide, folder / "table.h5ad")
        (folder / "table.h5ad").unlink()
        return time.perf_counter() - start

    with open_slide(slide_path) as slide:
        blocks = list(crop_patches(slide, chosen.centre_px, model.config.patch, batch=batch))

    def bare() -> float:
        model.encoder.eval()
        start = time.perf_counter()
        with torch.inference_mode():
            for block in blocks:
                model.encoder(model.encoder.prepare(block))
        return time.perf_counter() - start

    bare()  # warms up
    times = [(whole(), bare()) for _ in range(rounds)]
    profile = cProfile.Profile()
    profile.enable()
    whole()
    profile.disable()
    return {
        "locations": len(chosen),
        "genes": GENES,
        "whole_seconds": round(statistics.median(w for w, _ in times), 2),
        "encoder_seconds": round(statistics.median(b for _, b in times), 2),
        "beside_the_encoder": round(statistics.median(w / b for w, b in times) - 1, 3),
        "wanted_at_most": MOST,
        "each": [[round(w, 2), round(b, 2)] for w, b in times],
        "profile": shares(profile),
    }


STEPS = {
    "tissue": ("mask.py", "find_tissue"),
    "wait for patches, encode, keep": ("location_features.py", "encode"),
    "encode": ("encode.py", "encode"),
    "search": ("exact.py", "nearest"),
    "average": ("predictor.py", "average_expression"),
    "write": ("table_file.py", "write"),
    "finish the table": ("table_file.py", "finish"),
}


def shares(profile: cProfile.Profile) -> dict[str, float]:
    """Seconds within each step of the calling thread."""
    found = {}
    for (file, _, name), (_, _, _, cumulative, _) in pstats.Stats(profile).stats.items():
        for step, (of_file, of_name) in STEPS.items():
            if file.endswith(f"/{of_file}") and name == of_name:
                found[step] = round(found.get(step, 0.0) + cumulative, 2)
    return {step: found[step] for step in STEPS if step in found}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--locations", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        slide = arguments.slide
        if slide is None:
            slide = Path(folder) / "slide.svs"
            write_large_slide(slide, 8192, synthetic_tissue())
        found = measure(slide, Path(folder), arguments.locations, arguments.rounds)
    found["machine"] = {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__}
    print(json.dumps(found, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
