"""Seconds of `cmrcnet predict` on one slide: the default, `fast`, students, and patches of three scales by eager torch.

    python benchmarks/end_to_end.py C6.jpg --mpp 0.6877 --out docs/benchmarks/end_to_end.json

Each model is trained on a small synthetic cohort first, which is not timed: what a prediction costs depends on the
config, the locations and the genes. Students are distilled from the default, with one orientation. Each prediction runs
in a process of its own with an empty cache, one after the other, and writes its table. Peak memory is that of the
process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cmrcnet

SCALES = {"features.scales_um": [112, 175, 350], "features.method": "patches"}
EAGER = {"features.engine": "torch", "train.precision": "float32"}
CONFIGS: dict[str, tuple[str, dict[str, object], float]] = {
    "patches, 3 scales x 4, torch float32": ("default", SCALES | EAGER, 100.0),
    "patches, 3 scales x 4": ("default", SCALES, 100.0),
    "default": ("default", {}, 100.0),
    "default, OpenVINO float32": ("default", {"train.precision": "float32"}, 100.0),
    "default, 25 um": ("default", {}, 25.0),
    "fast": ("fast", {}, 100.0),
    "fast, 25 um": ("fast", {}, 25.0),
    "student": ("default", {}, 100.0),
    "student, 25 um": ("default", {}, 25.0),
}
"""Preset, overrides and pitch in um of each prediction."""


def predict_once(folder: Path, slide: Path, mpp: float, grid_um: float) -> dict[str, float]:
    """Seconds and peak memory of one command, in a process of its own; by the student where there is one."""
    cache, student, out = folder / "cache", folder / "student", folder / "table.h5ad"
    by = [student] if student.exists() else [folder / "model", "--bank", folder / "bank"]
    words = ["predict", *by, "--slide", slide, "--mpp", mpp, "--grid-um", grid_um, "--out", out]
    command = [sys.executable, "-m", "cmrcnet", *map(str, words)]
    start = time.monotonic()
    process = subprocess.Popen([*command, "--overwrite"], env=os.environ | {"CMRCNET_CACHE": str(cache)})
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"predict ended with status {status}")
    return {
        "seconds": round(time.monotonic() - start, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_gb": round(used.ru_maxrss * 1024 / 1e9, 2),
    }


def main() -> None:
    """Train, predict, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("--mpp", type=float, required=True)
    parser.add_argument("--only", nargs="*", choices=list(CONFIGS), help="all when left out")
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    cohort = cmrcnet.synthetic_cohort(patients=3, spots=40, genes=given.genes, seed=0)
    figures: dict[str, dict[str, float]] = {}
    for name in given.only or CONFIGS:
        preset, overrides, grid_um = CONFIGS[name]
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            config = cmrcnet.Config.load(preset).override(overrides | {"train.epochs": 2, "head.k": 50})
            model = cmrcnet.fit(cohort, config)
            model.save_pretrained(folder / "model")
            bank = cmrcnet.build_bank(model, cohort)
            bank.save(folder / "bank")
            if name.startswith("student"):
                student = cmrcnet.StudentConfig(augmentations=1)
                cmrcnet.distil(model, bank, cohort, config=student).save_pretrained(folder / "student")
            figures[name] = predict_once(folder, given.slide, given.mpp, grid_um)
        print(name, figures[name], flush=True)
    first = next(iter(figures.values()))
    for row in figures.values():
        for unit in ("seconds", "cpu_seconds"):
            row[f"times_faster_by_{unit}"] = round(first[unit] / row[unit], 1)
    if given.out:
        kept = {
            "threads": int(os.environ.get("OMP_NUM_THREADS", 0)) or os.cpu_count(),
            "genes": given.genes,
            "predictions": figures,
        }
        given.out.write_text(json.dumps(kept, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
