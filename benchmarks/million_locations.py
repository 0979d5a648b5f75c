"""Everything after the encoder at a million locations: processor seconds of each step, peak memory, size of the table.

    python benchmarks/million_locations.py --out docs/benchmarks/million_locations.json

A grid of 8 um over 8 x 8 mm, whose features are drawn at random in place of encoded tiles (two scales,
EfficientNet-Lite0); a model of the config `default` with `features.window_um: 28`, trained for two epochs on synthetic
tissue for its calibration, with a kernel ridge of 2,048 landmarks; a bank of 3,000 spots and 17,272 genes with random
expression. Each way to predict runs in a process of its own; --out is written after each.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import argparse
import dataclasses
import json
import multiprocessing
import resource
import tempfile
import time
import warnings
from functools import wraps
from pathlib import Path

import numpy as np
import pandas as pd
from made_bank import gene_names
from scipy import sparse

import cmrcnet
from cmrcnet.errors import CmrcnetWarning
from cmrcnet.export.table_file import TableFile
from cmrcnet.features.tokens import SectionTokens
from cmrcnet.heads.gene_decoder import GeneDecoder, SectionStatistics
from cmrcnet.heads.pca import FeaturePCA
from cmrcnet.heads.ridge import KernelRidge, Ridge
from cmrcnet.inference import predict as predict_module
from cmrcnet.inference import predictor as predictor_module
from cmrcnet.inference.confidence import Confidence
from cmrcnet.inference.location_features import LocationFeatures
from cmrcnet.inference.predictor import PredictOptions, make_predictor
from cmrcnet.models.trained_model import TrainedModel
from cmrcnet.retrieval.bank import ReferenceBank
from cmrcnet.retrieval.store import BankSection
from cmrcnet.search.exact import ExactSearch
from cmrcnet.slides.slide import ArraySlide, known_scale
from cmrcnet.slides.tissue import TissueMask

GENES, SPOTS, SHARE, LANDMARKS = 17_272, 3_000, 0.05, 2_048
PITCH_UM, MPP = 8.0, 8.0
WAYS = {
    "windows of 28 um, ridge, components": {"window_um": 28.0, "content": "components"},
    "whole windows, ensemble, components, confidence": {"content": "components"},
    "windows of 28 um, ridge, 50 genes": {"window_um": 28.0, "content": "expression", "genes": gene_names(50)},
    "the same at half precision": {
        "window_um": 28.0,
        "content": "expression",
        "genes": gene_names(50),
        "half": True,
    },
    "whole windows, ensemble, 50 genes, spread, neighbours, intervals": {"genes": gene_names(50), "intervals": True},
}
STEPS = {
    "neighbourhood and standardisation": (SectionTokens, "take"),
    "embedding": (TrainedModel, "embed_tokens"),
    "principal components": (FeaturePCA, "apply"),
    "search": (ExactSearch, "nearest"),
    "averages over neighbours": (predictor_module, "average"),
    "ridge": (Ridge, "predict"),
    "kernel ridge": (KernelRidge, "predict"),
    "confidence": (Confidence, "of_locations"),
    "gene decoder": (GeneDecoder, "expression"),
    "attribution weights": (predictor_module, "attribution_weights"),
    "writing": (TableFile, "write"),
    "out-of-distribution flag": (predict_module, "flag_out_of_distribution"),
    "the rest of the table, and its seal": (TableFile, "finish"),
    "grid": (predict_module, "make_query_grid"),
}


def made_model(folder: Path) -> TrainedModel:
    """Trained shortly, once, with a kernel ridge of the size that thousands of spots give."""
    if (folder / "model").exists():
        return TrainedModel.from_pretrained(folder / "model")
    config = cmrcnet.Config.load("default").override(
        {"features.window_um": 28.0, "features.augmentations": 1, "train.epochs": 2, "features.method": "dense"}
    )
    cohort = cmrcnet.synthetic_cohort(patients=3, spots=100, genes=120)
    model = cmrcnet.fit(cohort, config, cache=cmrcnet.TokenCache(folder / "cache"))
    assert model.head is not None
    inputs, rank = model.head.ridge.weights.shape
    rng = np.random.default_rng(0)
    kernel = KernelRidge(
        rng.normal(size=(LANDMARKS, inputs)).astype(np.float32),
        rng.normal(size=(LANDMARKS, rank)).astype(np.float32) / LANDMARKS,
        np.zeros(rank, np.float32),
        1 / np.sqrt(2 * inputs),
    )
    model = dataclasses.replace(model, head=dataclasses.replace(model.head, kernel=kernel))
    model.save_pretrained(folder / "model")
    return model


def made_bank(model: TrainedModel) -> ReferenceBank:
    """Random vectors, scores and expression; one value in twenty is not 0."""
    rng = np.random.default_rng(1)
    assert model.head is not None
    rank, dim, each = len(model.head.ridge.offset), model.config.model.embedding_dim, round(SPOTS * SHARE)
    vectors = rng.normal(size=(SPOTS, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    indices = np.concatenate([np.sort(rng.choice(SPOTS, each, replace=False)) for _ in range(GENES)]).astype(np.int32)
    ends = np.arange(GENES + 1, dtype=np.int64) * each
    values = rng.random(len(indices), np.float32) + np.float32(0.5)
    expression = sparse.csc_matrix((values, indices, ends), (SPOTS, GENES))
    scores = rng.normal(size=(SPOTS, rank)).astype(np.float32)
    scores -= scores.mean(axis=0)
    spots = pd.DataFrame({"barcode": np.arange(SPOTS).astype(str), "x": 0.0, "y": 0.0})
    how = {"scores": scores, "statistics": SectionStatistics.of(expression, scores)}
    return ReferenceBank(
        (BankSection("S", "P", spots, vectors, expression, gene_names(GENES), True, **how),), model.fingerprint
    )


class Encoded(LocationFeatures):
    """Random features in place of encoded tiles, smooth enough to differ between neighbours as real ones do."""

    def encode(self, cache=None, batch="auto") -> None:
        """Fill the folder, and read it as if it had been encoded."""
        rng = np.random.default_rng(2)
        for store in (self.kept, self._statistics):
            if store is None:
                continue
            values = np.memmap(store._file, np.float32, "r+", shape=store.shape)
            for layer in values:
                for start in range(0, len(layer), 1 << 14):
                    part = layer[start : start + (1 << 14)]
                    part[:] = rng.standard_normal(part.shape, np.float32) + np.float32(3)
            del values
        location_um, spec = self._centre_px * known_scale(self._slide), self._encoder.spec
        self._tokens = SectionTokens(self.kept.values(), location_um, spec, self._anchors or None, self._sub_windows)


def timed(owner, name: str, seconds: dict[str, float], label: str) -> None:
    """Add the processor seconds of a function to `seconds[label]`."""
    through = getattr(owner, name)

    @wraps(through)
    def call(*given, **how):
        start = time.process_time()
        try:
            return through(*given, **how)
        finally:
            seconds[label] = seconds.get(label, 0.0) + time.process_time() - start

    setattr(owner, name, call)


def measure(way: dict, side_um: float, folder: Path, answer) -> None:
    """One prediction; runs in a process of its own."""
    warnings.simplefilter("ignore", CmrcnetWarning)
    model = made_model(folder)
    bank = made_bank(model)
    side = round(side_um / MPP)
    slide = ArraySlide(np.full((side, side, 3), 200, np.uint8), MPP, "slide")
    mask = TissueMask(np.ones((1, 1), bool), float(side))
    seconds: dict[str, float] = {}
    for label, (owner, name) in STEPS.items():
        timed(owner, name, seconds, label)
    predict_module.LocationFeatures = Encoded
    timed(Encoded, "encode", seconds, "drawing the features, not counted")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), time.process_time()
    predictor = make_predictor(model, bank, PredictOptions(mask=mask, grid_um=PITCH_UM, **way))
    count, genes = predict_module.predict_to_file(predictor, slide, folder / "table.h5ad")
    total, used = time.perf_counter() - start, time.process_time() - cpu
    used -= seconds["drawing the features, not counted"]
    answer.put(
        {
            "locations": count,
            "genes": genes,
            "seconds, drawing features included": round(total, 1),
            "processor seconds": round(used, 1),
            "processor seconds of each step": {label: round(value, 1) for label, value in seconds.items()},
            "file_mb": round((folder / "table.h5ad").stat().st_size / 1e6, 1),
            "start_mb": round(before / 1e3),
            "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
        }
    )


def main() -> None:
    """Run and print or write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side-um", type=float, default=8_000.0)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the ways, from 0; all when left out")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore", CmrcnetWarning)
        made_model(Path(folder))
        for number, (name, way) in enumerate(WAYS.items()):
            if options.only is not None and number not in options.only:
                continue
            answer = spawn.Queue()
            process = spawn.Process(target=measure, args=(way, options.side_um, Path(folder), answer))
            process.start()
            rows[name] = answer.get()
            process.join()
            print(name, json.dumps(rows[name], indent=1), flush=True)
            if options.out:
                options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
