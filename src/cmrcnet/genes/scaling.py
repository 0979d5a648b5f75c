"""How a measured table becomes the expression that is learnt, averaged, predicted and scored, and back.

=============  ===========================================================  =========================================
kind           expression                                                   inverse
=============  ===========================================================  =========================================
counts         log1p at one library size                                    expm1: counts at that library size
               or analytic Pearson residuals                                none
continuous     standard deviations from the mean of the section, or of all  times deviation plus mean of training;
               training sections                                            none within a section
proportions    centred log-ratio: log share less the mean log share of the  softmax over all parts
               spot (Aitchison, Journal of the Royal Statistical Society B
               44, 1982)
binary         0 or 1                                                       cut to 0 to 1: a share of neighbours
=============  ===========================================================  =========================================

Analytic Pearson residuals (Lause, Berens and Kobak, Genome Biology 22, 258, 2021) of the counts x of a section of n
spots, with depth d_i of spot i and share p_g of gene g in all counts, theta = 100::

    z_ig = (x_ig - d_i p_g) / sqrt(d_i p_g + (d_i p_g)^2 / theta),  cut to -sqrt(n) to sqrt(n)

The logarithm of a share of 0 does not exist. Every share below a small one counts as it, and the row is closed to a sum
of 1 again, which no log-ratio sees::

    x_j = max(x_j, zero_replacement) / sum_k max(x_k, zero_replacement)

It is a limit of detection (rounded zeros: Martin-Fernandez, Barcelo-Vidal and Pawlowsky-Glahn, Mathematical Geology 35,
2003). They replace only the shares of 0: a replacement above the smallest measured share would then rank a part that is
absent above one that is there. A floor keeps the order of the parts, and makes those below it equal.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy import sparse

from cmrcnet.config import PanelConfig
from cmrcnet.errors import BadOption, CmrcnetWarning, SectionError, TooFew
from cmrcnet.slides.section import Section
from cmrcnet.slides.table_kinds import FEATURE_WORD, TableKind

NO_CEILING = (
    "there is no noise ceiling: for the log of counts it follows from the counts, for other values nothing tells it"
)
MUCH_BELOW = 0.05
"""Part of the positive shares of proportions that may lie below `zero_replacement` without a warning."""


@dataclass(frozen=True)
class Scaling:
    """How tables of one kind become expression.

    Parameters
    ----------
    kind : {"counts", "continuous", "proportions", "binary"}
        Of the table.
    target_sum : float or "median"
        Library size before log1p, of counts.
    target : {"log", "pearson"}
        Of counts: log1p at that library size, or analytic Pearson residuals.
    standardize : {"section", "training"}
        Whose mean and deviation a continuous table is standardised by.
    zero_replacement : float
        Smallest share of proportions: 0 and every share below it count as it.
    features : tuple of str
        Of `mean` and `deviation`; and all parts of proportions.
    mean, deviation : tuple of float
        Of each feature over the training spots, for "training".

    Examples
    --------
    >>> Scaling("proportions", features=("tumour", "stroma")).inverse(np.array([[1.0, -1.0]])).round(2)
    array([[0.88, 0.12]])
    >>> Scaling().units
    'log1p of counts per 10,000'
    """

    kind: TableKind = "counts"
    target_sum: float | Literal["median"] = 10_000.0
    target: Literal["log", "pearson"] = "log"
    standardize: Literal["section", "training"] = "section"
    zero_replacement: float = 0.01
    features: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()

    @property
    def units(self) -> str:
        """Units of the expression in words."""
        if self.kind == "continuous":
            whose = "its section" if self.standardize == "section" else "the training spots"
            return f"standard deviations from the mean of {whose}"
        if self.kind == "proportions":
            return f"centred log-ratio of proportions, with shares of {self.zero_replacement:g} or more"
        if self.kind == "binary":
            return "share of positive locations, 0 to 1"
        if self.target == "pearson":
            return "analytic Pearson residuals of counts within the section"
        if self.target_sum == "median":
            return "log1p of counts scaled to the median library size of each section"
        return f"log1p of counts per {float(self.target_sum):,.10g}"

    @property
    def word(self) -> str:
        """What a column is called: "gene" or "feature"."""
        return FEATURE_WORD[self.kind]

    @property
    def limits(self) -> tuple[float, float]:
        """Smallest and largest value that expression can have: 0 to 1 for shares, 0 or more for logs of counts."""
        return 0.0 if self.kind == "binary" or self.logs else -np.inf, 1.0 if self.kind == "binary" else np.inf

    @property
    def logs(self) -> bool:
        """Whether expression is the log of counts, of which a noise ceiling is known."""
        return self.kind == "counts" and self.target == "log"

    def expression(self, section: Section) -> sparse.csr_matrix:
        """Expression (spots, features) float32 of all features of a section, in its order.

        `SectionError`: its table is of another kind, has other parts than those of training (proportions), features
        that no training section has ("training"), or one spot to standardise over.
        """
        self._require(section)
        if self.logs:
            return normalize(section.counts, self.target_sum)
        if self.kind == "counts":
            return sparse.csr_matrix(pearson_residuals(section.counts))
        values = np.asarray(section.counts.todense(), np.float64)
        if self.kind == "continuous":
            mean, deviation = values.mean(axis=0), values.std(axis=0)
            if self.standardize == "training":
                at = [self._column[feature] for feature in section.genes]
                mean, deviation = np.array(self.mean)[at], np.array(self.deviation)[at]
            values = standardized(values, mean, deviation)
        elif self.kind == "proportions":
            values = centred_log_ratio(values, self.zero_replacement)
        return sparse.csr_matrix(values.astype(np.float32))

    def spot_weights(self, section: Section) -> np.ndarray:
        """Weight (spots,) float32 of each spot in least squares: by depth for counts (`spot_weights`), else 1."""
        return spot_weights(section.counts) if self.kind == "counts" else np.ones(len(section.spots), np.float32)

    def inverse(self, expression: np.ndarray, features: Sequence[str] | None = None) -> np.ndarray:
        """Values in the table's own units (locations, features), float64, of expression of the same shape.

        Parameters
        ----------
        features : sequence of str, optional
            Names of the columns; those of the scaling when left out.

        Raises
        ------
        BadOption
            There is no inverse: standardised within a section, or Pearson residuals, whose level a new slide does not
            show; or not all parts of proportions.
        """
        values = np.asarray(expression, np.float64)
        if self.logs:
            return np.expm1(values)
        if self.kind == "counts":
            want = "log, for counts: the depth and the shares of a new section are not known"
            raise BadOption("panel.target", "pearson", want=want)
        if self.kind == "binary":
            return np.clip(values, 0, 1)
        names = tuple(self.features if features is None else features)
        if self.kind == "proportions":
            if set(names) != set(self.features):
                raise BadOption("features", f"{len(names)} of {len(self.features)}", want="all parts of the whole")
            high = np.exp(values - values.max(axis=1, keepdims=True))
            return high / high.sum(axis=1, keepdims=True)
        if self.standardize == "section":
            want = "training, for values in the table's own units: the level of a new section is not known"
            raise BadOption("panel.standardize", "section", want=want)
        at = [self._column[feature] for feature in names]
        return values * np.array(self.deviation)[at] + np.array(self.mean)[at]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Scaling:
        """Inverse of `to_dict`."""
        lists = {key: tuple(values[key]) for key in ("features", "mean", "deviation")}
        return cls(**{**values, **lists})

    @property
    def _column(self) -> dict[str, int]:
        return {feature: column for column, feature in enumerate(self.features)}

    def _require(self, section: Section) -> None:
        """Raise `SectionError` for a section that this scaling does not fit."""
        if section.table_kind != self.kind:
            raise SectionError.other_kind(section.name, section.table_kind, self.kind, "the model or cohort holds")
        known, own = set(self.features), set(section.genes)
        if self.kind == "proportions" and known != own:
            other = sorted(known ^ own)
            raise SectionError(
                f"{section.name} has {len(own)} parts and the training sections {len(known)}, which differ in "
                f"{', '.join(other[:5])}; log-ratios compare only the same parts, so give every section all of them."
            )
        if self.kind == "continuous" and self.standardize == "training" and not own <= known:
            other = [feature for feature in section.genes if feature not in known]
            raise SectionError.not_measured("The training data", other, len(own), f"{section.name} has them.")
        if self.kind == "continuous" and self.standardize == "section" and len(section.spots) < 2:
            raise SectionError(
                f"{section.name} has one location, which cannot be standardised within its section; set "
                "panel.standardize to training."
            )


COUNTS = Scaling()
"""Of counts, by default."""


def fit_scaling(sections: Iterable[Section], config: PanelConfig) -> Scaling:
    """The scaling of training sections by a config; all must hold tables of one kind.

    Of counts and binary tables only the first section is read. Of proportions, `CmrcnetWarning` where more than
    `MUCH_BELOW` of the positive shares lie below `zero_replacement`, which makes them equal.
    """
    first, names = None, dict[str, int]()
    positive, below = 0, 0
    count, mean, squares = (np.zeros(0) for _ in range(3))
    options = {"standardize": config.standardize, "zero_replacement": config.zero_replacement}
    for section in sections:
        if first is None:
            first = section
            if first.table_kind in ("counts", "binary"):
                return Scaling(first.table_kind, config.target_sum, config.target)
        if section.table_kind != first.table_kind:
            raise SectionError.other_kind(section.name, section.table_kind, first.table_kind, f"{first.name} holds")
        for feature in section.genes:
            names.setdefault(feature, len(names))
        if first.table_kind == "proportions":
            shares = section.counts.data
            positive += int((shares > 0).sum())
            below += int(((shares > 0) & (shares < config.zero_replacement)).sum())
        if first.table_kind == "continuous" and config.standardize == "training":
            count, mean, squares = (np.pad(each, (0, len(names) - len(each))) for each in (count, mean, squares))
            at, values = [names[feature] for feature in section.genes], section.counts.toarray().astype(np.float64)
            own, before, more = values.mean(axis=0), count[at], len(values)
            count[at] += more
            squares[at] += ((values - own) ** 2).sum(axis=0) + (own - mean[at]) ** 2 * before * more / count[at]
            mean[at] += (own - mean[at]) * more / count[at]
    if first is None:
        raise TooFew("training sections", 0, 1, "give a cohort with at least one section")
    features = tuple(names)
    if first.table_kind == "proportions" and not 0 < config.zero_replacement * len(features) < 1:
        want = f"a share above 0 and below 1 / {len(features)}, the number of parts"
        raise BadOption("panel.zero_replacement", config.zero_replacement, want=want)
    if below > MUCH_BELOW * positive:
        warnings.warn(
            f"More than {MUCH_BELOW:.0%} of the shares above 0 of the training sections lie below "
            f"panel.zero_replacement ({config.zero_replacement:g}) and count as it; set it to the smallest share that "
            "the measurement tells from 0.",
            CmrcnetWarning,
            stacklevel=2,
        )
    if first.table_kind == "proportions" or config.standardize == "section":
        return Scaling(first.table_kind, config.target_sum, **options, features=features)
    deviation = np.sqrt(squares / count)
    deviation[deviation <= 1e-7 * np.abs(mean)] = 0.0
    return Scaling(
        "continuous", config.target_sum, **options, features=features, mean=tuple(mean.tolist()),
        deviation=tuple(deviation.tolist()),
    )  # fmt: skip


def pearson_residuals(counts: sparse.csr_matrix, theta: float = 100.0) -> np.ndarray:
    """Analytic Pearson residuals (spots, genes) float32 of the counts of one section; 0 where nothing is expected.

    Equal to `scanpy.experimental.pp.normalize_pearson_residuals`.

    Examples
    --------
    >>> pearson_residuals(sparse.csr_matrix([[2, 0], [0, 2]])).round(2)
    array([[ 1.  , -1.  ],
           [-1.  ,  1.  ]], dtype=float32)
    """
    values = counts.toarray().astype(np.float64)
    expected = np.outer(values.sum(axis=1), values.sum(axis=0)) / max(values.sum(), 1.0)
    spread = np.sqrt(expected + expected**2 / theta)
    residuals = np.divide(values - expected, spread, out=np.zeros_like(values), where=spread > 0)
    most = np.sqrt(len(values))
    return np.clip(residuals, -most, most).astype(np.float32)


def standardized(values: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Standard deviations from the mean, by column; 0 where a column does not vary."""
    varies = deviation > 1e-7 * np.abs(mean)
    return np.where(varies, (values - mean) / np.where(varies, deviation, 1.0), 0.0)


def centred_log_ratio(shares: np.ndarray, zero_replacement: float) -> np.ndarray:
    """Centred log-ratio (spots, parts) of proportions; shares below `zero_replacement` count as it.

    Examples
    --------
    >>> centred_log_ratio(np.array([[0.5, 0.5, 0.0], [0.5, 0.49, 0.01]]), 0.02).round(2)
    array([[ 1.07,  1.07, -2.15],
           [ 1.08,  1.06, -2.14]])
    """
    logs = np.log(np.maximum(shares / shares.sum(axis=1, keepdims=True), zero_replacement))
    return logs - logs.mean(axis=1, keepdims=True)


def library_sizes(counts: sparse.csr_matrix) -> np.ndarray:
    """Counts of each spot over all its genes: (spots,) float64."""
    return np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()


def scale_factors(library: np.ndarray, target_sum: float | Literal["median"]) -> np.ndarray:
    """Factor of each spot's counts: (spots,) float64; 0 for an empty spot.

    `library` is from `library_sizes`; `target_sum` is the library size after scaling, where "median" is that of this
    section's spots with any count.
    """
    if target_sum != "median" and not (np.isfinite(target_sum) and target_sum > 0):
        raise BadOption("target_sum", target_sum, want='a sum above 0, or "median"')
    filled = library > 0
    target = (float(np.median(library[filled])) if filled.any() else 1.0) if target_sum == "median" else target_sum
    return np.divide(float(target), library, out=np.zeros_like(library), where=filled)


def normalize(counts: sparse.csr_matrix, target_sum: float | Literal["median"] = 10_000.0) -> sparse.csr_matrix:
    """Scale every spot to the same library size and take log1p: ``log(1 + count / library * target_sum)``.

    Equal to `scanpy.pp.normalize_total` and `scanpy.pp.log1p`. An empty spot stays zero.

    Parameters
    ----------
    counts : sparse matrix, shape (spots, genes)
        Raw counts of all genes of the section: the library size is their sum.
    target_sum : float or "median"
        Library size after scaling; "median" is that of this section's non-empty spots (as in the released code; it
        makes sections differ in scale).

    Returns
    -------
    scipy.sparse.csr_matrix, shape (spots, genes), float32

    Raises
    ------
    BadOption

    Examples
    --------
    >>> expression = normalize(sparse.csr_matrix([[1, 3], [0, 0]]), target_sum=4)
    >>> np.expm1(expression.toarray()).round(3)
    array([[1., 3.],
           [0., 0.]], dtype=float32)
    """
    counts = sparse.csr_matrix(counts)
    return log_scaled(counts, scale_factors(library_sizes(counts), target_sum))


def log_scaled(counts: sparse.csr_matrix, factor: np.ndarray) -> sparse.csr_matrix:
    """log1p of counts times each spot's factor, float32; zeros are not stored."""
    each = np.repeat(factor, np.diff(counts.indptr))
    values = np.log1p(counts.data * each).astype(np.float32)
    result = sparse.csr_matrix((values, counts.indices.copy(), counts.indptr.copy()), shape=counts.shape)
    result.eliminate_zeros()
    return result


def spot_weights(counts: sparse.csr_matrix) -> np.ndarray:
    """Weigh the spots of one section by sequencing depth, for least squares: (spots,) float32 of mean 1.

    The counting noise of log-normalised expression falls as one over the spot's depth, so that spot i gets the inverse
    of the variance ``1 + g / d_i`` (weighted least squares, Aitken 1936)::

        w_i = d_i / (d_i + g) / mean_j(d_j / (d_j + g))        d = counts of the spot, g = exp(mean_j log d_j)

    The mean is 1 in every section, so that a section sequenced twice as deeply has the same weight as another. A spot
    without counts weighs 0; all weigh 1 when no spot has any.

    Examples
    --------
    >>> spot_weights(sparse.csr_matrix([[10], [10], [0]]))
    array([1.5, 1.5, 0. ], dtype=float32)
    """
    depth = np.asarray(counts.sum(axis=1), np.float64).ravel()
    counted = depth > 0
    if not counted.any():
        return np.ones(len(depth), np.float32)
    usual = np.exp(np.log(depth[counted]).mean())
    weights = depth / (depth + usual)
    return (weights / weights.mean()).astype(np.float32)
