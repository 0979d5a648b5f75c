"""What the loop costs beside the bare forward, backward and step on the same tensors, in one run.

    python benchmarks/feeding.py --out feeding.json

Fed: one epoch of the training loop as it is: batches gathered from disk-mapped arrays in a thread, turned, normalised,
through Lightning Fabric, with learning-rate schedule, gradient clipping, progress and `log.csv`. Bare: the same
network, optimizer and tensors (already gathered and turned, held in memory) with forward, backward and step, and
nothing else. Config `paper` (ViT-B/32 of random weights, batches of 64 patches of 224 px), and, as a harder case whose
steps are a hundred times shorter, config `default` (cached tokens of 424 features). Both ways take turns, so that a
busy machine slows both alike; writing states to disk is left out, since it is bounded to a twentieth of the time by
`Checkpoints`.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import argparse
import copy
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from scipy import sparse

from cmrcnet.config import Config
from cmrcnet.features.spec import FeatureSpec
from cmrcnet.models.encoders import create_image_encoder
from cmrcnet.models.image_encoder import ImageEncoder
from cmrcnet.storage.cache import TokenCache
from cmrcnet.training.checkpoint import Checkpoints, TrainingState
from cmrcnet.training.data import TrainingData, epoch_batches
from cmrcnet.training.loop import History, TrainContext, train_phase
from cmrcnet.training.module import new_training_module, on_device
from cmrcnet.training.validation import ValidationSplit, Validator

GENES, BATCH = 1_000, 64
MOST = 1.10
CASES = {"paper": (2, 3), "default": (12, 5)}
"""Steps an epoch, and epochs, of each config."""


def make_data(cache: TokenCache, config: Config, spots: int, encoder: ImageEncoder) -> TrainingData:
    """Random inputs mapped from disk, and expression with nine zeros in ten."""
    rng = np.random.default_rng(0)
    if config.model.train_encoder:
        shape = (spots, config.patch.size_px, config.patch.size_px, 3)
        made = (rng.integers(0, 256, (1, *shape[1:]), dtype=np.uint8) for _ in range(spots))
        inputs = cache.put("patches", config.name, shape, np.uint8, made)
    else:
        shape = (spots, FeatureSpec.of(config, encoder).token_count(encoder), encoder.dim)
        made = (rng.normal(size=(1, *shape[1:])).astype(np.float16) for _ in range(spots))
        inputs = cache.put("tokens", config.name, shape, np.float16, made)
    return TrainingData(("S1",), ("P1",), (inputs,), sparse.random(spots, GENES, 0.1, "csr", np.float32, rng=rng))


class TakingTurns(Checkpoints):
    """Writes the log as ever, notes how long the epoch took, and runs a bare epoch before the next one starts."""

    def __init__(self, folder: Path, bare: Callable[[int], float]) -> None:
        super().__init__(folder)
        self.bare, self.start = bare, time.perf_counter()
        self.seconds: list[tuple[float, float]] = []

    def write_log(self, history: list[dict[str, Any]]) -> None:
        super().write_log(history)
        fed = time.perf_counter() - self.start
        self.seconds.append((fed, self.bare(len(self.seconds))))
        self.start = time.perf_counter()

    def save(self, state: TrainingState, identity: Mapping[str, str]) -> None:
        """Left out of the comparison."""


def measure(name: str, folder: Path) -> dict[str, float]:
    """Seconds a step, fed and bare, and their ratio."""
    config = Config.load(name).override({"model.weights": "random"} if name == "paper" else {})
    steps, epochs = CASES[name]
    encoder = create_image_encoder(config.model.encoder, weights=config.model.weights, blocks=config.model.blocks)
    data = make_data(TokenCache(folder), config, steps * BATCH, encoder)
    config = config.override({"train.batch_size": BATCH})
    ids = np.arange(len(data))
    fabric = Fabric(accelerator="cpu", devices=1)
    prefix = 0 if config.model.train_encoder else None  # pooled scales have no grid of tokens
    plain = new_training_module(config, data, ids, copy.deepcopy(encoder))
    optimizer = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], lr=1e-4, weight_decay=1e-3)

    def bare(epoch: int) -> float:
        rng, masks = np.random.default_rng(epoch), torch.Generator().manual_seed(epoch)
        batches = [on_device(fabric, *batch, prefix) for batch in epoch_batches(data, ids, BATCH, rng)]
        plain.train()
        start = time.perf_counter()
        for inputs, expression in batches:
            total, *_ = plain(inputs, expression, masks)
            total.backward()
            optimizer.step()
            optimizer.zero_grad()
        return time.perf_counter() - start

    bare(0)  # warms up
    turns = TakingTurns(folder / "state", bare)
    context = TrainContext(config, data, fabric, lambda: encoder, prefix, turns, {})
    validator = Validator(data, ValidationSplit.nothing(len(data)), config, fabric)
    # The first epoch includes building the network and the last one a validation: both are left out.
    train_phase(context, "refit", ids, epochs + 2, History("pearson"), validator=validator, validate_every=epochs + 2)
    times = turns.seconds[1:-1]
    return {
        "fed_seconds": statistics.median(f for f, _ in times) / steps,
        "bare_seconds": statistics.median(b for _, b in times) / steps,
        "ratio": statistics.median(f / b for f, b in times),
    }


def main() -> None:
    """Measure the cases and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found = {}
    for name in arguments.presets:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure(name, Path(folder))
    print(f"A training step on a CPU, batch {BATCH}, {GENES} genes (median over epochs):\n")
    print("| config | bare s | with loader, augmentation, logging s | ratio | wanted |\n|---|---|---|---|---|")
    for name, each in found.items():
        wanted = f"<= {MOST:.2f}" if name == "paper" else ""
        print(f"| {name} | {each['bare_seconds']:.3f} | {each['fed_seconds']:.3f} | {each['ratio']:.3f} | {wanted} |")
    machine = {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    facts = {"batch": BATCH, "genes": GENES, "presets": found, "wanted": {"paper": MOST}, "machine": machine}
    print(f"\n{json.dumps(facts)}")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
