"""Add sections to a bank and drop them, in place, without retraining, in time that follows the change.

One edit at a time; readers need not wait. New files are written first, then ``bank.json`` is replaced in one step,
then the files that nobody needs any more are removed. A reader that mapped them before keeps what it mapped. An edit
that was killed leaves files that no manifest names; the next edit removes them.

After `drop_sections` nothing of the dropped is left in the folder: not its files, not its names, not the fingerprints
that it was part of. The cells of an inverted file are means; those of the dropped are subtracted from them. Cells and
recall are made anew once a tenth of the spots has changed, a graph (hnsw) at every edit. What backups or the disk's own
free blocks keep is beyond this.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cmrcnet.errors import (
    BadOption,
    CmrcnetWarning,
    Damaged,
    Incompatible,
    InUse,
    NotAvailable,
    TooFew,
    UnknownName,
)
from cmrcnet.progress import tracked
from cmrcnet.retrieval.bank import ReferenceBank
from cmrcnet.retrieval.bank_index import arrays_of_cells, rewrite_search, stored_arrays, write_search
from cmrcnet.retrieval.bank_part import BankPart
from cmrcnet.retrieval.embed import embed_part
from cmrcnet.retrieval.manifest import PARTS, SEARCH, Manifest
from cmrcnet.search.build import build_search
from cmrcnet.search.cells import Cells
from cmrcnet.search.search_config import SearchConfig
from cmrcnet.search.stacked_rows import StackedRows
from cmrcnet.slides.section import Cohort
from cmrcnet.storage.atomic import atomic_folder
from cmrcnet.storage.file_lock import file_lock

if TYPE_CHECKING:
    from cmrcnet.models.trained_model import TrainedModel

LOCK = ".lock"
WHO = ("section", "patient")
MADE_ANEW_AFTER = 0.1
"""Share of the spots that may change before cells and recall are made anew."""


def add_sections(folder: Path, model: TrainedModel, cohort: Cohort) -> tuple[str, ...]:
    """Add the sections of a cohort behind those that are there.

    Parameters
    ----------
    folder : Path
        The bank.
    model : TrainedModel
        The one that made the bank.
    cohort : Cohort

    Returns
    -------
    tuple of str
        The sections added.

    Raises
    ------
    Incompatible, InUse, MissingInput, Damaged, NoSpace
    BadOption
        A section of that name is in the bank.
    """
    with _editing(folder) as manifest:
        if manifest.model != model.fingerprint:
            raise Incompatible.bank(folder, manifest.model, model.fingerprint)
        known = {facts["section"] for facts in manifest.parts}
        again = [section for section in cohort.sections if section in known]
        if again:
            raise BadOption("section", again[0], want="one that is not in the bank yet; drop it first to replace it")
        if len(cohort) == 0:
            raise TooFew("sections to add", 0, 1, "name at least one section with measured spots")
        facts, vectors = [], []
        for section in tracked(cohort, "add", unit="sections"):
            part = embed_part(model, section, cohort.source_of(section.name))
            with atomic_folder(folder / PARTS / part.fingerprint) as tmp:
                facts.append(part.write(tmp))
            vectors.append(part.vectors)
        after = replace(manifest, parts=(*manifest.parts, *facts))
        _finish(folder, manifest, after, added=StackedRows(vectors))
    return cohort.sections


def drop_sections(folder: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Take sections out of a bank, and all that was kept of them.

    Parameters
    ----------
    folder : Path
        The bank.
    names : sequence of str
        Sections, or patients: all their sections.

    Returns
    -------
    tuple of str
        The sections dropped.

    Raises
    ------
    UnknownName
        Neither a section nor a patient of the bank.
    TooFew
        No section would be left.
    InUse, MissingInput, Damaged, NoSpace
    """
    with _editing(folder) as manifest:
        for name in names:
            if not any(name in (facts["section"], facts["patient"]) for facts in manifest.parts):
                known = dict.fromkeys(f[key] for key in ("patient", "section") for f in manifest.parts)
                raise UnknownName("section or patient in the bank", name, list(known))
        gone = [f["section"] in names or f["patient"] in names for f in manifest.parts]
        if not any(gone):
            raise TooFew("sections to drop", 0, 1, "name a section or a patient")
        if all(gone):
            raise TooFew("sections left in the bank", 0, 1, f"to give up all of it, delete the folder {folder}")
        forgotten = {f[key] for f, leaves in zip(manifest.parts, gone, strict=True) if leaves for key in WHO}
        stay = tuple(
            f | {"source": _without_names(f.get("source", ""), forgotten)}
            for f, leaves in zip(manifest.parts, gone, strict=True)
            if not leaves
        )
        _finish(folder, manifest, replace(manifest, parts=stay))
    return tuple(f["section"] for f, leaves in zip(manifest.parts, gone, strict=True) if leaves)


def _without_names(source: str, forgotten: set[str]) -> str:
    """Where a section was read from, or "" where that path would still name somebody who was dropped."""
    return "" if any(name in source for name in forgotten) else source


def search_anew(folder: Path, config: SearchConfig) -> Manifest:
    """Give a bank another search, or its own made anew.

    Parameters
    ----------
    folder : Path
        The bank.
    config : SearchConfig

    Returns
    -------
    Manifest
        Of the bank as it is now.

    Raises
    ------
    NotAvailable, MissingExtra, InUse, MissingInput, Damaged, NoSpace
    """
    with _editing(folder) as manifest:
        bank = ReferenceBank._open(folder, replace(manifest, search=None))
        built = write_search(folder, build_search(bank.vectors, config), bank.fingerprint, config.recall)
        after = replace(manifest, search=built)
        after.write(folder)
    return after


def merge_banks(banks: Sequence[ReferenceBank]) -> ReferenceBank:
    """Several banks of one model as one; a section that several hold alike counts once.

    Parameters
    ----------
    banks : sequence of ReferenceBank

    Raises
    ------
    Incompatible
        Of different models.
    BadOption
        One name for different sections.
    """
    first = banks[0]
    for bank in banks[1:]:
        if (bank.model_fingerprint, bank.target_sum) != (first.model_fingerprint, first.target_sum):
            raise Incompatible.bank(bank.name, bank.model_fingerprint, first.model_fingerprint)
    parts = {part.fingerprint: part for bank in banks for part in bank.parts}
    return ReferenceBank(tuple(parts.values()), first.model_fingerprint, first.target_sum)


@contextmanager
def _editing(folder: Path) -> Iterator[Manifest]:
    """Hold the bank against other edits, and leave no part in its folder that its manifest does not name."""
    Manifest.read(folder)
    with file_lock(folder / LOCK) as mine:
        if not mine:
            raise InUse(f"The bank {folder}", "is being edited by another process")
        manifest = Manifest.read(folder)
        _sweep(folder, manifest)
        try:
            yield manifest
        finally:
            _sweep(folder, Manifest.read(folder))


def _sweep(folder: Path, manifest: Manifest) -> None:
    """Remove temporary files, and the parts and searches that the manifest does not name; a user's own files are
    let alone."""
    search = set() if manifest.search is None else {manifest.search["name"]}
    unneeded = [*folder.glob(".*.tmp-*")]
    for place, named in ((folder / PARTS, {facts["name"] for facts in manifest.parts}), (folder / SEARCH, search)):
        unneeded += [path for path in place.glob("*") if path.name not in named]
    for path in unneeded:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _finish(folder: Path, before: Manifest, after: Manifest, added: StackedRows | None = None) -> None:
    """Write the search and the manifest of the bank after the edit; what is not needed any more is swept later."""
    if before.search is not None:
        after = replace(after, search=_search_after(folder, before, after, added))
    after.write(folder)


def _search_after(folder: Path, before: Manifest, after: Manifest, added: StackedRows | None) -> dict[str, Any] | None:
    stay = {facts["name"] for facts in after.parts}
    gone = [facts for facts in before.parts if facts["name"] not in stay]
    changed = before.search["changed"] + sum(f["spots"] for f in gone) + (0 if added is None else len(added))
    kind = before.search["kind"]
    if kind != "hnsw" and changed <= MADE_ANEW_AFTER * before.search["measured_with"]["spots"]:
        try:
            arrays = _edited_cells(folder, before, {facts["name"] for facts in gone}, added)
            return rewrite_search(folder, before.search, arrays, after.fingerprint, changed)
        except (Incompatible, Damaged):
            pass  # what is left of it cannot be edited: it is made anew
    bank = ReferenceBank._open(folder, replace(after, search=None))
    config = SearchConfig(kind=kind, recall=before.search["recall_wanted"])
    try:
        return write_search(folder, build_search(bank.vectors, config), after.fingerprint, config.recall)
    except NotAvailable as error:
        warnings.warn(f"{error} The bank is searched exactly from now on.", CmrcnetWarning, stacklevel=2)
        return None


def _edited_cells(folder: Path, before: Manifest, gone: set[str], added: StackedRows | None) -> dict[str, np.ndarray]:
    """Cells without the vectors that go, with those that come; only these are read."""
    arrays = stored_arrays(folder, before.search, before.fingerprint)
    cells, cell_of_spot = Cells(np.array(arrays["sums"]), np.array(arrays["counts"])), arrays["cell_of_spot"]
    start, kept = 0, []
    for facts in before.parts:
        mine = np.array(cell_of_spot[start : start + facts["spots"]])
        start += facts["spots"]
        if facts["name"] in gone:
            part = BankPart.open(folder / PARTS / facts["name"], facts, before.dim, before.rank, {})
            cells = cells.plus(part.vectors, mine, sign=-1)
        else:
            kept.append(mine)
    if added is not None:
        kept.append(cells.assign(added))
        cells = cells.plus(added, kept[-1])
    return arrays_of_cells(cells, np.concatenate(kept))
