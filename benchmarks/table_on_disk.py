"""Writing a prediction table block by block: peak memory, time, and what compression would save.

    python benchmarks/table_on_disk.py --out docs/benchmarks/table_on_disk.json

Search, read-out and writing as `cmrcnet predict` does them, with embeddings drawn at random in place of encoded
patches: 18,000 genes from a bank of 5,000 spots (one expression value in ten not 0), k = 50, for a small and a large
number of locations, each in a process of its own. Memory must not grow with the locations. The last rows compress 1,792
locations of such a table with what every HDF5 library offers.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
from made_bank import made_bank, made_model
from scipy import sparse

from cmrcnet.config import Config
from cmrcnet.features.resumable import chunk_slices
from cmrcnet.inference import predict as predict_module
from cmrcnet.inference.location_features import LocationFeatures
from cmrcnet.inference.predictor import PredictOptions, make_predictor
from cmrcnet.slides.section import Spots
from cmrcnet.slides.slide import ArraySlide

GENES, SPOTS, K = 18_000, 5_000, 50
LOCATIONS = (10_000, 100_000)
COMPRESSIONS = {
    "none": {},
    "lzf": {"compression": "lzf", "shuffle": True},
    "gzip 1": {"compression": "gzip", "compression_opts": 1, "shuffle": True},
    "gzip 4": {"compression": "gzip", "compression_opts": 4, "shuffle": True},
}


class Encoded(LocationFeatures):
    """Random embeddings in place of encoded patches."""

    def encode(self, cache=None, batch="auto") -> None:
        """Draw what is missing."""
        rng = np.random.default_rng(1)
        for rows in chunk_slices(self.kept.shape[1]):
            self.kept.keep(rows, rng.normal(size=(rows.stop - rows.start, self.kept.shape[2])))


def measure(locations: int, folder: Path, answer) -> None:
    """Seconds, bytes on disk and peak memory of one table; runs in a process of its own."""
    model = made_model(Config.load("tiny").override({"head.k": K}), GENES)
    bank = made_bank(model, SPOTS, GENES)
    slide = ArraySlide(np.full((512, 512, 3), 200, np.uint8), 0.5, "slide")
    centres = np.random.default_rng(2).uniform(0, 512, (locations, 2))
    spots = Spots(tuple(f"p{number}" for number in range(locations)), centres, 1.0)
    predictor = make_predictor(model, bank, PredictOptions(spots=spots))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    predict_module.LocationFeatures = Encoded
    start = time.perf_counter()
    predict_module.predict_to_file(predictor, slide, folder / "table.h5ad")
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer.put(
        {
            "locations": locations,
            "seconds": round(seconds, 1),
            "file_gb": round((folder / "table.h5ad").stat().st_size / 1e9, 2),
            "start_mb": round(before / 1e3),
            "peak_mb": round(peak / 1e3),
        }
    )


def compressed(folder: Path) -> list[dict]:
    """Size and speed of what HDF5 offers, on averages of 50 spots."""
    bank = made_bank(made_model(Config.load("tiny"), GENES), SPOTS, GENES)
    rng = np.random.default_rng(3)
    weights = sparse.random(1792, SPOTS, K / SPOTS, "csr", np.float32, rng=rng)
    mean = np.asarray((weights @ bank.expression).todense(), np.float32)
    found = []
    for name, options in COMPRESSIONS.items():
        path = folder / f"{name}.h5"
        start = time.perf_counter()
        with h5py.File(path, "w") as file:
            file.create_dataset("X", data=mean, chunks=(256, 128), **options)
        seconds = time.perf_counter() - start
        share = path.stat().st_size / mean.nbytes
        found.append({"compression": name, "share": round(share, 3), "mb_per_s": round(mean.nbytes / 1e6 / seconds)})
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--locations", type=int, nargs="+", default=list(LOCATIONS))
    parser.add_argument("--folder", type=Path, help="where the tables are written; 15 GB for 100,000 locations")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows, context = [], multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for locations in arguments.locations:
            answer = context.Queue()
            process = context.Process(target=measure, args=(locations, Path(folder), answer))
            process.start()
            rows.append(answer.get())
            process.join()
            print(rows[-1], flush=True)
        compression = compressed(Path(folder))
    for row in compression:
        print(row)
    if arguments.out:
        arguments.out.write_text(
            json.dumps({"genes": GENES, "bank": SPOTS, "k": K, "tables": rows, "compression": compression}, indent=1)
        )


if __name__ == "__main__":
    main()
