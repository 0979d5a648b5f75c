"""The bank: what is in it, what is refused, and that it comes back from disk as it went."""

from __future__ import annotations

import errno
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from cmrcnet.errors import (
    BadOption,
    Damaged,
    Incompatible,
    MissingInput,
    NoSpace,
    OutputExists,
    SectionError,
    ShapeMismatch,
    TooFew,
)
from cmrcnet.genes.scaling import normalize
from cmrcnet.retrieval.bank import ReferenceBank, build_bank
from cmrcnet.retrieval.store import _crcs_of_genes
from cmrcnet.search.stacked_arrays import csc_of
from cmrcnet.slides.section import Cohort
from cmrcnet.storage.cache import TokenCache
from cmrcnet.storage.ownership import MARKER, mark_folder, temporary_path
from tests.inference.small_model import GENES, small_cohort, small_model, small_section

PART_FILES = (
    "spots.csv.gz",
    "genes.json",
    "vectors.npy",
    "gene_checks.npy",
    "expression_data.npy",
    "expression_rows.npy",
    "expression_ends.npy",
)


def part_folder(bank: ReferenceBank, folder: Path, number: int = 0) -> Path:
    return folder / "sections" / bank.entries[number].fingerprint


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def dense(bank: ReferenceBank) -> np.ndarray:
    return bank.expression.toarray()


def by_name(section, genes: tuple[str, ...], target_sum=10_000.0) -> np.ndarray:
    """The section's log-normalised expression in the order of `genes`, gene by gene."""
    values = normalize(section.counts, target_sum).toarray()
    column = {gene: number for number, gene in enumerate(section.genes)}
    empty = np.zeros(len(values), np.float32)
    return np.column_stack([values[:, column[gene]] if gene in column else empty for gene in genes])


def test_it_holds_every_spot_with_every_gene(model, bank):
    cohort = small_cohort()
    assert bank.genes == (*GENES[:10], "NEW1", *GENES[10:])  # order of first appearance
    np.testing.assert_array_equal(dense(bank), np.vstack([by_name(section, bank.genes) for section in cohort]))
    assert bank.expression.dtype == np.float32 and {part.expression.format for part in bank.entries} == {"csc"}
    wanted = np.concatenate([model.embed_expression(model.panel.select(section)) for section in cohort])
    np.testing.assert_array_equal(bank.vectors, wanted)
    np.testing.assert_allclose(np.linalg.norm(bank.vectors, axis=1), 1, rtol=1e-5)
    assert bank.model_fingerprint == model.fingerprint and len(bank) == 24


def test_it_knows_where_each_spot_comes_from(bank):
    row = 0
    for section in small_cohort():
        for barcode, (x, y) in zip(section.spots.barcodes, section.spots.centre_px, strict=True):
            assert tuple(bank.spots.iloc[row]) == (section.name, section.patient, barcode, x, y)
            row += 1
    assert row == len(bank.spots)
    assert bank.sections == ("A1", "A2", "B1") and bank.patients == ("A", "B")
    np.testing.assert_array_equal(bank.section_of_spot, [0] * 9 + [1] * 7 + [2] * 8)


def test_it_knows_which_section_measured_what(bank):
    """A1 and A2 read every transcript; B1's assay holds neither NEW1 nor two other genes."""
    np.testing.assert_array_equal(bank.measured[:2], True)
    lacking = [gene for gene, there in zip(bank.genes, bank.measured[2], strict=True) if not there]
    assert lacking == ["GENE7", "GENE8", "NEW1"]


def test_each_section_to_its_own_median():
    model = small_model(target_sum="median")
    bank = build_bank(model, small_cohort())
    wanted = np.vstack([by_name(section, bank.genes, "median") for section in small_cohort()])
    np.testing.assert_array_equal(dense(bank), wanted)
    assert bank.scaling.target_sum == "median"
    assert (wanted != np.vstack([by_name(section, bank.genes) for section in small_cohort()])).any()


def test_saving_and_loading_change_no_number(bank, tmp_path):
    bank.save(tmp_path / "bank")
    again = ReferenceBank.load(tmp_path / "bank")
    np.testing.assert_array_equal(again.vectors, bank.vectors)
    np.testing.assert_array_equal(dense(again), dense(bank))
    np.testing.assert_array_equal(again.measured, bank.measured)
    np.testing.assert_array_equal(again.section_of_spot, bank.section_of_spot)
    assert again.spots.equals(bank.spots)
    assert (again.genes, again.scaling.target_sum, again.model_fingerprint) == (
        bank.genes,
        10_000.0,
        bank.model_fingerprint,
    )
    assert again.fingerprint == bank.fingerprint
    for thing in (again, *again.entries):
        thing.__dict__.pop("fingerprint")
    assert again.fingerprint == bank.fingerprint  # not only remembered: the content gives it
    for part in again.entries:
        assert not (part.vectors.flags.writeable or part.expression.data.flags.writeable)


def test_names_that_look_like_numbers_or_nothing_come_back_as_text(model, tmp_path):
    section = small_section("NA", "007")
    section.spots.__dict__["barcodes"] = ("1", "2.0", "nan", "", "NULL", "é", '"x,y"', "a b", "8")
    build_bank(model, Cohort.of([section])).save(tmp_path / "bank")
    spots = ReferenceBank.load(tmp_path / "bank").spots
    assert set(spots["section"]) == {"NA"} and set(spots["patient"]) == {"007"}
    assert tuple(spots["barcode"]) == ("1", "2.0", "nan", "", "NULL", "é", '"x,y"', "a b", "8")


def test_the_same_bank_is_the_same_bytes(model, bank, tmp_path):
    for name in ("one", "two"):
        build_bank(model, small_cohort()).save(tmp_path / name)
    one = files_of(tmp_path / "one")
    assert one == files_of(tmp_path / "two")
    wanted = {f"sections/{part.fingerprint}/{file}" for part in bank.entries for file in PART_FILES}
    wanted |= {f"sections/{part.fingerprint}/{MARKER}" for part in bank.entries}
    assert set(one) == {"bank.json", MARKER} | wanted


def test_a_loaded_bank_can_be_saved_elsewhere_and_over_itself(bank, tmp_path):
    bank.save(tmp_path / "bank")
    ReferenceBank.load(tmp_path / "bank").save(tmp_path / "copy")
    with pytest.raises(OutputExists):
        bank.save(tmp_path / "bank")
    ReferenceBank.load(tmp_path / "bank").save(tmp_path / "bank", overwrite=True)
    for place in ("bank", "copy"):
        assert ReferenceBank.load(tmp_path / place).fingerprint == bank.fingerprint


@pytest.mark.parametrize("file", ("bank.json", *PART_FILES))
@pytest.mark.parametrize("damage", ["missing", "cut short", "changed"])
def test_damage_is_seen_and_named(bank, tmp_path, file, damage):
    bank.save(tmp_path / "bank")
    path = tmp_path / "bank" / file if file == "bank.json" else part_folder(bank, tmp_path / "bank", 1) / file
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut short":
        path.write_bytes(content[: len(content) * 2 // 3])
    else:
        middle = content.index(b"A1") if file == "bank.json" else len(content) - 14
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    time.sleep(0.01)  # a clock that ticks coarsely must not hide the change
    of_section = "" if file == "bank.json" else " of section A2"
    what = f"{file}{of_section} (is|was) (missing|cut short|changed)"
    if damage == "changed" and file in ("expression_data.npy", "expression_rows.npy"):
        what = r"the expression of gene GENE\d+ in section A2 is corrupt"  # seen where it is read
    with pytest.raises(Damaged, match=rf"bank is incomplete or damaged: {what}.*; .*cmrcnet index MODEL COHORT.csv"):
        ReferenceBank.load(tmp_path / "bank").expression.toarray()


@pytest.mark.parametrize("file", PART_FILES)
def test_files_of_two_sections_that_were_exchanged_are_refused(model, tmp_path, file):
    """Both are whole, and of one shape: only the manifest knows which is whose."""
    bank = build_bank(model, Cohort.of([small_section(name, name, seed=seed) for seed, name in enumerate("AB")]))
    bank.save(tmp_path / "bank")
    one, two = (part_folder(bank, tmp_path / "bank", number) / file for number in (0, 1))
    contents = one.read_bytes(), two.read_bytes()
    if contents[0] == contents[1]:
        pytest.skip("the same in both sections")
    one.write_bytes(contents[1])
    two.write_bytes(contents[0])
    with pytest.raises(Damaged, match=r"section [AB] is (cut short, changed or of another section|corrupt)"):
        ReferenceBank.load(tmp_path / "bank").expression.toarray()


def test_a_corrupt_gene_does_not_keep_from_reading_the_others(bank, tmp_path):
    bank.save(tmp_path / "bank")
    path = part_folder(bank, tmp_path / "bank", 2) / "expression_data.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-14] + bytes([content[-14] ^ 1]) + content[-13:])  # the last gene of B1
    again = ReferenceBank.load(tmp_path / "bank")
    last = bank.genes.index(bank.entries[2].genes[-1])
    others = np.delete(np.arange(len(bank.genes)), last)
    np.testing.assert_array_equal(again.expression.dense(others), bank.expression.dense(others))
    with pytest.raises(Damaged, match=rf"gene {bank.genes[last]} in section B1 is corrupt; take the section out"):
        again.expression.dense(np.array([last]))
    with pytest.raises(Damaged, match="is corrupt"):
        again.save(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("row", [-1, 10**6])
def test_expression_outside_its_section_never_reaches_compiled_code(bank, row):
    part = bank.entries[0]
    matrix = part.expression
    rows = np.array(matrix.indices)
    rows[0] = row
    changed = csc_of(matrix.data, rows, matrix.indptr, matrix.shape)
    sealed = _crcs_of_genes(changed, 0, len(part.genes))
    with pytest.raises(Damaged, match=rf"of section {part.section}: an index is {row}, outside"):
        replace(part, expression=changed, gene_checks=sealed).require_genes(0, len(part.genes))


def test_a_bank_of_another_format_is_refused(bank, tmp_path):
    bank.save(tmp_path / "bank")
    path = tmp_path / "bank" / "bank.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(Incompatible, match="has format 2, and this version reads 6"):
        ReferenceBank.load(tmp_path / "bank")
    path.write_text("[]")
    with pytest.raises(Damaged, match=r"bank\.json is cut short or changed"):
        ReferenceBank.load(tmp_path / "bank")


def test_no_bank_is_there(tmp_path):
    with pytest.raises(MissingInput, match=r"The bank .*nowhere does not exist; build one: cmrcnet index"):
        ReferenceBank.load(tmp_path / "nowhere")


def test_a_full_disk_leaves_nothing(bank, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("cmrcnet.retrieval.store.file_checksum", full)  # asked for when all else is written
    with pytest.raises(NoSpace, match="nothing half-written is left"):
        bank.save(tmp_path / "bank")
    assert list(tmp_path.iterdir()) == []


def test_another_models_bank_is_refused(bank):
    with pytest.raises(Incompatible, match=r"The bank bank was made by model \w{12}, not by model \w{12};"):
        bank.require_model(small_model(seed=1))


def test_the_temporary_folder_goes_with_the_bank(model, tmp_path):
    cache = TokenCache(tmp_path / "cache")
    bank = build_bank(model, small_cohort(), cache=cache)
    assert len(list(cache.folder.glob(".bank-in-use.*"))) == 1
    del bank
    assert list(cache.folder.iterdir()) == []


def test_what_killed_processes_left_is_swept(model, tmp_path):
    cache = TokenCache(tmp_path / "cache")
    made = temporary_path(cache.folder / "bank-in-use")
    killed, theirs = made.with_name(made.name.replace(f"{os.getpid():x}", f"{2**30:x}")), cache.folder / "bank-in-use-x"
    for folder in (killed, theirs):
        folder.mkdir(parents=True)
        (folder / "spots").write_text("of a patient")
    mark_folder(killed, ["*"])
    os.utime(theirs, (time.time() - 30 * 24 * 3600,) * 2)
    build_bank(model, small_cohort(), cache=cache)
    assert [path.name for path in cache.folder.iterdir()] == ["bank-in-use-x"]


def test_an_empty_cohort_has_no_bank(model):
    with pytest.raises(TooFew, match="0 sections for the bank, but at least 1 are needed"):
        build_bank(model, Cohort("none", ()))


def test_a_section_that_cannot_be_embedded_is_refused(model):
    lacking = small_section("C1", "C", genes=GENES[1:], absent="unmeasured")
    with pytest.raises(SectionError, match="C1"):
        build_bank(model, Cohort.of([lacking]))


def test_counts_that_are_none_are_refused(model):
    section = small_section("C1", "C")
    section.__dict__["counts"] = sparse.csr_matrix(section.counts.toarray() - 0.5)
    with pytest.raises(SectionError, match="C1"):
        build_bank(model, Cohort.of([section]))


def test_parts_that_do_not_fit_are_refused(bank):
    part = bank.entries[0]
    for name, value in (("vectors", part.vectors[1:]), ("genes", part.genes[1:])):
        with pytest.raises(ShapeMismatch, match="of section A1 has shape"):
            replace(part, **{name: value})
    narrow = replace(bank.entries[1], vectors=bank.entries[1].vectors[:, 1:])
    with pytest.raises(ShapeMismatch, match="vectors and scores of section A2"):
        ReferenceBank((part, narrow), "m")
    with pytest.raises(BadOption, match="section is 'A1'; wanted each section named once"):
        ReferenceBank((part, part), "m")
    with pytest.raises(TooFew, match="0 sections in the bank"):
        ReferenceBank((), "m")


def test_vectors_that_are_not_finite_are_refused(model, monkeypatch):
    def broken(self, expression):
        vectors = np.ones((expression.shape[0], 3), np.float32)
        vectors[4, 1] = np.nan
        return vectors, None

    monkeypatch.setattr(type(model), "embed_section", broken)
    with pytest.raises(BadOption, match=r"vector of spot number 5 of section A1 \(1 in all\) is 'not finite"):
        build_bank(model, small_cohort())
