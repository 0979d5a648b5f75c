"""The sound files that the campaign damages, a folder for each target."""

from __future__ import annotations

import gzip
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import yaml

SLIDES = ("tiled", "deflate", "strips", "ome", "pyramid", "png", "jpg", "jp2")
"""One picture in containers that are read by different decoders."""
IDENTITY = {"config": "1", "pairs": "2"}
"""What the training state was started with."""
FOLD = "P1"
"""The fold of the evaluation."""


def write_inputs(folder: Path) -> None:
    """Write the sound files of all targets below `folder`."""
    from cmrcnet.datasets.cohort_files import write_cohort
    from cmrcnet.datasets.synthetic import synthetic_cohort

    warnings.simplefilter("ignore")
    cohort = synthetic_cohort(patients=2, spots=16, genes=24, seed=0)
    csv = write_cohort(cohort, folder / "cohort")
    section = cohort.read(cohort.sections[0])
    for name in ("visium", "visium_mtx", "h5ad", "texts", "config", *(f"slides/{name}" for name in SLIDES)):
        (folder / name).mkdir(parents=True)
    _write_visium(section, folder / "visium", as_h5=True)
    _write_visium(section, folder / "visium_mtx", as_h5=False)
    _write_h5ad(section, folder / "h5ad")
    _write_slides(section, folder / "slides")
    _write_texts(section, folder / "texts")
    _write_patches(folder / "patches")
    _write_squares_and_cells(folder)
    _write_text_platforms(folder)
    _write_stores(section, folder)
    _write_models(csv, section, folder)
    _write_run(csv, folder)
    _write_resumable(folder)
    member = gzip.compress((b"s" * 20 + b"\t0" * 500 + b"\n") * 30_000, mtime=0)
    (folder / "bomb.gz").write_bytes(member * 100)  # 3 GB; gzip files may be put one behind the other


def _write_patches(folder: Path) -> None:
    """Patches and features as TRIDENT writes them."""
    import h5py

    folder.mkdir()
    with h5py.File(folder / "C6.h5", "w") as file:
        file["coords"] = np.mgrid[:4, :4].reshape(2, -1).T * 100
        file["coords"].attrs.update({"patch_size_level0": 100, "target_magnification": 20, "name": "C6"})
        values = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
        file.create_dataset("features", data=values, chunks=(8, 24), compression="gzip")
        file["features"].attrs.update({"encoder": "uni_v1", "savetodir": "out/features_uni_v1"})


def _write_squares_and_cells(folder: Path) -> None:
    """Visium HD and Xenium."""
    from tests.readers.written_formats import as_visium, made_up, write_hest, write_image
    from tests.readers.written_platforms import made_bins, made_cells, write_visium_hd, write_xenium

    bins = made_bins()
    write_visium_hd(folder / "visium_hd" / "outs", bins, (2,))
    write_image(folder / "visium_hd" / "image.png", bins.image)
    write_xenium(folder / "xenium", made_cells())
    write_hest(folder / "hest", as_visium(made_up(columns=3, rows=3, mpp=1.6)), "H1")


def _write_text_platforms(folder: Path) -> None:
    """CosMx, MERSCOPE, STOmics, Slide-seq and Curio: tables of text, an H&E and its affine beside them."""
    import pandas as pd

    from tests.readers.test_cell_tables import PIXEL_UM as COSMX_PIXEL_UM
    from tests.readers.test_cell_tables import SHIFT, affine, write_cosmx, write_merscope
    from tests.readers.test_slide_seq import AFFINE, UNIT_UM
    from tests.readers.test_slide_seq import write as write_beads
    from tests.readers.test_stomics import write_gem
    from tests.readers.written_formats import write_image

    rng = np.random.default_rng(0)
    image = np.full((900, 900, 3), 190, np.uint8)
    image[::7, ::5] = rng.integers(0, 255, 3)
    cells = rng.uniform([20, 20], [280, 200], (40, 2)) + SHIFT, rng.poisson(2, (40, 7))
    places = np.mgrid[:8, :10].reshape(2, -1).T[:, ::-1] * 12 / UNIT_UM + rng.uniform(-1, 1, (80, 2)) + 30
    genes = [f"GENE{i}" for i in range(6)]
    beads = [f"BEAD{i:04d}" for i in range(80)], places, rng.poisson(0.4, (80, 6)), genes
    write_cosmx(folder / "cosmx", cells)
    write_merscope(folder / "merscope", cells)
    write_beads(folder / "slide_seq", beads, "slide-seq")
    write_beads(folder / "curio", beads, "curio", prefix="S1_")
    molecules = pd.DataFrame({"geneID": rng.choice(genes, 400), "x": rng.integers(40, 560, 400)})
    molecules = molecules.assign(y=rng.integers(60, 380, 400), MIDCount=rng.integers(1, 5, 400))
    (folder / "stomics").mkdir()
    write_gem(folder / "stomics" / "chip.gem", molecules.drop_duplicates(["geneID", "x", "y"]), offset=(13, 25))
    maps = {"cosmx": affine(COSMX_PIXEL_UM), "merscope": affine(1.0), "slide_seq": AFFINE, "curio": AFFINE}
    for name, values in maps.items():
        (folder / name / "affine.csv").write_text("{},{},{}\n{},{},{}\n".format(*values))
    for name in (*maps, "stomics"):
        write_image(folder / name / "he.png", image)


def _write_stores(section: Any, folder: Path) -> None:
    """A SpatialData store."""
    from tests.slides.test_spot_tables import spatial_data_of

    (folder / "spatialdata").mkdir()
    spatial_data_of(section).write(folder / "spatialdata" / "S1.zarr")


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
    Image.fromarray(pixels).save(spatial / "tissue_hires_image.png", compress_level=1)


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


def _write_models(csv: Path, section: Any, folder: Path) -> None:
    """A model, banks with and without an index, a student, a prediction, and one that was killed before its end."""
    import shutil

    import cmrcnet
    from cmrcnet.export.table_file import TableFile
    from cmrcnet.inference.predict import predict_to_file
    from cmrcnet.search.build import SearchConfig
    from cmrcnet.testing import quick_config
    from tests.fuzz.targets import open_predictor

    components: dict[str, Any] = {"target.ranks": [2], "target.gene_rank": 2, "train.validation": "each"}
    components |= {"head.kind": "ensemble", "panel.kind": "variance"}
    config = quick_config().override(components)
    (folder / "config" / "mine.yaml").write_text(yaml.safe_dump(config.to_dict()))
    cohort = cmrcnet.read_cohort(csv)
    model = cmrcnet.fit(cohort, config)
    model.save_pretrained(folder / "model")
    (folder / "model_zip").mkdir()
    model.save_pretrained(folder / "model_zip" / "model.zip")
    bank = cmrcnet.build_bank(model, cohort)
    bank.save(folder / "bank")
    bank.save(folder / "bank_ivf", search=SearchConfig(kind="ivf", nprobe=2, recall=0.01))
    cmrcnet.distil(model, bank, cohort).save_pretrained(folder / "student")
    shutil.copyfile(csv.parent / f"{section.name}.jpg", folder / "slide.jpg")
    with open_predictor(folder) as (predictor, slide):
        for name in ("prediction", "killed"):
            (folder / name).mkdir()
        predict_to_file(predictor, slide, folder / "prediction" / "p.h5ad")
        finish = TableFile.finish
        TableFile.finish = _stop  # type: ignore[assignment]
        try:
            predict_to_file(predictor, slide, folder / "killed" / "p.h5ad")
        except KeyboardInterrupt:
            TableFile.finish = finish  # type: ignore[method-assign]


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def _write_run(csv: Path, folder: Path) -> None:
    """An evaluation that is finished, one that was killed, and a killed sweep of which one trial is finished."""
    import shutil

    import cmrcnet
    from cmrcnet.evaluation.protocol.run_folder import RunFolder
    from cmrcnet.evaluation.sweep.run_sweep import SweepFolder
    from cmrcnet.testing import quick_config

    run, config = RunFolder(folder / "run"), quick_config().override({"panel.kind": "variance"})
    cohort = cmrcnet.read_cohort(csv)
    cmrcnet.evaluate(cohort, config, methods=["gene-mean", "cmrcnet"], only=[FOLD], folder=run)
    shutil.copytree(run.partial, folder / "killed_run" / "run.partial")
    (folder / "killed_run" / "run.partial" / "run.json").unlink()
    run.finish()
    sweep = SweepFolder(folder / "sweep" / "sweep")
    sweep.begin(IDENTITY)
    shutil.copytree(folder / "run", sweep.trial_path("base"))


def _write_resumable(folder: Path) -> None:
    """The state of a training, and an entry of the cache."""
    import torch

    from cmrcnet.training.checkpoint import Checkpoints, TrainingState
    from tests.fuzz.targets import cached

    tensors = {"a": torch.arange(3000.0), "b": torch.ones(2, 2)}
    facts = {"history": [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}]}
    states = Checkpoints(folder / "training" / "model.partial")
    states.save(TrainingState("search", 2, facts, tensors), IDENTITY)
    states.write_log(facts["history"])
    cached(folder / "cache")
