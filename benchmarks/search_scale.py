"""Time of one query against the size of the bank: exact search beside the approximate ones, in one run.

    python benchmarks/search_scale.py --largest 10000000 --out search_largest.json
    python benchmarks/search_scale.py --out search_scale.json --picture search_scale.png --with search_largest.json
    python benchmarks/search_scale.py --libraries --sizes 30000 --out search_libraries.json

Every index is built by `build_search` until it finds 96 % of the true neighbours of held-out spots; recall is then
measured again, here, on a thousand other queries. All ways are timed once in every round, so that a busy machine slows
all alike (exact search, which takes long, in the first two rounds only); medians are given. Two threads. `--libraries`
compares FAISS with USearch (pip install usearch). `--largest` takes a bank on disk, memory-mapped, compressed lists
alone, and gives the memory.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OPENBLAS_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait by spinning starve each other on a busy machine

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from clustered_vectors import DIM, blocks, vectors

from cmrcnet.search.build import BuiltSearch, SearchConfig, build_search
from cmrcnet.search.exact import ExactSearch

SIZES = (30_000, 100_000, 300_000, 1_000_000)
KINDS = ("ivf", "ivf-compressed")
ASKED, WANTED_RECALL = 0.96, 0.95
WANTED_FASTER = {50: 50.0, 500: 25.0}
WANTED_GROWTH = 3.0
QUERIES = 1_000


def seconds_of(way: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def recall_of(found: np.ndarray, true: np.ndarray) -> float:
    """Share of the true ids that were found."""
    return float(np.mean([len(np.intersect1d(f, t)) / len(t) for f, t in zip(found, true, strict=True)]))


def compare(size: int, rounds: int) -> dict:
    """Exact and approximate searches of a bank of one size."""
    bank, queries = vectors(size, 1), vectors(QUERIES, 2)
    exact = ExactSearch(bank)
    true = exact.nearest(queries, 500).ids
    built: dict[str, BuiltSearch] = {}
    build_seconds = {}
    for kind in KINDS:
        start = time.perf_counter()
        built[kind] = build_search(bank, SearchConfig(kind=kind, recall=ASKED))
        build_seconds[kind] = time.perf_counter() - start
    ways = {"exact": exact, **{kind: each.searcher for kind, each in built.items()}}
    seconds: dict[str, dict[int, list[float]]] = {name: {50: [], 500: []} for name in ways}
    for number in range(rounds + 1):
        for k in (50, 500):
            for name, searcher in ways.items():
                if name == "exact" and number > 2:
                    continue  # it takes long, and varies little
                took = seconds_of(lambda searcher=searcher, k=k: searcher.nearest(queries, k))
                if number > 0:
                    seconds[name][k].append(took / QUERIES)
    median = {name: {k: statistics.median(each) for k, each in by_k.items()} for name, by_k in seconds.items()}
    figures = {
        "size": size,
        "build_seconds": build_seconds,
        "seconds_a_query": median,
        "recall": {
            name: {k: recall_of(each.searcher.nearest(queries, k).ids, true[:, :k]) for k in (50, 500)}
            for name, each in built.items()
        },
        "stated_recall": {name: each.recall for name, each in built.items()},
        "nprobe": {name: each.searcher.parameters.steps for name, each in built.items()},
        "times_faster": {name: {k: median["exact"][k] / median[name][k] for k in (50, 500)} for name in built},
    }
    print(json.dumps(figures), flush=True)
    return figures


def libraries(size: int, rounds: int) -> dict:
    """FAISS and USearch, their graphs at several breadths beside FAISS's cells."""
    import faiss
    from usearch.index import Index

    bank, queries = vectors(size, 1), vectors(QUERIES, 2)
    true = ExactSearch(bank).nearest(queries, 50).ids
    rows = []

    def entry(name: str, build: float, way: Callable[[], np.ndarray]) -> None:
        found = way()
        seconds = statistics.median(seconds_of(way) for _ in range(rounds))
        rows.append({"way": name, "build_seconds": build, "us_a_query": seconds / QUERIES * 1e6,
                     "recall_at_50": recall_of(found, true)})  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)

    start = time.perf_counter()
    graph = faiss.IndexHNSWFlat(DIM, 16, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = 100
    graph.add(bank)
    took = time.perf_counter() - start
    for breadth in (50, 100, 200):
        graph.hnsw.efSearch = breadth
        entry(f"faiss hnsw, breadth {breadth}", took, lambda: graph.search(queries, 50)[1])
    start = time.perf_counter()
    other = Index(ndim=DIM, metric="ip", dtype="f32", connectivity=16, expansion_add=100)
    other.add(np.arange(size), bank, threads=2)
    took = time.perf_counter() - start
    for breadth in (50, 100, 200):
        other.expansion_search = breadth
        entry(f"usearch hnsw, breadth {breadth}", took, lambda: other.search(queries, 50, threads=2).keys)
    for kind in KINDS:
        start = time.perf_counter()
        built = build_search(bank, SearchConfig(kind=kind, recall=ASKED)).searcher
        entry(f"faiss {kind}", time.perf_counter() - start, lambda built=built: built.nearest(queries, 50).ids)
    return {"size": size, "rows": rows}


def largest(size: int, folder: Path) -> dict:
    """A bank that is larger than memory should have to hold."""
    path, queries = folder / "vectors.f32", vectors(QUERIES, 2)
    with path.open("wb") as file:
        for block in blocks(size, 1):
            file.write(block.tobytes())
    bank = np.memmap(path, np.float32, "r", shape=(size, DIM))
    before, start = own_gb(), time.perf_counter()
    built = build_search(bank, SearchConfig(kind="ivf-compressed", recall=ASKED))
    figures = {"size": size, "build_seconds": time.perf_counter() - start, "stated_recall": built.recall}
    for k in (50, 500):
        built.searcher.nearest(queries, k)
        took = statistics.median(seconds_of(lambda k=k: built.searcher.nearest(queries, k)) for _ in range(3))
        figures[f"us_a_query_at_{k}"] = took / QUERIES * 1e6
    figures |= {"own_gb": own_gb() - before, "peak_gb": peak_gb(), "nprobe": built.searcher.parameters.steps}
    some = queries[:200]
    true = ExactSearch(bank).nearest(some, 500).ids
    figures["recall"] = {k: recall_of(built.searcher.nearest(some, k).ids, true[:, :k]) for k in (50, 500)}
    print(json.dumps(figures), flush=True)
    return figures


def own_gb() -> float:
    """Memory of this process that is no page of a mapped file."""
    return _status("RssAnon")


def peak_gb() -> float:
    """The most memory that this process ever had, pages of mapped files included."""
    return _status("VmHWM")


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return float(line.split()[1]) * 1024 / 1e9
    raise RuntimeError("the memory of a process is measured on Linux only")


def draw(figures: list[dict], path: Path, largest: dict | None) -> None:
    """The curve of time against size; the largest bank, of another run, as a ring of its own."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    picture, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    sizes = [each["size"] for each in figures]
    for k, axis in zip((50, 500), axes, strict=True):
        for name in ("exact", *KINDS):
            axis.loglog(sizes, [each["seconds_a_query"][name][k] * 1e6 for each in figures], "o-", label=name)
        if largest is not None:
            axis.loglog([largest["size"]], [largest[f"us_a_query_at_{k}"]], "o", mfc="none", color="C2", ms=8)
        axis.set(title=f"{k} neighbours, recall at least {WANTED_RECALL:g}", xlabel="spots in the bank")
    axes[0].set_ylabel("microseconds a query")
    axes[0].legend()
    picture.savefig(path, dpi=110)


def to_markdown(figures: list[dict]) -> str:
    """A row a size and way."""
    lines = ["| spots | way | k | a query | times faster than exact | recall |", "|---|---|---|---|---|---|"]
    for each in figures:
        for name in ("exact", *KINDS):
            for k in (50, 500):
                faster = "" if name == "exact" else f"{each['times_faster'][name][k]:.0f}"
                recall = "" if name == "exact" else f"{each['recall'][name][k]:.3f}"
                spent = each["seconds_a_query"][name][k] * 1e6
                lines.append(f"| {each['size']:,} | {name} | {k} | {spent:.0f} us | {faster} | {recall} |")
    return "\n".join(lines)


def missed(figures: list[dict]) -> list[str]:
    """What was wanted of the best approximate way and did not come."""
    by_size = {each["size"]: each for each in figures}
    found = []
    for k, wanted in WANTED_FASTER.items():
        last = by_size[max(by_size)]
        good = [name for name in KINDS if last["recall"][name][k] >= WANTED_RECALL]
        best = max((last["times_faster"][name][k] for name in good), default=0)
        found += [] if best >= wanted else [f"k = {k}: {best:.0f} times faster, {wanted:.0f} wanted"]
        if 100_000 in by_size:
            growth = min(
                last["seconds_a_query"][name][k] / by_size[100_000]["seconds_a_query"][name][k] for name in good
            )
            print(f"k = {k}: from 100,000 to {last['size']:,} spots a query takes {growth:.2f} times as long")
            found += [] if growth < WANTED_GROWTH else [f"k = {k}: grows {growth:.1f}-fold"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="where the figures are written as JSON")
    parser.add_argument("--picture", type=Path, help="where the curve is drawn")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--libraries", action="store_true")
    parser.add_argument("--largest", type=int)
    parser.add_argument("--with", dest="also", type=Path, help="figures of --largest, drawn with the others")
    parser.add_argument("--within", type=Path, help="folder for the bank of --largest")
    options = parser.parse_args()
    failed: list[str] = []
    if options.libraries:
        figures: object = libraries(options.sizes[0], options.rounds)
    elif options.largest:
        with tempfile.TemporaryDirectory(dir=options.within) as folder:
            figures = largest(options.largest, Path(folder))
    else:
        figures = [compare(size, options.rounds) for size in options.sizes]
        print(to_markdown(figures))
        if options.picture:
            draw(figures, options.picture, json.loads(options.also.read_text()) if options.also else None)
        failed = missed(figures)
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    if failed:
        sys.exit("missed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
