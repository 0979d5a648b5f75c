"""The reference bank: every measured spot's embedding, its FULL expression, and where it came from.

Folder format 2: ``bank.json`` (the model's fingerprint, the list of sections, the search), ``parts/<name>/`` with one
section each (see `bank_part`), and ``search/<name>/`` where the search is not exact (see `bank_search`). The arrays are
memory-mapped. Sections are named by their content and never change; `bank_edit` adds and drops them. Expression lies
gene by gene because that is how it is read: choosing 50 genes reads the bytes of 50 genes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cmrcnet.errors import BadOption, Damaged, Incompatible, InUse, ShapeMismatch, TooFew
from cmrcnet.heads.gene_decoder import GeneDecoder, fit_gene_decoder
from cmrcnet.progress import tracked
from cmrcnet.retrieval.bank_index import open_search, write_search
from cmrcnet.retrieval.bank_part import BankPart
from cmrcnet.retrieval.embed import embed_part
from cmrcnet.retrieval.manifest import PARTS, Manifest, bank_fingerprint
from cmrcnet.retrieval.temporary_store import open_shelf
from cmrcnet.search.build import build_search
from cmrcnet.search.search_config import SearchConfig
from cmrcnet.search.searcher import Searcher
from cmrcnet.search.stacked_columns import StackedColumns, own_columns
from cmrcnet.search.stacked_rows import StackedRows
from cmrcnet.slides.section import Cohort
from cmrcnet.storage.atomic import atomic_folder

if TYPE_CHECKING:
    import pandas as pd

    from cmrcnet.models.trained_model import TrainedModel
    from cmrcnet.storage.cache import TokenCache

_TIMES_READ_AGAIN = 5
"""How often a bank is opened anew that was edited while it was being opened."""


@dataclass(frozen=True, eq=False)
class ReferenceBank:
    """Measured spots that predictions are averaged from.

    Parameters
    ----------
    parts : tuple of BankPart
        One a section, in order; a row of the bank is a spot of the first section, then of the next.
    model_fingerprint : str
        The model that made the vectors.
    target_sum : float or "median"
        Library size before log1p.
    name : str
        For sentences: the folder, once there is one.
    search : dict or None
        What the folder's manifest says of its search; None: exact.

    Raises
    ------
    TooFew
        No section at all.
    ShapeMismatch
        Sections of another dimension than the first.
    BadOption
        Two sections of one name.
    """

    parts: tuple[BankPart, ...]
    model_fingerprint: str
    target_sum: float | Literal["median"] = 10_000.0
    name: str = "bank"
    search: dict[str, Any] | None = None
    _shelf: object = field(default=None, repr=False)  # its temporary folder goes when the bank goes

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        if not self.parts:
            raise TooFew("sections in the bank", 0, 1, "name at least one section with measured spots")
        for part in self.parts:
            if part.widths != self.parts[0].widths:
                raise ShapeMismatch(f"vectors and scores of section {part.section}", self.parts[0].widths, part.widths)
        twice = sorted({name for name in self.sections if self.sections.count(name) > 1})
        if twice:
            raise BadOption("section", ", ".join(twice), want="each section named once in a bank")

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @cached_property
    def sections(self) -> tuple[str, ...]:
        """Names of the sections, in order."""
        return tuple(part.section for part in self.parts)

    @cached_property
    def patients(self) -> tuple[str, ...]:
        """The different patients, in order of first appearance."""
        return tuple(dict.fromkeys(part.patient for part in self.parts))

    @cached_property
    def genes(self) -> tuple[str, ...]:
        """Every gene that any section lists, in the order in which they name them, first section first."""
        lists = dict.fromkeys(part.genes for part in self.parts)
        return tuple(dict.fromkeys(gene for genes in lists for gene in genes))

    @cached_property
    def vectors(self) -> StackedRows:
        """Gene embeddings, (spots, dim) float32, unit length. Slices and row numbers read from it as from an array."""
        return StackedRows([part.vectors for part in self.parts])

    @cached_property
    def expression(self) -> StackedColumns:
        """Log-normalised expression, (spots, genes) float32: `dense(columns, rows)` lays some of it out."""
        own = [own_columns(columns, len(self.genes)) for columns in self._columns]
        checks = [part.require_genes for part in self.parts]
        return StackedColumns([part.expression for part in self.parts], own, checks)

    @cached_property
    def spots(self) -> pd.DataFrame:
        """Columns section, patient, barcode, x, y (level-0 px of that section's slide), a row a spot."""
        import pandas as pd

        return pd.concat(
            [part.spots.assign(section=part.section, patient=part.patient) for part in self.parts], ignore_index=True
        )[["section", "patient", "barcode", "x", "y"]]

    @cached_property
    def measured(self) -> np.ndarray:
        """Which section measured which gene: (sections, genes) bool."""
        known = np.zeros((len(self.parts), len(self.genes)), bool)
        for row, part, columns in zip(known, self.parts, self._columns, strict=True):
            row[slice(None) if part.measures_all else columns] = True
        return known

    @cached_property
    def section_of_spot(self) -> np.ndarray:
        """Row of `measured` that belongs to each spot: (spots,) int64."""
        return np.repeat(np.arange(len(self.parts)), [len(part) for part in self.parts])

    @cached_property
    def scores(self) -> StackedRows | None:
        """Expression scores, (spots, rank) float32, from a model that works on components."""
        rows = [part.scores for part in self.parts if part.scores is not None]
        return StackedRows(rows) if rows else None

    @cached_property
    def levels(self) -> GeneDecoder | None:
        """What turns scores into expression; fitted when first asked for, from what each section has kept for it."""
        moments = [part.moments for part in self.parts if part.moments is not None]
        return fit_gene_decoder(moments, self._columns, self.measured) if moments else None

    @cached_property
    def fingerprint(self) -> str:
        """Name of the content: of the model and of each section's content, in order."""
        return bank_fingerprint(self.model_fingerprint, self.target_sum, [part.fingerprint for part in self.parts])

    def searcher(self) -> Searcher:
        """The search that the bank holds; exact where it holds none.

        Raises
        ------
        InUse
            The bank was edited between opening it and asking for the search.
        Incompatible
            The stored index is damaged, or was made for another bank.
        MissingExtra
        """
        if "_searcher" not in self.__dict__:
            try:
                found = open_search(Path(self.name), self.search, self.fingerprint, self.vectors)
            except Incompatible as error:
                if Manifest.read(Path(self.name)).search != self.search:
                    raise InUse(f"The bank {self.name}", "was edited after it was opened") from error
                raise
            self.__dict__["_searcher"] = found
        return self.__dict__["_searcher"]

    def require_model(self, model: TrainedModel) -> None:
        """Refuse a model that did not make this bank: `Incompatible`."""
        if model.fingerprint != self.model_fingerprint:
            raise Incompatible.bank(self.name, self.model_fingerprint, model.fingerprint)

    @cached_property
    def _columns(self) -> list[np.ndarray]:
        """The bank's column of each of a part's own genes."""
        column = {gene: number for number, gene in enumerate(self.genes)}
        known: dict[tuple[str, ...], np.ndarray] = {}
        for part in self.parts:
            if part.genes not in known:
                known[part.genes] = np.array([column[gene] for gene in part.genes])
        return [known[part.genes] for part in self.parts]

    def save(self, folder: Path, overwrite: bool = False, search: SearchConfig | None = None) -> None:
        """Write the bank folder, whole or not at all.

        Parameters
        ----------
        folder : Path
        overwrite : bool
            Replace a bank that is there.
        search : SearchConfig, optional
            The search to build; exact when left out.

        Raises
        ------
        OutputExists, Unwritable, NoSpace
        NotAvailable, MissingExtra
        """
        with atomic_folder(Path(folder), overwrite) as tmp:
            facts = tuple(part.write(tmp / PARTS / part.fingerprint) for part in self.parts)
            built = None
            if search is not None:
                built = write_search(tmp, build_search(self.vectors, search), self.fingerprint, search.recall)
            dim, rank = self.parts[0].widths
            Manifest(self.model_fingerprint, self.target_sum, dim, rank, facts, built).write(tmp)

    @classmethod
    def load(cls, folder: Path) -> ReferenceBank:
        """Open a bank folder; its arrays are memory-mapped.

        All but the expression is read once to see that it is whole; the expression of a gene is checked when it is
        first used. A bank that is edited while it is opened is opened anew; one that is edited later stays as it was
        opened.

        Parameters
        ----------
        folder : Path

        Raises
        ------
        MissingInput
        Damaged
            A file is missing, cut short or changed, or of another format.
        """
        folder = Path(folder)
        for _ in range(_TIMES_READ_AGAIN):
            manifest = Manifest.read(folder)
            try:
                return cls._open(folder, manifest)
            except Damaged:
                if Manifest.read(folder) == manifest:
                    raise
        raise Damaged(folder, "it was edited again and again while it was read", "wait for that, and run again")

    @classmethod
    def _open(cls, folder: Path, manifest: Manifest) -> ReferenceBank:
        genes: dict[str, tuple[str, ...]] = {}
        bank = cls(
            parts=tuple(
                BankPart.open(folder / PARTS / facts["name"], facts, manifest.dim, manifest.rank, genes)
                for facts in manifest.parts
            ),
            model_fingerprint=manifest.model,
            target_sum=manifest.target_sum,
            name=str(folder),
            search=manifest.search,
        )
        bank.__dict__["fingerprint"] = manifest.fingerprint  # fills the cached property
        return bank


def build_bank(model: TrainedModel, cohort: Cohort, *, cache: TokenCache | None = None) -> ReferenceBank:
    """Embed the measured expression of every spot, and keep all of it.

    One section is in memory at a time. What is finished lies in a temporary folder, which goes with the bank.

    Parameters
    ----------
    model : TrainedModel
    cohort : Cohort
        Usually the sections of training.
    cache : TokenCache, optional
        Its folder holds the temporary folder; by default the system's own, which may be small. Nothing is encoded.

    Returns
    -------
    ReferenceBank

    Raises
    ------
    GenesError
        A section that does not measure the model's panel.
    SectionError, TooFew, NoSpace
    """
    if len(cohort) == 0:
        raise TooFew("sections for the bank", 0, 1, "name at least one section with measured spots")
    shelf = open_shelf(cache)
    parts: list[BankPart] = []
    genes: dict[str, tuple[str, ...]] = {}
    for section in tracked(cohort, "index", unit="sections"):
        part = embed_part(model, section, cohort.source_of(section.name))
        dim, rank = part.widths
        folder = Path(shelf.name) / PARTS / str(len(parts))
        parts.append(BankPart.open(folder, part.write(folder), dim, rank, genes))
    return ReferenceBank(tuple(parts), model.fingerprint, model.panel.target_sum, _shelf=shelf)
