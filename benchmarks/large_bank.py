"""A bank of a million spots and 18,000 genes: ten thousand locations predicted with little memory, and edited.

    python benchmarks/large_bank.py --out large_bank.json                     # a million spots: about 12 GB of disk
    python benchmarks/large_bank.py --sections 20 --locations 500                # a quick look

Each section has 2,000 spots of which each expresses about a thousand of 18,000 genes (values of 20 drawn tables, so
that making them does not take longer than what is measured). Vectors as in `clustered_vectors`. Predicting means
searching the 50 nearest spots of every location and averaging all genes, mean and spread, into two files on disk, a
block
of genes at a time. It runs in a process of its own, whose largest resident memory, mapped files included, is given.
Then a section is dropped and one added, the same in a bank of a tenth of the size, and the costs are laid side by side.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OPENBLAS_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from clustered_vectors import vectors
from scipy import sparse

from cmrcnet.config import HeadConfig
from cmrcnet.inference.predictor import average_expression, embedding_bag_sums
from cmrcnet.retrieval.bank import ReferenceBank
from cmrcnet.retrieval.edit import drop_sections, rebuild_index
from cmrcnet.retrieval.store import SECTIONS, BankSection, Manifest
from cmrcnet.search.aggregate import average_blocks
from cmrcnet.search.build import SearchConfig
from cmrcnet.search.stacked_arrays import csc_of

GENES, SPOTS, EXPRESSED, TABLES = 18_000, 2_000, 1_000, 20
WANTED_GB = 4.0


def table(seed: int) -> sparse.csc_matrix:
    """Expression of one section: a gene's share of spots is log-normal."""
    rng = np.random.default_rng(seed)
    share = np.random.default_rng(0).lognormal(-3.5, 1.2, GENES)
    share = np.minimum(share * EXPRESSED / share.sum(), 0.95)
    each = rng.binomial(SPOTS, share)
    rows = np.concatenate([np.sort(rng.choice(SPOTS, n, replace=False)) for n in each]).astype(np.int32)
    values = rng.gamma(3, 0.6, len(rows)).astype(np.float32)
    return csc_of(values, rows, np.concatenate([[0], np.cumsum(each)]), (SPOTS, GENES))


def make_bank(folder: Path, sections: int) -> None:
    """A bank, section by section, as `cmrcnet bank add` leaves it."""
    tables = [table(seed) for seed in range(min(TABLES, sections))]
    genes, facts = tuple(f"GENE{number}" for number in range(GENES)), []
    everything = vectors(sections * SPOTS, 1)
    for number in range(sections):
        spots = pd.DataFrame({"barcode": [f"S{number}_{i}" for i in range(SPOTS)], "x": 0.0, "y": 0.0})
        own = everything[number * SPOTS : (number + 1) * SPOTS]
        part = BankSection(f"S{number}", f"P{number // 4}", spots, own, tables[number % len(tables)], genes, True)
        facts.append(part.write(folder / SECTIONS / part.fingerprint))
    Manifest("benchmark", 1e4, everything.shape[1], None, tuple(facts)).write(folder)


def predict(folder: Path, locations: int, out: Path) -> dict:
    """Search and average into two files; seconds of each step, and memory."""
    config = HeadConfig(k=50)
    start = time.perf_counter()
    bank = ReferenceBank.load(folder)
    search = bank.searcher()
    opened = time.perf_counter()
    neighbours = search.nearest(vectors(locations, 2), config.k)
    searched = time.perf_counter()
    shape = (len(bank.genes), locations)  # a gene a row: a block of genes is one piece of the file
    files = [np.lib.format.open_memmap(out / f"{name}.npy", "w+", np.float32, shape) for name in ("mean", "spread")]
    for place, *block in average_blocks(
        neighbours,
        bank.expression,
        weighting=config.weighting,
        temperature=config.temperature,
        section_of_spot=bank.section_of_spot,
        measured=bank.measured,
        row_sums=embedding_bag_sums,
    ):
        for file, values in zip(files, block, strict=True):
            file[place] = values.T
            file.base.madvise(4)  # MADV_DONTNEED: what is written leaves this process; the system writes it to disk
    averaged = time.perf_counter()
    few = np.random.default_rng(0).choice(GENES, 50, replace=False)
    average_expression(neighbours, bank, config, few)
    return {
        "locations": locations,
        "spots": len(bank),
        "search": search.__class__.__name__,
        "open_seconds": opened - start,
        "search_seconds": searched - opened,
        "average_seconds": averaged - searched,
        "fifty_genes_seconds": time.perf_counter() - averaged,
        "peak_gb": _peak_gb(),
        "written_gb": sum(file.nbytes for file in files) / 1e9,
    }


def _peak_gb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return float(line.split()[1]) * 1024 / 1e9
    raise RuntimeError("the memory of a process is measured on Linux only")


def edits(folder: Path) -> dict[str, float]:
    """Seconds to drop one section."""
    start = time.perf_counter()
    drop_sections(folder, ["S1"])
    return {"spots": Manifest.read(folder).spots, "drop_seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="where the figures are written as JSON")
    parser.add_argument("--sections", type=int, default=500)
    parser.add_argument("--locations", type=int, default=10_000)
    parser.add_argument("--search", default="ivf-compressed")
    parser.add_argument("--within", type=Path, help="folder for the bank")
    parser.add_argument("--predict", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.predict:
        print(json.dumps(predict(options.predict, options.locations, options.predict.parent)))
        return
    with tempfile.TemporaryDirectory(dir=options.within) as name:
        large, small = Path(name) / "bank", Path(name) / "small"
        start = time.perf_counter()
        make_bank(large, options.sections)
        figures: dict = {"make_seconds": time.perf_counter() - start}
        start = time.perf_counter()
        rebuild_index(large, SearchConfig(kind=options.search))
        figures["index_seconds"] = time.perf_counter() - start
        done = subprocess.run(
            [sys.executable, __file__, "--predict", str(large), "--locations", str(options.locations)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        figures["predicted"] = json.loads(done.stdout.splitlines()[-1])
        make_bank(small, max(4, options.sections // 10))
        rebuild_index(small, SearchConfig(kind=options.search))
        figures["edits"] = [edits(small), edits(large)]
    print(json.dumps(figures, indent=1))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    if figures["predicted"]["peak_gb"] >= WANTED_GB:
        sys.exit(f"missed: {figures['predicted']['peak_gb']:.1f} GB resident, {WANTED_GB:g} wanted")


if __name__ == "__main__":
    main()
