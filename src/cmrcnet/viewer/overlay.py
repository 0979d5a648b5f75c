"""What is drawn over a slide: values of a gene, a signature or a certainty at each location, and their raster.

Coordinates are micrometres from the slide's upper left corner, x to the right and y downwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cmrcnet.analysis.localisation import signature_scores
from cmrcnet.errors import BadOption, UnknownName
from cmrcnet.export.stored_prediction import StoredPrediction
from cmrcnet.genes.markers import marker_organs, markers, organ_of_cohort
from cmrcnet.genes.naming import naming_of
from cmrcnet.genes.scaling import Scaling
from cmrcnet.genes.table import scaling_of
from cmrcnet.slides.section import Cohort, Section
from cmrcnet.slides.slide import ArraySlide, Slide, refuse_other_scale
from cmrcnet.uncertainty.conformal import bounds
from cmrcnet.viewer.tiles import SlideTiles

if TYPE_CHECKING:
    from scipy import sparse

GLYPHS = 10_000
"""Up to this number, locations are drawn one by one in the browser; beyond it the server pools them to a raster."""
RASTER_PX = 1_024
"""Longer side of a raster in cells, at most."""
FINEST = 8
"""Cells across a location, at most."""
PERCENTILES = (1, 99)
"""Ends of the colour scale of a slide, which keep a few extreme locations from dominating it."""

EXPRESSION, SPREAD, WIDTH = "Expression", "Spread among the neighbours", "Width of the interval"
SIGNATURE = "Signature"
OF_GENES = (EXPRESSION, SPREAD, WIDTH)
"""Quantities that are chosen together with a gene."""
_OF_LOCATIONS = {
    "Confidence": ("confidence", "share of validation spots that looked harder"),
    "Similarity to the bank": ("similarity", "mean cosine to the nearest measured spots"),
    "Out-of-distribution distance": ("ood_distance", "squared Mahalanobis distance of the image statistics"),
    "In distribution": ("in_distribution", "1: looks like the training sections, 0: does not"),
    "Abstained": ("abstained", "1: too uncertain to be used"),
}


class Values(NamedTuple):
    """One number a location, (locations,) float32 with NaN where unknown, and its units in words."""

    values: np.ndarray
    units: str


@dataclass(eq=False)
class PredictedSlide:
    """A prediction, the slide under it, and measured expression of the same slide where there is some.

    Parameters
    ----------
    prediction : StoredPrediction
    tiles : SlideTiles
    truth : Section, optional
        Measured on the same slide.
    signatures : mapping of str to sequence of str
        Genes of each signature.
    deep : bool
        Whether the tiles are of the predicted slide itself, and not of the small picture in the table.

    Raises
    ------
    BadOption
        The slide, or that of the section, is not the predicted one.
    ScaleError
        The slide is said to have another scale than it was predicted at, by more than 1 %.
    """

    prediction: StoredPrediction
    tiles: SlideTiles
    truth: Section | None = None
    signatures: Mapping[str, Sequence[str]] = field(default_factory=dict)
    deep: bool = True

    def __post_init__(self) -> None:
        facts = self.prediction.facts
        if self.deep and self.tiles.slide.fingerprint() != facts["slide_fingerprint"]:
            raise BadOption("slide", self.tiles.slide.name, f"the slide that was predicted ({facts['slide']})")
        if self.truth is not None and self.truth.slide.fingerprint() != facts["slide_fingerprint"]:
            raise BadOption("truth", self.truth.name, f"a section measured on the predicted slide ({facts['slide']})")
        if self.deep:
            refuse_other_scale(self.name, self.tiles.mpp, float(facts["mpp"]), mend="mpp")
        known = set(self.prediction.genes)
        there = {name: [gene for gene in genes if gene in known] for name, genes in self.signatures.items()}
        self.signatures = {name: genes for name, genes in there.items() if genes}

    @property
    def name(self) -> str:
        """Name of the slide."""
        return str(self.prediction.facts["slide"])

    @property
    def side_um(self) -> float:
        """Side (or diameter) of a location."""
        return float(self.prediction.facts["spot_diameter_um"])

    @property
    def mpp(self) -> float:
        """Micrometres per level-0 pixel, by which everything is placed: of the slide that is shown."""
        return self.tiles.mpp if self.deep else float(self.prediction.facts["mpp"])

    @cached_property
    def scaling(self) -> Scaling:
        """Of the values."""
        return scaling_of(self.prediction.location(0))

    @cached_property
    def centre_um(self) -> np.ndarray:
        """(locations, 2) float64."""
        return self.prediction.centre_px * self.mpp

    @property
    def quantities(self) -> list[str]:
        """Names of what can be shown."""
        shown = [EXPRESSION]
        shown += [SPREAD] if "neighbour_std" in self.prediction.layers else []
        shown += [WIDTH] if self._has_intervals else []
        shown += [SIGNATURE] if self.signatures else []
        for name, (column, _) in _OF_LOCATIONS.items():
            if column in self.prediction.obs and np.isfinite(self.prediction.obs[column]).any():
                shown.append(name)
        return shown

    @property
    def _has_intervals(self) -> bool:
        return "interval_scale" in self.prediction.obs and "interval_low" in self.prediction.var

    def values(self, quantity: str, name: str) -> Values:
        """Values of a quantity at each location.

        Parameters
        ----------
        quantity : str
            One of `quantities`.
        name : str
            The gene, or the signature; not used for a quantity of the locations alone.

        Raises
        ------
        UnknownName
        """
        units = str(self.prediction.facts["units"])
        if quantity == EXPRESSION:
            return Values(self.prediction.column(name), units)
        if quantity == SPREAD:
            return Values(self.prediction.column(name, "neighbour_std"), f"standard deviation, {units}")
        if quantity == WIDTH and self._has_intervals:
            mean = self.prediction.column(name)[:, None]
            lower, upper = self.interval(mean, np.arange(len(self.prediction)), [name])
            return Values(upper[:, 0] - lower[:, 0], f"upper minus lower bound, {units}")
        if quantity == SIGNATURE and name in self.signatures:
            import pandas as pd

            genes = self.signatures[name]
            table = pd.DataFrame({gene: self.prediction.column(gene) for gene in genes})
            scores = signature_scores(table, {name: genes})[0][name]
            return Values(scores.to_numpy(np.float32), f"mean z-score of {len(genes)} genes")
        if quantity == SIGNATURE:
            raise UnknownName("signature", name, list(self.signatures))
        if quantity not in self.quantities:
            raise UnknownName("quantity in this prediction", quantity, self.quantities)
        column, units = _OF_LOCATIONS[quantity]
        return Values(self.prediction.obs[column].to_numpy(np.float32), units)

    def interval(self, mean: np.ndarray, rows: np.ndarray, genes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds of the calibrated intervals around predictions, all (rows, genes); NaN without any."""
        if not self._has_intervals:
            return np.full_like(mean, np.nan), np.full_like(mean, np.nan)
        of_genes = self.prediction.var.loc[list(genes), ["interval_low", "interval_high"]].to_numpy(np.float64)
        scale = self.prediction.obs["interval_scale"].to_numpy(np.float64)[rows]
        return bounds(mean, scale, of_genes[:, 0], of_genes[:, 1], self.scaling.limits)

    # --- measured expression of the same slide

    @cached_property
    def truth_um(self) -> np.ndarray:
        """Centres of the measured spots (spots, 2)."""
        assert self.truth is not None
        return np.asarray(self.truth.spots.centre_px) * self.mpp

    @cached_property
    def _measured(self) -> tuple[sparse.csc_array | sparse.csc_matrix, dict[str, int]]:
        """Expression in the units of the prediction, and the column of each gene."""
        assert self.truth is not None
        return self.scaling.expression(self.truth).tocsc(), {g: i for i, g in enumerate(self.truth.genes)}

    def measured(self, quantity: str, name: str) -> np.ndarray | None:
        """Measured values at the spots of `truth`: of a gene, or of a signature; None for what is not measured."""
        if self.truth is None or quantity not in (EXPRESSION, SIGNATURE):
            return None
        expression, column = self._measured
        genes = [name] if quantity == EXPRESSION else list(self.signatures[name])
        known = [gene for gene in genes if gene in column]
        if quantity == EXPRESSION:
            if known:
                return expression[:, [column[name]]].toarray().ravel().astype(np.float32)
            zero = self.truth.absent_genes == "zero" and self.scaling.kind == "counts"
            return np.zeros(len(self.truth.spots), np.float32) if zero else None
        if not known:
            return None
        import pandas as pd

        table = pd.DataFrame(expression[:, [column[gene] for gene in known]].toarray(), columns=pd.Index(known))
        return signature_scores(table, {name: known})[0][name].to_numpy(np.float32)

    @cached_property
    def predicted_at(self) -> np.ndarray:
        """Row of the predicted location nearest to each measured spot, -1 where none is within one location's side."""
        from scipy.spatial import KDTree

        found, row = KDTree(self.centre_um).query(self.truth_um)
        return np.where(found <= self.side_um, row, -1)

    def error(self, predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
        """Predicted minus measured value at each measured spot (spots,), NaN where nothing is predicted near it."""
        at = self.predicted_at
        return np.where(at >= 0, predicted[at] - measured, np.nan).astype(np.float32)


def predicted_slide(
    prediction: StoredPrediction,
    *,
    slide: Slide | None = None,
    cohort: Cohort | None = None,
    truth: str | None = None,
) -> PredictedSlide:
    """Find the slide of a prediction, what was measured on it, and signatures of its organ.

    The slide is the one given, else that of the section `truth` of `cohort`, else that of the cohort's section of the
    same name, else the small picture in the table.

    Raises
    ------
    BadOption, UnknownName
    """
    facts = prediction.facts
    if truth is not None and cohort is None:
        raise BadOption("truth", truth, "a section together with a cohort that holds it")
    section = None if cohort is None or truth is None else cohort.read(truth)
    if slide is None and section is not None:
        slide = section.slide
    if slide is None and cohort is not None and facts["slide"] in cohort.sections:
        found = cohort.read(str(facts["slide"])).slide
        slide = found if found.fingerprint() == facts["slide_fingerprint"] else None
    deep = slide is not None
    if slide is None:
        picture, step = prediction.picture
        slide = ArraySlide(np.ascontiguousarray(picture), float(facts["mpp"]) * step, str(facts["slide"]))
    return PredictedSlide(prediction, SlideTiles(slide), section, _signatures(prediction.genes, cohort), deep)


def _signatures(genes: Sequence[str], cohort: Cohort | None) -> dict[str, tuple[str, ...]]:
    """Signatures of the cohort's organ; of all organs where that is not known, each with its organ's name."""
    if naming_of(genes).kind != "symbol":
        return {}
    if cohort is not None:
        with suppress(UnknownName):
            return markers(organ_of_cohort(cohort)).measured(genes)
    return {
        f"{organ}: {name}": found for organ in marker_organs() for name, found in markers(organ).measured(genes).items()
    }


def lie_side_by_side(centre_um: np.ndarray, side_um: float) -> bool:
    """Whether locations tile the slide, as those of a grid do; else each is a spot of its own."""
    from scipy.spatial import KDTree

    if len(centre_um) < 2:
        return True
    nearest = KDTree(centre_um).query(centre_um[: 2 * GLYPHS], k=2)[0][:, 1]
    return bool(np.median(nearest) <= 1.05 * side_um)


def genes_by_reliability(prediction: StoredPrediction) -> list[tuple[str, str]]:
    """Each gene with a line about it (grade, held-out Pearson, name), the most reliable first, unmeasured ones last."""
    var, genes = prediction.var, prediction.genes
    measured = var["reliability"].to_numpy(np.float64)
    grades = var["grade"].astype(str).to_numpy() if "grade" in var else np.full(len(var), "")
    order = np.argsort(-np.nan_to_num(measured, nan=-np.inf), kind="stable")
    lines = []
    for row in order:
        gene, known = genes[row], np.isfinite(measured[row])
        grade = grades[row] if known and len(grades[row]) == 1 else "–"
        pearson = f"{measured[row]:5.2f}" if known else "    –"
        lines.append((gene, f"{grade} {pearson}  {gene}".replace(" ", "\N{NO-BREAK SPACE}")))
    return lines


def colour_range(values: np.ndarray) -> tuple[float, float]:
    """Ends of the colour scale: percentiles 1 and 99 of the known values, never equal."""
    known = values[np.isfinite(values)]
    if not len(known):
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(known, PERCENTILES))
    if high - low < 1e-6 * max(1.0, abs(high)):
        low, high = float(known.min()), float(known.max())
    return (low, high) if high > low else (low - 0.5, low + 0.5)


class Raster(NamedTuple):
    """Cells (rows, columns) float32, NaN where there is nothing, and the rectangle that they cover."""

    cells: np.ndarray
    left: float
    top: float
    right: float
    bottom: float


def cell_um(side_um: float, width_um: float, height_um: float) -> float:
    """Side of a raster's cells: the location's, times or divided by a power of two, so that the raster fits."""
    wanted = max(width_um, height_um, side_um) / (RASTER_PX - 1)
    return side_um * 2.0 ** max(np.ceil(np.log2(wanted / side_um)), -np.log2(FINEST))


def raster(
    centre_um: np.ndarray, values: np.ndarray, side_um: float, window: tuple[float, float, float, float]
) -> Raster:
    """Rasterise square locations within a window (left, top, right, bottom).

    Where cells are as large as a location or smaller, a cell has the mean value of the locations that cover its centre;
    else of the locations whose centre it holds. The cells lie so that those of a regular grid are its locations, or
    exact parts of them.
    """
    left, top, right, bottom = window
    cell = cell_um(side_um, right - left, bottom - top)
    origin = np.array([centre_um[:, axis].min() for axis in (0, 1)]) - side_um / 2  # twice as quick as along axis 0
    first = np.floor((np.array([left, top]) - origin) / cell)
    columns, rows = (np.ceil((np.array([right, bottom]) - origin) / cell) - first).astype(int)
    start = origin + first * cell
    across = max(1, round(side_um / cell))
    # A cell's centre lies in [centre - side / 2, centre + side / 2) of `across` cells. Centres of a grid lie on the
    # boundary of that, whatever rounding makes of it.
    at = [np.ceil((centre_um[:, axis] - start[axis]) / cell - across / 2 - 0.5 - 1e-6) for axis in (0, 1)]
    near = np.isfinite(values)
    for place, most in zip(at, (columns, rows), strict=True):
        near &= (place > -across) & (place < most)
    column, row = (place[near].astype(int) for place in at)
    weights = values[near]
    count, total = np.zeros(rows * columns), np.zeros(rows * columns)
    for down in range(across):
        for along in range(across):
            inside = (column + along >= 0) & (column + along < columns) & (row + down >= 0) & (row + down < rows)
            where = ((row + down) * columns + column + along)[inside]
            count += np.bincount(where, minlength=rows * columns)
            total += np.bincount(where, weights[inside], minlength=rows * columns)
    cells = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    end = start + np.array([columns, rows]) * cell
    return Raster(cells.reshape(rows, columns).astype(np.float32), *map(float, start), *map(float, end))
