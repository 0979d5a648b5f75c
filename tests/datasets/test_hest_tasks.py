"""The six tasks: samples and patients as published, presets that go with them, tasks of one's own."""

from __future__ import annotations

import pytest
import yaml

from cmrcnet.config import Config
from cmrcnet.datasets.hest import hest_task, hest_tasks
from cmrcnet.errors import BadInput, BadOption, MissingInput, UnknownName
from cmrcnet.genes.markers import markers, organ_of

# HEST metadata v1.3.0; None: unknown.
PATIENTS = {
    "COAD": {"TENX111": None, "TENX147": "5", "TENX148": "2", "TENX149": "1"},
    "IDC": {"NCBI783": "5", "NCBI785": "4", "TENX95": "2", "TENX99": "1"},
    "LYMPH_IDC": {"NCBI681": "8", "NCBI682": "7", "NCBI683": "6", "NCBI684": "3"},
    "READ": {"ZEN36": "7", "ZEN40": "7", "ZEN48": "1", "ZEN49": "1"},
    "SKCM": {"TENX115": "2", "TENX117": "1"},
    "PSC": {"NCBI672": "liver", "NCBI673": "liver", "NCBI674": "liver", "NCBI675": "liver"},
}


@pytest.mark.parametrize("name", PATIENTS)
def test_samples_and_patients(name):
    task = hest_task(name)
    wanted = {sample: f"{name}-{patient or sample}" for sample, patient in PATIENTS[name].items()}
    assert {sample.id: sample.patient for sample in task.samples} == wanted
    assert (task.name, task.repository, task.licence) == (name, "MahmoodLab/hest", "CC BY-NC-SA 4.0")


def test_the_six_tasks_ship_and_no_sample_is_in_two():
    assert set(hest_tasks()) == set(PATIENTS)
    samples = [sample.id for name in hest_tasks() for sample in hest_task(name).samples]
    assert len(samples) == len(set(samples)) == 22


def test_a_section_of_unknown_patient_stands_alone_and_says_so():
    [unknown] = [sample for sample in hest_task("COAD").samples if sample.id == "TENX111"]
    assert unknown.patient == "COAD-TENX111" and "a patient of its own" in unknown.note


@pytest.mark.parametrize("name", PATIENTS)
def test_the_config_is_the_default_with_what_the_data_ask_for(name):
    task = hest_task(name)
    config, default = Config.load(task.config), Config.load("default")
    assert config.panel.controls == "drop"
    assert config.panel.kind == ("shared" if task.technology == "Xenium" else default.panel.kind)
    assert (config.model, config.train, config.head) == (default.model, default.train, default.head)
    patients = {sample.patient for sample in task.samples}
    assert config.evaluation.group_by == ("patient" if len(patients) > 1 else "section")


@pytest.mark.parametrize("name", PATIENTS)
def test_the_markers_of_a_task_can_be_told_from_its_disease(name):
    task = hest_task(name)
    assert organ_of(task.disease, task.organ) == markers(task.organ).organ


@pytest.mark.parametrize("name", ["LYMPH_IDC", "lymph-idc", "lymph_idc", "hest-lymph-idc", " Lymph-IDC "])
def test_names_are_forgiving(name):
    assert hest_task(name).name == "LYMPH_IDC"


def test_files_are_hests_own_layout():
    files = hest_task("SKCM").files(slides=True)
    assert files[:4] == ("metadata/TENX115.json", "st/TENX115.h5ad", "patches/TENX115.h5", "wsis/TENX115.tif")
    assert hest_task("SKCM").files() == tuple(file for file in files if not file.startswith("wsis"))


def own(tmp_path, **changes):
    task = {
        "format": 1, "name": "MINE", "repository": "someone/hest", "licence": "own", "technology": "Visium",
        "disease": "breast cancer", "organ": "breast", "samples": {"A1": 1, "A2": None},
    } | changes  # fmt: skip
    path = tmp_path / "mine.yaml"
    kept = {key: value for key, value in task.items() if value != "away"}
    path.write_text(yaml.safe_dump({"about": "mine", "extends": "tiny", "task": kept}))
    return path


def test_a_task_of_ones_own(tmp_path):
    task = hest_task(own(tmp_path))
    assert [(sample.id, sample.patient) for sample in task.samples] == [("A1", "MINE-1"), ("A2", "MINE-A2")]
    config = Config.load(task.config)
    assert config.train == Config.load("tiny").train and config.about == "mine"


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"samples": "away"}, BadInput, r"lacks the column\(s\) samples"),
        ({"samples": {}}, BadOption, r"sample ids, each with its patient"),
        ({"samples": {"../../etc": 1}}, BadOption, r"because they become file names"),
        ({"colour": "red"}, UnknownName, r"'task.colour'"),
        ({"format": 2}, BadOption, r"task.format is 2; wanted 1"),
        ({"notes": {"B9": "?"}}, BadOption, r"notes on samples of the task only"),
    ],
)
def test_bad_tasks(tmp_path, changes, error, sentence):
    with pytest.raises(error, match=sentence):
        hest_task(own(tmp_path, **changes))


def test_what_is_no_task(tmp_path):
    with pytest.raises(UnknownName, match=r"'LUAD'; known: COAD, IDC, LYMPH_IDC, PSC, READ, SKCM"):
        hest_task("LUAD")
    with pytest.raises(MissingInput):
        hest_task(tmp_path / "nowhere.yaml")
    (tmp_path / "plain.yaml").write_text("about: no task in here\n")
    with pytest.raises(BadOption, match=r"a section in .*plain.yaml that names the samples"):
        hest_task(tmp_path / "plain.yaml")


def test_extends_is_one_step_and_no_knob(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: hest-coad\n")
    with pytest.raises(BadOption, match=r"a preset that extends no other"):
        Config.load(path)
    path.write_text("extends: nonsense\n")
    with pytest.raises(UnknownName, match=r"There is no preset 'nonsense'"):
        Config.load(path)
    path.write_text("extends: default\nmodel: {temperatur: 1}\n")
    with pytest.raises(UnknownName, match=r"model.temperatur"):
        Config.load(path)
    path.write_text("extends: default\nhead: {k: 7}\n")
    mine, default = Config.load(path), Config.load("default")
    assert (mine.head.k, mine.head.weighting) == (7, default.head.weighting)
    with pytest.raises(UnknownName):
        Config.from_dict({"extends": "default"})
