"""Which genes every section of a cohort measures, found in one pass over the sections."""

from __future__ import annotations

from cmrcnet.errors import GenesError
from cmrcnet.genes.gene_naming import are_strangers, explain_no_shared_genes
from cmrcnet.slides.section import Section


class MeasuredGenes:
    """Collects sections; knows the genes that all of them measure.

    A section that reads every transcript (``absent_genes="zero"``) measures every gene of the cohort: one that it
    does not list was not found there. A section of a fixed assay measures only what it lists.
    """

    def __init__(self) -> None:
        self._order: dict[str, int] = {}  # gene -> order of first appearance
        self._assays: list[frozenset[str]] = []  # the different gene lists of fixed assays
        self._name = ""

    def add(self, section: Section) -> None:
        """Take note of one section.

        Raises
        ------
        GenesError
            It shares no gene with the sections before it, or only the few that two species write alike.
        """
        genes, known = frozenset(section.genes), list(self._order)
        if known and are_strangers(known, section.genes):
            hint = explain_no_shared_genes(known, section.genes)
            raise GenesError.none_shared(self._name, section.name, hint, shared=len(genes & self._order.keys()))
        self._name = self._name or section.name
        for gene in section.genes:
            self._order.setdefault(gene, len(self._order))
        if section.absent_genes != "zero" and genes not in self._assays:
            self._assays.append(genes)

    def shared(self) -> tuple[str, ...]:
        """Genes that every section measures, in the order in which the sections name them, first section first.

        Raises
        ------
        GenesError
        """
        shared = tuple(gene for gene in self._order if all(gene in assay for assay in self._assays))
        if not shared:
            raise GenesError.none_shared(self._name, "the other sections", "No gene is measured in all of them.")
        return shared
