"""Preparing a batch against the released code's way, in one run.

    python benchmarks/batch_preparation.py --out batch_preparation.json

The released code makes a batch from single items: ``adata[barcode].to_df()`` is sliced for every spot, and every patch
is turned into a picture, flipped and rotated, converted to a float tensor and normalised by itself; then the items are
stacked. The lines below restate that in our own words. Ours gathers a batch at once from arrays that are mapped from
disk; samples are turned and pixels normalised batch by batch, where the network computes.

- tokens: what training on a frozen encoder (config `default`) feeds, 49 tokens of 424 features, as float32 tensors.
- patches: what training an encoder (config `paper`) hands to the device: uint8 patches, a quarter of the size.
- patches, turned and normalised: the same, and the device's part done here on one CPU thread as well, which makes
  exactly what the released way makes.

Both sides use one thread and a warm disk; the order of spots is random.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy import sparse

from cmrcnet.storage.cache import TokenCache
from cmrcnet.training.data import TrainingData, as_tensors
from cmrcnet.training.module import augment_patches

SPOTS, GENES, BATCH, SIDE = 600, 1_000, 64, 224
MEAN = torch.tensor([0.485, 0.456, 0.406])
STD = torch.tensor([0.229, 0.224, 0.225])
WANTED = 20.0


def make_inputs(cache: TokenCache) -> tuple[np.ndarray, np.ndarray, sparse.csr_matrix]:
    """Patches and tokens mapped from disk, and log-normalised expression with nine zeros in ten."""
    rng = np.random.default_rng(0)
    shape = (SPOTS, SIDE, SIDE, 3)
    patches = cache.put(
        "patches", "p", shape, np.uint8, (rng.integers(0, 256, (1, *shape[1:]), dtype=np.uint8) for _ in range(SPOTS))
    )
    shape = (SPOTS, 49, 424)
    tokens = cache.put(
        "tokens", "t", shape, np.float16, (rng.normal(size=(1, *shape[1:])).astype(np.float16) for _ in range(SPOTS))
    )
    expression = sparse.random(SPOTS, GENES, 0.1, "csr", np.float32, rng=rng)
    return patches, tokens, expression


def released_way(adata: anndata.AnnData, patches: np.ndarray, ids: np.ndarray, rng: np.random.Generator) -> tuple:
    """One item after the other, then stacked."""
    images, rows = [], []
    for spot in ids:
        row = adata[adata.obs_names[spot]].to_df()
        rows.append(torch.tensor(row.to_numpy(), dtype=torch.float32).squeeze(0))
        picture = Image.fromarray(patches[spot])
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        turns = int(rng.integers(4))
        if turns:
            picture = picture.rotate(90 * turns)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div(255)
        images.append((pixels - MEAN[:, None, None]) / STD[:, None, None])
    return torch.stack(images), torch.stack(rows)


def our_way(pairs: TrainingData, ids: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """All at once, as `training.data.epoch_batches` does it."""
    return as_tensors(*pairs.gather(ids))


def normalised(patches: torch.Tensor) -> torch.Tensor:
    """As `ImageEncoder.prepare`."""
    return patches.permute(0, 3, 1, 2).float().sub_(255 * MEAN[:, None, None]).div_(255 * STD[:, None, None])


def seconds(job: Callable[[np.ndarray], object], orders: list[np.ndarray]) -> list[float]:
    """Time of each batch."""
    times = []
    for ids in orders:
        start = time.perf_counter()
        job(ids)
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    """Time both ways batch by batch in turn, so that a busy machine slows both alike."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        patches, tokens, expression = make_inputs(TokenCache(Path(folder)))
        adata = anndata.AnnData(expression.copy(), obs=pd.DataFrame(index=[f"{n}x{n % 7}" for n in range(SPOTS)]))
        of_patches = TrainingData(("S1",), ("P1",), (patches,), expression)
        of_tokens = TrainingData(("S1",), ("P1",), (tokens,), expression)
        rng = np.random.default_rng(1)
        ways: dict[str, Callable[[np.ndarray], object]] = {
            "released": lambda ids: released_way(adata, np.asarray(patches), ids, rng),
            "tokens": lambda ids: our_way(of_tokens, ids),
            "patches": lambda ids: our_way(of_patches, ids),
            "patches, turned and normalised": lambda ids: normalised(
                augment_patches(our_way(of_patches, ids)[0], rng.integers(8, size=len(ids)))
            ),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(arguments.batches + 1):
            ids = rng.permutation(SPOTS)[:BATCH]
            for name, way in ways.items():
                taken = seconds(way, [ids])
                times[name] += taken if turn else []  # the first round warms up
        _same_expression(adata, of_tokens, ids)
    medians = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    ratios = {name: medians["released"] / value for name, value in medians.items()}
    print(f"Preparing a batch of {BATCH} ({GENES} genes, {SIDE} px patches), median of {arguments.batches}:\n")
    print("| way | ms a batch | times faster | wanted |\n|---|---|---|---|")
    for name, value in medians.items():
        wanted = f"{WANTED:g}" if name in ("tokens", "patches") else ""
        print(f"| {name} | {value:.1f} | {ratios[name]:.1f} | {wanted} |")
    facts = {
        "batch": BATCH,
        "genes": GENES,
        "milliseconds": {name: round(value, 3) for name, value in medians.items()},
        "times_faster": {name: round(value, 2) for name, value in ratios.items() if name != "released"},
        "wanted": WANTED,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__},
    }
    print(f"\n{json.dumps(facts)}")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(facts, indent=1) + "\n")


def _same_expression(adata: anndata.AnnData, pairs: TrainingData, ids: np.ndarray) -> None:
    """Both ways must hand over the same numbers, or the comparison is none."""
    theirs = np.concatenate([adata[adata.obs_names[spot]].to_df().to_numpy() for spot in ids])
    np.testing.assert_array_equal(theirs, pairs.gather(ids)[1])


if __name__ == "__main__":
    main()
