"""Commands on reference banks: index, and bank add, drop, list, merge, rebuild-index."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cmrcnet.cli.options import (
    DEFAULT_SEARCH,
    DEFAULT_WORKERS,
    SearchOptions,
    WorkersOptions,
    count_text,
    sections_named,
)
from cmrcnet.storage.atomic import final_path, refuse_existing

if TYPE_CHECKING:
    from cmrcnet.models.trained_model import TrainedModel


def index_command(
    model: Path,
    cohort: Path,
    *,
    out: Path,
    without: list[str] | None = None,
    search: SearchOptions = DEFAULT_SEARCH,
    workers: WorkersOptions = DEFAULT_WORKERS,
    overwrite: bool = False,
) -> Path:
    """Build a reference bank: embedding and full expression of every measured spot.

    Parameters
    ----------
    model : Path
        Model folder that `cmrcnet train` wrote.
    cohort : Path
        A cohort.csv of the sections whose measured spots predictions are averaged from; usually the training sections.
    out : Path
        Bank folder to write.
    without : list of str, optional
        Sections or patients to leave out of the bank.
    search : SearchOptions
        How the nearest spots are found.
    workers : WorkersOptions
        Where the sections of a large cohort are read and embedded in parallel.
    overwrite : bool
        Replace OUT.
    """
    wanted, chosen = search.to_config(), workers.to_options(by_default=1)
    refuse_existing(out, overwrite, folder=True)

    from cmrcnet.models.trained_model import TrainedModel
    from cmrcnet.readers.cohort import read_cohort
    from cmrcnet.retrieval.bank import build_bank
    from cmrcnet.storage.cache import TokenCache

    trained = TrainedModel.from_pretrained(model)
    sections = read_cohort(cohort, controls=trained.config.panel.controls)
    sections = sections.without(sections_named(sections, without, "without"))
    bank = build_bank(
        trained, sections, cache=TokenCache.default(), workers=chosen, load=partial(_model_of_worker, model)
    )
    bank.save(out, overwrite=overwrite, search=wanted)
    print(
        f"Bank written to {final_path(out)} ({count_text((len(bank), 'spot'), (len(bank.genes), bank.scaling.word))})."
    )
    return out


def _model_of_worker(folder: Path) -> TrainedModel:
    from cmrcnet.models.trained_model import TrainedModel

    return TrainedModel.from_pretrained(folder)


def bank_add_command(bank: Path, model: Path, cohort: Path, *, only: list[str] | None = None) -> Path:
    """Add sections to a bank without training again.

    Parameters
    ----------
    bank : Path
        Bank folder; edited in place. Predictions that are running with it are not affected.
    model : Path
        Model folder that the bank was built with.
    cohort : Path
        A cohort.csv.
    only : list of str, optional
        Sections or patients of the cohort to add; all when left out.
    """
    from cmrcnet.models.trained_model import TrainedModel
    from cmrcnet.readers.cohort import read_cohort
    from cmrcnet.retrieval.edit import add_sections
    from cmrcnet.retrieval.store import Manifest

    Manifest.read(bank)
    trained = TrainedModel.from_pretrained(model)
    sections = read_cohort(cohort, controls=trained.config.panel.controls)
    if only:
        chosen = set(sections_named(sections, only, "only"))
        sections = sections.without([section for section in sections.sections if section not in chosen])
    added = add_sections(bank, trained, sections)
    print(f"Added to {bank}: {', '.join(added)}. It now holds {count_text((Manifest.read(bank).spots, 'spot'))}.")
    return bank


def bank_drop_command(bank: Path, names: list[str]) -> Path:
    """Remove sections or patients from a bank; no data of them remain in its folder.

    Parameters
    ----------
    bank : Path
        Bank folder; edited in place. Copies, backups, and prediction tables made with it are not changed.
    names : list of str
        Sections, or patients (all their sections).
    """
    from cmrcnet.retrieval.edit import drop_sections
    from cmrcnet.retrieval.store import Manifest

    dropped = drop_sections(bank, names)
    print(f"Dropped from {bank}: {', '.join(dropped)}. It now holds {count_text((Manifest.read(bank).spots, 'spot'))}.")
    return bank


def bank_list_command(bank: Path) -> None:
    """List the sections of a bank and how it is searched.

    Parameters
    ----------
    bank : Path
        Bank folder.
    """
    from cmrcnet.retrieval.store import Manifest

    manifest = Manifest.read(bank)
    print(f"{'section':24}{'patient':24}{'spots':>10}{'genes':>10}")
    for record in manifest.sections:
        print(f"{record['section']:24}{record['patient']:24}{record['spots']:>10,}{record['genes']:>10,}")
    print(f"{count_text((len(manifest.sections), 'section'), (manifest.spots, 'spot'))}; {manifest.search_text()}.")


def bank_merge_command(
    banks: list[Path],
    *,
    out: Path,
    search: SearchOptions = DEFAULT_SEARCH,
    overwrite: bool = False,
) -> Path:
    """Merge several banks of one model; a section that is the same in several banks is taken once.

    Parameters
    ----------
    banks : list of Path
        Bank folders; they are not changed.
    out : Path
        Bank folder to write.
    search : SearchOptions
        How the nearest spots are found.
    overwrite : bool
        Replace OUT.
    """
    wanted = search.to_config()
    refuse_existing(out, overwrite, folder=True)

    from cmrcnet.retrieval.bank import ReferenceBank
    from cmrcnet.retrieval.edit import merge_banks

    merged = merge_banks([ReferenceBank.load(bank) for bank in banks])
    merged.save(out, overwrite=overwrite, search=wanted)
    print(f"Bank written to {out} ({count_text((len(merged), 'spot'), (len(merged.genes), merged.scaling.word))}).")
    return out


def bank_rebuild_index_command(bank: Path, *, search: SearchOptions = DEFAULT_SEARCH) -> Path:
    """Rebuild the search index of a bank, or change its type.

    Parameters
    ----------
    bank : Path
        Bank folder; edited in place.
    search : SearchOptions
        How the nearest spots are found.
    """
    wanted = search.to_config()

    from cmrcnet.retrieval.edit import rebuild_index

    print(f"{bank}: {rebuild_index(bank, wanted).search_text()}.")
    return bank
