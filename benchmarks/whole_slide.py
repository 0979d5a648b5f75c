"""`cmrcnet predict` on a whole slide: time, peak memory, and two kills (kill -9) at a third and two thirds.

    python benchmarks/large_slide.py --out large.svs --tissue C6.jpg --mpp 0.6877
    python benchmarks/whole_slide.py large.svs model bank --work DIR --out whole_slide.json
    python benchmarks/whole_slide.py large.svs model bank --work DIR --kill-after 200

The command runs in a process of its own with an empty cache. With --kill-after it is killed after so many seconds,
twice, and started again each time with another empty cache; what a killed run had finished must not be done again, and
the table must be that of the run before without --kill-after, which lies in the same --work. Memory is that of all
processes of the command together: resident, and resident without the pages of mapped files, which the system reclaims
when needed.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import argparse
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import psutil


def chunks_kept(out: Path) -> int:
    """How many chunks of features an unfinished prediction has kept."""
    journal = out.with_name(f"{out.name}.partial") / "features" / "chunks.bin"
    return int((np.fromfile(journal, np.uint64) != 0).sum()) if journal.exists() else 0


def run(words: list[object], cache: Path, kill_after: float = math.inf) -> dict[str, float]:
    """Run a command until it ends or is killed: seconds of the clock and the processor, and peak memory in GB."""
    start, resident, private, cpu = time.perf_counter(), 0.0, 0.0, 0.0
    process = psutil.Popen(
        [sys.executable, "-m", "cmrcnet", *map(str, words)],
        env={**os.environ, "CMRCNET_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
    )
    while process.poll() is None:
        try:
            tree = [process, *process.children(recursive=True)]
            used = [each.memory_info() for each in tree]
            cpu = max(cpu, sum(each.cpu_times().user + each.cpu_times().system for each in tree))
            resident = max(resident, sum(each.rss for each in used) / 1e9)
            private = max(private, sum(each.rss - each.shared for each in used) / 1e9)
        except psutil.NoSuchProcess:
            continue
        if time.perf_counter() - start > kill_after:
            process.send_signal(signal.SIGKILL)
        time.sleep(0.1)
    found = {"seconds": time.perf_counter() - start, "cpu_seconds": cpu, "peak_gb": resident}
    found = {name: round(value, 2) for name, value in (found | {"without_mapped_files_gb": private}).items()}
    return found | ({"exit": process.returncode} if process.returncode else {})


def difference(one: Path, other: Path) -> dict[str, float]:
    """How far two tables are apart: largest difference of a value, and whether the locations are the same."""
    with h5py.File(one) as a, h5py.File(other) as b:
        steps = range(0, a["X"].shape[0], 1024)
        apart = max(float(np.nanmax(np.abs(a["X"][s : s + 1024] - b["X"][s : s + 1024]))) for s in steps)
        same = bool((a["obs/_index"][:] == b["obs/_index"][:]).all())
    return {"same_locations": same, "largest_difference": apart}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("bank", type=Path)
    parser.add_argument("--grid-um", type=float, default=100.0)
    parser.add_argument("--spots", type=Path, help="locations in place of the grid")
    parser.add_argument("--kill-after", type=float, help="seconds after which it is killed, twice")
    parser.add_argument("--work", type=Path, required=True, help="folder for tables, which are kept")
    parser.add_argument("--out", type=Path, help="where the figures are put, those of other runs kept")
    given = parser.parse_args()
    given.work.mkdir(exist_ok=True, parents=True)
    words: list[object] = ["predict", given.model, given.slide, "--bank", given.bank, "--overwrite"]
    words += ["--grid-um", given.grid_um] if given.spots is None else ["--spots", given.spots]
    words.append("--out")
    whole, killed = given.work / "whole.h5ad", given.work / "killed.h5ad"
    rows = []
    if given.kill_after is None:
        row = run([*words, whole], given.work / "cache")
        with h5py.File(whole) as table:
            row |= dict(zip(("locations", "genes"), table["X"].shape, strict=True))
            row["slide_px"] = [int(table[f"uns/cmrcnet/slide_{side}_px"][()]) for side in ("width", "height")]
        rows.append(row | {"table_gb": round(whole.stat().st_size / 1e9, 2)})
        print(rows[-1], flush=True)
    else:
        runs = []
        for number, seconds in enumerate((given.kill_after, given.kill_after, math.inf)):
            kept = chunks_kept(killed)
            runs.append({"chunks_kept_before": kept} | run([*words, killed], given.work / f"cache{number}", seconds))
            print(runs[-1], flush=True)
        rows.append({"killed_twice": runs} | difference(whole, killed))
        print(rows[-1], flush=True)
    if given.out:
        known = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
        where = f"{given.grid_um:g} um" if given.spots is None else given.spots.name
        name = f"{given.slide.name}, {given.model.name}, {where}"
        given.out.write_text(json.dumps(known | {name: known.get(name, []) + rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
