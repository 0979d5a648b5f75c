"""What the campaign damages: for every loader its files, and a digest of all that it reads from them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.inputs import FOLD, IDENTITY, SLIDES


@dataclass(frozen=True)
class Target:
    """One loader.

    Parameters
    ----------
    folder : str
        Its files, a folder of `write_inputs`; a case damages one of them.
    load : callable
        Folder to a digest of the content; raises `CmrcnetError` to refuse.
    sealed : bool
        We wrote these files ourselves: other content without an error is a fault.
    """

    folder: str
    load: Callable[[Path], str]
    sealed: bool = False


def digest(*parts: Any) -> str:
    """A checksum over arrays, texts and plain values."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray) and part.dtype != object:
            total.update(str((part.dtype, part.shape)).encode())
            total.update(np.ascontiguousarray(part).tobytes())
        else:
            total.update(repr(part).encode("utf-8", "backslashreplace"))
    return total.hexdigest()


def of_section(section: Any) -> str:
    """Checksum of counts, names, places and pixels of a section."""
    slide = section.slide
    pixels = slide.read(0, 0, min(slide.width_px, 400), min(slide.height_px, 400))
    counts = section.counts.tocsr().sorted_indices()
    return digest(
        section.name, section.patient, section.genes, section.spots.barcodes, np.asarray(section.spots.centre_px),
        section.spots.diameter_um, slide.mpp, slide.width_px, slide.height_px, pixels,
        counts.data, counts.indices.astype(np.int64), counts.indptr.astype(np.int64),
    )  # fmt: skip


def load_cohort(folder: Path) -> str:
    """Read every section of a cohort."""
    from cmrcnet import read_cohort

    return digest(*(of_section(section) for section in read_cohort(folder / "cohort.csv")))


def load_visium(folder: Path) -> str:
    """Read an `outs` folder."""
    from cmrcnet import read_section

    return of_section(read_section(folder / "outs", format="visium", name="s", patient="p"))


def load_h5ad(folder: Path) -> str:
    """Read an .h5ad with a picture beside it."""
    from cmrcnet import read_section

    return of_section(
        read_section(
            folder / "section.h5ad", image=folder / "section.jpg", name="s", patient="p", mpp=1.0, spot_diameter_um=55.0
        )
    )


def load_visium_hd(folder: Path) -> str:
    """Read bins of 8 um, merged from bins of 2 um."""
    from cmrcnet import read_section

    return of_section(read_section(folder / "outs", image=folder / "image.png", bin_um=8, name="s", patient="p"))


def load_xenium(folder: Path) -> str:
    """Read cells, and transcripts in squares of 50 um."""
    from cmrcnet import read_section

    stated: dict[str, Any] = {"image": folder / "made_he_image.ome.tif", "name": "s", "patient": "p"}
    return digest(of_section(read_section(folder, **stated)), of_section(read_section(folder, bin_um=50, **stated)))


def load_registered(folder: Path, **stated: Any) -> str:
    """Read a platform whose H&E and affine lie beside it."""
    from cmrcnet import read_section

    known: dict[str, Any] = {"image": folder / "he.png", "mpp": 0.5, "affine": folder / "affine.csv"}
    return of_section(read_section(folder, name="s", patient="p", **known, **stated))


def load_stomics(folder: Path) -> str:
    """Read bins of 20 um."""
    from cmrcnet import read_section

    made = read_section(folder / "chip.gem", image=folder / "he.png", mpp=0.5, bin_um=20, name="s", patient="p")
    return of_section(made)


def load_hest(folder: Path) -> str:
    """Read a section of a HEST folder."""
    from cmrcnet import read_section

    return of_section(read_section(folder, format="hest", name="H1"))


def load_spatialdata(folder: Path) -> str:
    """Read a store."""
    from cmrcnet import read_section

    return of_section(read_section(folder / "S1.zarr", format="spatialdata", mpp=1.0, name="s", patient="p"))


def load_slide(folder: Path, container: str) -> str:
    """Open a slide, read its pixels and find its tissue."""
    from cmrcnet import find_tissue, open_slide

    endings = {"ome": ".ome.tif", "png": ".png", "jpg": ".jpg", "jp2": ".jp2"}
    path = folder / f"a{endings.get(container, '.tif')}"
    with open_slide(path) as slide:  # type: ignore[attr-defined]
        pixels = slide.read(0, 0, min(slide.width_px, 2048), min(slide.height_px, 2048))
        tissue = [] if slide.mpp is None else [find_tissue(slide).pixels]
        return digest(slide.mpp, slide.width_px, slide.height_px, slide.downsamples, pixels, *tissue)


def load_texts(folder: Path) -> str:
    """Read spots, regions, a gene list and a tissue mask."""
    from cmrcnet import read_spots
    from cmrcnet.cli.options import read_genes
    from cmrcnet.readers.annotations import read_mask, read_regions
    from cmrcnet.slides.slide import open_slide

    spots = read_spots(folder / "spots.tsv")
    regions = read_regions(folder / "regions.csv")
    mask = read_mask(folder / "mask.png", open_slide(np.full((500, 500, 3), 200, np.uint8), mpp=0.5))
    return digest(
        spots.barcodes, np.asarray(spots.centre_px), list(regions.index), list(regions), mask.pixels,
        read_genes([str(folder / "genes.txt")]),
    )  # fmt: skip


def load_patches(folder: Path) -> str:
    """Read patches that were laid out and encoded elsewhere, as locations and as features of a slide."""
    from cmrcnet import ArraySlide, FeatureSlide

    slide = FeatureSlide(ArraySlide(np.full((500, 500, 3), 200, np.uint8), 0.5, "C6"), folder / "C6.h5")
    spots = slide.patches.spots(slide)
    rows = slide.patches.rows_at(spots.centre_px, slide.name)
    return digest(
        slide.patches.encoder, spots.barcodes, np.asarray(spots.centre_px), spots.diameter_um,
        slide.patches.features(rows),
    )  # fmt: skip


def load_config(folder: Path) -> str:
    """Read a config of the user."""
    from cmrcnet import Config

    return digest(Config.load(str(folder / "mine.yaml")).to_dict())


def load_model(folder: Path) -> str:
    """Read a model, and embed."""
    from cmrcnet import TrainedModel

    packed = folder / "model.zip"
    model = TrainedModel.from_pretrained(packed if packed.exists() else folder)
    tensors = {key: value.numpy() for key, value in sorted(model.network.state_dict().items())}
    return digest(model.panel.genes, model.provenance, model.config.to_dict(), model.fingerprint, *tensors.values())


def load_student(folder: Path) -> str:
    """Read a student."""
    from cmrcnet import Student

    student = Student.from_pretrained(folder)
    return digest(student.fingerprint, student.genes, *(value.numpy() for value in student.head.state_dict().values()))


def load_bank(folder: Path) -> str:
    """Read a bank: every part, and a search in it."""
    from cmrcnet import ReferenceBank

    bank = ReferenceBank.load(folder)
    vectors = np.asarray(bank.vectors)
    found = bank.searcher().nearest(vectors[:5], 3)
    return digest(
        bank.fingerprint, bank.genes, bank.sections, bank.patients, bank.spots.to_csv(), vectors, found.ids,
        np.asarray(bank.measured), bank.expression.dense(),
    )  # fmt: skip


def load_prediction(folder: Path) -> str:
    """Read a prediction table from its file."""
    from cmrcnet.export.stored_prediction import StoredPrediction

    with StoredPrediction(folder / "p.h5ad") as table:
        layers = [table.rows(slice(None), name) for name in (None, *sorted(table.layers))]
        return digest(table.genes, list(table.obs.index), table.obs.to_csv(), table.centre_px, *layers)


@contextmanager
def open_predictor(inputs: Path) -> Iterator[tuple[Any, Any]]:
    """The sound model and bank, and a slide."""
    import cmrcnet
    from cmrcnet.inference.predictor import PredictOptions, make_predictor

    bank = cmrcnet.ReferenceBank.load(inputs / "bank")
    model = cmrcnet.TrainedModel.from_pretrained(inputs / "model")
    with cmrcnet.open_slide(inputs / "slide.jpg", mpp=1.0) as slide:  # type: ignore[attr-defined]
        yield make_predictor(model, bank, PredictOptions(intervals=True)), slide


def load_killed(folder: Path) -> str:
    """Go on with a prediction that was killed before its end."""
    from cmrcnet.inference.predict import predict_to_file

    with open_predictor(Path(os.environ["CMRCNET_FUZZ_INPUTS"])) as (predictor, slide):
        predict_to_file(predictor, slide, folder / "p.h5ad")
    return load_prediction(folder)


def load_run(folder: Path) -> str:
    """Read a finished evaluation and its prediction tables."""
    from cmrcnet.evaluation.protocol.run_folder import RunFolder, read_run

    scores, facts = _finished(folder)
    tables = sorted(name for name in facts["files"] if name.startswith("predictions/"))
    read_run(folder, ["genes.csv", *tables])
    opened = RunFolder(folder, overwrite=True)
    opened._finished = True
    frames = [table.to_df().to_csv() + table.obs.to_csv() for table in opened.predictions().values()]
    return digest(scores.to_csv(), (folder / "genes.csv").read_bytes(), json.dumps(facts, sort_keys=True), *frames)


def _finished(run: Path) -> tuple[Any, dict[str, Any]]:
    from cmrcnet.errors import MissingInput
    from cmrcnet.evaluation.protocol.run_folder import RunFolder

    found = RunFolder.read_finished(run)
    if found is None:
        raise MissingInput(run / "run.json", "The evaluation")
    return found


def load_killed_run(folder: Path) -> str:
    """Take up the results of an evaluation that was killed; what is not there is computed again."""
    from cmrcnet.errors import MissingInput
    from cmrcnet.evaluation.protocol.run_folder import RunFolder

    run = RunFolder(folder / "run", resume=True)
    found = [run.result(FOLD, method) for method in ("gene-mean", "cmrcnet")]
    if None in found:
        raise MissingInput(folder, "The result")
    scores = [(each.scores.to_csv(), each.genes.to_csv(), each.record) for each in found if each]
    return digest(scores, [table.to_df().to_csv() for table in run.predictions().values()])


def load_sweep(folder: Path) -> str:
    """Take up a sweep that was killed."""
    from cmrcnet.evaluation.sweep.run_sweep import SweepFolder

    sweep = SweepFolder(folder / "sweep", resume=True)
    sweep.begin(IDENTITY)
    scores, facts = _finished(sweep.trial_path("base"))
    return digest(scores.to_csv(), json.dumps(facts, sort_keys=True))


def load_training(folder: Path) -> str:
    """Read the state of a training that was killed."""
    from cmrcnet.errors import MissingInput
    from cmrcnet.training.checkpoint import Checkpoints

    state = Checkpoints.beside(folder / "model", resume=True).load(IDENTITY)
    if state is None:
        raise MissingInput(folder, "The state")
    return digest(state.phase, state.epoch, state.facts, *(state.tensors[name].numpy() for name in ("a", "b")))


def cached(folder: Path) -> str:
    """Take two entries from a cache, and compute what is damaged: the content is always the same."""
    from cmrcnet.storage.cache import TokenCache

    cache, values = TokenCache(folder), np.random.default_rng(0).normal(size=(200, 90)).astype(np.float32)
    found = []
    for name, wanted in (("ab12", values), ("ab34", values[:5])):
        entry = cache.get("tokens", name, wanted.shape, np.float32)
        found.append(cache.put("tokens", name, wanted.shape, np.float32, [wanted]) if entry is None else entry)
    return digest(*(np.array(each) for each in found))


TARGETS: dict[str, Target] = {
    "cohort": Target("cohort", load_cohort),
    "visium": Target("visium", load_visium),
    "visium_mtx": Target("visium_mtx", load_visium),
    "h5ad": Target("h5ad", load_h5ad),
    **{f"slide_{name}": Target(f"slides/{name}", partial(load_slide, container=name)) for name in SLIDES},
    "visium_hd": Target("visium_hd", load_visium_hd),
    "xenium": Target("xenium", load_xenium),
    "hest": Target("hest", load_hest),
    "cosmx": Target("cosmx", load_registered),
    "merscope": Target("merscope", partial(load_registered, bin_um=30)),
    "stomics": Target("stomics", load_stomics),
    "slide_seq": Target("slide_seq", load_registered),
    "curio": Target("curio", partial(load_registered, bin_um=50)),
    "spatialdata": Target("spatialdata", load_spatialdata),
    "texts": Target("texts", load_texts),
    "patches": Target("patches", load_patches),
    "config": Target("config", load_config),
    "model": Target("model", load_model, sealed=True),
    "model_zip": Target("model_zip", load_model, sealed=True),
    "student": Target("student", load_student, sealed=True),
    "bank": Target("bank", load_bank, sealed=True),
    "bank_ivf": Target("bank_ivf", load_bank, sealed=True),
    "prediction": Target("prediction", load_prediction, sealed=True),
    "killed": Target("killed", load_killed, sealed=True),
    "run": Target("run", load_run, sealed=True),
    "killed_run": Target("killed_run", load_killed_run, sealed=True),
    "sweep": Target("sweep", load_sweep, sealed=True),
    "training": Target("training", load_training, sealed=True),
    "cache": Target("cache", cached, sealed=True),
}
