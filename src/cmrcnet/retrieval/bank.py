"""The reference bank: embedding, full expression and origin of every measured spot.

A bank folder (format 6) holds ``bank.json``, ``sections/<name>/`` with one section each (`retrieval.store`), and
``index/<name>/`` where the search is not exact (`retrieval.bank_index`). Arrays are memory-mapped. Sections are named
by their content and never change; `retrieval.edit` adds and drops them. Expression is stored gene by gene because that
is how it is read: choosing 50 genes reads the bytes of 50 genes. The file is one thing: the bank and how it is built.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadOption, Damaged, Incompatible, InUse, MissingInput, ShapeMismatch, TooFew
from cmrcnet.genes.scaling import COUNTS, Scaling
from cmrcnet.heads.gene_decoder import GeneDecoder, SectionStatistics, fit_gene_decoder
from cmrcnet.models.artefact import LICENCE_COLUMN
from cmrcnet.progress import metered
from cmrcnet.retrieval.bank_index import open_index, write_index
from cmrcnet.retrieval.store import SECTIONS, BankSection, Manifest, bank_fingerprint, temporary_store
from cmrcnet.search.build import SearchConfig, build_search
from cmrcnet.search.exact import ExactSearch, Searcher
from cmrcnet.search.stacked_arrays import StackedColumns, StackedRows
from cmrcnet.slides.section import Cohort, Section
from cmrcnet.slides.table_kinds import check_values
from cmrcnet.storage.atomic import atomic_folder
from cmrcnet.workers import WorkerOptions, run_in_workers, why_not_picklable

if TYPE_CHECKING:
    import pandas as pd

    from cmrcnet.models.trained_model import TrainedModel
    from cmrcnet.storage.cache import TokenCache

_ATTEMPTS = 5
"""How often to open a bank that is edited while it is being opened."""


@dataclass(frozen=True, eq=False)
class ReferenceBank:
    """Measured spots that predictions are averaged from.

    Parameters
    ----------
    entries : tuple of BankSection
        In order; rows of the bank are the spots of the first section, then of the next.
    model_fingerprint : str
        The model that made the vectors.
    scaling : Scaling
        How measured values became expression.
    name : str
        For error messages: the folder, once there is one.
    index : dict or None
        Record of the folder's search index; None: exact search.

    Raises
    ------
    TooFew
        No section at all.
    ShapeMismatch
        Sections of another dimension than the first.
    BadOption
        Two sections of one name.

    Examples
    --------
    >>> import tempfile
    >>> import cmrcnet
    >>> from cmrcnet.testing import quick_config
    >>> cohort = cmrcnet.synthetic_cohort(patients=2, spots=16, genes=24, seed=0)
    >>> bank = cmrcnet.build_bank(cmrcnet.fit(cohort, quick_config()), cohort)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     bank.save(f"{folder}/bank")
    ...     print(len(cmrcnet.ReferenceBank.load(f"{folder}/bank")), len(bank.genes))
    32 24
    """

    entries: tuple[BankSection, ...]
    model_fingerprint: str
    scaling: Scaling = COUNTS
    name: str = "bank"
    index: dict[str, Any] | None = None
    _store: object = field(default=None, repr=False)  # its temporary folder is removed with the bank

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", tuple(self.entries))
        if not self.entries:
            raise TooFew("sections in the bank", 0, 1, "name at least one section with measured spots")
        for entry in self.entries:
            if entry.widths != self.entries[0].widths:
                raise ShapeMismatch(
                    f"vectors and scores of section {entry.section}", self.entries[0].widths, entry.widths
                )
        twice = sorted({name for name in self.sections if self.sections.count(name) > 1})
        if twice:
            raise BadOption("section", ", ".join(twice), want="each section named once in a bank")

    def __len__(self) -> int:
        return sum(map(len, self.entries))

    @cached_property
    def sections(self) -> tuple[str, ...]:
        """Names of the sections, in order."""
        return tuple(entry.section for entry in self.entries)

    @cached_property
    def patients(self) -> tuple[str, ...]:
        """The different patients, in order of first appearance."""
        return tuple(dict.fromkeys(entry.patient for entry in self.entries))

    @cached_property
    def patients_within(self) -> tuple[str, ...]:
        """The different patients of the rows of its sections (`Section.patients_within`)."""
        return tuple(dict.fromkeys(name for entry in self.entries for name in entry.patients_within))

    @cached_property
    def genes(self) -> tuple[str, ...]:
        """Every gene that any section lists, in order of first appearance."""
        lists = dict.fromkeys(entry.genes for entry in self.entries)
        return tuple(dict.fromkeys(gene for genes in lists for gene in genes))

    @cached_property
    def vectors(self) -> StackedRows:
        """Gene embeddings, (spots, dim) float32, unit length; indexed by slices and row numbers like an array."""
        return StackedRows([entry.vectors for entry in self.entries])

    @cached_property
    def expression(self) -> StackedColumns:
        """Expression, (spots, genes) float32; `dense(columns, rows)` returns some of it as an array."""
        own = []  # of each entry, its own column of every gene; -1 where it has none
        for columns in self._columns:
            own.append(np.full(len(self.genes), -1, np.int32))
            own[-1][columns] = np.arange(len(columns))
        checks = [entry.require_genes for entry in self.entries]
        return StackedColumns([entry.expression for entry in self.entries], own, checks)

    @cached_property
    def spots(self) -> pd.DataFrame:
        """Columns section, patient, barcode, x, y (level-0 px of that section's slide), one row per spot."""
        import pandas as pd

        tables = [entry.spots.assign(section=entry.section, patient=entry.patient) for entry in self.entries]
        columns = pd.Index(["section", "patient", "barcode", "x", "y"])
        return pd.DataFrame(pd.concat(tables, ignore_index=True), columns=columns)

    @cached_property
    def measured(self) -> np.ndarray:
        """Which section measured which gene: (sections, genes) bool."""
        known = np.zeros((len(self.entries), len(self.genes)), bool)
        for row, entry, columns in zip(known, self.entries, self._columns, strict=True):
            row[slice(None) if entry.measures_all else columns] = True
        return known

    @cached_property
    def section_of_spot(self) -> np.ndarray:
        """Row of `measured` that belongs to each spot: (spots,) int64."""
        return np.repeat(np.arange(len(self.entries)), [len(entry) for entry in self.entries])

    @cached_property
    def scores(self) -> StackedRows | None:
        """Expression scores, (spots, rank) float32, from a model that works on components."""
        rows = [entry.scores for entry in self.entries if entry.scores is not None]
        return StackedRows(rows) if rows else None

    @cached_property
    def gene_decoder(self) -> GeneDecoder | None:
        """Regression from scores to expression, fitted on first use from the statistics that each section has kept."""
        statistics = [entry.statistics for entry in self.entries if entry.statistics is not None]
        return fit_gene_decoder(statistics, self._columns, self.measured) if statistics else None

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the content: of the model and of each section, in order."""
        return bank_fingerprint(self.model_fingerprint, self.scaling, [entry.fingerprint for entry in self.entries])

    def searcher(self) -> Searcher:
        """Open the bank's search, once; exact where it has no index.

        Raises
        ------
        InUse
            The bank was edited after it was opened.
        Incompatible
            The stored index is damaged, or was made for another bank.
        MissingExtra
        """
        if "_searcher" not in self.__dict__:
            try:
                found = ExactSearch(self.vectors)
                if self.index is not None:
                    found = open_index(Path(self.name), self.index, self.fingerprint, self.vectors)
            except Incompatible as error:
                if Manifest.read(Path(self.name)).index != self.index:
                    raise InUse(f"The bank {self.name}", "was edited after it was opened") from error
                raise
            self.__dict__["_searcher"] = found
        return self.__dict__["_searcher"]

    def search_by(self, searcher: Searcher) -> None:
        """Let `searcher` return from now on another search of the same rows, as `ShardedSearch`.

        Raises
        ------
        ShapeMismatch
            It searches another number of spots.
        """
        if len(searcher) != len(self):
            raise ShapeMismatch("the search", want=len(self), got=len(searcher))
        self.__dict__["_searcher"] = searcher

    def require_model(self, model: TrainedModel) -> None:
        """Raise `Incompatible` for a model that did not make this bank."""
        if model.fingerprint != self.model_fingerprint:
            raise Incompatible.bank(self.name, self.model_fingerprint, model.fingerprint)

    @cached_property
    def _columns(self) -> list[np.ndarray]:
        """The bank's column of each of a section's own genes."""
        column = {gene: number for number, gene in enumerate(self.genes)}
        known = {genes: np.array([column[gene] for gene in genes]) for genes in {e.genes for e in self.entries}}
        return [known[entry.genes] for entry in self.entries]

    def save(self, folder: str | Path, overwrite: bool = False, search: SearchConfig | None = None) -> None:
        """Write the bank folder atomically.

        Parameters
        ----------
        overwrite : bool
            Replace an existing bank.
        search : SearchConfig, optional
            The index to build; exact search when left out.

        Raises
        ------
        OutputExists, Unwritable, NoSpace
        Incompatible, MissingExtra
            The recall is not reached; an index without FAISS.
        """
        with atomic_folder(Path(folder), overwrite) as tmp:
            records = tuple(entry.write(tmp / SECTIONS / entry.fingerprint) for entry in self.entries)
            index = None
            if search is not None:
                index = write_index(tmp, build_search(self.vectors, search), self.fingerprint, search.recall)
            dim, rank = self.entries[0].widths
            Manifest(self.model_fingerprint, self.scaling, dim, rank, records, index).write(tmp)

    @classmethod
    def load(cls, folder: str | Path) -> ReferenceBank:
        """Open a bank folder; its arrays are memory-mapped.

        All but the expression is read once and checked; the expression of a gene is checked on first use. A bank that
        is edited while it is opened is opened again; later edits do not affect an open bank.

        Raises
        ------
        MissingInput
        Damaged
            A file is missing, cut short or changed, or of another format.
        """
        folder = Path(folder)
        for _ in range(_ATTEMPTS):
            manifest = Manifest.read(folder)
            try:
                return cls._open(folder, manifest)
            except Damaged:
                if Manifest.read(folder) == manifest:
                    raise
        raise Damaged(folder, "it was edited repeatedly while it was read", "wait for that, and run again")

    @classmethod
    def _open(cls, folder: Path, manifest: Manifest) -> ReferenceBank:
        genes: dict[str, tuple[str, ...]] = {}
        bank = cls(
            entries=tuple(
                BankSection.open(folder / SECTIONS / record["name"], record, manifest.dim, manifest.rank, genes)
                for record in manifest.sections
            ),
            model_fingerprint=manifest.model,
            scaling=manifest.scaling,
            name=str(folder),
            index=manifest.index,
        )
        bank.__dict__["fingerprint"] = manifest.fingerprint  # fills the cached property
        return bank


@dataclass(frozen=True)
class SectionEmbedder:
    """Turns sections of a cohort, by their names, into those of a bank; what a worker sets up by calling it."""

    load: Callable[[], TrainedModel]
    cohort: Cohort

    def __call__(self) -> Callable[[str], BankSection]:
        """Load the model, and return what embeds a section."""
        model = self.load()

        def embed(name: str) -> BankSection:
            return embed_section(model, self.cohort.read(name), self.cohort.source_of(name))

        return embed


def build_bank(
    model: TrainedModel,
    cohort: Cohort,
    *,
    cache: TokenCache | None = None,
    workers: WorkerOptions | None = None,
    load: Callable[[], TrainedModel] | None = None,
) -> ReferenceBank:
    """Embed the measured expression of every spot, and keep all of it.

    Each section is read once, one at a time. Finished sections lie in a temporary folder, which is removed with the
    bank. No image is encoded.

    Parameters
    ----------
    model : TrainedModel
    cohort : Cohort
        Usually the sections of training.
    cache : TokenCache, optional
        Its folder holds the temporary folder; by default the system's own, which may be small.
    workers : WorkerOptions, optional
        Where sections are embedded in parallel; in this process when left out. The bank is the same.
    load : callable, optional
        Gives each worker the model: a function of a module, or `functools.partial` of one. Needed with workers.

    Returns
    -------
    ReferenceBank

    Raises
    ------
    SectionError
        Also for a section that does not measure the model's panel.
    BadOption
        Workers without `load`, or a cohort or `load` that cannot be sent to them.
    TooFew, NoSpace, WorkerDied

    Examples
    --------
    >>> import cmrcnet
    >>> from cmrcnet.testing import quick_config
    >>> cohort = cmrcnet.synthetic_cohort(patients=2, spots=16, genes=24, seed=0)
    >>> bank = cmrcnet.build_bank(cmrcnet.fit(cohort, quick_config()), cohort)
    >>> bank.sections == cohort.sections, bank.vectors.shape
    (True, (32, 16))
    """
    if len(cohort) == 0:
        raise TooFew("sections for the bank", 0, 1, "name at least one section with measured spots")
    names = cohort.sections
    count = 1 if workers is None else workers.count(len(names))
    if workers is None or (count == 1 and workers.engine == "local"):
        embed = SectionEmbedder(lambda: model, cohort)()
        found: Any = ((name, embed(name)) for name in names)
    else:
        if load is None:
            raise BadOption("load", None, "with several workers, a function that gives each of them the model")
        embedder = SectionEmbedder(load, cohort)
        if why := why_not_picklable(embedder):
            raise BadOption("cohort", cohort.name, f"with several workers, what can be sent to them ({why})")
        found = run_in_workers(names, embedder, count=count, engine=workers.engine)
    store = temporary_store(cache)
    opened: dict[str, BankSection] = {}
    genes: dict[str, tuple[str, ...]] = {}
    with metered("index", len(names), "sections") as meter, closing(found):
        for name, entry in found:
            if isinstance(entry, BaseException):
                raise entry
            dim, rank = entry.widths
            folder = Path(store.name) / SECTIONS / str(len(opened))
            opened[name] = BankSection.open(folder, entry.write(folder), dim, rank, genes)
            meter.advance()
    entries = tuple(opened[name] for name in names)
    return ReferenceBank(entries, model.fingerprint, model.panel.scaling, _store=store)


def embed_section(model: TrainedModel, section: Section, source: str = "") -> BankSection:
    """Turn a measured section into a section of a bank, in memory.

    Parameters
    ----------
    source : str
        The cohort file that names it.

    Raises
    ------
    SectionError
    BadOption
        The model makes vectors that are not finite.
    """
    import pandas as pd

    from cmrcnet.features.device import limited_threads

    check_values(section.counts, section.table_kind, section.name)
    expression = sparse.csc_matrix(model.panel.scaling.expression(section), dtype=np.float32)
    expression.sort_indices()
    with limited_threads(1):  # sums over several threads may differ in the last bit, and so may two workers
        vectors, scores = model.embed_section(model.panel.select(section))
        statistics = None if scores is None else SectionStatistics.of(expression, scores)
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        raise BadOption(
            f"vector of spot number {broken[0] + 1} of section {section.name} ({len(broken)} in all)",
            "not finite (NaN or infinite)",
            want="numbers only; the model is damaged or its training diverged, so train it again",
        )
    x, y = section.spots.centre_px.T
    return BankSection(
        section=section.name,
        patient=section.patient,
        spots=pd.DataFrame({"barcode": list(section.spots.barcodes), "x": x, "y": y}),
        vectors=vectors,
        expression=expression,
        genes=section.genes,
        measures_all=section.absent_genes == "zero",
        scores=scores,
        statistics=statistics,
        source=source,
        licence=section.metadata.get(LICENCE_COLUMN, ""),
        patients_within=section.patients_within,
    )


def cohort_of_bank(bank: ReferenceBank, *, controls: Literal["drop", "keep"] = "drop") -> Cohort:
    """Find the cohort that a bank was built from: its sections in order, from the cohort files that it remembers.

    Parameters
    ----------
    controls : {"drop", "keep"}
        As `read_cohort`.

    Raises
    ------
    BadOption
        The bank does not know (it was built from sections in memory), or the file no longer names the section.
    MissingInput
        The file no longer exists.
    """
    from cmrcnet.readers.cohort import read_cohort

    read: dict[str, Cohort] = {}
    found = []
    for entry in bank.entries:
        name, source = entry.section, entry.source
        hint = "name the cohort.csv that it was built from: --cohort FILE"
        if not source:
            want = f"the cohort.csv that the bank was built from: it does not remember where section {name} is"
            raise BadOption("--cohort", "left out", want=want)
        if not Path(source).is_file():
            raise MissingInput(Path(source), f"The cohort of section {name}", hint)
        if source not in read:
            read[source] = read_cohort(source, controls=controls)
        if name not in read[source].sections:
            want = f"a file that names section {name}, as it did when the bank was built; {hint}"
            raise BadOption("the bank's cohort", source, want=want)
        found += read[source].only([name]).entries
    return Cohort("bank", tuple(found))
