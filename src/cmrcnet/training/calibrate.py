"""What a training tells of the model's limits: its validation predictions against the truth, and the look of its
sections.

Each unit was predicted by parts that had not seen it (`ValidationParts`). Here these scores become expression of every
gene, by levels and loadings of the other units alone; the residuals calibrate intervals, and the correlations make
gene cards. The ensemble's weights, the penalties and the epoch were chosen on the same units, and the components were
found on all: a handful of numbers beside thousands of spots. Sections are read once more, one at a time.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits

from cmrcnet.config import Config
from cmrcnet.genes.components import loadings_of
from cmrcnet.genes.normalise import normalize
from cmrcnet.genes.spatial_stats import pearson_per_gene
from cmrcnet.heads.gene_decoder import GeneDecoder, SectionStatistics, fit_gene_decoder
from cmrcnet.heads.head import Head
from cmrcnet.slides.section import Cohort, Section
from cmrcnet.training.data import Pairs
from cmrcnet.training.heads import ValidationParts
from cmrcnet.training.validation_split import ValidationSplit
from cmrcnet.uncertainty.calibration import Reliability, Trust
from cmrcnet.uncertainty.conformal import (
    FEWEST_UNITS,
    LEVEL,
    Calibration,
    conformal_quantiles,
    factor_quantiles,
    unit_weights,
    widening,
)
from cmrcnet.uncertainty.gene_reliability import make_cards
from cmrcnet.uncertainty.nonconformity import Difficulty, difficulty_traits, fit_difficulty
from cmrcnet.uncertainty.ood import appearance, evenly, fit_domain, moves_of

log = logging.getLogger("cmrcnet")

MOST_SPOTS = 10_000
"""Validation spots that calibrate, at most, evenly picked: quantiles and correlations gain little from more."""
MOST_LOOKS = 500
"""Locations of a section that its look is learnt from."""

_GENES_AT_A_TIME = 256


@threadpool_limits.wrap(limits=1, user_api="blas")  # several threads may differ in the last bit, and so may two runs
def fit_trust(
    cohort: Cohort, pairs: Pairs, config: Config, head: Head | None, validation: ValidationParts | None
) -> Trust:
    """Calibrate intervals, make gene cards and learn what the sections look like.

    Parameters
    ----------
    cohort : Cohort
        The training sections, as in `pairs`.
    pairs : Pairs
    config : Config
    head : Head or None
    validation : ValidationParts or None
        Without it there are no intervals and no cards.
    """
    units = pairs.units(config.evaluation.group_by)
    unit = "section" if config.evaluation.group_by == "section" or len(set(pairs.patients)) < 2 else "patient"
    gathered = _Gathered(pairs, config.panel.target_sum) if validation is not None else None
    looks, moves = [], []
    for section in cohort:
        if gathered is not None:
            gathered.add(section)
        looks.append(appearance(section.slide, evenly(section.spots.centre_px, MOST_LOOKS)))
        moves.append(moves_of(section.slide, section.spots.centre_px))
        close = getattr(section.slide, "close", None)  # a slide in memory has nothing to close
        if close is not None:
            close()
    domain = fit_domain(looks, moves, [str(units[first]) for first in pairs.first], unit)
    if gathered is None or validation is None or head is None:
        return Trust(domain, None, _why_not(pairs, config))
    return Trust(domain, _reliability(gathered, pairs, config, head, validation, units, unit))


class _Gathered:
    """Expression of the calibration spots, gene by gene, over all genes that any section lists."""

    def __init__(self, pairs: Pairs, target_sum: float | str) -> None:
        self.rows = np.unique(np.linspace(0, len(pairs) - 1, min(MOST_SPOTS, len(pairs))).astype(np.int64))
        self._of, self._first, self._target = pairs.section_of[self.rows], pairs.first, target_sum
        self.genes: dict[str, int] = {}
        self._parts: list[sparse.coo_matrix] = []
        self._lists: list[frozenset[str] | None] = []  # None: the section measured every gene

    def add(self, section: Section) -> None:
        """The next section of the pairs."""
        number = len(self._parts)
        for gene in section.genes:
            self.genes.setdefault(gene, len(self.genes))
        kept = normalize(section.counts, self._target)[self.rows[self._of == number] - self._first[number]].tocoo()
        columns = np.array([self.genes[gene] for gene in section.genes])[kept.col]
        self._parts.append(sparse.coo_matrix((kept.data, (kept.row, columns)), shape=(kept.shape[0], len(self.genes))))
        self._lists.append(None if section.absent_genes == "zero" else frozenset(section.genes))

    def expression(self) -> sparse.csc_matrix:
        """(rows, genes) float32."""
        for part in self._parts:
            part.resize(part.shape[0], len(self.genes))
        return sparse.csc_matrix(sparse.vstack(self._parts, format="csc"), dtype=np.float32)

    def measured(self) -> np.ndarray:
        """(sections, genes) bool."""
        return np.array([[its is None or gene in its for gene in self.genes] for its in self._lists])


@dataclass(frozen=True, eq=False)
class _Side:
    """One validation group beside the rest, among the calibration spots."""

    out: np.ndarray
    rest: np.ndarray
    levels: GeneDecoder


def _reliability(
    gathered: _Gathered,
    pairs: Pairs,
    config: Config,
    head: Head,
    validation: ValidationParts,
    units: np.ndarray,
    unit: str,
) -> Reliability:
    rows, genes = gathered.rows, tuple(gathered.genes)
    expression, measured = gathered.expression(), gathered.measured()
    section_of, units = pairs.section_of[rows], units[rows]
    parts = {name: values[rows] for name, values in validation.parts.items()}
    scores = head.combine(parts, config.head.kind)
    columns = [np.flatnonzero(its) for its in measured]
    moments = _moments(expression, columns, section_of, pairs.scores[rows])
    sides = [_side(split, rows, section_of, moments, columns, measured) for split in validation.search.splits]
    traits, power = _traits(pairs, rows, head, validation, parts, scores)
    difficulty, factor = _difficulty(traits, _missed(pairs, rows, scores, sides), sides)

    names, patients = np.array(pairs.sections)[section_of], len(set(pairs.patients))
    weights = unit_weights(units, names)
    low, high = (np.full(len(genes), np.nan, np.float32) for _ in range(2))
    pearson, null = (np.full((len(genes), len(pairs.sections)), np.nan) for _ in range(2))
    for start in range(0, len(genes), _GENES_AT_A_TIME):
        block = np.arange(start, min(start + _GENES_AT_A_TIME, len(genes)))
        truth = expression[:, block].toarray().astype(np.float64)
        truth[~measured[section_of][:, block]] = np.nan
        guess, unknowing = np.full_like(truth, np.nan), np.full_like(truth, np.nan)
        for side in sides:
            guess[side.out] = side.levels.expression(
                scores[side.out],
                block,
                covariance=head.ensemble.covariance,
                variance_rescaling=config.head.variance_rescaling,
            )
            unknowing[side.out] = validation.permuted[rows[side.out]] @ side.levels.loadings[:, block]
        for section in range(len(pairs.sections)):
            mine = section_of == section
            pearson[block, section] = pearson_per_gene(truth[mine], guess[mine])
            null[block, section] = pearson_per_gene(truth[mine], unknowing[mine])
        residual = (truth - guess) / factor[:, None]
        wider = widening(_offset_share(residual, weights, units), patients, LEVEL)
        below, above = conformal_quantiles(residual, weights, LEVEL)
        several = _units_with(residual, units) >= FEWEST_UNITS
        usable = several & np.isfinite(below) & np.isfinite(above)
        low[block] = np.where(usable, np.minimum(below, 0) * wider, np.nan)
        high[block] = np.where(usable, np.maximum(above, 0) * wider, np.nan)
    facts = {
        "level": LEVEL,
        "unit": unit,
        "units": len(set(units.tolist())),
        "patients": patients,
        "sections": len(pairs.sections),
        "spots": len(rows),
        "head": config.head.kind,
        "k": config.head.k,
        "weighting": config.head.weighting,
        "names": sorted(set(units.tolist())),
    }
    cards = make_cards(genes, pearson, null, pairs.sections, pairs.patients, dict(facts), config.train.seed)
    calibration = Calibration(low, high, factor_quantiles(factor, weights), facts)
    log.info("%s", calibration.sentence)
    return Reliability(difficulty, power, calibration, cards)


def _moments(
    expression: sparse.csc_matrix, columns: list[np.ndarray], section_of: np.ndarray, scores: np.ndarray
) -> dict[int, SectionStatistics]:
    """What each section has to say, by its number; validation units are whole sections."""
    by_row, found = expression.tocsr(), {}
    for section in np.unique(section_of).tolist():
        mine = np.flatnonzero(section_of == section)
        found[section] = SectionStatistics.of(by_row[mine][:, columns[section]].tocsc(), scores[mine])
    return found


def _side(
    split: ValidationSplit,
    rows: np.ndarray,
    section_of: np.ndarray,
    moments: dict[int, SectionStatistics],
    columns: list[np.ndarray],
    measured: np.ndarray,
) -> _Side:
    """Levels and loadings of every gene from the rest alone."""
    inside = np.isin(rows, split.ids)
    rest = np.flatnonzero(~inside)
    sections = np.unique(section_of[rest]).tolist()
    levels = fit_gene_decoder([moments[s] for s in sections], [columns[s] for s in sections], measured[sections])
    return _Side(np.flatnonzero(inside), rest, levels)


def _traits(
    pairs: Pairs,
    rows: np.ndarray,
    head: Head,
    validation: ValidationParts,
    parts: dict[str, np.ndarray],
    scores: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    search = validation.search
    power = (loadings_of(pairs.scores, pairs.scored) ** 2).mean(axis=1)
    spread = search.spread[rows] * head.ensemble.component_weights
    return difficulty_traits(search.similarity[rows], spread, head.ensemble.scaled(parts), scores, power), power


def _missed(pairs: Pairs, rows: np.ndarray, scores: np.ndarray, sides: list[_Side]) -> np.ndarray:
    """Root mean square residual of each spot over the genes that choose, each by its own root mean square."""
    scored, of = np.asarray(pairs.scored[rows].todense(), np.float64), pairs.scores[rows]
    residual = np.zeros_like(scored)
    for side in sides:
        level = scored[side.rest].mean(axis=0)
        residual[side.out] = scored[side.out] - level - scores[side.out] @ loadings_of(of[side.rest], scored[side.rest])
    usual = np.sqrt((residual**2).mean(axis=0))
    return np.sqrt(((residual / np.maximum(usual, 1e-9)) ** 2).mean(axis=1))


def _difficulty(traits: np.ndarray, missed: np.ndarray, sides: list[_Side]) -> tuple[Difficulty, np.ndarray]:
    """Fitted on all; and each spot's factor by a fit without its unit, so that the calibration stays split."""
    factor = np.ones(len(traits))
    for side in sides:
        factor[side.out] = fit_difficulty(traits[side.rest], missed[side.rest]).factor(traits[side.out])
    return fit_difficulty(traits, missed), factor


def _offset_share(residual: np.ndarray, weights: np.ndarray, units: np.ndarray) -> np.ndarray:
    """(genes,): mean square over units of their weighted mean residual, over the mean square residual."""
    known = np.isfinite(residual)
    values, weight = np.where(known, residual, 0.0), np.where(known, weights[:, None], 0.0)
    offsets, total = np.zeros(residual.shape[1]), np.zeros(residual.shape[1])
    for unit in np.unique(units):
        mine = units == unit
        share = weight[mine].sum(axis=0)
        offset = np.divide((weight[mine] * values[mine]).sum(axis=0), share, out=np.zeros_like(share), where=share > 0)
        offsets += share * offset**2
        total += (weight[mine] * values[mine] ** 2).sum(axis=0)
    return np.divide(offsets, total, out=np.zeros_like(total), where=total > 0)


def _units_with(residual: np.ndarray, units: np.ndarray) -> np.ndarray:
    """(genes,): in how many units each gene has a residual."""
    return np.sum([np.isfinite(residual[units == unit]).any(axis=0) for unit in np.unique(units)], axis=0)


def _why_not(pairs: Pairs, config: Config) -> str:
    if config.target.ranks and config.train.validation == "each" and len(pairs.sections) < 2:
        return "it was trained on one section, so that nothing could be held in to calibrate on"
    return (
        "its config does not hold in each unit in turn; train with a config that works on expression components and "
        "has train.validation: each, as `default` does"
    )
