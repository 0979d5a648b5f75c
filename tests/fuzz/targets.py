"""What the campaign damages: for every loader its files, and a digest of all that it reads from them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

SLIDES = ("tiled", "deflate", "strips", "ome", "pyramid", "png", "jpg", "jp2")
"""One picture in containers that are read by different decoders."""


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


def write_inputs(folder: Path, names: Collection[str]) -> None:
    """Write the sound files of targets below `folder`; a student and an evaluation, which take longest, when named."""
    from cmrcnet.datasets.cohort_files import write_cohort
    from cmrcnet.datasets.synthetic import synthetic_cohort

    cohort = synthetic_cohort(patients=3, spots=30, genes=60, seed=0)
    csv = write_cohort(cohort, folder / "cohort", image="png")
    section = cohort.read(cohort.sections[0])
    for name in ("visium", "visium_mtx", "h5ad", "texts", "config", *(f"slides/{name}" for name in SLIDES)):
        (folder / name).mkdir(parents=True)
    _write_visium(section, folder / "visium", as_h5=True)
    _write_visium(section, folder / "visium_mtx", as_h5=False)
    _write_h5ad(section, folder / "h5ad")
    _write_slides(section, folder / "slides")
    _write_texts(section, folder / "texts")
    _write_platforms(folder)
    _write_own(csv, section, folder, names)


def _write_platforms(folder: Path) -> None:
    from tests.readers.written_formats import write_image
    from tests.readers.written_platforms import made_bins, made_cells, write_visium_hd, write_xenium

    bins = made_bins()
    write_visium_hd(folder / "visium_hd" / "outs", bins, (2,))
    write_image(folder / "visium_hd" / "image.png", bins.image)
    write_xenium(folder / "xenium", made_cells())


def _write_visium(section: Any, folder: Path, as_h5: bool) -> None:
    """One section as the `outs` folder of Space Ranger, its spots on a square array of 100 um."""
    import h5py
    from PIL import Image
    from scipy import io as scipy_io

    outs, spatial = folder / "outs", folder / "outs" / "spatial"
    spatial.mkdir(parents=True)
    n, side = len(section.spots), 6
    pitch_px = 100.0 / float(section.slide.mpp)
    barcodes = [f"{'ACGT'[i % 4]}{'ACGT'[i // 4 % 4]}{'ACGT'[i // 16 % 4]}ACGTACGTACGTA-1" for i in range(n)]
    matrix = section.counts.T.tocsc()
    if as_h5:
        with h5py.File(outs / "filtered_feature_bc_matrix.h5", "w") as file:
            group = file.create_group("matrix")
            group["data"] = matrix.data.astype(np.int32)
            group["indices"], group["indptr"] = matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)
            group["shape"] = np.array(matrix.shape, np.int32)
            group["barcodes"] = np.array(barcodes, "S")
            group["features/name"] = group["features/id"] = np.array(section.genes, "S")
            group["features/feature_type"] = np.array(["Gene Expression"] * len(section.genes), "S")
    else:
        mtx = outs / "filtered_feature_bc_matrix"
        mtx.mkdir()
        buffer = io.BytesIO()
        scipy_io.mmwrite(buffer, matrix.astype(np.int64))
        (mtx / "matrix.mtx.gz").write_bytes(gzip.compress(buffer.getvalue(), mtime=0))
        (mtx / "barcodes.tsv").write_text("".join(f"{b}\n" for b in barcodes))
        (mtx / "features.tsv").write_text("".join(f"{g}\t{g}\tGene Expression\n" for g in section.genes))
    lines = ["barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres"]
    lines += [
        f"{b},1,{i // side},{i % side},{int((i // side + 0.7) * pitch_px)},{int((i % side + 0.7) * pitch_px)}"
        for i, b in enumerate(barcodes)
    ]
    (spatial / "tissue_positions.csv").write_text("\n".join(lines) + "\n")
    factors = {"spot_diameter_fullres": 65 / float(section.slide.mpp), "tissue_hires_scalef": 1.0}
    (spatial / "scalefactors_json.json").write_text(json.dumps(factors))
    pixels = section.slide.read(0, 0, section.slide.width_px, section.slide.height_px)
    Image.fromarray(pixels).save(spatial / "tissue_hires_image.png")


def _write_h5ad(section: Any, folder: Path) -> None:
    import anndata
    import pandas as pd
    from PIL import Image

    table = anndata.AnnData(
        section.counts.astype(np.float32), pd.DataFrame(index=list(section.spots.barcodes)),
        pd.DataFrame(index=list(section.genes)),
    )  # fmt: skip
    table.obsm["spatial"] = np.array(section.spots.centre_px)
    table.obs["region"] = pd.Categorical(["a", "b"] * (len(table) // 2) + ["a"] * (len(table) % 2))
    table.write_h5ad(folder / "section.h5ad")
    pixels = section.slide.read(0, 0, section.slide.width_px, section.slide.height_px)
    Image.fromarray(pixels).save(folder / "section.jpg", quality=95)


def _write_slides(section: Any, folder: Path) -> None:
    """One picture in every container of `SLIDES`."""
    import tifffile
    from PIL import Image

    pixels = section.slide.read(0, 0, min(512, section.slide.width_px), min(512, section.slide.height_px))
    rgb: dict[str, Any] = {"photometric": "rgb"}
    scale: dict[str, Any] = rgb | {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(folder / "tiled" / "a.tif", pixels, tile=(128, 128), **scale)
    tifffile.imwrite(folder / "deflate" / "a.tif", pixels, tile=(128, 128), compression="deflate", **scale)
    tifffile.imwrite(folder / "strips" / "a.tif", pixels, rowsperstrip=32, **scale)
    physical = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    tifffile.imwrite(folder / "ome" / "a.ome.tif", pixels, ome=True, metadata=physical, **rgb)
    with tifffile.TiffWriter(folder / "pyramid" / "a.tif") as file:
        file.write(pixels, tile=(64, 64), compression="jpeg", subifds=0, **scale)
        file.write(pixels[::4, ::4], tile=(64, 64), compression="jpeg", subfiletype=1, **rgb)
    for ending in ("png", "jpg", "jp2"):
        Image.fromarray(pixels).save(folder / ending / f"a.{ending}")


def _write_texts(section: Any, folder: Path) -> None:
    """Spots to predict at, labelled regions, a list of genes and a tissue mask."""
    from PIL import Image

    centres = section.spots.centre_px
    rows = [f"{name}\t{x:.2f}\t{y:.2f}" for name, (x, y) in zip(section.spots.barcodes, centres, strict=True)]
    (folder / "spots.tsv").write_text("\n".join(["spot\tpixel_x\tpixel_y", *rows]) + "\n")
    labels = [f"{name},{'ab'[i % 2]}" for i, name in enumerate(section.spots.barcodes)]
    (folder / "regions.csv").write_text("\n".join(["spot,region", *labels]) + "\n")
    (folder / "genes.txt").write_text("\n".join(section.genes[:20]) + "\n")
    mask = np.zeros((50, 50), np.uint8)
    mask[10:40, 10:40] = 255
    Image.fromarray(mask).save(folder / "mask.png")


def _write_own(csv: Path, section: Any, folder: Path, names: Collection[str]) -> None:
    """A model, a bank, a student, a prediction, a run, a training state, a cache: all that we write and read again."""
    import cmrcnet
    from cmrcnet.cli.app import main
    from cmrcnet.testing import quick_config

    (folder / "config" / "mine.yaml").write_text(yaml.safe_dump(quick_config().to_dict()))
    with (folder / "quick.yaml").open("w") as file:
        file.write(yaml.safe_dump(quick_config().to_dict()))
    cohort = cmrcnet.read_cohort(csv)
    model = cmrcnet.fit(cohort, quick_config())
    model.save_pretrained(folder / "model")
    bank = cmrcnet.build_bank(model, cohort)
    bank.save(folder / "bank")
    if "student" in names:
        cmrcnet.distil(model, bank, cohort).save_pretrained(folder / "student")
    slide = csv.parent / f"{section.name}.png"
    commands = [["predict", str(folder / "model"), str(slide), "--bank", str(folder / "bank")]]
    commands[0] += ["--mpp", str(section.slide.mpp), "--out", str(folder / "prediction" / "p.h5ad")]
    if "run" in names:
        commands.append(["evaluate", str(csv), "--config", str(folder / "quick.yaml"), "--methods", "ridge"])
        commands[1] += ["--out", str(folder / "run")]
    for command in commands:
        if code := main(command):
            raise RuntimeError(f"cmrcnet {' '.join(command)} ended with {code}")


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


def load_config(folder: Path) -> str:
    """Read a config of the user."""
    from cmrcnet import Config

    return digest(Config.load(str(folder / "mine.yaml")).to_dict())


def load_model(folder: Path) -> str:
    """Read a model, and embed."""
    from cmrcnet import TrainedModel

    model = TrainedModel.from_pretrained(folder)
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


def load_run(folder: Path) -> str:
    """Read a finished evaluation."""
    from cmrcnet.evaluation.protocol.run_folder import RunFolder

    found = RunFolder.read_finished(folder)
    if found is None:
        from cmrcnet.errors import MissingInput

        raise MissingInput(folder / "run.json", "The evaluation")
    scores, facts = found
    return digest(scores.to_csv(), json.dumps(facts, sort_keys=True, default=str))


TARGETS: dict[str, Target] = {
    "cohort": Target("cohort", load_cohort),
    "visium": Target("visium", load_visium),
    "visium_mtx": Target("visium_mtx", load_visium),
    "h5ad": Target("h5ad", load_h5ad),
    **{f"slide_{name}": Target(f"slides/{name}", partial(load_slide, container=name)) for name in SLIDES},
    "visium_hd": Target("visium_hd", load_visium_hd),
    "xenium": Target("xenium", load_xenium),
    "texts": Target("texts", load_texts),
    "config": Target("config", load_config),
    "model": Target("model", load_model, sealed=True),
    "student": Target("student", load_student, sealed=True),
    "bank": Target("bank", load_bank, sealed=True),
    "prediction": Target("prediction", load_prediction, sealed=True),
    "run": Target("run", load_run, sealed=True),
}
