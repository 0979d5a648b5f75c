"""A slide of several files is one slide, its fingerprint covers them all; what is no ordinary file is never opened."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cmrcnet.errors import BadInput, MissingInput
from cmrcnet.inference.slide_batch import slides_of
from cmrcnet.slides.slide import open_slide
from cmrcnet.slides.slide_files import files_of_slide, one_file_a_slide

from .slide_making import tissue_picture, write_dicom_series, write_tiled_pyramid

PIXELS = tissue_picture(384, 512)


def test_a_dicom_series_is_one_slide_by_any_of_its_files(tmp_path):
    first = write_dicom_series(tmp_path / "a", PIXELS)
    files = sorted(first.parent.iterdir())
    assert len(files) == 4
    slides = [open_slide(file) for file in files]
    for slide in slides:
        assert (slide.width_px, slide.height_px, slide.downsamples) == (512, 384, (1, 2, 4))
        assert slide.mpp == pytest.approx(0.5)
        assert np.abs(slide.read(0, 0, 512, 384).astype(int) - PIXELS).mean() < 3
    assert len({slide.fingerprint() for slide in slides}) == 1


def test_the_fingerprint_of_a_dicom_slide_covers_every_level_and_no_label(tmp_path):
    write_dicom_series(tmp_path / "a", PIXELS)
    label, before = tmp_path / "a" / "a-label.dcm", open_slide(tmp_path / "a" / "a-label.dcm").fingerprint()
    write_dicom_series(tmp_path / "b", PIXELS // 2)
    for level in range(3):
        shutil.copytree(tmp_path / "a", tmp_path / f"c{level}")
        shutil.copy(tmp_path / "b" / f"level-{level}.dcm", tmp_path / f"c{level}" / f"level-{level}.dcm")
        assert open_slide(tmp_path / f"c{level}" / "a-label.dcm").fingerprint() != before
    label.unlink()
    assert open_slide(tmp_path / "a" / "level-2.dcm").fingerprint() == before


def test_a_folder_of_dicom_files_counts_each_series_once(tmp_path):
    write_dicom_series(tmp_path / "one", PIXELS, seed="1")
    write_dicom_series(tmp_path / "two", PIXELS[::-1], seed="2")
    both = tmp_path / "both"
    for name in ("one", "two"):
        for file in (tmp_path / name).iterdir():
            both.mkdir(exist_ok=True)
            shutil.copy(file, both / f"{name}-{file.name}")
    (both / "broken.dcm").write_bytes(b"no DICOM")
    names = ["broken.dcm", "one-level-0.dcm", "two-level-0.dcm"]
    assert [path.name for path in slides_of(both)] == names
    assert [path.name for path in slides_of(both / "*.dcm")] == names
    assert [path.name for path in slides_of(tmp_path / "one")] == ["level-0.dcm"]


@pytest.mark.parametrize(("place", "value"), [(1, 0x7F000000), (5, 1), (11, 0xFFFFFFF0), (0, 4)])
def test_a_damaged_table_of_frames_is_refused_before_openslide_follows_it(tmp_path, place, value):
    """With such an offset OpenSlide 4.0.1 ends the process (SIGSEGV)."""
    first = write_dicom_series(tmp_path / "a", PIXELS)
    content = bytearray(first.read_bytes())
    table = content.index(b"\xe0\x7f\x10\x00O") + 20
    assert int.from_bytes(content[table - 4 : table], "little") == 4 * 12
    content[table + 4 * place : table + 4 * place + 4] = value.to_bytes(4, "little")
    first.write_bytes(content)
    for name in ("level-0.dcm", "level-2.dcm"):
        with pytest.raises(BadInput, match=r"level-0.dcm .* table of frames is damaged"):
            open_slide(first.with_name(name))


def test_a_label_alone_is_no_slide(tmp_path):
    first = write_dicom_series(tmp_path / "a", PIXELS)
    for level in range(3):
        first.with_name(f"level-{level}.dcm").unlink()
    with pytest.raises(BadInput, match="cannot be read as a slide"):
        open_slide(first.with_name("a-label.dcm"))
    with pytest.raises(MissingInput):
        slides_of(first.parent)


def test_the_files_that_a_vms_slide_names(tmp_path):
    for name in ("a.jpg", "a_1.jpg", "map.jpg", "macro.jpg", "a.opt"):
        (tmp_path / name).write_bytes(name.encode())
    text = "[Virtual Microscope Specimen]\nNoLayers=1\nImageFile=a.jpg\nImageFile(1,0)=a_1.jpg\nMapFile=map.jpg\n"
    (tmp_path / "a.vms").write_text(text + "MacroImage=macro.jpg\nOptimisationFile=a.opt\nImageFile(2,0)=gone.jpg\n")
    files = files_of_slide(tmp_path / "a.vms", "hamamatsu")
    assert [file.name for file in files] == ["a.vms", "a.jpg", "a_1.jpg", "map.jpg", "a.opt"]


def test_planes_of_an_ome_tiff_in_several_files(tmp_path):
    """Each channel in a file of its own: pixels come from all of them, and so does the fingerprint."""
    names = [f"c{channel}.ome.tif" for channel in range(3)]
    pixels = "".join(
        f'<TiffData FirstC="{c}" IFD="0" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{c}</UUID></TiffData>'
        for c, name in enumerate(names)
    )
    channels = "".join(f'<Channel ID="Channel:0:{c}" SamplesPerPixel="1"/>' for c in range(3))
    for c, name in enumerate(names):
        xml = (
            '<?xml version="1.0" encoding="UTF-8"?>'
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{c}"><Image ID="Image:0">'
            '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="512" SizeY="384" SizeC="3" SizeZ="1" '
            f'SizeT="1" PhysicalSizeX="0.5" PhysicalSizeY="0.5">{channels}{pixels}</Pixels></Image></OME>'
        )
        tifffile.imwrite(
            tmp_path / name,
            PIXELS[..., c],
            description=xml.encode(),
            metadata=None,
            photometric="minisblack",
            compression="lzw" if c else None,
        )
    slides = [open_slide(tmp_path / name) for name in names]
    for slide in slides:
        np.testing.assert_array_equal(slide.read(0, 0, 512, 384), PIXELS)
    before = slides[0].fingerprint()
    assert {slide.fingerprint() for slide in slides} == {before}
    whole = (tmp_path / "c2.ome.tif").read_bytes()
    (tmp_path / "c2.ome.tif").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert open_slide(tmp_path / "c0.ome.tif").fingerprint() != before


# --- what is no ordinary file -------------------------------------------------------------------------------------


def test_a_dangling_link_is_named(tmp_path):
    (tmp_path / "a.tif").symlink_to("/nowhere/b.tif")
    with pytest.raises(MissingInput, match=r"a\.tif is a link to /nowhere/b\.tif, which does not exist"):
        open_slide(tmp_path / "a.tif")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.timeout(20)
def test_pipes_and_devices_are_refused_without_opening_them(tmp_path):
    os.mkfifo(tmp_path / "a.tif")
    for path in (tmp_path / "a.tif", Path("/dev/zero")):
        with pytest.raises(BadInput, match="it is a pipe, socket or device"):
            open_slide(path)


@pytest.mark.parametrize("name", ["x" * 300 + ".tif", "a\0b.tif"])
def test_names_that_the_system_refuses(tmp_path, name):
    with pytest.raises(BadInput, match="cannot be read as a slide"):
        open_slide(tmp_path / name)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_what_the_system_refuses_is_one_sentence(tmp_path, monkeypatch, number):
    path = write_tiled_pyramid(tmp_path / "a.tif", PIXELS)

    def refuse(self, *_, **__):
        raise OSError(number, os.strerror(number))

    slide = open_slide(path)
    path.touch()
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BadInput, match=f"the system refuses it .{os.strerror(number)}"):
        open_slide(path)
    with pytest.raises(BadInput, match=f"the system refuses it .{os.strerror(number)}"):
        slide.fingerprint()


def test_a_folder_lists_what_cannot_be_opened_and_no_hidden_file(tmp_path):
    write_tiled_pyramid(tmp_path / "a.tif", PIXELS)
    for name in ("._a.tif", ".b.tif", "notes.txt"):
        (tmp_path / name).write_bytes(b"\0\5\26\7")
    (tmp_path / "gone.svs").symlink_to(tmp_path / "nowhere.svs")
    (tmp_path / "folder.tif").mkdir()
    assert [path.name for path in slides_of(tmp_path)] == ["a.tif", "gone.svs"]
    assert [path.name for path in slides_of(tmp_path / "*.tif")] == ["a.tif"]


def test_files_of_other_formats_are_slides_each(tmp_path):
    paths = [tmp_path / "a.tif", tmp_path / "b.dcm"]
    paths[1].write_bytes(b"x" * 128 + b"DICM" + b"\xff" * 60)
    assert one_file_a_slide(paths) == paths
