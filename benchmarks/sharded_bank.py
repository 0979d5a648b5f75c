"""A bank searched in one process and in shards on a Ray cluster of this machine: time a query, memory, agreement.

    python benchmarks/sharded_bank.py --spots 1000000 --shards 2 --out sharded_bank.json

Vectors as in `clustered_vectors`, in sections of 10,000 spots with two genes. One process and the shards search the
same queries in turns; medians over the rounds. On one machine the shards share its cores, so that the time shows what
asking and merging cost, not what more machines gain. A thread each.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from clustered_vectors import blocks, vectors
from scipy import sparse

from cmrcnet.genes.scaling import Scaling
from cmrcnet.retrieval.bank import ReferenceBank
from cmrcnet.retrieval.sharded_search import ShardedSearch
from cmrcnet.retrieval.store import BankSection
from cmrcnet.search.build import SearchConfig
from cmrcnet.workers import connect_ray

SECTION, QUERIES, K, ROUNDS = 10_000, 1_000, 50, 5


def make_bank(spots: int) -> ReferenceBank:
    """A bank in memory."""
    parts = []
    for block in blocks(spots, 1):
        for start in range(0, len(block), SECTION):
            own = block[start : start + SECTION]
            table = pd.DataFrame({"barcode": np.arange(len(own)).astype(str), "x": 0.0, "y": 0.0})
            expression = sparse.csc_matrix((len(own), 2), dtype=np.float32)
            parts.append(BankSection(f"S{len(parts)}", f"P{len(parts)}", table, own, expression, ("A", "B"), True))
    return ReferenceBank(tuple(parts), "benchmark", Scaling(target_sum=10_000.0))


def memory_gb(pid: int) -> float:
    """Memory of a process that is its own, without mapped files."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE") / 1e9


def measure(folder: Path, shards: int) -> dict:
    """One process beside the shards."""
    bank, queries = ReferenceBank.load(folder), vectors(QUERIES, 2)
    start = time.perf_counter()
    spread = ShardedSearch(bank, shards, "ray")
    opened = time.perf_counter() - start
    before = memory_gb(os.getpid())
    one = bank.searcher()
    own = memory_gb(os.getpid()) - before
    seconds: dict[str, list[float]] = {"one process": [], "shards": []}
    for _ in range(ROUNDS):
        for name, search in (("one process", one), ("shards", spread)):
            start = time.perf_counter()
            search.nearest(queries, K)
            seconds[name].append(time.perf_counter() - start)
    found, several = one.nearest(queries, K), spread.nearest(queries, K)
    return {
        "spots": len(bank),
        "shards": shards,
        "search": "exact" if bank.index is None else bank.index["kind"],
        "open_shards_seconds": opened,
        "index_of_one_process_gb": own,
        "us_a_query": {name: statistics.median(each) / QUERIES * 1e6 for name, each in seconds.items()},
        "shards_over_one": statistics.median(np.array(seconds["shards"]) / np.array(seconds["one process"])),
        "same_ids": float((found.ids == several.ids).mean()),
        "similarity_gained": float((several.similarity - found.similarity).mean()),
        "similarity_lost_at_most": float(np.maximum(found.similarity - several.similarity, 0).max()),
    }


def main() -> None:
    """Build a bank, search it both ways, exactly and by an index, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spots", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    connect_ray("ray")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("exact", "ivf-compressed"):
            start = time.perf_counter()
            make_bank(arguments.spots).save(f"{folder}/{kind}", search=SearchConfig(kind=kind))
            built = time.perf_counter() - start
            found.append({"build_seconds": built, **measure(Path(folder, kind), arguments.shards)})
    print(json.dumps(found, indent=1))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
