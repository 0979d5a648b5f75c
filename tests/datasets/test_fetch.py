"""Fetching: licence first, every file checked, interrupted fetches go on, and the cohort is read as any other."""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest

from cmrcnet.cli import app
from cmrcnet.datasets.hest import fetch_hest, hest_task
from cmrcnet.datasets.hub import HuggingFaceHub, RemoteFile
from cmrcnet.errors import (
    BadInput,
    BadOption,
    DownloadFailed,
    MissingExtra,
    MissingInput,
    OutputExists,
)
from cmrcnet.readers.cohort import read_cohort
from tests.datasets.fake_hub import FolderHub
from tests.readers.written_formats import as_visium, from_shared, made_up, write_hest

CONTROLS = (
    "BLANK_0006", "NegControlProbe_00042", "NegControlCodeword_0500", "UnassignedCodeword_0018",
    "DeprecatedCodeword_0321", "antisense_PROKR2",
)  # fmt: skip


@pytest.fixture
def hub(tmp_path):
    """The files of SKCM, each section with its own counts and with Xenium's control features among the genes."""
    root = tmp_path / "hub"
    for seed, sample in enumerate(hest_task("SKCM").samples):
        made = as_visium(made_up(columns=4, rows=3, genes=8, mpp=1.6, seed=seed))
        counts = np.hstack([made.counts, np.full((made.spots, len(CONTROLS)), 3)])
        made = replace(made, genes=[*made.genes, *CONTROLS], counts=counts)
        write_hest(root, made, sample.id, off_tissue=2, technology="Xenium")
    return FolderHub(root)


def fetch(hub, out, task="SKCM", accept_licence=True, **options):
    with mock.patch("cmrcnet.datasets.hest.HuggingFaceHub", lambda repository: hub):
        return fetch_hest(task, out, accept_licence=accept_licence, **options)


def test_the_cohort_is_read_as_any_other_with_patients_and_without_controls(hub, tmp_path):
    path = fetch(hub, tmp_path / "skcm")
    cohort = read_cohort(path)
    assert (cohort.sections, cohort.patients) == (("TENX115", "TENX117"), ("SKCM-2", "SKCM-1"))
    section = cohort.read("TENX115")
    assert section.genes == tuple(f"GENE{i + 1}" for i in range(8))
    assert len(section.spots) == 10  # two listed spots have no patch
    note = " ".join(section.notes)
    assert "6 features are not genes (1 antisense, 1 blank, 2 negative control, 2 unassigned): dropped." in note
    assert section.metadata["disease"] == "cutaneous melanoma" and section.metadata["task"] == "SKCM"
    assert read_cohort(path, controls="keep").read("TENX115").genes[-1] == "antisense_PROKR2"


def test_slides_are_fetched_only_when_asked_for(hub, tmp_path):
    fetch(hub, tmp_path / "a")
    assert not any(path.startswith("wsis/") for path in hub.fetched)
    fetch(hub, tmp_path / "b", slides=True)
    assert (tmp_path / "b" / "wsis" / "TENX117.tif").is_file()


def test_without_the_licence_nothing_is_fetched(hub, tmp_path):
    with pytest.raises(DownloadFailed, match=r"CC BY-NC-SA 4.0 .*no commercial use.*--accept-licence"):
        fetch(hub, tmp_path / "skcm", accept_licence=False)
    assert hub.fetched == [] and not (tmp_path / "skcm").exists()


def test_an_interrupted_fetch_goes_on_at_the_same_commit(hub, tmp_path):
    hub.breaks_after = 4
    out = tmp_path / "skcm"
    with pytest.raises(DownloadFailed, match=r"the connection was lost; run the same command again"):
        fetch(hub, out)
    assert not (out / "cohort.csv").exists()
    first, hub.fetched, hub.breaks_after = hub.fetched, [], None
    hub.head = "f" * 40  # the repository has moved on meanwhile
    fetch(hub, out)
    assert set(first).isdisjoint(hub.fetched) and len(first) + len(hub.fetched) == 6
    assert json.loads((out / "fetch.json").read_text())["commit"].startswith("c0ffee")
    hub.fetched = []
    fetch(hub, out)
    assert hub.fetched == []


def test_a_file_that_changed_on_disk_is_fetched_again(hub, tmp_path):
    fetch(hub, tmp_path / "skcm")
    damaged = tmp_path / "skcm" / "st" / "TENX115.h5ad"
    content = bytearray(damaged.read_bytes())
    content[-5] ^= 1  # same size
    damaged.write_bytes(content)
    (tmp_path / "skcm" / "metadata" / "TENX117.json").write_text("{}")
    hub.fetched = []
    fetch(hub, tmp_path / "skcm")
    assert hub.fetched == ["st/TENX115.h5ad", "metadata/TENX117.json"]
    assert damaged.read_bytes() == (hub.root / "st" / "TENX115.h5ad").read_bytes()


@pytest.mark.parametrize("path", ["patches/TENX115.h5", "metadata/TENX117.json"])
def test_what_arrives_damaged_does_not_stay(hub, tmp_path, path):
    hub.damages = {path}
    with pytest.raises(DownloadFailed, match=r"does not have the size and checksum"):
        fetch(hub, tmp_path / "skcm")
    assert not (tmp_path / "skcm" / path).exists()
    hub.damages = set()
    fetch(hub, tmp_path / "skcm")


def test_a_file_that_does_not_arrive_is_an_error(hub, tmp_path):
    """As `snapshot_download` does where the hub is out of reach and the folder is not empty."""
    hub.withholds = {"st/TENX117.h5ad"}
    with pytest.raises(DownloadFailed, match=r"^st/TENX117.h5ad was not fetched: the hub was not reached"):
        fetch(hub, tmp_path / "skcm")


def test_checksums_are_those_of_the_files(hub, tmp_path):
    out = fetch(hub, tmp_path / "skcm").parent
    lines = dict(line.split("  ")[::-1] for line in (out / "checksums.sha256").read_text().splitlines())
    assert set(lines) == set(hest_task("SKCM").files())
    for path, wanted in lines.items():
        assert hashlib.sha256((out / path).read_bytes()).hexdigest() == wanted


def test_the_unknown_patient_of_coad_has_a_name_and_a_note_of_its_own(tmp_path):
    made = as_visium(made_up(columns=4, rows=3, mpp=1.6))
    for sample in hest_task("COAD").samples:
        write_hest(tmp_path / "hub", made, sample.id)
    path = fetch(FolderHub(tmp_path / "hub"), tmp_path / "coad", "coad")
    rows = {row["section"]: row for row in csv.DictReader(path.open())}
    assert {name: row["patient"] for name, row in rows.items()} == {
        "TENX111": "COAD-TENX111", "TENX147": "COAD-5", "TENX148": "COAD-2", "TENX149": "COAD-1"
    }  # fmt: skip
    assert "a patient of its own" in rows["TENX111"]["note"] and rows["TENX147"]["note"] == ""


def test_folders_that_are_not_ours_or_hold_another_task_are_left_alone(hub, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(OutputExists, match=r"it was not fetched by cmrcnet"):
        fetch(hub, tmp_path / "home")
    fetch(hub, tmp_path / "skcm")
    with pytest.raises(OutputExists, match=r"it holds SKCM of MahmoodLab/hest"):
        fetch(hub, tmp_path / "skcm", "COAD")
    with pytest.raises(BadOption, match=r"revision is 'v9'; wanted c0ffee.*, with which .* was begun"):
        fetch(hub, tmp_path / "skcm", revision="v9")
    (tmp_path / "skcm" / "fetch.json").write_text("{")
    with pytest.raises(BadInput, match=r"the record of a fetch"):
        fetch(hub, tmp_path / "skcm")


def test_a_sample_that_the_repository_lacks(hub, tmp_path):
    (hub.root / "st" / "TENX117.h5ad").unlink()
    with pytest.raises(MissingInput, match=r"st/TENX117.h5ad does not exist"):
        fetch(hub, tmp_path / "skcm")


@pytest.mark.shared
def test_hest_files_made_of_a_real_section(her2st_csv, tmp_path):
    made = as_visium(from_shared(her2st_csv, "C6"))
    for sample in hest_task("SKCM").samples:
        write_hest(tmp_path / "hub", made, sample.id)
    cohort = read_cohort(fetch(FolderHub(tmp_path / "hub"), tmp_path / "skcm"))
    section = cohort.read("TENX117")
    assert len(section.spots) == made.spots
    np.testing.assert_array_equal(section.counts.sum(axis=1).A1, made.counts.sum(axis=1))


# --- the command --------------------------------------------------------------------------------------------------


def test_the_verb_fetches_and_says_what_comes_next(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("cmrcnet.datasets.hest.HuggingFaceHub", lambda repository: hub)
    out = tmp_path / "skcm"
    words = ["fetch", "hest", "--task", "SKCM", "--out", str(out)]
    assert app.main(words) == app.USER_ERROR
    assert "CC BY-NC-SA 4.0" in capsys.readouterr().err
    assert app.main([*words, "--accept-licence"]) == 0
    assert f"cmrcnet evaluate {out / 'cohort.csv'} --config hest-skcm" in capsys.readouterr().out


# --- the hub itself, its library's calls held to their true signatures, nothing on the network ------------------------


@pytest.fixture
def library(monkeypatch):
    """huggingface_hub with its network functions replaced by mocks of the same signature."""
    import huggingface_hub

    for name in ("get_paths_info", "dataset_info"):
        spied = mock.create_autospec(getattr(huggingface_hub.HfApi, name))
        monkeypatch.setattr(huggingface_hub.HfApi, name, spied)
    spied = mock.create_autospec(huggingface_hub.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", spied)
    return huggingface_hub


def refusal(kind, status=403):
    error = kind.__new__(kind)
    error.args = ("403 Client Error.\nAccess is restricted.",)
    error.response = mock.Mock(status_code=status)
    return error


def test_what_the_hub_says_of_a_file(library):
    from huggingface_hub.hf_api import RepoFile

    large = RepoFile(path="st/A.h5ad", size=9, oid="b" * 40, lfs={"oid": "a" * 64, "size": 9, "pointerSize": 1})
    small = RepoFile(path="metadata/A.json", size=2, oid="c" * 40)
    library.HfApi.get_paths_info.return_value = [large, small]
    hub = HuggingFaceHub("MahmoodLab/hest")
    assert hub.describe("abc", ["metadata/A.json", "st/A.h5ad"]) == [
        RemoteFile("metadata/A.json", 2, "git", "c" * 40),
        RemoteFile("st/A.h5ad", 9, "sha256", "a" * 64),
    ]
    with pytest.raises(
        MissingInput, match=r"MahmoodLab/hest/st/B.h5ad does not exist; it is not in the repository at abc"
    ):
        hub.describe("abc", ["st/B.h5ad"])


def test_downloads_name_repository_commit_and_folder(library, tmp_path):
    library.HfApi.dataset_info.return_value = mock.Mock(sha="abc")
    hub = HuggingFaceHub("MahmoodLab/hest")
    assert hub.commit(None) == "abc"
    hub.download("abc", ["st/A.h5ad"], tmp_path)
    library.snapshot_download.assert_called_once_with(
        "MahmoodLab/hest", repo_type="dataset", revision="abc", local_dir=str(tmp_path), allow_patterns=["st/A.h5ad"]
    )


def test_a_gated_repository_says_how_to_get_in(library, tmp_path):
    hub = HuggingFaceHub("MahmoodLab/hest")
    for kind in ("GatedRepoError", "RepositoryNotFoundError", "HfHubHTTPError"):
        library.snapshot_download.side_effect = refusal(getattr(library.errors, kind))
        with pytest.raises(DownloadFailed, match=r"https://huggingface.co/datasets/MahmoodLab/hest .*HF_TOKEN"):
            hub.download("abc", ["st/A.h5ad"], tmp_path)


def test_a_hub_that_does_not_answer_is_a_sentence(library, tmp_path):
    hub = HuggingFaceHub("MahmoodLab/hest")
    for fault, why in (
        (refusal(library.errors.HfHubHTTPError, 503), "the hub answered with status 503"),
        (ConnectionError("no route to host"), "no route to host"),
        (library.errors.HTTPError("name or service not known"), "name or service not known"),
        (library.errors.OfflineModeIsEnabled("offline mode is on."), "offline mode is on;"),
        (refusal(library.errors.RevisionNotFoundError, 404), "no such revision"),
    ):
        library.snapshot_download.side_effect = fault
        with pytest.raises(DownloadFailed, match=why):
            hub.download("abc", ["st/A.h5ad"], tmp_path)


def test_a_full_disk_is_not_called_a_fault_of_the_hub(library, tmp_path):
    library.snapshot_download.side_effect = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space left") as caught:
        HuggingFaceHub("MahmoodLab/hest").download("abc", ["st/A.h5ad"], tmp_path)
    assert not isinstance(caught.value, DownloadFailed)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"pip install 'cmrcnet\[fetch\]'"):
        HuggingFaceHub("MahmoodLab/hest")


def test_git_names_a_file_as_git_does(tmp_path):
    (tmp_path / "a").write_bytes(b"hello\n")
    assert RemoteFile("a", 6, "git", "ce013625030ba8dba906f756967f9e9ca394464a").matches(tmp_path / "a")
    assert not RemoteFile("a", 6, "git", "0" * 40).matches(tmp_path / "a")
    assert not RemoteFile("a", 7, "sha256", hashlib.sha256(b"hello\n").hexdigest()).matches(tmp_path / "a")
