"""`python -m tests.fuzz --minutes 30`: damage the files of every loader at random and count how it ends."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

LOADED_FIRST = (
    "torch", "anndata.io", "h5py", "tifffile", "imagecodecs", "openslide", "scipy.sparse", "pandas", "pytest", "faiss",
    "pyarrow.parquet", "skimage.filters", "skimage.morphology", "skimage.measure", "scipy.ndimage", "zarr",
    "spatialdata.models", "spatialdata.transformations", "geopandas", "cmrcnet", "cmrcnet.training.fit",
    "cmrcnet.retrieval.bank", "cmrcnet.readers.cohort", "cmrcnet.cli.options", "cmrcnet.inference.predict",
    "cmrcnet.evaluation.protocol.evaluate", "cmrcnet.slides.tissue",
)  # fmt: skip
"""What most cases need: imported once, before the processes of the cases are forked."""


def main() -> int:
    """Write the inputs (in a fork, so that this process starts no threads), run the campaign, print its counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--cases", type=int, default=1_000_000_000)
    parser.add_argument("--seed", type=int, default=0, help="first seed; a case is named by its target and its seed")
    parser.add_argument("--only", nargs="*", help="names of targets")
    parser.add_argument("--report", type=Path, default=Path("fuzz.jsonl"))
    parser.add_argument("--inputs", type=Path, help="folder to make the inputs in, or to take them from")
    options = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["CMRCNET_CACHE"] = str(Path(scratch) / "cache")
        inputs = options.inputs or Path(scratch) / "inputs"
        for module in LOADED_FIRST:
            importlib.import_module(module)
        from cmrcnet.models.encoder_weights import import_timm
        from tests.fuzz.campaign import FAULTS, TARGETS, campaign, counts, make_inputs

        import_timm()
        make_inputs(inputs)
        chosen = {name: TARGETS[name] for name in options.only or TARGETS}
        found = campaign(
            inputs, cases=options.cases, seconds=60 * options.minutes, first_seed=options.seed, targets=chosen,
            report=options.report,
        )  # fmt: skip
    print(f"{len(found):,} cases: {counts(found)}; each is listed in {options.report}")
    by_target = defaultdict(list)
    for outcome in found:
        by_target[outcome.target].append(outcome)
    for name, outcomes in by_target.items():
        print(f"  {name:14} {counts(outcomes)}")
    faults = defaultdict(list)
    for outcome in found:
        if outcome.kind in FAULTS:
            faults[outcome.kind, outcome.target, outcome.detail.strip().splitlines()[-1][:150]].append(outcome)
    for (kind, target, detail), cases in sorted(faults.items(), key=lambda item: -len(item[1])):
        print(f"{len(cases):5} {kind} in {target}: {detail}\n        seed {cases[0].seed}, {cases[0].damage}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
