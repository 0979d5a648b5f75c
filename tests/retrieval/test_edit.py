"""An edited bank: equal to one built afresh, nothing of the dropped left in any byte, and no reader disturbed."""

from __future__ import annotations

import errno
import gzip
import json
import multiprocessing
import os
import struct
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pytest

from cmrcnet.errors import (
    BadOption,
    CmrcnetWarning,
    Damaged,
    Incompatible,
    InUse,
    MissingInput,
    NoSpace,
    TooFew,
    UnknownName,
    Unwritable,
)
from cmrcnet.heads.gene_decoder import SectionStatistics
from cmrcnet.inference.predict import predict, predict_to_file
from cmrcnet.inference.predictor import PredictOptions, make_predictor
from cmrcnet.retrieval import bank as bank_module
from cmrcnet.retrieval import edit as bank_edit
from cmrcnet.retrieval.bank import ReferenceBank, build_bank
from cmrcnet.retrieval.edit import add_sections, drop_sections, merge_banks, rebuild_index
from cmrcnet.retrieval.store import Manifest
from cmrcnet.search.build import SearchConfig
from cmrcnet.slides.section import Cohort
from cmrcnet.storage.ownership import MARKER, temporary_path
from tests.inference.small_model import GENES, noise_slide, small_model, small_section

KINDS = (None, SearchConfig(kind="ivf"), SearchConfig(kind="ivf-compressed"))


def cohort(*names: str) -> Cohort:
    """Sections named for their patient; those of patient C know genes that no other lists."""
    pick = {"A": (30, GENES), "B": (25, GENES[:9]), "C": (20, (*GENES, "ONLY_C"))}
    return Cohort.of([small_section(name, f"patient-{name[0]}", *pick[name[0]]) for name in names])


def with_scores(bank: ReferenceBank) -> ReferenceBank:
    """The bank as a model on components would have made it."""
    parts = []
    for number, part in enumerate(bank.entries):
        scores = np.random.default_rng(number).normal(size=(len(part), 3)).astype(np.float32)
        parts.append(replace(part, scores=scores, statistics=SectionStatistics.of(part.expression, scores)))
    return replace(bank, entries=tuple(parts))


def files_of(folder: Path) -> dict[str, bytes]:
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: content for name, content in found.items() if name != bank_edit.LOCK}


def assert_same_bank(here: ReferenceBank, there: ReferenceBank) -> None:
    assert (here.fingerprint, here.genes, here.sections) == (there.fingerprint, there.genes, there.sections)
    np.testing.assert_array_equal(here.vectors, there.vectors)
    np.testing.assert_array_equal(here.expression.toarray(), there.expression.toarray())
    np.testing.assert_array_equal(here.measured, there.measured)
    assert here.spots.equals(there.spots)
    if there.gene_decoder is not None:
        for name in ("level", "deviation", "loadings"):
            np.testing.assert_array_equal(getattr(here.gene_decoder, name), getattr(there.gene_decoder, name))


def test_added_and_dropped_it_is_the_bank_that_would_have_been_built(model, tmp_path):
    build_bank(model, cohort("A1", "C1", "B1")).save(tmp_path / "bank")
    assert drop_sections(tmp_path / "bank", ["patient-C"]) == ("C1",)
    assert add_sections(tmp_path / "bank", model, cohort("A2", "B2")) == ("A2", "B2")
    build_bank(model, cohort("A1", "B1", "A2", "B2")).save(tmp_path / "fresh")
    assert_same_bank(ReferenceBank.load(tmp_path / "bank"), ReferenceBank.load(tmp_path / "fresh"))
    assert files_of(tmp_path / "bank") == files_of(tmp_path / "fresh")


def test_where_a_section_was_read_from_is_forgotten_where_it_names_the_dropped(model, tmp_path):
    bank = build_bank(model, cohort("A1", "B1", "C1"))
    sources = ("/data/lot-1/cohort.csv", "/data/of-patient-C/cohort.csv", "/data/lot-1/cohort.csv")
    parts = tuple(replace(part, source=source) for part, source in zip(bank.entries, sources, strict=True))
    replace(bank, entries=parts).save(tmp_path / "bank")
    assert tuple(part.source for part in ReferenceBank.load(tmp_path / "bank").entries) == sources
    drop_sections(tmp_path / "bank", ["patient-C"])
    assert tuple(part.source for part in ReferenceBank.load(tmp_path / "bank").entries) == (sources[0], "")
    assert not any(b"patient-C" in content for content in files_of(tmp_path / "bank").values())


def test_levels_are_those_of_a_fresh_build(model, tmp_path):
    whole, rest = (with_scores(build_bank(model, cohort(*names))) for names in (("A1", "B1", "C1"), ("A1", "B1")))
    whole.save(tmp_path / "bank")
    assert ReferenceBank.load(tmp_path / "bank").gene_decoder.level.shape == (13,)
    drop_sections(tmp_path / "bank", ["C1"])
    assert_same_bank(ReferenceBank.load(tmp_path / "bank"), rest)


def pieces_of(bank: ReferenceBank, section: str) -> dict[str, bytes]:
    """What must not be found: names as they are written, and every number of the section by itself."""
    [part] = [part for part in bank.entries if part.section == section]
    found = {name: name.encode() for name in (part.section, part.patient, "ONLY_C", part.fingerprint, bank.fingerprint)}
    found |= {f"barcode {barcode}": f"{barcode},".encode() for barcode in part.spots["barcode"] if len(barcode) > 5}
    found |= {f"x {x}": repr(float(x)).encode() for x in part.spots["x"]}
    theirs = {row.tobytes() for p in bank.entries if p.section != section for row in np.asarray(p.vectors)}
    rows = [row for row in np.asarray(part.vectors) if row.tobytes() not in theirs]  # empty spots are alike everywhere
    assert len(rows) >= len(part) - 1
    found |= {f"row {i}": row.tobytes() for i, row in enumerate(rows)}
    found |= {f"half row {i}": row[: len(row) // 2].tobytes() for i, row in enumerate(rows)}
    values = {struct.pack("<f", v) for v in part.expression.data}
    others = {struct.pack("<f", v) for p in bank.entries if p.section != section for v in p.expression.data}
    found |= {f"value {v.hex()}": v for v in values - others}
    columns = np.split(part.expression.data, part.expression.indptr[1:-1])
    found |= {f"gene {i}": column.tobytes() for i, column in enumerate(columns) if len(column) > 2}
    return found


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind if kind else "exact")
@pytest.mark.parametrize("how", ["section", "patient"])
def test_nothing_of_the_dropped_is_left_in_any_byte(model, tmp_path, kind, how):
    folder = tmp_path / "bank"
    marked = small_section("withdrawn-section", "withdrawn-patient", 20, (*GENES, "ONLY_C"), seed=5)
    marked.spots.__dict__["barcodes"] = tuple(f"secret-{number}" for number in range(20))
    sections = [*cohort("A1", "B1", "A2"), marked]
    bank = build_bank(model, Cohort.of(sections))
    bank.save(folder, search=kind)
    pieces = pieces_of(bank, "withdrawn-section")

    def left() -> list[str]:
        found = []
        for name, content in files_of(folder).items():
            content = gzip.decompress(content) if name.endswith(".gz") else content
            found += [what for what, piece in pieces.items() if piece in content or piece.decode("latin1") in name]
        return found

    assert len(left()) > 60  # the test can find what is there
    drop_sections(folder, [f"withdrawn-{how}"])
    assert left() == []
    assert ReferenceBank.load(folder).searcher().nearest(np.eye(2, 16, dtype=np.float32), 50).ids.max() < 85
    assert {path.name for path in folder.iterdir()} <= {"bank.json", "sections", "index", ".lock", MARKER}


@pytest.mark.parametrize("kind", KINDS[1:], ids=lambda kind: kind.kind)
@pytest.mark.parametrize("rebuild_after", [0.0, 100.0])
def test_the_index_follows_the_bank(model, tmp_path, monkeypatch, kind, rebuild_after):
    """Edited lists and rebuilt ones: a search for all neighbours finds what exact search finds."""
    monkeypatch.setattr(bank_edit, "REBUILD_AFTER", rebuild_after)
    build_bank(model, cohort("A1", "B1", "C1")).save(tmp_path / "bank", search=kind)
    drop_sections(tmp_path / "bank", ["B1"])
    add_sections(tmp_path / "bank", model, cohort("A2", "B2"))
    bank, fresh = ReferenceBank.load(tmp_path / "bank"), build_bank(model, cohort("A1", "C1", "A2", "B2"))
    queries = np.random.default_rng(0).normal(size=(7, 16)).astype(np.float32)
    found, true = (each.searcher().nearest(queries, len(fresh)) for each in (bank, fresh))
    np.testing.assert_array_equal(np.sort(found.ids), np.sort(true.ids))
    np.testing.assert_allclose(found.similarity, true.similarity, atol=1e-5)
    facts = Manifest.read(tmp_path / "bank").index
    assert facts["kind"] == kind.kind and min(facts["recall"].values()) >= 0.95
    assert facts["changed"] == (0 if rebuild_after == 0 else 25 + 30 + 25)


def test_one_drop_touches_no_other_section(model, tmp_path):
    build_bank(model, cohort("A1", "B1", "C1")).save(tmp_path / "bank")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "bank" / "sections").rglob("*")}
    drop_sections(tmp_path / "bank", ["B1"])
    for path in (tmp_path / "bank" / "sections").rglob("*"):
        assert path.stat().st_mtime_ns == before[path]


def test_a_reader_keeps_what_it_opened(model, tmp_path):
    build_bank(model, cohort("A1", "B1", "C1")).save(tmp_path / "bank")
    reader = ReferenceBank.load(tmp_path / "bank")
    drop_sections(tmp_path / "bank", ["A1", "B1"])
    assert_same_bank(reader, build_bank(model, cohort("A1", "B1", "C1")))
    assert ReferenceBank.load(tmp_path / "bank").sections == ("C1",)


@pytest.mark.parametrize("kind", KINDS)
def test_a_predictor_uses_the_bank_as_it_was(model, tmp_path, kind):
    """The search too: encoding a slide takes hours, and the search is not asked before."""
    build_bank(model, cohort("A1", "B1", "C1")).save(tmp_path / "bank", search=kind)
    slide = noise_slide(3, side=400)
    before = predict(model, slide, bank=ReferenceBank.load(tmp_path / "bank"), grid_um=66.0)
    predictor = make_predictor(model, ReferenceBank.load(tmp_path / "bank"), PredictOptions(grid_um=66.0))
    drop_sections(tmp_path / "bank", ["A1"])
    predict_to_file(predictor, slide, tmp_path / "p.h5ad")
    np.testing.assert_array_equal(anndata.read_h5ad(tmp_path / "p.h5ad").X, before.X)


def test_a_bank_that_is_edited_while_it_is_opened_is_opened_again(model, tmp_path, monkeypatch):
    build_bank(model, cohort("A1", "B1", "C1")).save(tmp_path / "bank")
    open_part, edits = bank_module.BankSection.open, []

    def edited_meanwhile(*given):
        if not edits:
            edits.append(drop_sections(tmp_path / "bank", ["A1"]))
        return open_part(*given)

    monkeypatch.setattr(bank_module.BankSection, "open", edited_meanwhile)
    assert ReferenceBank.load(tmp_path / "bank").sections == ("B1", "C1")
    assert edits == [("A1",)]


def test_a_search_that_was_edited_away_is_one_clear_error(model, tmp_path):
    build_bank(model, cohort("A1", "B1", "C1")).save(tmp_path / "bank", search=KINDS[1])
    reader, early = ReferenceBank.load(tmp_path / "bank"), ReferenceBank.load(tmp_path / "bank")
    early.searcher()
    drop_sections(tmp_path / "bank", ["A1"])
    with pytest.raises(InUse, match=r"The bank .* was edited after it was opened; .* run again"):
        reader.searcher()
    assert early.searcher().nearest(np.eye(1, 16, dtype=np.float32), 75).ids.shape == (1, 75)


@pytest.mark.parametrize("kind", KINDS[1:], ids=lambda kind: kind.kind)
@pytest.mark.parametrize("damage", ["missing", "changed", "another bank's"])
def test_an_index_that_does_not_match_is_refused_and_can_be_rebuilt(model, tmp_path, kind, damage):
    build_bank(model, cohort("A1", "B1", "C1")).save(tmp_path / "bank", search=kind)
    build_bank(model, cohort("A1", "B1", "C2")).save(tmp_path / "other", search=kind)
    here, there = (next((tmp_path / name / "index").iterdir()) for name in ("bank", "other"))
    for path in here.glob("*.npy"):
        if damage == "another bank's":
            path.write_bytes((there / path.name).read_bytes())
        elif damage == "missing":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-30] + bytes(30))
    with pytest.raises(
        Incompatible, match=r"The search index in .*bank does not match .*: cmrcnet bank rebuild-index .*bank$"
    ):
        ReferenceBank.load(tmp_path / "bank").searcher()
    rebuild_index(tmp_path / "bank", kind)
    assert len(ReferenceBank.load(tmp_path / "bank").searcher().nearest(np.eye(1, 16, dtype=np.float32), 5).ids) == 1
    drop_sections(tmp_path / "bank", ["A1"])
    ReferenceBank.load(tmp_path / "bank").searcher()


def test_an_index_without_the_library_names_the_extra(model, tmp_path, monkeypatch):
    build_bank(model, cohort("A1", "B1")).save(tmp_path / "bank", search=KINDS[1])
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(ImportError, match=r"faiss, which is not installed; run: pip install 'cmrcnet\[ann\]'"):
        ReferenceBank.load(tmp_path / "bank").searcher()


def test_a_drop_removes_nothing_that_is_not_ours(model, tmp_path):
    folder = tmp_path / "bank"
    build_bank(model, cohort("A1", "B1", "C1")).save(folder)
    [gone] = [record["name"] for record in Manifest.read(folder).sections if record["section"] == "B1"]
    for path in (folder / "sections" / "notes.txt", folder / "sections" / gone / "thesis.docx", folder / "mine.txt"):
        path.write_text("theirs")
    drop_sections(folder, ["B1"])
    assert [path.name for path in (folder / "sections" / gone).iterdir()] == ["thesis.docx"]
    assert (folder / "sections" / "notes.txt").exists() and (folder / "mine.txt").exists()
    assert ReferenceBank.load(folder).sections == ("A1", "C1")


@pytest.mark.parametrize("name", ["index", "sections", ".lock", "bank.json"])
def test_a_bank_with_a_link_in_it_is_not_edited(model, tmp_path, name):
    folder, theirs = tmp_path / "bank", tmp_path / "theirs"
    build_bank(model, cohort("A1", "B1", "C1")).save(folder, search=KINDS[1])
    if name == ".lock":
        theirs.write_text("theirs")
    else:
        (folder / name).rename(theirs)
    (folder / name).symlink_to(theirs)
    before = files_of(theirs) if theirs.is_dir() else theirs.read_bytes()
    with pytest.raises(Unwritable, match=rf"bank/{name} is a link, and what it points to is not cmrcnet's to change"):
        drop_sections(folder, ["B1"])
    assert (files_of(theirs) if theirs.is_dir() else theirs.read_bytes()) == before


def test_a_damaged_section_can_be_dropped(model, tmp_path):
    bank = build_bank(model, cohort("A1", "B1", "C1"))
    bank.save(tmp_path / "bank", search=KINDS[1])
    (tmp_path / "bank" / "sections" / bank.entries[1].fingerprint / "vectors.npy").unlink()
    with pytest.raises(Damaged, match=r"vectors.npy of section B1 is missing; .*bank drop .*bank 'B1'"):
        ReferenceBank.load(tmp_path / "bank")
    drop_sections(tmp_path / "bank", ["B1"])
    assert ReferenceBank.load(tmp_path / "bank").sections == ("A1", "C1")
    ReferenceBank.load(tmp_path / "bank").searcher()


def _hold(folder: Path, ready, done) -> None:
    with bank_edit._editing(folder):
        ready.set()
        done.wait(30)


def test_two_edits_at_once_are_refused(model, tmp_path):
    build_bank(model, cohort("A1", "B1")).save(tmp_path / "bank")
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "bank", ready, done))
    other.start()
    assert ready.wait(30)
    with pytest.raises(InUse, match=r"The bank .* is being edited by another process; wait"):
        drop_sections(tmp_path / "bank", ["A1"])
    done.set()
    other.join(30)
    drop_sections(tmp_path / "bank", ["A1"])


@pytest.mark.parametrize("where", ["store.file_checksum", "store.write_array", "bank_index.write_array"])
def test_a_full_disk_changes_nothing(model, tmp_path, monkeypatch, where):
    build_bank(model, cohort("A1", "B1")).save(tmp_path / "bank", search=KINDS[1])
    before = files_of(tmp_path / "bank")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"cmrcnet.retrieval.{where}", full)
    with pytest.raises(NoSpace, match=r"The disk is full: .* was not written and nothing half-written is left"):
        add_sections(tmp_path / "bank", model, cohort("C1"))
    assert files_of(tmp_path / "bank") == before


def test_what_a_killed_edit_left_goes_with_the_next(model, tmp_path, monkeypatch):
    folder = tmp_path / "bank"
    build_bank(model, cohort("A1", "B1", "C1")).save(folder)
    with monkeypatch.context() as patch:
        patch.setattr(bank_edit, "_remove_unnamed", lambda *_: None)  # killed behind the new manifest
        drop_sections(folder, ["B1"])
    temporary_path(folder / "bank.json", keep_suffix=True).write_text("B1")
    assert len(list((folder / "sections").iterdir())) == 3
    with pytest.raises(
        UnknownName, match=r"There is no section or patient in the bank 'B1'; known: patient-A, patient-C, A1, C1"
    ):
        drop_sections(folder, ["B1"])
    assert len(list((folder / "sections").iterdir())) == 2 and not list(folder.glob(".bank*"))


def test_a_bank_that_may_not_be_written_is_refused(model, tmp_path, monkeypatch):
    build_bank(model, cohort("A1", "B1")).save(tmp_path / "bank")

    def forbidden(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", forbidden)
    with pytest.raises(Unwritable, match="bank cannot be written: permission denied"):
        drop_sections(tmp_path / "bank", ["A1"])


def test_a_users_own_file_in_the_folder_is_let_alone(model, tmp_path):
    build_bank(model, cohort("A1", "B1")).save(tmp_path / "bank")
    (tmp_path / "bank" / "notes.txt").write_text("mine")
    drop_sections(tmp_path / "bank", ["A1"])
    assert (tmp_path / "bank" / "notes.txt").read_text() == "mine"


def test_refusals(model, tmp_path):
    folder = tmp_path / "bank"
    with pytest.raises(MissingInput, match=r"The bank .* does not exist"):
        drop_sections(folder, ["A1"])
    build_bank(model, cohort("A1", "B1")).save(folder)
    before = files_of(folder)
    with pytest.raises(TooFew, match=r"0 sections left in the bank, .*; to give up all of it, delete the folder"):
        drop_sections(folder, ["patient-A", "B1"])
    with pytest.raises(TooFew, match="0 sections to drop"):
        drop_sections(folder, [])
    with pytest.raises(BadOption, match="section is 'A1'; wanted one that is not in the bank yet; drop it first"):
        add_sections(folder, model, cohort("A1"))
    with pytest.raises(TooFew, match="0 sections to add"):
        add_sections(folder, model, Cohort("none", ()))
    with pytest.raises(Incompatible, match="was made by model"):
        add_sections(folder, small_model(seed=1), cohort("C1"))
    assert files_of(folder) == before


def test_merging_counts_a_shared_section_once(model, tmp_path):
    one, two = build_bank(model, cohort("A1", "B1")), build_bank(model, cohort("B1", "C1"))
    assert_same_bank(merge_banks([one, two]), build_bank(model, cohort("A1", "B1", "C1")))
    other = build_bank(model, Cohort.of([small_section("A1", "patient-A", seed=9)]))
    with pytest.raises(BadOption, match="section is 'A1'; wanted each section named once in a bank"):
        merge_banks([one, other])
    with pytest.raises(Incompatible):
        merge_banks([one, build_bank(small_model(seed=1), cohort("C1"))])


def test_a_search_that_cannot_be_kept_gives_way_to_exact_search(model, tmp_path, monkeypatch):
    from cmrcnet.errors import Incompatible

    def too_low(*_):
        raise Incompatible.from_sentence("The index finds too few neighbours.")

    build_bank(model, cohort("A1", "B1", "C1")).save(tmp_path / "bank", search=KINDS[2])
    monkeypatch.setattr(bank_edit, "build_search", too_low)
    with pytest.warns(CmrcnetWarning, match="searched exactly from now on"):
        drop_sections(tmp_path / "bank", ["C1"])
    assert json.loads((tmp_path / "bank" / "bank.json").read_text())["index"] is None
