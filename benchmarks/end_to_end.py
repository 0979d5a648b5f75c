"""Seconds of `cmrcnet predict` on one slide: the default, `fast`, students, and patches of three scales by eager torch.

    python benchmarks/end_to_end.py C6.jpg --mpp 0.6877 --out docs/benchmarks/end_to_end.json

Each model is trained on a small synthetic cohort first, which is not timed: what a prediction costs depends on the
config, the locations and the genes. Students are distilled from the default, with one orientation. Each prediction runs
in a process of its own with an empty cache, one after the other, and writes its table. Peak memory is that of the
process. Figures are written as they come, and those that --out has already stay. With OMP_NUM_THREADS=1 processor
seconds can be compared also where other work runs; threads that wait for each other count as work.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cmrcnet
from cmrcnet.storage.hashing import fingerprint

SCALES = {"features.scales_um": [112, 175, 350], "features.augmentations": 4, "features.method": "patches"}
EAGER = {"features.engine": "torch", "train.precision": "float32"}
BEFORE = "patches, 3 scales x 4, torch float32"
CONFIGS: dict[str, tuple[str, dict[str, object], float]] = {
    BEFORE: ("default", SCALES | EAGER, 100.0),
    "fast": ("fast", {}, 100.0),
    "default": ("default", {}, 100.0),
    "default, OpenVINO float32": ("default", {"train.precision": "float32"}, 100.0),
    "fast, OpenVINO float32": ("fast", {"train.precision": "float32"}, 100.0),
    "student": ("default", {}, 100.0),
    "student, 112 px": ("default", {}, 100.0),
    "fast, 112 px": ("fast", {"patch.size_px": 112}, 100.0),
    "default, 25 um": ("default", {}, 25.0),
    "fast, 25 um": ("fast", {}, 25.0),
    "student, 25 um": ("default", {}, 25.0),
    "patches, 3 scales x 4": ("default", SCALES, 100.0),
}
"""Preset, overrides and pitch in um of each prediction."""


def prepare(folder: Path, cohort: cmrcnet.Cohort, preset: str, overrides: dict[str, object]) -> None:
    """Train a model and index its bank into a folder, unless they are there."""
    if folder.exists():
        return
    config = cmrcnet.Config.load(preset).override(overrides | {"train.epochs": 2, "head.k": 50})
    model = cmrcnet.fit(cohort, config)
    model.save_pretrained(folder / "model")
    cmrcnet.build_bank(model, cohort).save(folder / "bank")


def predict_once(folder: Path, student: Path | None, slide: Path, mpp: float, grid_um: float) -> dict[str, float]:
    """Seconds and peak memory of one command, in a process of its own; by the student where there is one."""
    cache, out = folder / "cache", folder / "table.h5ad"
    by = [student] if student else [folder / "model", "--bank", folder / "bank"]
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
    kept = {"threads": int(os.environ.get("OMP_NUM_THREADS", 0)) or os.cpu_count(), "genes": given.genes}
    figures: dict[str, dict[str, float]] = {}
    if given.out and given.out.exists():
        figures = json.loads(given.out.read_text(encoding="utf-8"))["predictions"]
    with tempfile.TemporaryDirectory() as scratch:
        for name in given.only or CONFIGS:
            if name in figures:
                continue
            preset, overrides, grid_um = CONFIGS[name]
            folder, student = Path(scratch) / fingerprint([preset, overrides]), None
            prepare(folder, cohort, preset, overrides)
            if name.startswith("student"):
                student = folder / f"student{len(figures)}"
                how = cmrcnet.StudentConfig(augmentations=1, patch_px=112 if name.endswith("112 px") else None)
                model = cmrcnet.TrainedModel.from_pretrained(folder / "model")
                bank = cmrcnet.ReferenceBank.load(folder / "bank")
                cmrcnet.distil(model, bank, cohort, config=how).save_pretrained(student)
            figures[name] = predict_once(folder, student, given.slide, given.mpp, grid_um)
            shutil.rmtree(folder / "cache")
            record(figures, given.out, kept)


def record(figures: dict[str, dict[str, float]], out: Path | None, kept: dict[str, object]) -> None:
    """Add how many times faster each row is, print the newest, write all."""
    if BEFORE in figures:
        for row in figures.values():
            for unit in ("seconds", "cpu_seconds"):
                row[f"times_faster_by_{unit}"] = round(figures[BEFORE][unit] / row[unit], 1)
    print(*list(figures.items())[-1], flush=True)
    if out:
        out.write_text(json.dumps(kept | {"predictions": figures}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
