"""Calibrate a trained model on its validation predictions: intervals, gene reliability, out-of-distribution detector.

Every group was predicted by heads that were fitted without it (`ValidationPredictions`). Here these scores become
expression of every gene, by a gene decoder of the other groups alone; the residuals calibrate intervals, and the
correlations give each gene's reliability. Ensemble weights, penalties and epoch were chosen on the same groups, and the
components were found on all: a handful of numbers beside thousands of spots. Nothing is read here: `TrainingData` holds
the sample of expression and the image statistics.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits

from cmrcnet.config import Config
from cmrcnet.genes.components import loadings_of
from cmrcnet.genes.spatial_stats import pearson_per_gene
from cmrcnet.heads.gene_decoder import GeneDecoder, SectionStatistics, fit_gene_decoder
from cmrcnet.heads.head import Head
from cmrcnet.training.data import TrainingData
from cmrcnet.training.heads import ValidationPredictions
from cmrcnet.uncertainty.calibration import Calibration, PredictionReliability
from cmrcnet.uncertainty.conformal import (
    FEWEST_PATIENTS,
    LEVEL,
    ConformalIntervals,
    conformal_quantiles,
    fit_nonconformity_scale,
    group_weights,
    nonconformity_features,
    scale_quantiles,
    widening,
)
from cmrcnet.uncertainty.gene_reliability import fit_gene_reliability
from cmrcnet.uncertainty.ood import fit_ood_detector

log = logging.getLogger("cmrcnet")

_GENES_AT_A_TIME = 256


@threadpool_limits.wrap(limits=1, user_api="blas")  # several threads may differ in the last bit, and so may two runs
def fit_calibration(
    data: TrainingData, config: Config, head: Head | None, predictions: ValidationPredictions | None
) -> Calibration:
    """Fit the out-of-distribution detector and, where groups were left out, intervals and gene reliability.

    The data are collected with ``limits=True``. Without `predictions` there are no intervals and no gene reliability.
    """
    groups, kind = data.groups(config.evaluation.group_by)
    detector = fit_ood_detector(
        data.image_statistics, data.perturbation_effects, [str(groups[first]) for first in data.first], kind
    )
    if head is not None and predictions is not None and data.sample is not None:
        return Calibration(detector, _reliability(data, config, head, predictions, groups, kind))
    if config.target.ranks and config.train.validation == "each" and len(data.sections) < 2:
        return Calibration(
            detector, None, "it was trained on one section, so that none could be left out to calibrate on"
        )
    return Calibration(
        detector,
        None,
        "its config does not leave out each group in turn; train with a config that works on expression components and "
        "has train.validation: each, as the preset `default` does",
    )


@dataclass(frozen=True, eq=False)
class HeldOutGroup:
    """Calibration spots of one validation split, and the gene decoder of the other spots."""

    out: np.ndarray
    """Indices of its calibration spots."""
    rest: np.ndarray
    """Indices of all others."""
    decoder: GeneDecoder
    """Fitted on `rest`."""

    @classmethod
    def of(
        cls,
        inside: np.ndarray,
        section_of: np.ndarray,
        statistics: dict[int, SectionStatistics],
        measured: np.ndarray,
    ) -> HeldOutGroup:
        """Fit the decoder of every gene on the sections outside of the group, whose spots are `inside` (bool).

        `measured` is (sections, genes) bool.
        """
        rest = np.flatnonzero(~inside)
        sections = np.unique(section_of[rest]).tolist()
        columns = [np.flatnonzero(measured[section]) for section in sections]
        decoder = fit_gene_decoder([statistics[s] for s in sections], columns, measured[sections])
        return cls(np.flatnonzero(inside), rest, decoder)


def section_statistics(
    expression: sparse.csc_matrix, measured: np.ndarray, section_of: np.ndarray, scores: np.ndarray
) -> dict[int, SectionStatistics]:
    """Sufficient statistics of each section, by its number, over the genes that it measured.

    Expression is (spots, genes), `measured` (sections, genes) bool, scores (spots, rank).
    """
    by_row, found = expression.tocsr(), {}
    for section in np.unique(section_of).tolist():
        mine = np.flatnonzero(section_of == section)
        columns = np.flatnonzero(measured[section])
        found[section] = SectionStatistics.of(by_row[mine][:, columns].tocsc(), scores[mine])
    return found


def _reliability(
    data: TrainingData,
    config: Config,
    head: Head,
    predictions: ValidationPredictions,
    groups: np.ndarray,
    kind: str,
) -> PredictionReliability:
    sample, search = data.sample, predictions.search
    assert sample is not None and data.panel is not None and data.scores is not None and data.scored is not None
    assert search.neighbour_std is not None and search.similarity is not None
    rows, genes, measured, expression = sample.rows, sample.genes, sample.measured, sample.expression
    section_of, groups = data.section_of[rows], groups[rows]
    parts = {name: values[rows] for name, values in predictions.parts.items()}
    scores = head.combine(parts, config.head.kind)
    statistics = section_statistics(expression, measured, section_of, data.scores[rows])
    held_out = [HeldOutGroup.of(np.isin(rows, split.ids), section_of, statistics, measured) for split in search.splits]

    # The nonconformity scale is fitted on all spots; each spot's own factor comes from a fit without its group, so that
    # the calibration stays split.
    power = (loadings_of(data.scores, data.scored) ** 2).mean(axis=1)
    deviation = search.neighbour_std[rows] * head.ensemble.component_weights
    features = nonconformity_features(search.similarity[rows], deviation, head.ensemble.scaled(parts), scores, power)
    residuals, factor = _relative_residual(data, rows, scores, held_out), np.ones(len(rows))
    for group in held_out:
        factor[group.out] = fit_nonconformity_scale(features[group.rest], residuals[group.rest]).scale(
            features[group.out]
        )
    nonconformity = fit_nonconformity_scale(features, residuals)

    names, patients = np.array(data.sections)[section_of], len(set(data.patients))
    weights = group_weights(groups, names)
    low, high = (np.full(len(genes), np.nan, np.float32) for _ in range(2))
    pearson, null = (np.full((len(genes), len(data.sections)), np.nan) for _ in range(2))
    for start in range(0, len(genes), _GENES_AT_A_TIME):
        chunk = np.arange(start, min(start + _GENES_AT_A_TIME, len(genes)))
        truth = expression[:, chunk].toarray().astype(np.float64)
        truth[~measured[section_of][:, chunk]] = np.nan
        predicted, permuted = np.full_like(truth, np.nan), np.full_like(truth, np.nan)
        for group in held_out:
            predicted[group.out] = group.decoder.expression(
                scores[group.out],
                chunk,
                covariance=head.ensemble.covariance,
                variance_rescaling=config.head.variance_rescaling,
                limits=data.panel.scaling.limits,
            )
            permuted[group.out] = predictions.permuted[rows[group.out]] @ group.decoder.loadings[:, chunk]
        for section in range(len(data.sections)):
            mine = section_of == section
            pearson[chunk, section] = pearson_per_gene(truth[mine], predicted[mine])
            null[chunk, section] = pearson_per_gene(truth[mine], permuted[mine])
        residual = (truth - predicted) / factor[:, None]
        wider = widening(offset_share(residual, weights, groups), patients, LEVEL)
        below, above = conformal_quantiles(residual, weights, LEVEL)
        known = np.sum([np.isfinite(residual[groups == name]).any(axis=0) for name in np.unique(groups)], axis=0)
        usable = (np.minimum(known, patients) >= FEWEST_PATIENTS) & np.isfinite(below) & np.isfinite(above)
        low[chunk] = np.where(usable, np.minimum(below, 0) * wider, np.nan)
        high[chunk] = np.where(usable, np.maximum(above, 0) * wider, np.nan)
    facts = {
        "level": LEVEL,
        "group_by": kind,
        "groups": len(set(groups.tolist())),
        "patients": patients,
        "sections": len(data.sections),
        "spots": len(rows),
        "head": config.head.kind,
        "k": config.head.k,
        "weighting": config.head.weighting,
        "names": sorted(set(groups.tolist())),
    }
    gene_reliability = fit_gene_reliability(genes, pearson, null, data.sections, data.patients, dict(facts))
    calibration = ConformalIntervals(low, high, scale_quantiles(factor, weights), facts)
    log.info("%s", calibration.sentence)
    return PredictionReliability(nonconformity, power, calibration, gene_reliability)


def _relative_residual(
    data: TrainingData, rows: np.ndarray, scores: np.ndarray, held_out: list[HeldOutGroup]
) -> np.ndarray:
    """Root mean square residual of each spot over the scored genes, each divided by its own root mean square."""
    assert data.scores is not None and data.scored is not None
    scored, measured = np.asarray(data.scored[rows].todense(), np.float64), data.scores[rows]
    residual = np.zeros_like(scored)
    for group in held_out:
        level, loadings = scored[group.rest].mean(axis=0), loadings_of(measured[group.rest], scored[group.rest])
        residual[group.out] = scored[group.out] - level - scores[group.out] @ loadings
    usual = np.sqrt((residual**2).mean(axis=0))
    return np.sqrt(((residual / np.maximum(usual, 1e-9)) ** 2).mean(axis=1))


def offset_share(residual: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Share of each gene's mean square residual that is an offset of whole groups: (genes,).

    Mean square over groups of their weighted mean residual, over the mean square residual. `residual` is (spots,
    genes), NaN where nothing was measured; weights and groups are (spots,).
    """
    known = np.isfinite(residual)
    values, weight = np.where(known, residual, 0.0), np.where(known, weights[:, None], 0.0)
    offsets, total = np.zeros(residual.shape[1]), np.zeros(residual.shape[1])
    for name in np.unique(groups):
        mine = groups == name
        share = weight[mine].sum(axis=0)
        offset = np.divide((weight[mine] * values[mine]).sum(axis=0), share, out=np.zeros_like(share), where=share > 0)
        offsets += share * offset**2
        total += (weight[mine] * values[mine] ** 2).sum(axis=0)
    return np.divide(offsets, total, out=np.zeros_like(total), where=total > 0)
