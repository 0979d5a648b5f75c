"""Add sections to a bank and drop them, in place, without retraining, in time that follows the change.

One edit at a time; readers need not wait. New files are written first, then ``bank.json`` is replaced in one step, then
files that are no longer needed are removed. A reader that mapped them before keeps its mapping. A killed edit leaves
files that no manifest names; the next edit removes them.

After `drop_sections` nothing of the dropped sections is left in the folder: no file, no name, no fingerprint that they
were part of. The centroids of an inverted file are means; the dropped vectors are subtracted from them. Centroids and
recall are computed again once a tenth of the spots has changed. Backups and the disk's own free blocks are outside the
scope of this guarantee.
"""

from __future__ import annotations

import logging
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
    TooFew,
    UnknownName,
    Unwritable,
)
from cmrcnet.progress import tracked
from cmrcnet.retrieval.bank import ReferenceBank, embed_section
from cmrcnet.retrieval.bank_index import read_lists, write_index, write_lists
from cmrcnet.retrieval.store import INDEX, MANIFEST, SECTIONS, BankSection, Manifest
from cmrcnet.search.build import SearchConfig, build_search
from cmrcnet.search.ivf import IVFLists
from cmrcnet.search.stacked_arrays import StackedRows
from cmrcnet.slides.section import Cohort
from cmrcnet.storage.atomic import atomic_folder, file_lock
from cmrcnet.storage.ownership import is_marked, is_temporary, remove_ours

if TYPE_CHECKING:
    from cmrcnet.models.trained_model import TrainedModel

log = logging.getLogger("cmrcnet")

LOCK = ".lock"
REBUILD_AFTER = 0.1
"""Share of the spots that may change before centroids and recall are computed again."""


def add_sections(folder: Path, model: TrainedModel, cohort: Cohort) -> tuple[str, ...]:
    """Add the sections of a cohort behind those that are there.

    Parameters
    ----------
    folder : Path
        The bank.
    model : TrainedModel
        The one that made the bank.

    Returns
    -------
    tuple of str
        The sections added.

    Raises
    ------
    Incompatible
        Another model made the bank.
    InUse, MissingInput, Damaged, NoSpace
    BadOption
        A section of that name is in the bank.
    """
    with _editing(folder) as manifest:
        if manifest.model != model.fingerprint:
            raise Incompatible.bank(folder, manifest.model, model.fingerprint)
        known = {record["section"] for record in manifest.sections}
        again = [section for section in cohort.sections if section in known]
        if again:
            raise BadOption("section", again[0], want="one that is not in the bank yet; drop it first to replace it")
        if len(cohort) == 0:
            raise TooFew("sections to add", 0, 1, "name at least one section with measured spots")
        records, vectors = [], []
        for section in tracked(cohort, "add", unit="sections"):
            entry = embed_section(model, section, cohort.source_of(section.name))
            with atomic_folder(folder / SECTIONS / entry.fingerprint) as tmp:
                records.append(entry.write(tmp))
            vectors.append(entry.vectors)
        after = replace(manifest, sections=(*manifest.sections, *records))
        _finish(folder, manifest, after, added=StackedRows(vectors))
    return cohort.sections


def drop_sections(folder: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Remove sections from a bank, and everything that was kept of them.

    Parameters
    ----------
    folder : Path
        The bank.
    names : sequence of str
        Sections, or patients: all their sections.

    Returns
    -------
    tuple of str
        The sections removed.

    Raises
    ------
    UnknownName
        Neither a section nor a patient of the bank.
    TooFew
        No names, or nothing of the bank would be left.
    InUse, MissingInput, Damaged, NoSpace
    """
    with _editing(folder) as manifest:
        for name in names:
            if not any(name in (record["section"], record["patient"]) for record in manifest.sections):
                known = dict.fromkeys(r[key] for key in ("patient", "section") for r in manifest.sections)
                raise UnknownName("section or patient in the bank", name, list(known))
        gone = [r for r in manifest.sections if r["section"] in names or r["patient"] in names]
        stay = [r for r in manifest.sections if r not in gone]
        if not gone:
            raise TooFew("sections to drop", 0, 1, "name a section or a patient")
        if not stay:
            raise TooFew("sections left in the bank", 0, 1, f"to give up all of it, delete the folder {folder}")
        forgotten = {record[key] for record in gone for key in ("section", "patient")}
        # A path that names what was dropped must not stay either.
        sources = ["" if any(name in r["source"] for name in forgotten) else r["source"] for r in stay]
        kept = tuple(record | {"source": source} for record, source in zip(stay, sources, strict=True))
        _finish(folder, manifest, replace(manifest, sections=kept))
    return tuple(record["section"] for record in gone)


def rebuild_index(folder: Path, config: SearchConfig) -> Manifest:
    """Rebuild a bank's search index, or change its type.

    Parameters
    ----------
    folder : Path
        The bank.

    Returns
    -------
    Manifest
        Of the bank as it is now.

    Raises
    ------
    Incompatible
        The recall is not reached.
    MissingExtra, InUse, MissingInput, Damaged, NoSpace
    """
    with _editing(folder) as manifest:
        bank = ReferenceBank._open(folder, replace(manifest, index=None))
        index = write_index(folder, build_search(bank.vectors, config), bank.fingerprint, config.recall)
        after = replace(manifest, index=index)
        after.write(folder)
    return after


def merge_banks(banks: Sequence[ReferenceBank]) -> ReferenceBank:
    """Merge banks of one model; a section that several hold unchanged counts once.

    Parameters
    ----------
    banks : sequence of ReferenceBank
        At least one.

    Raises
    ------
    Incompatible
        Banks of different models.
    BadOption
        One name for different sections.
    """
    first = banks[0]
    for bank in banks[1:]:
        if (bank.model_fingerprint, bank.scaling) != (first.model_fingerprint, first.scaling):
            raise Incompatible.bank(bank.name, bank.model_fingerprint, first.model_fingerprint)
    entries = {entry.fingerprint: entry for bank in banks for entry in bank.entries}
    return ReferenceBank(tuple(entries.values()), first.model_fingerprint, first.scaling)


@contextmanager
def _editing(folder: Path) -> Iterator[Manifest]:
    """Lock the bank against other edits, and leave nothing in its folder that its manifest does not name."""
    Manifest.read(folder)
    for path in (folder / MANIFEST, folder / SECTIONS, folder / INDEX, folder / LOCK):
        if path.is_symlink():
            raise Unwritable.from_sentence(
                f"{path} is a link, and what it points to is not cmrcnet's to change; put the real folder in its place."
            )
    with file_lock(folder / LOCK) as mine:
        if not mine:
            raise InUse(f"The bank {folder}", "is being edited by another process")
        manifest = Manifest.read(folder)
        _remove_unnamed(folder, manifest)
        try:
            yield manifest
        finally:
            _remove_unnamed(folder, Manifest.read(folder))


def _remove_unnamed(folder: Path, manifest: Manifest) -> None:
    """Remove temporary files, and sections and indexes of ours that the manifest does not name; other files stay."""
    unneeded = [path for path in folder.iterdir() if is_temporary(path)]
    indexes = set() if manifest.index is None else {manifest.index["name"]}
    for place, named in ((SECTIONS, {record["name"] for record in manifest.sections}), (INDEX, indexes)):
        entries = [path for path in (folder / place).glob("*") if path.name not in named]
        unneeded += [path for path in entries if is_temporary(path) or is_marked(path)]
    for path in unneeded:
        left = remove_ours(path)
        if left:
            log.warning("%s stays in the bank: cmrcnet did not write it.", path / left[0])


def _finish(folder: Path, before: Manifest, after: Manifest, added: StackedRows | None = None) -> None:
    """Write the index and the manifest of the edited bank."""
    if before.index is not None:
        after = replace(after, index=_index_after(folder, before, before.index, after, added))
    after.write(folder)


def _index_after(
    folder: Path, before: Manifest, index: dict[str, Any], after: Manifest, added: StackedRows | None
) -> dict[str, Any] | None:
    """Edit the index, or rebuild it where too much has changed or it is damaged; None where its recall is lost."""
    stay = {record["name"] for record in after.sections}
    gone = [record for record in before.sections if record["name"] not in stay]
    changed = index["changed"] + sum(r["spots"] for r in gone) + (0 if added is None else len(added))
    if changed <= REBUILD_AFTER * index["measured_with"]["spots"]:
        try:
            lists, list_of_spot = _edited_lists(folder, before, index, stay, added)
            return write_lists(folder, index, lists, list_of_spot, after.fingerprint, changed)
        except (Incompatible, Damaged):
            pass  # a damaged index or section cannot be subtracted: rebuild
    bank = ReferenceBank._open(folder, replace(after, index=None))
    config = SearchConfig(kind=index["kind"], recall=index["recall_wanted"])
    try:
        return write_index(folder, build_search(bank.vectors, config), after.fingerprint, config.recall)
    except Incompatible as error:
        warnings.warn(f"{error} The bank is searched exactly from now on.", CmrcnetWarning, stacklevel=2)
        return None


def _edited_lists(
    folder: Path, before: Manifest, index: dict[str, Any], stay: set[str], added: StackedRows | None
) -> tuple[IVFLists, np.ndarray]:
    """Lists without the vectors of dropped sections and with those added; only these are read."""
    lists, list_of_spot = read_lists(folder, index, before.fingerprint)
    start, kept = 0, []
    for record in before.sections:
        own = np.array(list_of_spot[start : start + record["spots"]])
        start += record["spots"]
        if record["name"] in stay:
            kept.append(own)
        else:
            entry = BankSection.open(folder / SECTIONS / record["name"], record, before.dim, before.rank, {})
            lists = lists.plus(entry.vectors, own, sign=-1)
    if added is not None:
        kept.append(lists.assign(added))
        lists = lists.plus(added, kept[-1])
    return lists, np.concatenate(kept)
