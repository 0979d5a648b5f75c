"""HEST folders against h5py and anndata: whole (with slides) and as HEST-Bench (patches alone)."""

from __future__ import annotations

import json
import pickle

import anndata
import h5py
import numpy as np
import pytest

from cmrcnet.errors import BadInput, BadOption, MissingInput, ScaleError, SectionError
from cmrcnet.readers.hest import PatchSlide
from cmrcnet.readers.registry import read_section, sniff
from tests.readers.written_formats import as_visium, cut, made_up, write_hest


@pytest.fixture
def tissue():
    """A section whose patches overlap, as Visium's do (112 um wide, 100 um apart), 0.8 um per px."""
    return as_visium(made_up(columns=4, rows=3, pitch_um=200, mpp=1.6))


def patches_of(root, name="TENX1"):
    with h5py.File(root / "patches" / f"{name}.h5") as file:
        barcodes = [b.decode() for b in file["barcode"][:, 0]]
        return dict(zip(barcodes, zip(file["coords"][:], file["img"][:], strict=True), strict=True))


@pytest.mark.parametrize("tables", ["st", "adata"])
def test_a_whole_folder(tmp_path, tissue, tables):
    root = write_hest(tmp_path, tissue, tables=tables, off_tissue=3)
    assert sniff(root) == sniff(root / tables / "TENX1.h5ad") == "hest"
    section = read_section(root)
    theirs = anndata.read_h5ad(root / tables / "TENX1.h5ad")
    tissue_barcodes = [barcode for barcode in theirs.obs_names if barcode in patches_of(root)]
    assert section.spots.barcodes == tuple(tissue_barcodes) and len(tissue_barcodes) == tissue.spots - 3
    theirs = theirs[tissue_barcodes]
    np.testing.assert_array_equal(section.counts.toarray(), theirs.X.toarray())
    np.testing.assert_array_equal(section.spots.centre_px, theirs.obsm["spatial"])
    assert (section.name, section.patient) == ("TENX1", "Patient 7")
    assert section.slide.mpp == pytest.approx(tissue.mpp)
    assert (section.slide.width_px, section.slide.height_px) == tissue.image.shape[1::-1]
    assert any("3 of 12 listed spots have no patch" in note for note in section.notes)
    assert section.spots.diameter_um == 55


def test_the_centre_of_a_spot_is_the_middle_of_its_patch(tmp_path, tissue):
    root = write_hest(tmp_path, tissue)
    section = read_section(root)
    patches = patches_of(root)
    side = 112 / tissue.mpp
    for barcode, centre in zip(section.spots.barcodes, section.spots.centre_px, strict=True):
        np.testing.assert_allclose(patches[barcode][0] + side / 2, centre, atol=0.51)


def test_patches_alone_serve_as_the_slide_pixel_for_pixel(tmp_path, tissue):
    root = write_hest(tmp_path, tissue, tables="adata", slide=False, off_tissue=2)
    section = read_section(root)
    assert isinstance(section.slide, PatchSlide)
    assert section.slide.mpp == 0.5
    patches = patches_of(root)
    for barcode, (x, y) in zip(section.spots.barcodes, section.spots.centre_px, strict=True):
        region = section.slide.read(int(x) - 112, int(y) - 112, 224, 224)
        np.testing.assert_array_equal(region, patches[barcode][1])
    assert any("the patches serve as one" in note for note in section.notes)
    whole = read_section(write_hest(tmp_path / "whole", tissue, off_tissue=2))
    in_um = whole.spots.centre_px * whole.slide.mpp
    np.testing.assert_allclose(section.spots.centre_px * 0.5, in_um, atol=0.5)


def test_cropped_patches_of_a_patch_slide_are_the_stored_ones(tmp_path, tissue):
    from cmrcnet.slides.patches import crop_patches
    from cmrcnet.slides.slide import PatchScale

    root = write_hest(tmp_path, tissue, slide=False)
    section = read_section(root)
    cropped = np.concatenate(list(crop_patches(section.slide, section.spots.centre_px, PatchScale())))
    patches = patches_of(root)
    for barcode, pixels in zip(section.spots.barcodes, cropped, strict=True):
        np.testing.assert_array_equal(pixels, patches[barcode][1])


def test_without_metadata_the_scale_follows_from_the_patches(tmp_path, tissue):
    root = write_hest(tmp_path, tissue, metadata=False, slide=False)
    section = read_section(root)
    (note,) = [note for note in section.notes if "follows from spot centres and patch corners" in note]
    assert float(note.rsplit(" ", 1)[1].rstrip(".")) == pytest.approx(tissue.mpp, rel=0.01)
    assert section.patient == "TENX1"
    assert any("No patient is given" in note for note in section.notes)
    assert read_section(root, patient="P9").patient == "P9"


def test_without_patches_every_listed_spot_counts(tmp_path, tissue):
    root = write_hest(tmp_path, tissue, patches=False)
    section = read_section(root)
    assert len(section.spots) == tissue.spots
    assert any("every listed spot counts as tissue" in note for note in section.notes)


def test_scale_four_times_off(tmp_path, tissue):
    root = write_hest(tmp_path, tissue)
    path = root / "metadata" / "TENX1.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pixel_size_um_estimated": tissue.mpp * 4}))
    with pytest.raises(ScaleError, match=r"patches of 112 um lie on it as for 0.8"):
        read_section(root)
    unpatched = write_hest(tmp_path / "b", tissue, patches=False)
    with pytest.raises(ScaleError, match=r"would lie 400 um apart"):
        read_section(unpatched, mpp=tissue.mpp * 4)


def test_unknown_scale(tmp_path, tissue):
    root = write_hest(tmp_path, tissue, metadata=False, patches=False)
    with pytest.raises(ScaleError, match=r"TENX1 does not say how many micrometres"):
        read_section(root)


def test_one_of_several_sections_is_chosen_by_name(tmp_path, tissue):
    root = write_hest(tmp_path, tissue, "A")
    write_hest(root, tissue, "B")
    assert read_section(root, name="B").name == "B"
    assert read_section(root / "st" / "A.h5ad").name == "A"
    with pytest.raises(BadOption, match=r"wanted one of the sections in .*: A, B"):
        read_section(root)


def test_legacy_sections_in_hest(tmp_path, tissue):
    root = write_hest(tmp_path, tissue, technology="Spatial Transcriptomics", patches=False)
    section = read_section(root, mpp=tissue.mpp * 2)  # 200 um apart then, as that assay has it
    assert section.absent_genes == "zero" and section.spots.diameter_um == 100


@pytest.mark.parametrize("part", ["st/TENX1.h5ad", "patches/TENX1.h5", "wsis/TENX1.tif", "metadata/TENX1.json"])
def test_truncated_files(tmp_path, tissue, part):
    root = write_hest(tmp_path, tissue)
    cut(root / part)
    with pytest.raises(BadInput, match=r"cannot be read as"):
        section = read_section(root)
        section.slide.read(0, section.slide.height_px - 1, section.slide.width_px, 1)


def test_neither_slide_nor_patches(tmp_path, tissue):
    root = write_hest(tmp_path, tissue)
    (root / "patches" / "TENX1.h5").unlink()
    (root / "wsis" / "TENX1.tif").unlink()
    with pytest.raises(MissingInput, match=r"patch file .* nor is there a slide in wsis"):
        read_section(root)


def test_a_patch_slide_is_a_slide(tmp_path, tissue):
    from cmrcnet.slides.slide import Slide

    root = write_hest(tmp_path, tissue, slide=False)
    slide = read_section(root).slide
    assert isinstance(slide, Slide)
    assert slide.downsamples == (1.0, 4.0, 16.0)
    whole = slide.read(0, 0, slide.width_px, slide.height_px)
    assert whole.shape == (slide.height_px, slide.width_px, 3)
    small = slide.read(0, 0, slide.width_px // 16, slide.height_px // 16, level=2)
    assert small.shape == (slide.height_px // 16, slide.width_px // 16, 3)
    assert abs(float(small.mean()) - float(whole.mean())) < 6
    assert (slide.read(-500, -500, 100, 100) == 255).all()
    copy = pickle.loads(pickle.dumps(slide))
    assert copy.fingerprint() == slide.fingerprint()
    np.testing.assert_array_equal(copy.read(5, 6, 70, 80), slide.read(5, 6, 70, 80))
    slide.close()
    np.testing.assert_array_equal(slide.read(5, 6, 70, 80), whole[6:86, 5:75])


def test_the_fingerprint_tells_other_patches_and_other_places(tmp_path, tissue):
    slide = read_section(write_hest(tmp_path / "a", tissue, slide=False)).slide
    root = write_hest(tmp_path / "b", tissue, slide=False)
    with h5py.File(root / "patches" / "TENX1.h5", "a") as file:
        file["img"][0, 0, 0, 0] ^= 1
    assert read_section(root).slide.fingerprint() != slide.fingerprint()
    root = write_hest(tmp_path / "c", tissue, slide=False)
    with h5py.File(root / "patches" / "TENX1.h5", "a") as file:
        file["coords"][0] += 3
    assert read_section(root).slide.fingerprint() != slide.fingerprint()


def test_patches_without_counts_are_left_out(tmp_path, tissue):
    root = write_hest(tmp_path, tissue, metadata=False, slide=False)
    whole = anndata.read_h5ad(root / "st" / "TENX1.h5ad")
    whole[:10].copy().write_h5ad(root / "st" / "TENX1.h5ad")
    section = read_section(root)
    assert section.spots.barcodes == tuple(tissue.barcodes[:10])
    np.testing.assert_array_equal(section.counts.toarray(), tissue.counts[:10])
    assert "2 patches have no counts: left out." in section.notes
    patches = patches_of(root)
    for barcode, (x, y) in zip(section.spots.barcodes, section.spots.centre_px, strict=True):
        np.testing.assert_array_equal(section.slide.read(int(x) - 112, int(y) - 112, 224, 224), patches[barcode][1])
    assert any("patch corners: 0.8" in note for note in section.notes)
    whole[:4].copy().write_h5ad(root / "st" / "TENX1.h5ad")
    with pytest.raises(SectionError, match=r"8 of 12 patches of TENX1.h5 have no counts"):
        read_section(root)
