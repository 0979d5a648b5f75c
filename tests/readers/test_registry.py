"""Which reader fits, and a reader of one's own."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy import sparse

from cmrcnet.errors import BadInput, BadOption, MissingInput
from cmrcnet.readers import registry
from cmrcnet.readers.raw_section import RawSection
from cmrcnet.readers.registry import read_section, reader_formats, register_reader, sniff
from cmrcnet.slides.slide import ArraySlide
from tests.readers.written_formats import ann_data_of, as_visium, write_hest, write_legacy, write_visium


@pytest.fixture
def own_reader(monkeypatch):
    """Readers registered in a test are forgotten after it."""
    reader_formats()
    monkeypatch.setattr(registry, "_READERS", dict(registry._READERS))


def mine(source):
    return RawSection(
        name=source.name or "mine",
        patient=None,
        slide=ArraySlide(np.zeros((100, 100, 3), np.uint8), source.mpp or 1.0, "mine"),
        barcodes=["a"],
        centre_px=np.array([[5.0, 5.0]]),
        diameter_um=10.0,
        counts=sparse.csr_matrix(np.array([[3, 0]])),
        genes=["A", "B"],
        absent_genes="unmeasured",
        pitch_um=(10.0, 20.0),
    )


def test_the_formats_that_ship():
    assert reader_formats()[:4] == ("legacy_st", "visium", "hest", "ann_data")


def test_each_format_is_recognised_by_its_own_reader_alone(tmp_path, small):
    visium = as_visium(small)
    locations = {
        "legacy_st": write_legacy(tmp_path / "st_data", small),
        "visium": write_visium(tmp_path / "outs", visium),
        "hest": write_hest(tmp_path / "hest", visium),
    }
    locations["ann_data"] = tmp_path / "plain.h5ad"
    ann_data_of(small).write_h5ad(locations["ann_data"])
    for format, place in locations.items():
        fitting = [reader.name for reader in registry._readers().values() if reader.recognises(place)]
        assert fitting == [format]


def test_what_nobody_recognises(tmp_path):
    (tmp_path / "notes.txt").write_text("dear diary\n")
    for place in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(BadInput, match=r"no reader recognises it; give format= .* legacy_st, visium, hest"):
            sniff(place)
    with pytest.raises(MissingInput, match=r"does not exist"):
        read_section(tmp_path / "nowhere")
    with pytest.raises(BadInput, match=r"there is no format 'abacus'"):
        read_section(tmp_path, format="abacus")


def test_a_reader_of_ones_own(tmp_path, own_reader):
    register_reader("mine", recognises=lambda path: path.suffix == ".mine")(mine)
    place = tmp_path / "s.mine"
    place.touch()
    assert "mine" in reader_formats()
    section = read_section(place, name="s", patient="P")
    assert (section.name, section.patient, section.genes) == ("s", "P", ("A", "B"))


def test_two_readers_that_fit_are_no_choice(tmp_path, own_reader):
    register_reader("mine", recognises=lambda path: path.suffix == ".mine")(mine)
    register_reader("other", recognises=lambda path: path.suffix == ".mine")(mine)
    place = tmp_path / "s.mine"
    place.touch()
    with pytest.raises(BadInput, match=r"it could be mine or other; give format="):
        read_section(place)
    assert read_section(place, format="other").name == "mine"


def test_a_name_that_is_taken(own_reader):
    with pytest.raises(BadOption, match=r"reader is 'visium'; wanted a name that no reader has yet"):
        register_reader("visium", recognises=lambda path: False)(mine)


@pytest.mark.parametrize("option", ["mpp", "spot_diameter_um"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_sizes_that_are_none(tmp_path, small, option, value):
    with pytest.raises(BadOption, match=f"{option} is .*; wanted micrometres, above 0"):
        read_section(write_legacy(tmp_path, small), **{option: value})


def test_reading_a_table_wakes_neither_torch_nor_scanpy(tmp_path, small):
    counts = write_legacy(tmp_path, small)
    code = (
        "import sys, cmrcnet; cmrcnet.read_section(sys.argv[1], mpp=4.0);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'scanpy', 'anndata', 'pandas')))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(counts)], check=False).returncode == 0
