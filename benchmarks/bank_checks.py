"""What the checksums of a bank cost: opening it and its first use, with and without them, in turn in one run.

    python benchmarks/bank_checks.py --out bank_checks.json                # a million spots: about 2 GB of disk
    python benchmarks/bank_checks.py --sections 20                         # a quick look

The bank is that of `large_bank` with 2,000 genes. Each measurement is a process of its own, because a process checks
a file once; the first pair, which warms the cache of the disk, is left out, and the fastest of the others is given.
Opening checks all but the expression; the first use of a gene checks its values.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import large_bank
import numpy as np
from clustered_vectors import vectors

from cmrcnet.config import HeadConfig
from cmrcnet.inference.predictor import average_expression
from cmrcnet.retrieval import store
from cmrcnet.retrieval.bank import ReferenceBank

GENES, EXPRESSED, LOCATIONS = 2_000, 111, 100
KINDS = ("checked", "unchecked")


class _Any(str):
    """Equal to every checksum."""

    __slots__ = ()

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


def measure(folder: Path, kind: str) -> dict[str, float]:
    """Processor seconds to open the bank, and to average 50 and then all genes at some locations."""
    if kind == "unchecked":
        store.file_checksum = lambda path: _Any()
        store.BankSection.require_genes = lambda self, first, last: None
    start = time.process_time()
    bank = ReferenceBank.load(folder)
    opened = time.process_time()
    neighbours = bank.searcher().nearest(vectors(LOCATIONS, 2), 50)
    found = {"open": opened - start}
    for name, genes in (("first_50_genes", 50), ("all_genes", GENES)):
        start = time.process_time()
        for first in range(0, genes, 50):
            average_expression(neighbours, bank, HeadConfig(k=50), np.arange(first, first + 50))
        found[name] = time.process_time() - start
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="where the figures are written as JSON")
    parser.add_argument("--sections", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--within", type=Path, help="folder for the bank")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(Path(options.measure[0]), options.measure[1])))
        return
    large_bank.GENES, large_bank.EXPRESSED = GENES, EXPRESSED
    with tempfile.TemporaryDirectory(dir=options.within) as name:
        folder = Path(name) / "bank"
        large_bank.make_bank(folder, options.sections)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
        for _ in range(options.repeats + 1):
            for kind in KINDS:
                command = [sys.executable, __file__, "--measure", str(folder), kind]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                runs[kind].append(json.loads(done.stdout.splitlines()[-1]))
                print(kind, runs[kind][-1], flush=True)
    figures: dict = {"spots": options.sections * large_bank.SPOTS, "genes": GENES, "gigabytes": size / 1e9}
    for step in runs["checked"][0]:
        best = {kind: min(run[step] for run in runs[kind][1:]) for kind in KINDS}
        figures[step] = best | {"ratio": best["checked"] / best["unchecked"]}
    print(json.dumps(figures, indent=1))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
