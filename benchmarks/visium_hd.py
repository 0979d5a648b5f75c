"""A made Visium HD slide of 10^7 bins of 2 um, read at 8 um (or any other size): time and largest memory.

    python benchmarks/visium_hd.py --out docs/benchmarks/visium_hd.json      # about 2 GB of disk
    python benchmarks/visium_hd.py --side 600 --bins 8 56                     # a quick look

The files have the layout of Space Ranger: positions in Parquet, the matrix in compressed HDF5, columns in the order of
the array. A bin under tissue (80 % of the array) has about 14 transcripts of 18,000 genes, whose means are log-normal
and differ between four kinds of tissue. Each read runs in a process of its own, which reports its largest resident
memory, and the memory of the imports alone for comparison.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

GENES, TRANSCRIPTS, MPP, BAND = 18_000, 14, 0.5, 64
"""BAND: rows of bins that are made at once."""

READ = """
import sys, time
from pathlib import Path
import h5py, numpy, pandas, pyarrow.parquet, scipy.sparse
from cmrcnet.readers.registry import read_section, SectionSource, read_raw
def peak():  # ru_maxrss of a child begins at that of its parent
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
start, begun, busy = peak(), time.perf_counter(), time.process_time()
source = SectionSource(path=Path(sys.argv[1]), image=Path(sys.argv[2]), bin_um=float(sys.argv[3]))
if sys.argv[4] == "reader":
    raw = read_raw(source)
    spots, values, total = len(raw.barcodes), raw.counts.nnz, int(raw.counts.sum(dtype="int64"))
else:
    section = read_section(source.path, image=source.image, bin_um=source.bin_um)
    spots, values, total = len(section.spots), section.counts.nnz, int(section.counts.sum(dtype="float64"))
seconds, cpu = time.perf_counter() - begun, time.process_time() - busy
print(spots, values, total, round(seconds, 1), round(cpu, 1), round(start / 1024), round(peak() / 1024))
"""


def make(outs: Path, side: int) -> dict:
    """Write `outs/binned_outputs/square_002um` of `side` x `side` bins, band by band."""
    folder = outs / "binned_outputs" / "square_002um"
    (folder / "spatial").mkdir(parents=True)
    rng = np.random.default_rng(0)
    means = rng.lognormal(0, 1.5, (4, GENES))
    cumulative = np.cumsum(means / means.sum(axis=1, keepdims=True), axis=1)
    bins = stored = transcripts = 0
    schema = pa.schema(
        [
            ("barcode", pa.string()),
            *((key, pa.int64()) for key in ("in_tissue", "array_row", "array_col")),
            *((key, pa.float64()) for key in ("pxl_row_in_fullres", "pxl_col_in_fullres")),
        ]
    )
    with (
        h5py.File(folder / "filtered_feature_bc_matrix.h5", "w") as file,
        parquet.ParquetWriter(folder / "spatial" / "tissue_positions.parquet", schema) as positions,
    ):
        group = file.create_group("matrix")
        growing = {"chunks": (1 << 18,), "maxshape": (None,), "compression": "gzip", "compression_opts": 1}
        data = group.create_dataset("data", (0,), np.int32, **growing)
        indices = group.create_dataset("indices", (0,), np.int64, **growing)
        names = group.create_dataset("barcodes", (0,), "S21", **growing)
        starts = [np.zeros(1, np.int64)]
        for top in range(0, side, BAND):
            row, column = (part.ravel() for part in np.mgrid[top : min(top + BAND, side), :side])
            tissue = (row - side / 2) ** 2 + (column - side / 2) ** 2 < 0.255 * side**2
            barcodes = np.char.add(
                np.char.add(np.char.add("s_002um_", np.char.zfill(row.astype("U5"), 5)), "_"),
                np.char.add(np.char.zfill(column.astype("U5"), 5), "-1"),
            )
            step = 2 / MPP
            positions.write_table(
                pa.table(
                    [barcodes, tissue.astype(np.int64), row, column, row * step + step / 2, column * step + step / 2],
                    schema=schema,
                )
            )
            on = np.flatnonzero(tissue)
            each = rng.poisson(TRANSCRIPTS, len(on))
            kind = (row[on] // (side // 2 + 1)) * 2 + column[on] // (side // 2 + 1)
            of_bin = np.repeat(np.arange(len(on)), each)
            drawn = rng.random(len(of_bin))
            gene = np.zeros(len(of_bin), np.int64)
            for i in range(4):
                mine = kind[of_bin] == i
                gene[mine] = np.searchsorted(cumulative[i], drawn[mine]).clip(max=GENES - 1)
            keys, counted = np.unique(of_bin * GENES + gene, return_counts=True)
            for dataset, values in ((data, counted), (indices, keys % GENES), (names, barcodes[on].astype("S21"))):
                dataset.resize(len(dataset) + len(values), axis=0)
                dataset[len(dataset) - len(values) :] = values
            starts.append(np.cumsum(np.bincount(keys // GENES, minlength=len(on))) + stored)
            bins, stored, transcripts = bins + len(on), stored + len(keys), transcripts + int(counted.sum())
        group["indptr"], group["shape"] = np.concatenate(starts), np.array([GENES, bins], np.int32)
        features = group.create_group("features")
        features["id"] = np.array([f"ENSG{i:011d}" for i in range(GENES)], "S")
        features["name"] = np.array([f"GENE{i}" for i in range(GENES)], "S")
        features["feature_type"] = np.array(["Gene Expression"] * GENES, "S")
    factors = {"bin_size_um": 2.0, "microns_per_pixel": MPP, "spot_diameter_fullres": 2 / MPP}
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    Image.new("L", (int(side * 2 / MPP),) * 2, 230).convert("RGB").save(outs / "he.png", compress_level=1)
    size = (folder / "filtered_feature_bc_matrix.h5").stat().st_size
    size += (folder / "spatial" / "tissue_positions.parquet").stat().st_size
    return {
        "bins_2um": side * side,
        "under_tissue": bins,
        "stored": stored,
        "transcripts": transcripts,
        "files_gb": round(size / 1e9, 2),
    }


def main() -> None:
    """Make the slide, read it once a bin size in a process of its own, and print or write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=3163, help="bins of 2 um on a side")
    parser.add_argument("--bins", type=float, nargs="+", default=[8.0])
    parser.add_argument("--folder", type=Path, help="where the slide is made and kept; temporary otherwise")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        outs = (options.folder or Path(temporary)) / "outs"
        facts_path = outs / "facts.json"
        if not facts_path.is_file():
            begun = time.perf_counter()
            facts = make(outs, options.side)
            print(
                f"made in {time.perf_counter() - begun:.0f} s",
                resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                "MB",
            )
            facts_path.write_text(json.dumps(facts))
        figures = json.loads(facts_path.read_text())
        figures["reads"] = []
        for bin_um in options.bins:
            for what in ("reader", "section"):
                command = [sys.executable, "-c", READ, str(outs), str(outs / "he.png"), str(bin_um), what]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                spots, stored, total, seconds, cpu, start, peak = map(float, done.stdout.split())
                figures["reads"].append(
                    {
                        "bin_um": bin_um,
                        "what": what,
                        "spots": int(spots),
                        "stored": int(stored),
                        "transcripts": int(total),
                        "seconds": seconds,
                        "cpu_seconds": cpu,
                        "imports_mb": int(start),
                        "peak_mb": int(peak),
                    }
                )
                print(figures["reads"][-1])
    text = json.dumps(figures, indent=1)
    if options.out:
        options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
