"""Every file of every platform missing in turn: not needed, or one sentence that names it and says what to do."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest

from cmrcnet.errors import BadInput
from cmrcnet.readers.inspection import inspect
from cmrcnet.readers.registry import read_section, sniff
from tests.readers.one_section import PLATFORMS, write_platform
from tests.readers.written_formats import made_up

for needed in ("pyarrow", "spatialdata"):
    pytest.importorskip(needed)
pytestmark = pytest.mark.filterwarnings("ignore")

IMAGE = {"he.tif": "the image .* does not exist; check the path"}
SPACE_RANGER = "Space Ranger writes it into outs.*copy it"
HD = "outs/binned_outputs/square_002um/"
NEEDED: dict[str, dict[str, str]] = {
    "legacy_st": IMAGE | {"S1_counts.tsv.gz": "check the path", "S1_spots.tsv": "check the path"},
    "visium": IMAGE
    | dict.fromkeys(("outs/filtered_feature_bc_matrix.h5", "outs/spatial/tissue_positions.csv"), SPACE_RANGER)
    | {"outs/spatial/scalefactors_json.json": "Space Ranger writes it .*version seen: 2.0.* copy it or give mpp"},
    "visium_hd": IMAGE
    | {
        f"{HD}{name}": "Space Ranger 3 or later writes .*version seen: spaceranger-3.1.2.*copy it from there"
        for name in (
            "filtered_feature_bc_matrix.h5",
            "spatial/tissue_positions.parquet",
            "spatial/scalefactors_json.json",
        )
    },
    "xenium": {
        "outs/made_he_image.ome.tif": "check the path",
        "outs/made_he_imagealignment.csv": "export it from Xenium Explorer .*or give the affine",
        "outs/experiment.xenium": "Xenium Ranger write it into their output folder, give that whole folder",
        "outs/cells.parquet": r"Xenium Ranger write it there .version seen: xenium-3.0.0.15., copy it",
        "outs/transcripts.parquet": r"Xenium Ranger write it there .version seen: xenium-3.0.0.15., copy it",
    },
    "cosmx": IMAGE | {f"flat/R1_{name}_file.csv": "AtoMx writes it .*copy it" for name in ("exprMat", "metadata")},
    "merscope": IMAGE
    | dict.fromkeys(("region/cell_by_gene.csv", "region/cell_metadata.csv"), "MERSCOPE instrument .*copy it")
    | {"region/images/micron_to_mosaic_pixel_transform.csv": "give six numbers a b c d e f, or the path"},
    "stomics": IMAGE | {"S1.tissue.gem.gz": "check the path"},
    "slide_seq": IMAGE
    | {f"puck/{name}ForR.csv": "Slide-seq tools write it .*copy it" for name in ("MappedDGE", "BeadLocations")},
    "curio": IMAGE
    | {
        f"puck/S1_{name}": "Curio Seeker pipeline writes it into OUTPUT/SAMPLE, copy it"
        for name in ("MatchedBeadLocation.csv", "MoleculesPerMatchedBead.mtx", "barcodes.tsv", "genes.tsv")
    },
    "spatialdata": {
        **dict.fromkeys(("S1.zarr/zarr.json", "S1.zarr/tables"), "sdata.write of SpatialData writes .*copy it whole"),
        **dict.fromkeys(
            ("S1.zarr/images/he/zarr.json", "S1.zarr/shapes/spots/shapes.parquet", "S1.zarr/tables/table/zarr.json"),
            "is incomplete, damaged or of another version; copy it whole or write it again",
        ),
        "S1.zarr/tables/table/X/data/c/0": "chunks of tables/table/X/data are absent; copy it whole",
    },
    "ann_data": IMAGE | {"S1.h5ad": "check the path"},
    "hest": {"hest/st/TENX1.h5ad": "HEST-Bench in adata; download it again"},
}
NEEDED["visium_cytassist"] = NEEDED["visium"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Each platform's folder and cohort file, the format left to the reader, made once."""
    made, folders = made_up(columns=3, rows=2), {}

    def of(platform):
        if platform not in folders:
            folder = folders[platform] = tmp_path_factory.mktemp("all") / platform
            row = {"section": "S1", "patient": "A", **write_platform(platform, folder, made)}
            (folder / "cohort.csv").write_text("\n".join([",".join(row), ",".join(row.values())]) + "\n")
        return folders[platform]

    return made, of


@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_file_of_a_layout(written, platform, tmp_path):
    made, of = written
    folder = of(platform)
    csv = folder / "cohort.csv"
    found = inspect(csv, pixels=False)
    assert found.problems == () and found.sections[0].spots == made.spots
    files = [path for path in folder.rglob("*") if path.is_file() and path != csv and ".zarr/" not in path.as_posix()]
    names = {str(path.relative_to(folder)) for path in files} | set(NEEDED[platform])
    assert set(NEEDED[platform]) <= {str(path.relative_to(folder)) for path in folder.rglob("*")}
    for name in sorted(names):
        away = tmp_path / "away"
        (folder / name).rename(away)
        problems = inspect(csv, pixels=False).problems
        away.rename(folder / name)
        if name not in NEEDED[platform]:
            assert problems == (), name
            continue
        (problem,) = problems
        assert "\n" not in problem and problem.startswith("cohort.csv, line 2 (S1): ") and problem.endswith(".")
        if platform not in ("spatialdata", "hest"):  # which name the store, and the table of the section
            assert name.rpartition("/")[2] in problem, problem
        assert re.search(NEEDED[platform][name], problem, re.IGNORECASE), f"{name}: {problem}"


def refused(csv, counts):
    """The one problem of the row with other counts."""
    lines = csv.read_text().splitlines()
    cells = dict(zip(lines[0].split(","), lines[1].split(","), strict=True)) | {"counts": str(counts)}
    changed = csv.with_name("changed.csv")
    changed.write_text("\n".join([",".join(cells), ",".join(cells.values())]) + "\n")
    (problem,) = inspect(changed, pixels=False).problems
    return problem


def test_a_gef_is_refused_for_its_gem(written):
    folder = written[1]("stomics")
    for name in ("S1.tissue.gef", "S1.cellbin.gef"):
        (folder / name).write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
        assert sniff(folder / name) == "stomics"
        assert "is a GEF (HDF5), which is not read; give the .gem.gz" in refused(folder / "cohort.csv", name)


def test_cells_of_space_ranger_4_are_refused_for_bins(written, tmp_path):
    folder = written[1]("visium_hd")
    segmented = tmp_path / "S2" / "outs" / "segmented_outputs"
    segmented.mkdir(parents=True)
    (segmented / "filtered_feature_cell_matrix.h5").write_bytes(b"")
    for counts in (segmented, segmented.parent, segmented.parents[1]):
        said = refused(folder / "cohort.csv", counts)
        assert "the cells of segmented_outputs are not read; give outs with the binned_outputs" in said
    beside = folder / "outs" / "segmented_outputs"
    beside.mkdir()
    assert inspect(folder / "cohort.csv", pixels=False).problems == ()
    assert "give outs with the binned_outputs" in refused(folder / "cohort.csv", beside)
    beside.rmdir()


@pytest.mark.parametrize("name", ["transcripts.zarr.zip", "transcripts.csv.gz"])
def test_transcripts_in_other_files_are_named_as_not_read(written, tmp_path, name):
    folder = tmp_path / "xenium"
    shutil.copytree(written[1]("xenium"), folder)
    (folder / "outs" / "transcripts.parquet").rename(folder / "outs" / name)
    (problem,) = inspect(folder / "cohort.csv", pixels=False).problems
    assert "transcripts.parquet does not exist; Xenium Onboard Analysis and Xenium Ranger write it there" in problem
    assert f"(found, but not read: {name})" in problem


@pytest.mark.parametrize("kind", ["labels", "points"])
def test_a_table_of_labels_or_points_is_refused_for_shapes(written, tmp_path, kind):
    import pandas as pd
    import spatialdata
    from spatialdata.models import Labels2DModel, PointsModel

    store = tmp_path / "S1.zarr"
    sdata = spatialdata.read_zarr(written[1]("spatialdata") / "S1.zarr")
    places = {"x": [1.0, 2.0], "y": [1.0, 2.0]}
    element = (
        Labels2DModel.parse(np.ones((8, 8), int), dims=("y", "x"))
        if kind == "labels"
        else PointsModel.parse(pd.DataFrame(places))
    )
    table = sdata.tables["table"]
    table.obs["region"] = pd.Categorical(["cells"] * table.n_obs)
    table.obs["instance"] = range(table.n_obs)
    table.uns["spatialdata_attrs"]["region"] = "cells"
    made = spatialdata.SpatialData(
        images=dict(sdata.images), shapes=dict(sdata.shapes), tables={"table": table}, **{kind: {"cells": element}}
    )
    made.write(store)
    with pytest.raises(BadInput, match=f"it annotates {kind}/cells, and only shapes are read; write circles"):
        read_section(store, mpp=1.0)
