"""All scores of a method on the test sections of a fold: per gene, per set of genes, pooled over sections.

Here the truth is known. Nothing of this file is ever handed to a method.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from cmrcnet.errors import SectionError
from cmrcnet.evaluation import Frame, Sparse
from cmrcnet.evaluation.methods.method import Prediction
from cmrcnet.evaluation.metrics.gene_metrics import (
    PooledPearson,
    Undefined,
    over_genes,
    score_genes,
    score_sets,
    set_row,
    spearman_per_gene,
    ssim_per_gene,
    ssim_windows,
)
from cmrcnet.evaluation.metrics.noise_ceiling import noise_ceiling
from cmrcnet.evaluation.metrics.set_metrics import gene_gene_correlation, recall_of_highest, share_of_ceiling
from cmrcnet.evaluation.protocol.protocol_info import STRICT, ScoringProtocol
from cmrcnet.genes.gene_sets import EVERYTHING, LEAST_DETECTED, GenePanel
from cmrcnet.genes.scaling import COUNTS, Scaling
from cmrcnet.genes.spatial_stats import morans_i, snap_to_lattice, spot_graph
from cmrcnet.slides.section import Section

SET_METRICS = ("ceiling", "pearson_share", "gene_gene_error", "gene_gene_agreement", "svg_recall", "pooled_pearson")
"""Metrics of a set as a whole, beside the means of `gene_metrics.METRICS`.

``ceiling``: mean noise ceiling of the genes. ``pearson_share``: mean Pearson by mean ceiling, over genes that have
both. ``gene_gene_error`` and ``gene_gene_agreement``: see `set_metrics.gene_gene_correlation`; not for all genes.
``svg_recall``: of the set of all genes only, among genes counted in a tenth of the spots or more. ``pooled_pearson``:
over all test spots of the fold at once.
"""
GENE_COLUMNS = ("section", "gene", "pearson", "mse", "mean", "variance", "detected", "sets", "ceiling")
"""What `genes.csv` keeps of each gene; every further column would weigh a row a method, section and gene."""


@dataclass(frozen=True, eq=False)
class SectionTruth:
    """What scoring knows of one test section, worked out once for all methods."""

    genes: tuple[str, ...]  # those of the training sections that this section measured
    expression: Sparse  # (spots, genes), scaled; library sizes are over all genes of the section
    graph: Sparse  # (spots, spots): neighbours
    windows: Sparse  # (spots, spots): windows of the structural similarity
    moran: np.ndarray  # (genes,): Moran's I of the truth
    ceiling: np.ndarray  # (genes,): noise ceiling


class Scorer:
    """Scores predictions of test sections; remembers the truth of the sections of one fold.

    Parameters
    ----------
    scaling : Scaling
        Of the fold's panel.
    set_size : int
        Genes that SVG recall looks for, and genes of the truth's own sets under ``paper``.
    overdispersion : float
        Of the counts, for the noise ceiling.
    seed : int
        Of the splits behind the noise ceiling: not the seed of a training, so that all share one yardstick.
    """

    def __init__(
        self,
        scaling: Scaling = COUNTS,
        *,
        undefined: Undefined = "skip",
        set_size: int = 50,
        protocol: ScoringProtocol = STRICT,
        overdispersion: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.scaling = scaling
        self.undefined: Undefined = undefined
        self.set_size, self.protocol = set_size, protocol
        self._overdispersion, self._seed = overdispersion, seed
        self._ceilings: dict[str, dict[str, float]] = {}  # of every section, whatever the fold
        self._genes: Sequence[str] = ()
        self._kept: dict[str, SectionTruth] = {}

    def begin(self, sets: Mapping[str, Sequence[str]], among: Collection[str] | None = None) -> FoldScores:
        """Start scoring one method in one fold, whose sets these are (``all`` among them).

        Under ``paper``, sets of the truth are chosen from the genes in `among`, where given.
        """
        return FoldScores(self, sets, among)

    def truth(self, section: Section, genes: Sequence[str]) -> SectionTruth:
        """The truth of a section, for those of `genes` that it measured."""
        if tuple(genes) != self._genes:  # another fold
            self._genes, self._kept = tuple(genes), {}
        if section.name not in self._kept:
            measured, expression = truth_of(section, self._genes, self.scaling)
            expression = sparse.csc_matrix(expression)
            graph = spot_graph(section.spots.centre_px)
            if section.name not in self._ceilings:
                values = np.full(len(section.genes), np.nan)  # only counts tell of their own noise
                if self.scaling.logs:
                    how = {"seed": self._seed, "overdispersion": self._overdispersion}
                    values = noise_ceiling(section.counts, self.scaling.target_sum, **how)
                self._ceilings[section.name] = dict(zip(section.genes, values.tolist(), strict=True))
            ceilings = self._ceilings[section.name]
            self._kept[section.name] = SectionTruth(
                measured,
                expression,
                graph,
                ssim_windows(snap_to_lattice(section.spots.centre_px)),
                morans_i(expression, graph),
                np.array([ceilings.get(gene, np.nan) for gene in measured]),
            )
        return self._kept[section.name]


class FoldScores:
    """Scores of one method in one fold, section after section. Made by `Scorer.begin`."""

    def __init__(self, scorer: Scorer, sets: Mapping[str, Sequence[str]], among: Collection[str] | None = None) -> None:
        self._scorer, self._sets, self._among = scorer, sets, None if among is None else frozenset(among)
        self._rows: list[dict[str, Any]] = []
        self._pooled = PooledPearson(sets[EVERYTHING])
        self._seen: list[tuple[str, str]] = []  # sections and their patients
        self._measured: set[str] = set()
        self._scored_sets: dict[str, dict[str, None]] = {name: {} for name in sets}

    def add(self, section: Section, prediction: Prediction) -> Frame:
        """Score one section, and return its `GENE_COLUMNS`, one row a gene."""
        scorer, truth = self._scorer, self._scorer.truth(section, self._sets[EVERYTHING])
        guess = prediction.take(truth.genes)
        sets = scorer.protocol.scored_sets(self._sets, truth.genes, truth.expression, scorer.set_size, self._among)
        table = score_genes(truth.expression, guess, truth.genes)
        if scorer.scaling.kind in ("continuous", "proportions"):  # 0 is the middle there, not absence
            table["detected"], table["detection_auc"] = 1.0, np.nan
        moran = morans_i(guess, truth.graph)
        table["moran_error"] = np.abs(moran - truth.moran)
        table["ceiling"] = truth.ceiling
        column = {gene: i for i, gene in enumerate(truth.genes)}
        members = {name: [column[gene] for gene in genes if gene in column] for name, genes in sets.items()}
        named = sorted({i for name, columns in members.items() if name != EVERYTHING for i in columns})
        true, predicted = truth.expression[:, named].toarray(), guess[:, named]
        for name, values in (
            ("spearman", spearman_per_gene(true, predicted)),
            ("ssim", ssim_per_gene(true, predicted, truth.windows)),
        ):
            table[name] = np.nan
            table.loc[named, name] = values

        head = {"section": section.name, "patient": section.patient}
        rows = score_sets(table, sets, scorer.undefined) + self._of_sets(table, truth, guess, moran, members)
        self._rows += [head | row for row in rows]
        self._pooled.add(truth.expression, guess, truth.genes)
        self._seen.append((section.name, section.patient))
        self._measured.update(truth.genes)
        for name, genes in sets.items():
            self._scored_sets[name] |= dict.fromkeys(genes)

        of_gene: dict[str, list[str]] = {}
        for name, genes in sets.items():
            for gene in genes if name != EVERYTHING else ():
                of_gene.setdefault(gene, []).append(name)
        table["sets"] = [" ".join(of_gene.get(gene, ())) for gene in truth.genes]
        table.insert(0, "section", section.name)
        return table[list(GENE_COLUMNS)]

    def rows(self) -> list[dict[str, Any]]:
        """Rows of `scores.csv` without method and fold: `section, patient, gene_set, metric, value, n_genes, ...`.

        The pooled correlation has one row a set; its `section` and `patient` name all that were pooled, joined by
        `` + ``.
        """
        pooled = dict(zip(self._pooled.genes, self._pooled.values().tolist(), strict=True))
        head = {
            "section": " + ".join(section for section, _ in self._seen),
            "patient": " + ".join(dict.fromkeys(patient for _, patient in self._seen)),
        }
        found = []
        for name, genes in self._scored_sets.items():
            values = np.array([pooled[gene] for gene in genes if gene in self._measured])
            found.append(head | set_row(name, "pooled_pearson", *over_genes(values, self._scorer.undefined)))
        return self._rows + found

    def _of_sets(
        self,
        table: Frame,
        truth: SectionTruth,
        guess: np.ndarray,
        moran: np.ndarray,
        members: Mapping[str, list[int]],
    ) -> list[dict[str, Any]]:
        """Scores that a set has as a whole."""
        scorer, rows = self._scorer, []
        pearson = table["pearson"].to_numpy()
        if scorer.undefined == "zero":
            pearson = np.nan_to_num(pearson)
        for name, columns in members.items():
            rows.append(set_row(name, "ceiling", *over_genes(truth.ceiling[columns])))
            share, left_out = share_of_ceiling(pearson[columns], truth.ceiling[columns])
            rows.append(set_row(name, "pearson_share", share, len(columns), left_out))
            if name == EVERYTHING:
                common = table["detected"].to_numpy() >= LEAST_DETECTED
                recall, undefined = recall_of_highest(truth.moran[common], moran[common], scorer.set_size)
                rows.append(set_row(name, "svg_recall", recall, int(common.sum()), undefined))
            else:
                true = truth.expression[:, columns].toarray()
                error, agreement, left_out = gene_gene_correlation(true, guess[:, columns])
                rows.append(set_row(name, "gene_gene_error", error, len(columns), left_out))
                rows.append(set_row(name, "gene_gene_agreement", agreement, len(columns), left_out))
        return rows


def truth_of(section: Section, genes: Sequence[str], scaling: Scaling = COUNTS):
    """Those of `genes` that the section measured, and their expression (spots, genes), sparse.

    Library sizes are over all genes of the section.
    """
    known = set(section.genes)
    measured = tuple(gene for gene in genes if section.absent_genes == "zero" or gene in known)
    if not measured or known.isdisjoint(measured):
        raise SectionError.none_shared(f"Section {section.name}", "the training sections")
    return measured, GenePanel(measured, scaling, {"kind": "evaluation"}).select(section)
