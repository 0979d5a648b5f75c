"""`cmrcnet predict` on whole slides: time, peak memory, and a kill -9 half-way.

    python benchmarks/large_slide.py --out small.svs --side 8192
    python benchmarks/large_slide.py --out large.svs --side 40960
    python benchmarks/whole_slide.py small.svs large.svs --grid-um 200 --out docs/benchmarks/whole_slide.json

Each slide is predicted by the command in a process of its own, with 18,000 genes of a bank of 5,000 spots. The last
slide is predicted once more: killed when half of its features are kept, and started again. The cache is empty each
time. What the killed run had finished must not be done again, and the tables must be the same.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
from made_bank import made_bank, made_model

from cmrcnet.config import Config

GENES, SPOTS = 18_000, 5_000


class Run:
    """One command: its seconds and its peak memory.

    Parameters
    ----------
    words : list
        Of the command line.
    cache : Path
    """

    def __init__(self, words: list[object], cache: Path) -> None:
        self.start = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cmrcnet", *map(str, words)],
            env={**os.environ, "CMRCNET_CACHE": str(cache)},
            stdout=subprocess.DEVNULL,
        )

    def ended(self) -> dict[str, float]:
        """Wait for the end."""
        _, status, usage = os.wait4(self.process.pid, 0)
        seconds = time.perf_counter() - self.start
        self.process.returncode = os.waitstatus_to_exitcode(status)
        return {"seconds": round(seconds, 1), "peak_mb": round(usage.ru_maxrss / 1e3), "exit": self.process.returncode}


def parts_done(work: Path) -> np.ndarray:
    """Which parts of the features are kept."""
    journal = work / "features" / "parts.bin"
    return np.fromfile(journal, np.uint64) != 0 if journal.exists() else np.zeros(1, bool)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slides", type=Path, nargs="+")
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--grid-um", type=float, default=200.0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.slides[-1].parent) as name:
        folder = Path(name)
        model = made_model(Config.load(arguments.config), GENES)
        model.save_pretrained(folder / "model")
        made_bank(model, SPOTS, GENES).save(folder / "bank")
        words = ["predict", folder / "model", "--bank", folder / "bank", "--grid-um", arguments.grid_um]
        for number, slide in enumerate(arguments.slides):
            out = folder / f"{number}.h5ad"
            row = {"slide": slide.name, **Run([*words, slide, "--out", out], folder / f"cache{number}").ended()}
            with h5py.File(out) as table:
                row |= {"locations": table["X"].shape[0], "genes": table["X"].shape[1]}
                row["slide_px"] = [int(table[f"uns/cmrcnet/slide_{side}_px"][()]) for side in ("width", "height")]
            rows.append(row | {"table_mb": round(out.stat().st_size / 1e6)})
            print(rows[-1], flush=True)
        killed = folder / "killed.h5ad"
        command, cache = [*words, arguments.slides[-1], "--out", killed], folder / "killed-cache"
        run, work = Run(command, cache), killed.with_name("killed.h5ad.partial")
        while run.process.poll() is None and not parts_done(work).mean() >= 0.5:
            time.sleep(0.05)
        run.process.send_signal(signal.SIGKILL)
        before, first = parts_done(work), run.ended()
        second = Run(command, folder / "other-cache").ended()  # an empty cache: what is not done again, the tmp kept
        with h5py.File(killed) as table, h5py.File(out) as whole:
            steps = range(0, whole["X"].shape[0], 1024)
            apart = max(float(np.nanmax(np.abs(table["X"][s : s + 1024] - whole["X"][s : s + 1024]))) for s in steps)
            same = bool((table["obs/_index"][:] == whole["obs/_index"][:]).all())
        rows.append(
            {
                "slide": arguments.slides[-1].name,
                "killed_after_seconds": first["seconds"],
                "share_kept": round(float(before.mean()), 3),
                "goes_on": second,
                "same_places": same,
                "largest_difference": apart,
            }
        )
        print(rows[-1], flush=True)
    if arguments.out:
        arguments.out.write_text(
            json.dumps(
                {"config": arguments.config, "grid_um": arguments.grid_um, "bank": SPOTS, "runs": rows}, indent=1
            )
        )


if __name__ == "__main__":
    main()
