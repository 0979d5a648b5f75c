"""`python -m tests.fuzz --minutes 30`: damage the files of every loader at random and count how it ends."""

from __future__ import annotations

import argparse
import gzip
import importlib
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

LOADED_FIRST = (
    "torch", "anndata", "h5py", "tifffile", "imagecodecs", "openslide", "PIL.Image", "scipy.sparse", "pandas",
    "cmrcnet",
    "cmrcnet.models.trained_model", "cmrcnet.retrieval.bank", "cmrcnet.readers.cohort", "cmrcnet.cli.options",
    "cmrcnet.evaluation.protocol.run_folder", "cmrcnet.export.stored_prediction", "cmrcnet.slides.tissue",
)  # fmt: skip


def main() -> int:
    """Write the inputs (in a child, so that this process starts no threads), run the campaign, print its counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--cases", type=int, default=1_000_000_000)
    parser.add_argument("--seed", type=int, default=0, help="first seed; a case is named by its target and its seed")
    parser.add_argument("--only", nargs="*", help="names of targets")
    parser.add_argument("--report", type=Path, default=Path("fuzz.jsonl"))
    parser.add_argument("--inputs", type=Path, help="folder to make the inputs in, or to take them from")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        from tests.fuzz.targets import TARGETS, write_inputs

        write_inputs(options.write, options.only or list(TARGETS))
        return 0
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["CMRCNET_CACHE"] = str(Path(scratch) / "cache")
        inputs = make_inputs(options.inputs or Path(scratch) / "inputs", options.only)
        for module in LOADED_FIRST:
            importlib.import_module(module)
        from tests.fuzz.campaign import FAULTS, TARGETS, campaign, counts

        chosen = {name: TARGETS[name] for name in options.only or TARGETS}
        found = campaign(
            inputs, cases=options.cases, seconds=60 * options.minutes, first_seed=options.seed, targets=chosen,
            report=options.report,
        )  # fmt: skip
    print(f"{len(found):,} cases: {counts(found)}; each is listed in {options.report}")
    faults = defaultdict(list)
    for outcome in found:
        if outcome.kind in FAULTS:
            faults[outcome.kind, outcome.target, outcome.detail.strip().splitlines()[-1][:150]].append(outcome)
    for (kind, target, detail), cases in sorted(faults.items(), key=lambda item: -len(item[1])):
        print(f"{len(cases):5} {kind} in {target}: {detail}\n        seed {cases[0].seed}, {cases[0].damage}")
    return 1 if faults else 0


def make_inputs(folder: Path, only: list[str] | None) -> Path:
    """The sound inputs and a gzip bomb in `folder`, made unless they are there."""
    if not (folder / "bomb.gz").exists():
        command = [sys.executable, "-m", "tests.fuzz", "--write", str(folder), *(["--only", *only] if only else [])]
        subprocess.run(command, check=True)
        member = gzip.compress((b"s" * 20 + b"\t0" * 500 + b"\n") * 30_000, mtime=0)
        (folder / "bomb.gz").write_bytes(member * 100)  # 3 GB; gzip files may be put one behind the other
    return folder


if __name__ == "__main__":
    sys.exit(main())
