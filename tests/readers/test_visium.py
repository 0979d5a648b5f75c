"""10x Visium against scanpy and squidpy, in each layout that Space Ranger has written."""

from __future__ import annotations

import gzip
import json
import re
import warnings
from dataclasses import replace
from shutil import copyfile

import numpy as np
import pytest
from scipy import sparse

from cmrcnet.errors import (
    BadInput,
    BadOption,
    MissingInput,
    ScaleError,
    SectionError,
    UnknownName,
)
from cmrcnet.readers.raw_section import neighbour_distance_px
from cmrcnet.readers.registry import read_section, sniff
from cmrcnet.readers.visium import array_pitch_px, read_tenx_matrix, visium_scale
from cmrcnet.slides.slide import known_scale
from tests.readers.written_formats import as_visium, cut, made_up, write_10x_h5, write_image, write_visium


@pytest.fixture
def visium(small):
    return as_visium(small)


def fullres(folder, made):
    return write_image(folder / "fullres.png", made.image)


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("matrix", ["h5", "mtx.gz", "mtx"])
def test_every_layout_as_scanpy_reads_it(tmp_path, visium, matrix, header):
    import scanpy as sc

    others = 0 if matrix == "mtx" else 2
    outs = write_visium(
        tmp_path / "run" / "outs", visium, matrix=matrix, header=header, off_tissue=4, other_features=others
    )
    assert sniff(outs) == sniff(tmp_path / "run") == "visium"
    section = read_section(outs, image=fullres(tmp_path, visium))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if matrix == "h5":
            theirs = sc.read_10x_h5(outs / "filtered_feature_bc_matrix.h5", gex_only=True)
        else:
            theirs = sc.read_10x_mtx(outs / "filtered_feature_bc_matrix", gex_only=True, make_unique=False)
    theirs = theirs[: visium.spots - 4]
    assert section.spots.barcodes == tuple(theirs.obs_names)
    assert section.genes == tuple(theirs.var_names)
    np.testing.assert_array_equal(section.counts.toarray(), theirs.to_df())
    assert section.name == "run"
    assert section.absent_genes == "unmeasured"
    assert any("4 of 30 spots are not under tissue: dropped" in note for note in section.notes)
    assert any("Antibody Capture" in note for note in section.notes) == bool(others)
    proteins = {"image": fullres(tmp_path, visium), "assay": "proteins"}
    if others:
        antibodies = read_section(outs, **proteins)
        assert antibodies.genes == ("CD0", "CD1")
        assert (antibodies.counts.toarray() == 1).all()
        assert antibodies.spots.barcodes == section.spots.barcodes
    else:
        with pytest.raises(BadInput, match="it holds no proteins"):
            read_section(outs, **proteins)


@pytest.mark.parametrize("header", [True, False])
def test_positions_and_picture_as_squidpy_reads_them(tmp_path, made, header):
    import squidpy as sq

    visium = as_visium(made)
    outs = write_visium(tmp_path / "outs", visium, header=header)
    section = read_section(outs, image=fullres(tmp_path, visium))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = sq.read.visium(outs, library_id="lib")
    assert list(theirs.obs_names) == list(section.spots.barcodes)
    np.testing.assert_array_equal(section.spots.centre_px, theirs.obsm["spatial"])
    assert section.spots.diameter_um == 55
    written = 65 / theirs.uns["spatial"]["lib"]["scalefactors"]["spot_diameter_fullres"]
    assert section.slide.mpp == pytest.approx(written, rel=0.02)
    reduced = read_section(outs)
    hires = theirs.uns["spatial"]["lib"]["images"]["hires"]
    np.testing.assert_array_equal(reduced.slide.read(0, 0, reduced.slide.width_px, reduced.slide.height_px), hires)


def test_x_is_the_column_and_y_the_row(tmp_path, visium):
    section = read_section(write_visium(tmp_path / "outs", visium), image=fullres(tmp_path, visium))
    for x, y in np.round(section.spots.centre_px).astype(int):
        assert section.slide.read(int(x), int(y), 1, 1)[0, 0].tolist() == [120, 40, 90]


def test_the_matrix_file_itself_may_be_given(tmp_path, visium):
    outs = write_visium(tmp_path / "outs", visium)
    matrix = outs / "filtered_feature_bc_matrix.h5"
    assert sniff(matrix) == "visium"
    assert read_section(matrix, image=fullres(tmp_path, visium)).spots.barcodes == tuple(visium.barcodes)


def test_cellranger_2_files(tmp_path, visium):
    import scanpy as sc
    from scipy import sparse

    path = tmp_path / "m.h5"
    names = visium.genes
    write_10x_h5(path, sparse.csc_matrix(visium.counts.T), visium.barcodes, names, names, [], version=2)
    ours, theirs = read_tenx_matrix(path), sc.read_10x_h5(path)
    assert ours.genes == tuple(theirs.var_names)
    np.testing.assert_array_equal(ours.counts.toarray(), theirs.to_df())


def test_only_the_reduced_picture_is_used_with_its_own_scale_and_told(tmp_path, visium):
    outs = write_visium(tmp_path / "outs", visium)
    full, reduced = read_section(outs, image=fullres(tmp_path, visium)), read_section(outs)
    np.testing.assert_allclose(reduced.spots.centre_px, full.spots.centre_px * 0.5)
    assert reduced.slide.mpp == pytest.approx(2 * known_scale(full.slide))
    assert any("Only the reduced picture tissue_hires_image.png is at hand" in note for note in reduced.notes)
    assert not any("reduced picture" in note for note in full.notes)
    named = read_section(outs, image=outs / "spatial" / "tissue_lowres_image.png")
    np.testing.assert_allclose(named.spots.centre_px, full.spots.centre_px * 0.25)


def test_scale_by_hand():
    assert visium_scale(0.3, {"spot_diameter_fullres": 1.0}, 1.0, "s")[0] == 0.3
    assert visium_scale(None, {"microns_per_pixel": 0.27, "spot_diameter_fullres": 90.0}, 137.0, "s")[0] == 0.27
    assert visium_scale(None, {}, 137.5, "s")[0] == pytest.approx(100 / 137.5)
    # 10x's published example: a diameter of 89.44 px is 65 um, so a pixel shows 0.7268 um
    assert visium_scale(None, {"spot_diameter_fullres": 89.43834961}, None, "s")[0] == pytest.approx(0.72675760)
    assert visium_scale(None, {}, None, "s") == (None, "")


def test_where_the_scale_is_from_is_told(tmp_path, visium):
    outs = write_visium(tmp_path / "outs", visium, written_spot_um=55.0)
    section = read_section(outs, image=fullres(tmp_path, visium))
    assert section.slide.mpp == pytest.approx(visium.mpp)  # whatever the spot diameter is said to span
    assert any("um per px is measured" in note for note in section.notes)
    stated = read_section(outs, image=fullres(tmp_path, visium), mpp=visium.mpp * 1.1)
    assert stated.slide.mpp == pytest.approx(visium.mpp * 1.1)


def test_positions_and_scale_factors_that_contradict_each_other(tmp_path, visium):
    outs = write_visium(tmp_path / "outs", visium)
    path = outs / "spatial" / "scalefactors_json.json"
    factors = json.loads(path.read_text())
    path.write_text(json.dumps({**factors, "spot_diameter_fullres": factors["spot_diameter_fullres"] * 4}))
    with pytest.raises(ScaleError, match=r"locations of its array are 50.0 px apart"):
        read_section(outs, image=fullres(tmp_path, visium))


def test_few_locations_of_the_hexagonal_array_give_its_scale():
    rng = np.random.default_rng(0)
    row, column = np.divmod(np.arange(78 * 64), 64)
    array = np.column_stack([2 * column + row % 2, row])[rng.choice(78 * 64, 100, replace=False)]
    turned = np.array([[0.0, 1.0], [-1.0, 0.0]]) @ (array * [50, 50 * np.sqrt(3)]).T / 0.72
    pixels = np.round(turned.T + np.array([12_000, 300]))
    assert array_pitch_px(array, pixels) == pytest.approx(100 / 0.72, rel=1e-3)
    assert (neighbour_distance_px(pixels) or 0) > 1.5 * 100 / 0.72  # most have no listed neighbour
    assert array_pitch_px(array[:9], pixels[:9]) is None and array_pitch_px(array, pixels[::-1]) is None
    assert array_pitch_px(array, pixels * [1, 1.2]) is None  # no hexagons


def test_a_stated_scale_four_times_off(tmp_path, visium):
    outs = write_visium(tmp_path / "outs", visium)
    with pytest.raises(ScaleError, match=r"would lie 400 um apart, and their assay puts them 100 um apart"):
        read_section(outs, image=fullres(tmp_path, visium), mpp=visium.mpp * 4)


def test_a_picture_of_another_section(tmp_path, visium):
    outs = write_visium(tmp_path / "outs", visium)
    other = write_image(tmp_path / "other.png", visium.image[:80, :80])
    with pytest.raises(SectionError, match=r"of 30 spots of .* lie outside its image .80 x 80 px"):
        read_section(outs, image=other)


def test_missing_parts_are_named(tmp_path, visium):
    outs = write_visium(tmp_path / "outs", visium)
    (outs / "spatial" / "tissue_hires_image.png").unlink()
    with pytest.raises(BadOption, match=r"image is None; wanted the full-resolution picture"):
        read_section(outs)
    positions = (outs / "spatial" / "tissue_positions.csv").rename(tmp_path / "p.csv")
    with pytest.raises(MissingInput, match=r"file of spot positions"):
        read_section(outs, format="visium", image=fullres(tmp_path, visium))
    assert len(read_section(outs, image=fullres(tmp_path, visium), spots=positions).spots) == 30
    positions.write_text("barcode,in_tissue\nA,1\n")
    with pytest.raises(BadInput, match=r"pxl_row_in_fullres"):
        read_section(outs, image=fullres(tmp_path, visium), spots=positions)
    (outs / "filtered_feature_bc_matrix.h5").unlink()
    with pytest.raises(MissingInput, match=r"count matrix"):
        read_section(outs, format="visium", image=fullres(tmp_path, visium), spots=positions)


def test_visium_hd_is_refused_by_name(tmp_path, visium):
    outs = write_visium(tmp_path / "outs", visium)
    (outs / "binned_outputs").mkdir()
    with pytest.raises(BadInput, match=r"Visium HD.*format= .*visium_hd"):
        read_section(outs, format="visium", image=fullres(tmp_path, visium))
    with pytest.raises(MissingInput, match=r"Space Ranger 3 or later writes bins there"):
        read_section(outs, image=fullres(tmp_path, visium))


def test_duplicate_barcodes(tmp_path, visium):
    visium.barcodes[1] = visium.barcodes[0]
    with pytest.raises(SectionError, match=r"tissue_positions.csv repeat the barcode"):
        read_section(write_visium(tmp_path / "outs", visium), image=fullres(tmp_path, visium))


def test_negative_counts(tmp_path, visium):
    visium.counts[3, 3] = -1
    with pytest.raises(SectionError, match=r"counts of .* are not raw counts"):
        read_section(write_visium(tmp_path / "outs", visium), image=fullres(tmp_path, visium))


@pytest.mark.parametrize(
    ("matrix", "part"),
    [
        ("h5", "filtered_feature_bc_matrix.h5"),
        ("mtx.gz", "filtered_feature_bc_matrix/matrix.mtx.gz"),
        ("mtx.gz", "filtered_feature_bc_matrix/features.tsv.gz"),
        ("mtx", "filtered_feature_bc_matrix/matrix.mtx"),
        ("mtx", "filtered_feature_bc_matrix/barcodes.tsv"),
        ("h5", "spatial/scalefactors_json.json"),
        ("h5", "spatial/tissue_hires_image.png"),
    ],
)
def test_truncated_files(tmp_path, matrix, part):
    outs = write_visium(tmp_path / "outs", as_visium(made_up(genes=300)), matrix=matrix)
    cut(outs / part)
    with pytest.raises(BadInput, match=r"cannot be read as"):
        read_section(outs)


def test_an_h5_of_another_kind(tmp_path, visium):
    import h5py

    outs = write_visium(tmp_path / "outs", visium)
    with h5py.File(outs / "filtered_feature_bc_matrix.h5", "w") as file:
        file["something"] = [1]
    with pytest.raises(BadInput, match=r"no group 'matrix'"):
        read_section(outs)
    (outs / "filtered_feature_bc_matrix.h5").write_text("no HDF5 at all")
    with pytest.raises(BadInput, match=r"truncated, damaged or of another kind"):
        read_section(outs)


def aggregated(folder, *, alike=False):
    """Two capture areas, the one matrix of `spaceranger aggr`, and a positions file of each with suffix -1."""
    areas = {"1": as_visium(made_up(seed=1)), "2": as_visium(made_up(seed=2))}
    areas["2"].genes[:] = areas["1"].genes
    off = {"1": 0, "2": 0 if alike else 3}
    for suffix, made in areas.items():
        write_visium(folder / suffix, made, off_tissue=off[suffix])
    both = []
    for suffix, made in areas.items():
        kept = made.spots - off[suffix]
        both.append(([f"{barcode[:-1]}{suffix}" for barcode in made.barcodes[:kept]], made.counts[:kept]))
    aggr = folder / "aggr"
    (aggr / "spatial").mkdir(parents=True)
    names = [name for barcodes, _ in both for name in barcodes]
    matrix = sparse.csc_matrix(np.vstack([counts for _, counts in both]).T)
    genes = areas["1"].genes
    write_10x_h5(aggr / "filtered_feature_bc_matrix.h5", matrix, names, genes, genes, ["Gene Expression"] * len(genes))
    (aggr / "spatial" / "scalefactors_json.json").write_bytes(
        (folder / "1" / "spatial" / "scalefactors_json.json").read_bytes()
    )
    return aggr, areas, both


def test_an_aggregated_matrix_gives_the_library_that_the_positions_name(tmp_path):
    aggr, areas, both = aggregated(tmp_path)
    for number, (barcodes, counts) in enumerate(both, 1):
        spots = tmp_path / str(number) / "spatial" / "tissue_positions.csv"
        section = read_section(aggr, spots=spots, image=fullres(tmp_path, areas[str(number)]))
        assert section.spots.barcodes == tuple(barcodes)
        np.testing.assert_array_equal(section.counts.toarray(), counts)
        assert any(f"those of suffix -{number} are taken" in note for note in section.notes)


def test_an_aggregated_matrix_that_tells_nothing_is_refused(tmp_path):
    aggr, areas, both = aggregated(tmp_path, alike=True)  # all spots of both are under tissue
    image, spots = fullres(tmp_path, areas["2"]), tmp_path / "2" / "spatial" / "tissue_positions.csv"
    with pytest.raises(BadOption, match=r"library is None; wanted the suffix .*, one of 1, 2: filtered_feature_bc"):
        read_section(aggr, spots=spots, image=image)
    for library in ("2", "-2", "B"):
        (aggr / "aggregation.csv").write_text("library_id,molecule_h5\nA,a.h5\nB,b.h5\n")
        section = read_section(aggr, spots=spots, image=image, library=library)
        assert section.spots.barcodes == tuple(both[1][0])
        np.testing.assert_array_equal(section.counts.toarray(), both[1][1])
        np.testing.assert_array_equal(section.spots.centre_px, np.round(areas["2"].centre_px))
    with pytest.raises(UnknownName, match=r"library in filtered_feature_bc_matrix.h5 '3'; known: 1, 2, A, B"):
        read_section(aggr, spots=spots, image=image, library="3")


def test_the_positions_of_several_libraries_need_one(tmp_path):
    aggr, areas, both = aggregated(tmp_path)
    tables = [
        (tmp_path / n / "spatial" / "tissue_positions.csv").read_text().replace("-1,", f"-{n},").split("\n", 1)
        for n in "12"
    ]
    (aggr / "spatial" / "tissue_positions.csv").write_text(tables[0][0] + "\n" + tables[0][1] + tables[1][1])
    image = fullres(tmp_path, areas["2"])
    with pytest.raises(BadOption, match=r"one of 1, 2"):
        read_section(aggr, image=image)
    section = read_section(aggr, image=image, library="2")
    np.testing.assert_array_equal(section.counts.toarray(), both[1][1])


def test_barcodes_without_positions_are_an_error(tmp_path, visium):
    outs = write_visium(tmp_path / "outs", visium)
    spots = outs / "spatial" / "tissue_positions.csv"
    lines = spots.read_text().splitlines()
    spots.write_text("\n".join(lines[:-2]))
    section = read_section(outs, image=fullres(tmp_path, visium))
    assert "2 of 30 barcodes have no position: dropped." in section.notes
    spots.write_text("\n".join(lines[:-3]))
    with pytest.raises(
        SectionError, match=r"3 of 30 barcodes of filtered.*h5 have no position, the first .*one section"
    ):
        read_section(outs, image=fullres(tmp_path, visium))
    extra = [line.replace("-1,", "-X,").replace("-X,", "TT-1,", 1) for line in lines[1:4]]
    spots.write_text("\n".join(lines + extra))
    with pytest.raises(SectionError, match=r"3 of 33 spots under tissue of tissue_positions.csv have no counts"):
        read_section(outs, image=fullres(tmp_path, visium))


def test_several_matrices_are_refused_and_a_raw_one_is_noted(tmp_path, visium):
    outs = write_visium(tmp_path / "outs", visium)
    image, filtered = fullres(tmp_path, visium), outs / "filtered_feature_bc_matrix.h5"
    for path in list(outs.rglob("*")):
        if path.is_file():
            path.with_name("._" + path.name).write_bytes(b"\0\5\x16\7" * 9)
    (outs / "raw_feature_bc_matrix.h5").write_bytes(filtered.read_bytes())
    assert not any("raw" in note for note in read_section(outs, image=image).notes)
    (outs / "S1_filtered_feature_bc_matrix.h5").write_bytes(filtered.read_bytes())
    with pytest.raises(
        BadInput,
        match=r"2 files could be its matrix \(S1_filtered_feature_bc_matrix.h5, filtered_feature_bc_matrix.h5\)",
    ):
        read_section(outs, image=image)
    assert len(read_section(filtered, image=image).spots) == visium.spots
    filtered.unlink()
    (outs / "S1_filtered_feature_bc_matrix.h5").unlink()
    notes = read_section(outs, image=image).notes
    assert "There is no filtered matrix; the spots under tissue of raw_feature_bc_matrix.h5 are taken." in notes


def test_two_positions_files_must_agree(tmp_path, visium):
    outs = write_visium(tmp_path / "outs", visium)
    spots = outs / "spatial" / "tissue_positions.csv"
    content = spots.read_text().split("\n", 1)[1]
    older = spots.with_name("tissue_positions_list.csv")
    older.write_text(content)
    assert len(read_section(outs, image=fullres(tmp_path, visium)).spots) == visium.spots
    older.write_text(content.replace(",1,", ",0,", 1))
    with pytest.raises(BadInput, match=r"tissue_positions.csv and tissue_positions_list.csv list other positions"):
        read_section(outs, image=fullres(tmp_path, visium))


def test_missing_files_say_where_space_ranger_writes_them(tmp_path, visium):
    outs = write_visium(tmp_path / "run" / "outs", visium)
    (outs / "filtered_feature_bc_matrix.h5").unlink()
    said = r"filtered_feature_bc_matrix.h5 does not exist; Space Ranger writes it into outs/, .*"
    with pytest.raises(MissingInput, match=said + "version seen: 2.0 or later, by its files"):
        read_section(outs)
    (outs.parent / "_versions").write_text('{"pipelines": "3.1.2", "martian": "x"}')
    (outs / "spatial" / "tissue_positions.csv").unlink()
    with pytest.raises(MissingInput, match=said + "version seen: 3.1.2 in _versions"):
        read_section(outs, format="visium")


def test_a_10x_folder_with_two_of_a_file_is_refused(tmp_path, visium):
    outs = write_visium(tmp_path / "outs", visium, matrix="mtx.gz")
    folder = outs / "filtered_feature_bc_matrix"
    (folder / "barcodes.tsv").write_text("A-1\n")
    with pytest.raises(BadInput, match=r"it holds barcodes.tsv.gz, barcodes.tsv, of which one is wanted"):
        read_section(outs, image=fullres(tmp_path, visium))
    (folder / "barcodes.tsv").unlink()
    path = folder / "barcodes.tsv.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).decode().replace("\n", "\r").encode("utf-16")))
    assert read_section(outs, image=fullres(tmp_path, visium)).spots.barcodes == tuple(visium.barcodes)


def write_cytassist(outs, made):
    """What Space Ranger 2 and later adds for CytAssist: its image, the probes, and counts by probe."""
    spatial = outs / "spatial"
    write_image(spatial / "cytassist_image.tiff", made.image[::4, ::4])
    for name in ("aligned_tissue_image.jpg", "aligned_fiducials.jpg", "detected_tissue_image.jpg"):
        write_image(spatial / name, made.image[::8, ::8])
    (spatial / "spatial_enrichment.csv").write_text("Feature ID,Feature Name,Feature Type,I\n")
    probes = [f"ENSG{i:011d},ACGT,ENSG{i:011d}|{gene}|{i:07x},TRUE,spliced,{gene}" for i, gene in enumerate(made.genes)]
    head = "#probe_set_file_format=3.0\n#panel_name=Visium Human Transcriptome Probe Set\n"
    names = "gene_id,probe_seq,probe_id,included,region,gene_name"
    (outs / "probe_set.csv").write_text(head + "\n".join([names, *probes]) + "\n")
    copyfile(outs / "filtered_feature_bc_matrix.h5", outs / "raw_probe_bc_matrix.h5")
    return outs


def test_a_cytassist_folder_is_read_on_its_microscope_image(tmp_path, visium):
    outs = write_cytassist(write_visium(tmp_path / "S1" / "outs", visium), visium)
    image = write_image(tmp_path / "he.png", visium.image)
    assert sniff(outs) == "visium"
    section = read_section(outs, image=image)
    plain = read_section(write_visium(tmp_path / "S2" / "outs", visium), image=image)
    assert section.genes == plain.genes and np.array_equal(section.counts.toarray(), plain.counts.toarray())
    assert np.array_equal(section.spots.centre_px, plain.spots.centre_px)
    assert section.slide.mpp == plain.slide.mpp


def test_a_gene_with_excluded_probes_only_was_not_measured(tmp_path, visium):
    unseen, seen = visium.genes[0], visium.genes[1]
    visium = replace(visium, counts=visium.counts * (np.array(visium.genes) != unseen))
    visium.counts[0, 1] = 3
    outs = write_cytassist(write_visium(tmp_path / "outs", visium), visium)
    path = outs / "probe_set.csv"
    text = path.read_text()
    for gene in (unseen, seen):
        text = re.sub(rf"(\|{gene}\|\w+),TRUE", r"\1,FALSE", text)
    text += f"ENSG00000000002,ACGA,ENSG00000000002|{visium.genes[2]}|abcdef0,FALSE,spliced,{visium.genes[2]}\n"
    path.write_text(text)
    section = read_section(outs, image=write_image(tmp_path / "he.png", visium.image))
    assert unseen not in section.genes and seen in section.genes and visium.genes[2] in section.genes
    assert any("1 genes have excluded probes only" in note for note in section.notes)
    assert any("1 genes have counts of probes" in note for note in section.notes)
    path.write_text(text.replace("probe_id", "probe"))
    with pytest.raises(BadInput, match="no column probe_id"):
        read_section(outs, image=tmp_path / "he.png")
