"""From slides to patients: what is predicted at the locations of slides, pooled to one row a case.

==============  ======================================================================================================
expression      mean of each gene over the slide's tissue
components      of the leading components of expression, found over the training slides' locations: mean, 10 and 90 %
                quantile over the slide, and Moran's I
spatial         of signatures (mean log-expression of their genes): 10, 50 and 90 % quantile, Moran's I, regional share
                (locations in which the signature lies furthest above the training mean), and co-occurrence of each two
                (correlation of one with the other's mean over neighbouring locations)
colour          of the slide's picture under its locations: mean, deviation and histogram of each channel
imagenet        mean of the features of an encoder trained on ImageNet
embedding       mean of the expression model's image embedding
shuffled        as expression, by a model that was trained on shuffled pairs
==============  ======================================================================================================

Several slides of a case are pooled one by one, and then averaged. `outcomes.attention` weighs the locations themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np

from cmrcnet.errors import BadInput, Incompatible, SectionError, TooFew
from cmrcnet.evaluation import Frame
from cmrcnet.evaluation.methods.frozen_features import colour_statistics
from cmrcnet.evaluation.protocol.folds import refuse_seen
from cmrcnet.export.stored_prediction import StoredPrediction
from cmrcnet.genes.spatial_stats import morans_i, spot_graph
from cmrcnet.outcomes.cohort import EXPRESSION, Block, Columns, OutcomeCohort, refuse_expression

COMPONENTS = 8
"""Expression components that are pooled."""
_FIT_LOCATIONS = 20_000
"""Training locations that components are found on, at most."""
_REMEMBERED = 16
"""Training sets whose features a block remembers."""


@dataclass(frozen=True, eq=False)
class SlideValues:
    """What one slide's prediction table says.

    `centre_px` (locations, 2) float64 and `expression` (locations, genes) float32 are of the locations on tissue;
    `pooled` holds vectors by block ("colour", "imagenet", "embedding", "shuffled"). `picture` is a thumbnail, (height,
    width, 3) uint8, and `downsample` the level-0 pixels of one of its pixels.
    """

    slide: str
    case: str
    genes: tuple[str, ...]
    centre_px: np.ndarray
    side_px: float
    expression: np.ndarray
    picture: np.ndarray
    downsample: float
    facts: Mapping[str, Any]
    pooled: Mapping[str, np.ndarray] = field(default_factory=dict)


def slide_values(
    table: StoredPrediction,
    *,
    slide: str,
    case: str,
    cohort_patients: Sequence[str],
    shuffled: StoredPrediction | None = None,
    pooled: Mapping[str, np.ndarray] | None = None,
) -> SlideValues:
    """Read a slide's prediction.

    Parameters
    ----------
    table : StoredPrediction
        Predicted expression.
    slide, case : str
        Names.
    cohort_patients : sequence of str
        All patients of the outcome cohort: each is a test patient in some fold, so the model may have seen none.
    shuffled : StoredPrediction, optional
        Prediction of the same slide by a model that was trained on shuffled pairs.
    pooled : mapping of str to numpy.ndarray, optional
        Further vectors of the slide.

    Raises
    ------
    Leakage
        The expression model, its bank or its teacher was made with a patient of the cohort, or with a section that
        is called as the slide.
    Incompatible
        The table does not say which patients its model has seen.
    Damaged, TooFew
    """
    for each in (table, shuffled):
        if each is not None:
            _refuse_seen_tables(each, cohort_patients, slide)
    tissue = table.obs["in_tissue"].to_numpy() == 1
    if tissue.sum() < 4:
        raise TooFew(f"locations of {slide} lie on tissue", int(tissue.sum()), 4, "predict it on a finer grid")
    table.require_unchanged()
    picture, downsample = table.picture
    centres = table.centre_px[tissue]
    vectors = {"colour": slide_colour(picture, downsample, centres, table.side_px)} | dict(pooled or {})
    if shuffled is not None:
        shuffled.require_unchanged()
        if shuffled.facts["slide_fingerprint"] != table.facts["slide_fingerprint"]:
            raise Incompatible(slide, f"{shuffled.path} was predicted on another slide than {table.path}", _SHUFFLED)
        if shuffled.facts.get("model_fingerprint") == table.facts.get("model_fingerprint"):
            raise Incompatible(slide, f"one model predicted {table.path} and {shuffled.path}", _SHUFFLED)
        there = shuffled.obs["in_tissue"].to_numpy() == 1
        vectors["shuffled"] = np.asarray(shuffled.rows(slice(None)), np.float64)[there].mean(axis=0)
    return SlideValues(
        slide,
        case,
        tuple(table.genes),
        centres,
        table.side_px,
        table.rows(slice(None))[tissue],
        picture,
        downsample,
        table.facts,
        vectors,
    )


def _refuse_seen_tables(table: StoredPrediction, patients: Sequence[str], slide: str) -> None:
    """Refuse a table whose model, bank or teacher has seen one of these patients, or the slide as a section.

    A cohort without names of patients has those of its sections.
    """
    seen: dict[str, set[str]] = {"patients": set(), "sections": set()}
    for what in seen:
        for key in (f"bank_{what}", f"{what}_seen"):
            if key not in table.facts:
                why = f"it does not say which {what} its model has seen"
                raise Incompatible(table.path, why, "predict again with this version of cmrcnet")
            value = table.facts[key]
            seen[what] |= set(map(str, json.loads(value) if isinstance(value, str) else value))
    refuse_seen(
        f"The model of {table.path}",
        seen_sections=seen["sections"],
        seen_patients=seen["patients"],
        sections=dict.fromkeys((slide, str(table.facts.get("slide", slide)))),
        patients=patients,
    )


def slide_colour(picture: np.ndarray, downsample: float, centre_px: np.ndarray, side_px: float) -> np.ndarray:
    """Colour statistics (54,) of a slide's picture under its locations.

    `picture` (height, width, 3) uint8 shows ``downsample`` level-0 pixels a pixel.
    """
    reach = max(side_px / downsample / 2, 0.5)
    inside = np.zeros(picture.shape[:2], bool)
    for x, y in centre_px / downsample:
        rows = slice(max(int(y - reach), 0), max(int(np.ceil(y + reach)), 1))
        inside[rows, max(int(x - reach), 0) : max(int(np.ceil(x + reach)), 1)] = True
    pixels = picture[inside]
    if not len(pixels):
        raise BadInput("The picture of the slide", "a thumbnail", "no location lies on it")
    return colour_statistics(pixels[None, None, :, :3])[0].astype(np.float64)


@dataclass(frozen=True, eq=False)
class SlideStack:
    """Slides of the cases of a cohort: `of_case[i]` numbers the slides of case i."""

    slides: tuple[SlideValues, ...]
    of_case: tuple[np.ndarray, ...]
    genes: np.ndarray
    """Columns that every slide predicts at every location."""

    @classmethod
    def of(cls, slides: Sequence[SlideValues], cases: Sequence[str]) -> SlideStack:
        """Match slides with cases.

        Raises
        ------
        BadInput
            A slide without case, a case without slide, or a slide twice, by name or by its pixels.
        Incompatible
            Tables of two models, or with different genes.
        """
        where = {case: [] for case in cases}
        if repeated := sorted({s.slide for s in slides if [t.slide for t in slides].count(s.slide) > 1}):
            raise BadInput("the table of slides", "slides of the patients", f"{repeated[0]} is there twice")
        same: dict[Any, str] = {}
        for number, slide in enumerate(slides):
            other = same.setdefault(slide.facts["slide_fingerprint"], slide.slide)
            if other != slide.slide:
                why = f"{other} and {slide.slide} are one picture; name it once"
                raise BadInput("the table of slides", "slides of the patients", why)
            if slide.case not in where:
                why = f"slide {slide.slide} belongs to {slide.case}, which the table of patients does not name"
                raise BadInput("the table of slides", "slides of the patients", why)
            where[slide.case].append(number)
        if missing := [case for case, found in where.items() if not found]:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            why = f"{missing[0]}{more} has no slide; take it out of the table of patients"
            raise BadInput("the table of slides", "slides of the patients", why)
        first = slides[0]
        for slide in slides[1:]:
            if slide.genes != first.genes or slide.facts["units"] != first.facts["units"]:
                raise Incompatible(slide.slide, f"its genes or units differ from those of {first.slide}", _SAME)
            if slide.facts.get("model_fingerprint") != first.facts.get("model_fingerprint"):
                raise Incompatible(slide.slide, f"another model predicted {first.slide}", _SAME)
        known = np.all([np.isfinite(slide.expression).all(axis=0) for slide in slides], axis=0)
        if not known.any():
            raise SectionError.none_shared("The slides", "one another at every location")
        return cls(tuple(slides), tuple(np.array(where[case]) for case in cases), np.flatnonzero(known))

    def expression(self, number: int) -> np.ndarray:
        """Expression (locations, genes) of one slide."""
        return self.slides[number].expression[:, self.genes]

    @property
    def gene_names(self) -> list[str]:
        """Names of the columns of `expression`."""
        return [self.slides[0].genes[column] for column in self.genes]

    def pool(self, by_slide: np.ndarray, names: Sequence[str]) -> Frame:
        """Average rows of slides (slides, features) over each case's slides."""
        import pandas as pd

        rows = np.stack([by_slide[numbers].mean(axis=0) for numbers in self.of_case])
        return pd.DataFrame(rows, columns=pd.Index(list(names)))

    def training_slides(self, train: np.ndarray) -> np.ndarray:
        """Slides of some cases."""
        return np.concatenate([self.of_case[case] for case in train])


_SAME = "predict all slides with one model and one bank"
_SHUFFLED = "name a prediction of the same slide by a model that was trained on shuffled pairs"


def with_slides(
    cohort: OutcomeCohort, stack: SlideStack, signatures: Mapping[str, Sequence[str]] | None = None
) -> OutcomeCohort:
    """Add the blocks of the slides to a cohort: all of those that the slides know.

    Parameters
    ----------
    cohort : OutcomeCohort
        Its cases are those of the stack.
    stack : SlideStack
    signatures : mapping of str to sequence of str, optional
        Genes by name of signature; without, there is no block "spatial".

    Raises
    ------
    BadOption
        The cohort has expression of its own.
    """
    refuse_expression(cohort)
    slides = stack.slides
    means = np.stack([stack.expression(number).mean(axis=0, dtype=np.float64) for number in range(len(slides))])
    blocks: dict[str, Block] = {**cohort.blocks, EXPRESSION: Columns(stack.pool(means, stack.gene_names))}
    graphs = [spot_graph(slide.centre_px) for slide in slides]
    blocks["components"] = ComponentBlock(stack, tuple(graphs))
    known = set(stack.gene_names)
    there = {name: [g for g in genes if g in known] for name, genes in (signatures or {}).items()}
    if there := {name: genes for name, genes in there.items() if genes}:
        blocks["spatial"] = SignatureBlock.of(stack, graphs, there)
    for name in ("colour", "imagenet", "embedding", "shuffled"):
        if all(name in slide.pooled for slide in slides):
            vectors = np.stack([slide.pooled[name] for slide in slides])
            blocks[name] = Columns(stack.pool(vectors, [f"{name} {number}" for number in range(vectors.shape[1])]))
    return replace(cohort, blocks=blocks, stack=stack)


@dataclass(frozen=True, eq=False)
class ComponentBlock:
    """Means, quantiles and Moran's I of expression components that training slides give."""

    stack: SlideStack
    graphs: tuple[Any, ...]
    _known: dict[bytes, Frame] = field(default_factory=dict)

    def features(self, train: np.ndarray) -> Frame:
        """Find components on the training slides' locations, and pool their scores over every slide."""
        return _remembered(self._known, train, self._features)

    def _features(self, train: np.ndarray) -> Frame:
        middle, directions = location_components(self.stack, train, COMPONENTS)
        rank, rows = directions.shape[1], []
        for number, graph in enumerate(self.graphs):
            scores = (self.stack.expression(number) - middle) @ directions
            low, high = np.quantile(scores, [0.1, 0.9], axis=0)
            rows.append(np.concatenate([scores.mean(axis=0), low, high, morans_i(scores, graph)]))
        names = [f"{what} {number + 1}" for what in ("mean", "q10", "q90", "moran") for number in range(rank)]
        return self.stack.pool(np.nan_to_num(np.stack(rows)), names)


def location_components(stack: SlideStack, train: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of the expression at the training cases' locations.

    Returns the mean (genes,) and the directions (genes, rank), scaled so that scores have deviation 1.
    """
    from sklearn.decomposition import PCA

    numbers = stack.training_slides(train)
    each = max(4, _FIT_LOCATIONS // len(numbers))
    parts = []
    for number in numbers:
        values = stack.expression(int(number))
        rng = np.random.default_rng([len(values), int(number)])
        parts.append(values if len(values) <= each else values[rng.choice(len(values), each, replace=False)])
    values = np.concatenate(parts).astype(np.float64)
    pca = PCA(min(rank, *values.shape), svd_solver="covariance_eigh").fit(values)
    return pca.mean_, (pca.components_ / np.sqrt(np.maximum(pca.explained_variance_, 1e-12))[:, None]).T


@dataclass(frozen=True, eq=False)
class SignatureBlock:
    """Spatial statistics of signatures; the regional shares compare with the mean of the training slides."""

    stack: SlideStack
    names: tuple[str, ...]
    scores: tuple[np.ndarray, ...]  # of each slide: (locations, signatures)
    fixed: Frame  # statistics that need no training
    _known: dict[bytes, Frame] = field(default_factory=dict)

    @classmethod
    def of(cls, stack: SlideStack, graphs: Sequence[Any], signatures: Mapping[str, Sequence[str]]) -> SignatureBlock:
        """Score signatures at every location, and pool what needs no training."""
        column = {gene: number for number, gene in enumerate(stack.gene_names)}
        names = tuple(signatures)
        scores, rows = [], []
        for number, graph in enumerate(graphs):
            values = stack.expression(number)
            mine = np.column_stack([values[:, [column[g] for g in signatures[name]]].mean(axis=1) for name in names])
            scores.append(mine)
            rows.append(np.concatenate([*np.quantile(mine, [0.1, 0.5, 0.9], axis=0), morans_i(mine, graph)]))
            rows[-1] = np.concatenate([rows[-1], co_occurrence(mine, graph)])
        titles = [f"{what} {name}" for what in ("q10", "q50", "q90", "moran") for name in names]
        titles += [f"{a} with {b}" for a, b in combinations(names, 2)]
        return cls(stack, names, tuple(scores), stack.pool(np.nan_to_num(np.stack(rows)), titles))

    def features(self, train: np.ndarray) -> Frame:
        """Add the regional shares."""
        return _remembered(self._known, train, self._features)

    def _features(self, train: np.ndarray) -> Frame:
        import pandas as pd

        inside = np.concatenate([self.scores[number] for number in self.stack.training_slides(train)])
        middle, deviation = inside.mean(axis=0), np.maximum(inside.std(axis=0), 1e-9)
        shares = [
            np.bincount(((each - middle) / deviation).argmax(axis=1), minlength=len(self.names)) / len(each)
            for each in self.scores
        ]
        pooled = self.stack.pool(np.stack(shares), [f"share {name}" for name in self.names])
        return pd.concat([self.fixed, pooled], axis=1)


def co_occurrence(scores: np.ndarray, graph: Any) -> np.ndarray:
    """Correlation of each two columns, the one at a location and the other at its neighbours: (pairs,).

    The mean of both directions; `scores` (locations, signatures), `graph` from `spot_graph`. 0 where one is constant.

    Examples
    --------
    >>> graph = spot_graph(np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]))
    >>> co_occurrence(np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), graph).round(3).tolist()
    [1.0]
    """
    around = graph @ scores
    found = []
    for a, b in combinations(range(scores.shape[1]), 2):
        both = []
        for one, other in ((scores[:, a], around[:, b]), (scores[:, b], around[:, a])):
            one, other = one - one.mean(), other - other.mean()
            size = np.sqrt((one**2).sum() * (other**2).sum())
            both.append(float((one * other).sum() / size) if size > 1e-12 else 0.0)
        found.append(np.mean(both))
    return np.array(found)


def _remembered(known: dict[bytes, Frame], train: np.ndarray, make: Any) -> Frame:
    key = np.sort(train).tobytes()
    if key not in known:
        while len(known) >= _REMEMBERED:
            known.pop(next(iter(known)))
        known[key] = make(train)
    return known[key]
