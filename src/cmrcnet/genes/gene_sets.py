"""Gene panel of a model, and gene sets for scores: highly expressed, variable, spatially variable, own lists."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from scipy import sparse

from cmrcnet.config import PanelConfig
from cmrcnet.errors import BadOption, SectionError, TooFew
from cmrcnet.genes.naming import are_disjoint, explain_no_shared_genes
from cmrcnet.genes.scaling import COUNTS, Scaling, fit_scaling, library_sizes, log_scaled, normalize, scale_factors
from cmrcnet.genes.spatial_stats import morans_i, spot_graph
from cmrcnet.slides.section import Cohort, Section


@dataclass(eq=False)
class MeasuredGenes:
    """Collects the genes that every section of a cohort measures, one section at a time.

    A section of a whole-transcriptome assay (``absent_genes="zero"``) measures every gene of the cohort: one that it
    does not list has no counts. A section of a fixed assay measures only the genes that it lists; with `candidates`
    "listed" every section is taken for one.
    """

    candidates: Literal["measured", "listed"] = "measured"
    _order: dict[str, int] = field(default_factory=dict, init=False)  # gene -> order of first appearance
    _assays: list[frozenset[str]] = field(default_factory=list, init=False)  # the different gene lists of fixed assays
    _name: str = field(default="", init=False)
    _kind: str = field(default="", init=False)

    def add(self, section: Section) -> None:
        """Add the next section.

        `SectionError`: it shares no gene with the earlier sections, or only the few names that two species have in
        common; or its table is of another kind.
        """
        if self._kind not in ("", section.table_kind):
            raise SectionError.other_kind(section.name, section.table_kind, self._kind, f"{self._name} holds")
        self._kind = section.table_kind
        genes, known = frozenset(section.genes), list(self._order)
        if known and are_disjoint(known, section.genes):
            hint = explain_no_shared_genes(known, section.genes)
            raise SectionError.none_shared(self._name, section.name, hint, shared=len(genes & self._order.keys()))
        self._name = self._name or section.name
        for gene in section.genes:
            self._order.setdefault(gene, len(self._order))
        fixed = section.absent_genes != "zero" or self.candidates == "listed"
        if fixed and genes not in self._assays:
            self._assays.append(genes)

    def shared(self) -> tuple[str, ...]:
        """Genes that every section measures, in order of first appearance; `SectionError` when there are none."""
        shared = tuple(gene for gene in self._order if all(gene in assay for assay in self._assays))
        if not shared:
            raise SectionError.none_shared(self._name, "the other sections", "No gene is measured in all of them.")
        return shared


_TOO_MANY_TO_MISS = 10
"""A section that lists none of a panel of this size or more has other names, not other tissue."""


@dataclass(frozen=True)
class GenePanel:
    """Genes (or other features) of a model in their order, and how their table is scaled.

    Parameters
    ----------
    genes : tuple of str
        All different.
    scaling : Scaling
        How measured values become expression.
    origin : dict
        How the panel was chosen and from which sections, as plain values.

    Examples
    --------
    >>> panel = GenePanel(("ERBB2", "KRT8"))
    >>> len(panel), panel.scaling.target_sum
    (2, 10000.0)
    """

    genes: tuple[str, ...]
    scaling: Scaling = COUNTS
    origin: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "genes", tuple(self.genes))
        if len(self.genes) == 0:
            raise TooFew("genes in the panel", 0, 1, "choose a panel that holds genes of these sections")
        if len(set(self.genes)) != len(self.genes):
            twice = sorted({gene for gene in self.genes if self.genes.count(gene) > 1})
            raise BadOption("panel.genes", ", ".join(twice[:5]), want="each gene named once")

    def __len__(self) -> int:
        return len(self.genes)

    def select(self, section: Section) -> sparse.csr_matrix:
        """Expression of a section's genes of the panel, in the panel's order.

        Parameters
        ----------
        section : Section
            Its library sizes count all of its genes, not only the panel's.

        Returns
        -------
        scipy.sparse.csr_matrix, shape (spots, genes of the panel), float32

        Raises
        ------
        SectionError
            The section's table is of another kind, or its assay did not measure some of the genes. With
            ``absent_genes="zero"`` a gene that is not listed is 0, except when nearly none of the panel is listed: then
            the section names its genes differently.
        """
        column_of = {gene: column for column, gene in enumerate(section.genes)}
        missing = [gene for gene in self.genes if gene not in column_of]
        disjoint = len(self.genes) >= _TOO_MANY_TO_MISS and are_disjoint(self.genes, section.genes)
        if missing and (section.absent_genes != "zero" or disjoint):
            hint = explain_no_shared_genes(self.genes, section.genes) if disjoint else ""
            raise SectionError.not_measured(section.name, missing, len(self.genes), hint)
        found = [(column_of[gene], number) for number, gene in enumerate(self.genes) if gene in column_of]
        columns, targets = np.array(found, dtype=np.int64).reshape(-1, 2).T
        picker = sparse.csr_matrix(
            (np.ones(len(found), section.counts.dtype), (columns, targets)),
            shape=(len(section.genes), len(self.genes)),
        )
        if not self.scaling.logs or section.table_kind != "counts":
            return sparse.csr_matrix(self.scaling.expression(section) @ picker.astype(np.float32))
        picked = sparse.csr_matrix(section.counts @ picker)
        picked.sort_indices()
        return log_scaled(picked, scale_factors(library_sizes(section.counts), self.scaling.target_sum))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"genes": list(self.genes), "scaling": self.scaling.to_dict(), "origin": self.origin}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GenePanel:
        """Inverse of `to_dict`."""
        return cls(tuple(values["genes"]), Scaling.from_dict(values["scaling"]), dict(values.get("origin", {})))


def choose_panel(cohort: Cohort, config: PanelConfig) -> GenePanel:
    """Choose a panel among the genes that every section measures, in order of first appearance.

    Sections are read in the order of their names.

    Parameters
    ----------
    cohort : Cohort
        Training sections only; one is in memory at a time.
    config : PanelConfig
        ``kind``: "hvg", the union over sections of each section's `n_hvg` most variable genes (of a table that is
        none of counts, all features); "shared", all genes;
        "variance", the `n_hvg` genes of largest variance within sections; "list", `config.genes` in their order.

    Returns
    -------
    GenePanel

    Raises
    ------
    SectionError, TooFew, BadOption

    Examples
    --------
    >>> from cmrcnet import synthetic_cohort
    >>> cohort = synthetic_cohort(patients=1, spots=12, genes=24)
    >>> len(choose_panel(cohort, PanelConfig(kind="variance", n_hvg=3)))
    3
    """
    measured, rankings = MeasuredGenes(config.candidates), []
    cohort = cohort.in_order()
    kind, scaling = "counts", COUNTS
    for number, section in enumerate(cohort):
        if number == 0:
            kind = section.table_kind
            scaling = fit_scaling([section] if kind in ("counts", "binary") else cohort, config)
        measured.add(section)
        if config.kind == "hvg" and kind == "counts":
            rankings.append(most_variable(section, config.target_sum))
    shared = measured.shared()
    if config.kind == "list":
        lacking = [gene for gene in config.genes if gene not in set(shared)]
        if lacking:
            hint = explain_no_shared_genes(config.genes, shared) if len(lacking) == len(config.genes) else ""
            raise SectionError.not_measured(cohort.name, lacking, len(config.genes), hint)
        genes: Sequence[str] = config.genes
    elif config.kind == "shared" or (config.kind == "hvg" and kind != "counts"):
        genes = shared
    elif config.kind == "variance":
        largest = set(gene_sets(cohort, scaling, config.n_hvg, svg=False)["HVG"])
        genes = [gene for gene in shared if gene in largest]
    else:
        allowed = set(shared)
        union = {gene for each in rankings for gene in [gene for gene in each if gene in allowed][: config.n_hvg]}
        if not union:
            raise TooFew("variable genes", 0, 1, "the sections hold too few counted spots to choose a panel from")
        genes = [gene for gene in shared if gene in union]
    origin: dict[str, Any] = {"kind": config.kind, "sections": list(cohort.sections), "shared_genes": len(shared)}
    if config.kind == "hvg" and kind == "counts":
        origin |= {"n_hvg": config.n_hvg, "method": "scanpy highly_variable_genes, flavor seurat, union over sections"}
    return GenePanel(tuple(genes), scaling, origin)


def most_variable(section: Section, target_sum: float | Literal["median"]) -> tuple[str, ...]:
    """Rank a section's genes from most to least variable; constant genes are left out, and empty spots ignored.

    Uses `scanpy.pp.highly_variable_genes`, flavor "seurat" (Satija et al., Nat Biotechnol 33, 2015), as the released
    code: variance over mean of the expression before the logarithm, standardised among genes of similar mean. Ties keep
    the section's order of genes.
    """
    import warnings

    import anndata

    filled = library_sizes(section.counts) > 0
    if filled.sum() < 2:
        return ()
    expression = normalize(section.counts[filled], target_sum)
    with _thread_count_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # genes without counts make logarithms of 0 on the way
        import scanpy

        found: Any = scanpy.pp.highly_variable_genes(
            anndata.AnnData(expression), flavor="seurat", n_top_genes=1, inplace=False
        )
    score = found["dispersions_norm"].to_numpy(np.float64)
    varies = np.isfinite(score) & np.isfinite(found["dispersions"].to_numpy(np.float64))
    score = np.where(varies, score, -np.inf)
    order = np.argsort(-score, kind="stable")
    return tuple(section.genes[column] for column in order[: int(varies.sum())])


@contextmanager
def _thread_count_kept() -> Iterator[None]:
    """Restore the OpenMP thread count of the process, torch's included, which scanpy's compiled loops change."""
    from threadpoolctl import ThreadpoolController

    pools = ThreadpoolController().select(user_api="openmp")
    counts = [pool["num_threads"] for pool in pools.info()]
    with pools.limit(limits=min(counts)) if counts else nullcontext():
        yield


EVERYTHING = "all"
"""Name of the set of all genes, for which costly metrics are not computed."""
CHOSEN = ("HEG", "HVG", "SVG")
"""Sets chosen from expression."""
LEAST_DETECTED = 0.1
"""Share of spots in which a spatially variable gene must be detected: among thousands of rare genes, some have their
few counts in neighbouring spots by chance, and so a high Moran's I."""


def gene_sets(
    cohort: Cohort,
    scaling: Scaling = COUNTS,
    size: int = 50,
    lists: Mapping[str, Sequence[str]] | None = None,
    *,
    svg: bool = True,
) -> dict[str, tuple[str, ...]]:
    """Choose HEG, HVG and SVG among the genes that every section measures.

    HEG have the highest mean log-normalised expression over all spots, HVG its highest variance within sections
    (differences between sections, such as batch effects, do not count, because predictions are scored within a
    section). SVG have the highest Moran's I (`morans_i` on the section's `spot_graph`), mean over sections, among the
    genes detected in a tenth of all spots or more (the others follow); a section in which a gene is constant counts 0.
    Features of a continuous table all have mean 0 and variance 1: its HVG are its SVG, its HEG the first of the table.

    Parameters
    ----------
    cohort : Cohort
        Training sections of the fold only; one is in memory at a time.
    scaling : Scaling
        How measured values become expression.
    lists : mapping of str to sequence of str, optional
        Further sets, such as marker genes (``MG``); genes that some section does not measure are left out.
    svg : bool
        Without it no SVG are chosen, and Moran's I, which takes most of the time, is not computed.

    Returns
    -------
    dict of str to tuple of str
        ``HEG``, ``HVG`` and ``SVG``, `size` genes each, highest first (ties in the order of the genes), then the lists
        in their own order, and ``all``. No gene, or none of a list, in every section is a `SectionError`.
    """
    if size < 1:
        raise BadOption("size", size, want="a number of genes, 1 or more")
    if scaling.kind == "counts":  # sets are the same for either target of counts
        scaling = replace(scaling, target="log")
    lists = {name: tuple(dict.fromkeys(genes)) for name, genes in (lists or {}).items()}
    for name in lists:
        if name in (*CHOSEN, EVERYTHING) or not name.strip():
            raise BadOption("name of a gene list", name, want=f"a name other than {', '.join(CHOSEN)}, {EVERYTHING}")
    measured = MeasuredGenes()
    total, scatter, pattern = (defaultdict[str, float](float) for _ in CHOSEN)
    found_in: Counter[str] = Counter()
    spots = 0
    for section in cohort:
        measured.add(section)
        expression: Any = scaling.expression(section).astype(np.float64)
        sums = np.asarray(expression.sum(axis=0)).ravel()
        around = np.asarray(expression.multiply(expression).sum(axis=0)).ravel() - sums**2 / expression.shape[0]
        alike = np.zeros(len(section.genes))
        if svg or scaling.kind == "continuous":
            alike = np.nan_to_num(morans_i(expression, spot_graph(section.spots.centre_px)))
        statistics = (sums.tolist(), around.tolist(), alike.tolist(), expression.getnnz(axis=0).tolist())
        for gene, of_sum, of_scatter, of_pattern, detected in zip(section.genes, *statistics, strict=True):
            total[gene] += of_sum
            scatter[gene] += of_scatter
            pattern[gene] += of_pattern
            found_in[gene] += detected
        spots += expression.shape[0]
    shared = measured.shared()
    if scaling.kind == "counts":
        pattern |= {gene: -np.inf for gene in shared if found_in[gene] < LEAST_DETECTED * spots}
    elif scaling.kind == "continuous":
        total, scatter = defaultdict[str, float](float), pattern
    chosen = {
        name: _highest(shared, np.array([of[gene] for gene in shared]), size)
        for name, of in zip(CHOSEN, (total, scatter, pattern), strict=True)
        if svg or name != "SVG"
    }
    known = frozenset(shared)
    own = {name: tuple(gene for gene in genes if gene in known) for name, genes in lists.items()}
    for name, genes in own.items():
        if not genes:
            raise SectionError.none_shared(
                f"The gene list {name}", "these sections", "Are its genes named in the same way?"
            )
    return chosen | own | {EVERYTHING: shared}


def sets_of_truth(genes: Sequence[str], expression: sparse.csr_matrix, size: int = 50) -> dict[str, tuple[str, ...]]:
    """Choose HEG and HVG from one section's own expression, as the paper does on the test section.

    For scoring under the protocol ``paper`` only: genes chosen by the truth that they are scored on favour every
    method, and must not be given to any. `expression` (spots, genes) is log-normalised. Returns `size` genes each:
    ``HEG`` by the mean, ``HVG`` by the variance over the section's spots, highest first.
    """
    values: Any = sparse.csr_matrix(expression).astype(np.float64)
    mean = np.asarray(values.mean(axis=0)).ravel()
    variance = np.asarray(values.multiply(values).mean(axis=0)).ravel() - mean**2
    return {"HEG": _highest(genes, mean, size), "HVG": _highest(genes, variance, size)}


def _highest(genes: Sequence[str], values: np.ndarray, size: int) -> tuple[str, ...]:
    """Names of the highest values; ties keep the order of the genes."""
    return tuple(str(genes[column]) for column in np.argsort(-values.round(9), kind="stable")[:size])
