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
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from lightning_fabric import Fabric
from scipy import sparse

from cmrcnet.config import Config
from cmrcnet.models.encoders import create_image_encoder
from cmrcnet.progress import metered
from cmrcnet.storage.cache import TokenCache
from cmrcnet.training.batches import epoch_batches, on_device
from cmrcnet.training.checkpoint import Checkpoints
from cmrcnet.training.data import Pairs
from cmrcnet.training.loop import Job, one_epoch
from cmrcnet.training.module import new_learner

GENES, BATCH = 1_000, 64
MOST = 1.10
CASES = {"paper": (2, 3), "default": (12, 5)}
"""Steps an epoch, and epochs, of each config."""


def make_pairs(cache: TokenCache, config: Config, spots: int, token_dim: int) -> Pairs:
    """Random inputs mapped from disk, and expression with nine zeros in ten."""
    rng = np.random.default_rng(0)
    if config.model.train_encoder:
        shape = (spots, config.patch.size_px, config.patch.size_px, 3)
        made = (rng.integers(0, 256, (1, *shape[1:]), dtype=np.uint8) for _ in range(spots))
        inputs = cache.put("patches", config.name, shape, np.uint8, made)
    else:
        shape = (spots, 49, token_dim)
        made = (rng.normal(size=(1, *shape[1:])).astype(np.float16) for _ in range(spots))
        inputs = cache.put("tokens", config.name, shape, np.float16, made)
    return Pairs(("S1",), ("P1",), (inputs,), sparse.random(spots, GENES, 0.1, "csr", np.float32, rng=rng))


def measure(name: str, folder: Path) -> dict[str, float]:
    """Seconds a step, fed and bare, and their ratio."""
    config = Config.load(name).override({"model.weights": "random"} if name == "paper" else {})
    steps, epochs = CASES[name]
    encoder = create_image_encoder(config.model.encoder, weights=config.model.weights, blocks=config.model.blocks)
    pairs = make_pairs(TokenCache(folder), config, steps * BATCH, encoder.dim)
    ids = np.arange(len(pairs))
    learner = new_learner(config, pairs, ids, GENES, encoder)
    optimizer = torch.optim.AdamW([p for p in learner.parameters() if p.requires_grad], lr=1e-4, weight_decay=1e-3)
    fabric = Fabric(accelerator="cpu", devices=1)
    model, stepper = fabric.setup(learner, optimizer)
    checkpoints = Checkpoints(folder / "state")
    prefix = 0 if config.model.train_encoder else encoder.card.class_tokens
    job = Job(config, pairs, GENES, fabric, lambda: encoder, prefix, checkpoints, {})
    no_average = SimpleNamespace(average=lambda: None)  # neither config keeps a moving average

    def fed(epoch: int) -> float:
        start = time.perf_counter()
        rng, masks = np.random.default_rng(epoch), torch.Generator().manual_seed(epoch)
        with metered("train", steps, "steps") as meter:
            row = one_epoch(job, model, stepper, optimizer, no_average, ids, epoch, rng, masks, meter)
            checkpoints.write_log([row])
        return time.perf_counter() - start

    def bare(epoch: int) -> float:
        rng, masks = np.random.default_rng(epoch), torch.Generator().manual_seed(epoch)
        batches = [on_device(fabric, *batch, prefix) for batch in epoch_batches(pairs, ids, BATCH, rng)]
        learner.train()
        start = time.perf_counter()
        for inputs, expression in batches:
            total, *_ = learner(inputs, expression, masks)
            total.backward()
            optimizer.step()
            optimizer.zero_grad()
        return time.perf_counter() - start

    bare(0)  # warms up
    times = [(fed(epoch), bare(epoch)) for epoch in range(epochs)]
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
