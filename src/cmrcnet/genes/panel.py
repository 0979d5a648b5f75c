"""The gene panel: which genes a model sees, in which order, scaled how."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy import sparse

from cmrcnet.config import PanelConfig
from cmrcnet.errors import BadOption, GenesError, TooFew
from cmrcnet.genes.gene_naming import are_strangers, explain_no_shared_genes
from cmrcnet.genes.measured import MeasuredGenes
from cmrcnet.genes.normalize import library_sizes, log_scaled, normalize, scale_factors
from cmrcnet.slides.section import Cohort, Section

_TOO_MANY_TO_MISS = 10
"""When none of this many genes is listed, the names differ, not the tissue."""


@dataclass(frozen=True)
class GenePanel:
    """Genes in the one order that a model knows, and how counts become expression.

    Parameters
    ----------
    genes : tuple of str
        All different.
    target_sum : float or "median"
        Library size before log1p.
    origin : dict
        How the panel was chosen, and from which sections. Plain values that JSON can write.
    """

    genes: tuple[str, ...]
    target_sum: float | Literal["median"] = 10_000.0
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
        """The section's log-normalised expression of the panel's genes, in the panel's order.

        The library size counts ALL genes of the section, not only the panel's.

        Parameters
        ----------
        section : Section

        Returns
        -------
        scipy.sparse.csr_matrix, shape (spots, genes of the panel), float32

        Raises
        ------
        GenesError
            The section's assay did not measure some of the genes. A gene that is merely not listed because nobody
            found it (``absent_genes="zero"``) is 0; but a section that lists none of a whole panel (or next to none,
            as another species does) names its genes otherwise, and is refused too.
        """
        column_of = {gene: column for column, gene in enumerate(section.genes)}
        missing = [gene for gene in self.genes if gene not in column_of]
        strangers = len(self.genes) >= _TOO_MANY_TO_MISS and are_strangers(self.genes, section.genes)
        if missing and (section.absent_genes != "zero" or strangers):
            hint = explain_no_shared_genes(self.genes, section.genes) if strangers else ""
            raise GenesError.not_measured(section.name, missing, len(self.genes), hint)
        found = [(column_of[gene], place) for place, gene in enumerate(self.genes) if gene in column_of]
        columns, locations = np.array(found, dtype=np.int64).reshape(-1, 2).T
        picker = sparse.csr_matrix(
            (np.ones(len(found), section.counts.dtype), (columns, locations)),
            shape=(len(section.genes), len(self.genes)),
        )
        picked = sparse.csr_matrix(section.counts @ picker)
        picked.sort_indices()
        return log_scaled(picked, scale_factors(library_sizes(section.counts), self.target_sum))

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` and JSON understand."""
        return {"genes": list(self.genes), "target_sum": self.target_sum, "origin": self.origin}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GenePanel:
        """Build from `to_dict`."""
        return cls(tuple(values["genes"]), values["target_sum"], dict(values.get("origin", {})))


def choose_panel(cohort: Cohort, config: PanelConfig) -> GenePanel:
    """Choose the panel from the sections given: in an evaluation, the training sections of the fold and no other.

    Only genes that every section measures can enter. The order is that in which the sections, first to last, name
    the genes. One section is in memory at a time.

    Parameters
    ----------
    cohort : Cohort
    config : PanelConfig
        ``kind``: "hvg", the union over sections of each section's `n_hvg` most variable genes; "shared", all;
        "variance", the `n_hvg` genes of largest variance within sections; "list", `config.genes` in the order given.

    Returns
    -------
    GenePanel

    Raises
    ------
    GenesError, TooFew, BadOption
    """
    measured, rankings = MeasuredGenes(), []
    for section in cohort:
        measured.add(section)
        if config.kind == "hvg":
            rankings.append(most_variable(section, config.target_sum))
    shared = measured.shared()
    if config.kind == "list":
        lacking = [gene for gene in config.genes if gene not in set(shared)]
        if lacking:
            hint = explain_no_shared_genes(config.genes, shared) if len(lacking) == len(config.genes) else ""
            raise GenesError.not_measured(cohort.name, lacking, len(config.genes), hint)
        genes: Sequence[str] = config.genes
    elif config.kind == "shared":
        genes = shared
    elif config.kind == "variance":
        from cmrcnet.genes.gene_sets import gene_sets

        largest = set(gene_sets(cohort, config.target_sum, config.n_hvg)["HVG"])
        genes = [gene for gene in shared if gene in largest]
    else:
        genes = _union(rankings, shared, config.n_hvg)
    origin: dict[str, Any] = {"kind": config.kind, "sections": list(cohort.sections), "shared_genes": len(shared)}
    if config.kind == "hvg":
        origin |= {"n_hvg": config.n_hvg, "method": "scanpy highly_variable_genes, flavor seurat, union over sections"}
    return GenePanel(tuple(genes), config.target_sum, origin)


def most_variable(section: Section, target_sum: float | Literal["median"]) -> tuple[str, ...]:
    """The section's genes from most to least variable, without those that do not vary.

    By `scanpy.pp.highly_variable_genes`, flavor "seurat" (Satija et al., Nat Biotechnol 33, 2015), as the released
    code has it: variance over mean of the expression before the logarithm, standardised among genes of a similar
    mean. Ties are settled by the section's order of genes. Empty spots take no part.

    Parameters
    ----------
    section : Section
    target_sum : float or "median"
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

        found = scanpy.pp.highly_variable_genes(
            anndata.AnnData(expression), flavor="seurat", n_top_genes=1, inplace=False
        )
    score = found["dispersions_norm"].to_numpy(np.float64)
    varies = np.isfinite(score) & np.isfinite(found["dispersions"].to_numpy(np.float64))
    score = np.where(varies, score, -np.inf)
    order = np.argsort(-score, kind="stable")
    return tuple(section.genes[column] for column in order[: int(varies.sum())])


@contextmanager
def _thread_count_kept() -> Iterator[None]:
    """Undo what scanpy's compiled loops do: they set the number of OpenMP threads of the whole process, torch's too."""
    from threadpoolctl import ThreadpoolController

    pools = ThreadpoolController().select(user_api="openmp")
    counts = [pool["num_threads"] for pool in pools.info()]
    with pools.limit(limits=min(counts)) if counts else nullcontext():
        yield


def _union(rankings: list[tuple[str, ...]], shared: Sequence[str], n_hvg: int) -> list[str]:
    """Genes among the first `n_hvg` shared genes of any ranking, in the order of `shared`."""
    allowed, chosen = set(shared), set()
    for ranking in rankings:
        chosen.update([gene for gene in ranking if gene in allowed][:n_hvg])
    if not chosen:
        raise TooFew("variable genes", 0, 1, "the sections hold too few counted spots to choose a panel from")
    return [gene for gene in shared if gene in chosen]
