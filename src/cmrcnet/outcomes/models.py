"""Models of an outcome, fitted on training cases only: Cox and logistic regression with an elastic-net penalty.

Every block of features is prepared on the training cases: missing numbers become the training median, categories become
columns (a missing one is a category), all is standardised and drawn in to `LIMIT` deviations, and a block wider than
`components` is reduced to that many principal components, each standardised and drawn in likewise. Clinical columns
keep a small fixed penalty; that of the other blocks is chosen by an inner cross-validation of the training cases, so
that a model of both can come down to the clinical one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cmrcnet.errors import BadOption, Diverged, MissingExtra
from cmrcnet.evaluation import Frame
from cmrcnet.outcomes.cohort import CLINICAL, Classes, OutcomeCohort, Survival
from cmrcnet.outcomes.folds import splits
from cmrcnet.outcomes.metrics import kaplan_meier, partial_log_likelihood

CLINICAL_PENALTY = 0.01
"""Of standardised clinical columns, in lifelines' scale (the log likelihood is a mean over cases)."""
LIMIT = 4.0
"""Deviations beyond which a standardised value is drawn in: a gene that hardly varies in training may lie hundreds of
deviations out in a test patient."""
_MISSING = "(missing)"
"""Category of the cases of a text column that have no value."""
_VANISHED = 1e-3
"""lifelines smooths the l1 penalty, so that no coefficient is exactly 0; below this one counts as 0."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How outcome models are fitted."""

    components: int = 10
    """Most principal components of a block that is not clinical."""
    penalties: tuple[float, ...] = (0.03, 0.3, 3.0)
    """Penalties to choose from, in lifelines' scale."""
    l1_ratio: float = 0.0
    """Share of the l1 penalty: 0 is ridge, 1 is lasso."""
    inner_folds: int = 3
    """Folds of the inner cross-validation."""

    def __post_init__(self) -> None:
        for name, good, want in (
            ("components", self.components >= 1, "1 or more"),
            ("penalties", len(self.penalties) > 0 and min(self.penalties) > 0, "numbers above 0"),
            ("l1-ratio", 0 <= self.l1_ratio <= 1, "a share from 0 to 1"),
            ("inner-folds", self.inner_folds >= 2, "2 or more"),
        ):
            if not good:
                raise BadOption(name, getattr(self, name.replace("-", "_")), want)


@dataclass(frozen=True, eq=False)
class Prepared:
    """What one block learnt from its training cases; `transform` applies it to any case."""

    numbers: tuple[str, ...]
    middle: np.ndarray  # (numbers,): training medians
    categories: tuple[tuple[str, str], ...]  # column and value of each indicator
    centre: np.ndarray
    scale: np.ndarray  # (columns,)
    directions: np.ndarray | None  # (columns, components), scaled so that scores have deviation 1 in training
    shift: np.ndarray | None  # (components,): mean of the scores in training, which drawing in moved from 0

    @classmethod
    def fit(cls, frame: Frame, components: int | None, seed: int) -> Prepared:
        """Learn from training rows; `components` None keeps every column."""
        from pandas.api.types import is_numeric_dtype

        numbers = tuple(name for name in frame.columns if is_numeric_dtype(frame[name]))
        values = frame[list(numbers)].to_numpy(np.float64)
        known = np.isfinite(values).any(axis=0)
        numbers, values = tuple(np.array(numbers, dtype=object)[known]), values[:, known]
        middle = np.nanmedian(values, axis=0) if values.shape[1] else np.empty(0)
        categories = []
        for name in (column for column in frame.columns if not is_numeric_dtype(frame[column])):
            levels = _texts(frame, name).value_counts()
            # The most frequent value is the reference; one that a single case has can be learnt nothing about.
            ordered = sorted(levels.index, key=lambda level: (-levels[level], level))
            categories += [(name, level) for level in ordered[1:] if levels[level] > 1]
        raw = cls(numbers, middle, tuple(categories), np.empty(0), np.empty(0), None, None)._raw(frame)
        centre, deviation = raw.mean(axis=0), raw.std(axis=0)
        scale = np.where(deviation > 1e-9 * np.maximum(1, np.abs(centre)), deviation, np.inf)  # constant: 0 everywhere
        directions = shift = None
        if components is not None and raw.shape[1] > components:
            from sklearn.decomposition import PCA

            rank = min(components, len(raw) - 1)
            pca = PCA(rank, svd_solver="full", random_state=seed).fit(np.clip((raw - centre) / scale, -LIMIT, LIMIT))
            spread = np.sqrt(np.maximum(pca.explained_variance_, 1e-12))
            directions = (pca.components_ / spread[:, None]).T
            shift = pca.mean_ @ directions
        return cls(numbers, middle, tuple(categories), centre, scale, directions, shift)

    def _raw(self, frame: Frame) -> np.ndarray:
        values = frame[list(self.numbers)].to_numpy(np.float64)
        values = np.where(np.isfinite(values), values, self.middle)
        shown = [(_texts(frame, name) == level).to_numpy(np.float64) for name, level in self.categories]
        return np.column_stack([values, *shown])

    def transform(self, frame: Frame) -> np.ndarray:
        """Inputs of a model: (cases, columns or components)."""
        scaled = np.clip((self._raw(frame) - self.centre) / self.scale, -LIMIT, LIMIT)
        if self.directions is None or self.shift is None:
            return scaled
        return np.clip(scaled @ self.directions - self.shift, -LIMIT, LIMIT)

    def to_columns(self, coefficients: np.ndarray) -> np.ndarray:
        """Coefficients of the model's inputs as coefficients of the block's raw numeric columns: (numbers,)."""
        by_column = coefficients if self.directions is None else self.directions @ coefficients
        return (by_column / self.scale)[: len(self.numbers)]


def _texts(frame: Frame, name: str) -> Any:
    """A column of categories, of any type that pandas has for text; a missing value is a category."""
    return frame[name].astype(object).fillna(_MISSING)


@dataclass(frozen=True, eq=False)
class CoxModel:
    """A fitted Cox model (lifelines): coefficients (inputs,), 0 of those that do not vary, and its Breslow baseline."""

    fitted: Any
    coefficients: np.ndarray
    middle: np.ndarray
    varies: np.ndarray  # (inputs,) bool: lifelines fails on a constant
    curve: tuple[np.ndarray, np.ndarray] | None = None  # where none varies: times and survival of Kaplan-Meier

    @classmethod
    def fit(cls, inputs: np.ndarray, outcome: Survival, penalty: np.ndarray, l1_ratio: float) -> CoxModel:
        """Fit; `penalty` (inputs,) is each input's own."""
        middle, varies = inputs.mean(axis=0), np.ptp(inputs, axis=0) > 0
        if not varies.any():
            times, curve, _, _ = kaplan_meier(outcome, np.arange(len(outcome)))
            return cls(None, np.zeros(inputs.shape[1]), middle, varies, (times, curve))
        lifelines = require_lifelines()
        frame = _input_frame(inputs[:, varies])
        frame["time"], frame["event"] = outcome.time, outcome.event
        fitter = lifelines.CoxPHFitter(penalizer=penalty[varies], l1_ratio=l1_ratio)
        try:
            fitted = fitter.fit(frame, "time", "event")
        except lifelines.exceptions.ConvergenceError as error:
            mend = "use larger --penalties" if (penalty > CLINICAL_PENALTY).any() else "leave a clinical column out"
            sentence = f"The Cox model of {inputs.shape[1]} inputs did not converge; {mend}."
            raise Diverged.from_sentence(sentence) from error
        coefficients = np.zeros(inputs.shape[1])
        coefficients[varies] = fitted.params_.to_numpy()
        if l1_ratio > 0:
            coefficients = np.where(np.abs(coefficients) < _VANISHED, 0.0, coefficients)
        return cls(fitted, coefficients, middle, varies)

    def risk(self, inputs: np.ndarray) -> np.ndarray:
        """Log hazard relative to the training mean: (cases,)."""
        return (inputs - self.middle) @ self.coefficients

    def survival(self, inputs: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Probability to be without event at times: (cases, times)."""
        if self.curve is not None:
            steps, curve = self.curve
            return np.tile(curve[np.maximum(np.searchsorted(steps, times, side="right") - 1, 0)], (len(inputs), 1))
        shown = _input_frame(inputs[:, self.varies])
        return self.fitted.predict_survival_function(shown, times=times).to_numpy().T


@dataclass(frozen=True, eq=False)
class LogisticModel:
    """A fitted logistic regression (scikit-learn), classes weighted equally."""

    fitted: Any
    classes: int

    @classmethod
    def fit(cls, inputs: np.ndarray, outcome: Classes, penalty: np.ndarray, l1_ratio: float) -> LogisticModel:
        """Fit; inputs are scaled by their penalties over the largest, so that one penalty serves all.

        That is exact for the largest penalty and for every ridge part; the l1 part of an input with a smaller penalty
        p (clinical columns) is sqrt(p x largest).
        """
        from sklearn.linear_model import LogisticRegression

        if not inputs.shape[1]:
            return cls(None, len(outcome.names))
        chosen = LogisticRegression(
            C=1 / (len(outcome) * penalty.max()),  # the mean loss, as in lifelines
            l1_ratio=l1_ratio,
            solver="saga" if l1_ratio > 0 else "lbfgs",
            class_weight="balanced",
            max_iter=5_000,
            random_state=0,
        )
        scale = np.sqrt(penalty / penalty.max())
        return cls((chosen.fit(inputs / scale, outcome.codes), scale), len(outcome.names))

    def probabilities(self, inputs: np.ndarray) -> np.ndarray:
        """Probability of each class: (cases, classes); equal for all without inputs."""
        if self.fitted is None:
            return np.full((len(inputs), self.classes), 1 / self.classes)
        fitted, scale = self.fitted
        found = np.zeros((len(inputs), self.classes))
        found[:, fitted.classes_] = fitted.predict_proba(inputs / scale)
        return found


@dataclass(frozen=True, eq=False)
class FoldModel:
    """A model of some blocks, fitted on the training cases of a fold."""

    blocks: tuple[tuple[str, Prepared], ...]
    model: CoxModel | LogisticModel
    penalty: float
    """Chosen for the blocks that are not clinical."""
    tried: dict[float, float]
    """Inner score of each penalty: log partial likelihood per event, or log likelihood per case."""

    def columns(self, block: str) -> tuple[tuple[str, ...], np.ndarray]:
        """Numeric columns of a block, and the log hazard that a unit of each adds."""
        assert isinstance(self.model, CoxModel)
        start = 0
        for name, prepared in self.blocks:
            width = prepared.directions.shape[1] if prepared.directions is not None else len(prepared.scale)
            if name == block:
                return prepared.numbers, prepared.to_columns(self.model.coefficients[start : start + width])
            start += width
        return (), np.empty(0)


def fit_linear(
    cohort: OutcomeCohort, names: Sequence[str], train: np.ndarray, rows: np.ndarray, options: ModelOptions, seed: int
) -> tuple[FoldModel, np.ndarray]:
    """Fit a model of some blocks on the cases `train`; without any block it knows the outcome only.

    Parameters
    ----------
    names : sequence of str
        Blocks of the cohort.
    train, rows : numpy.ndarray
        Numbers of the training cases, and of the cases to predict.

    Returns
    -------
    FoldModel
    numpy.ndarray, shape (rows, inputs)
        The inputs of the cases to predict.
    """
    scores: dict[float, list[float]] = {penalty: [] for penalty in options.penalties}
    if not set(names) <= {CLINICAL} and len(scores) > 1:
        for inside, outside in splits(cohort, train, options.inner_folds, seed):
            prepared, inputs, others = _prepare(cohort, names, inside, outside, options, seed)
            held_out = cohort.outcome.take(outside)
            for penalty in scores:
                model = _fit(cohort, prepared, inputs, inside, penalty, options)
                scores[penalty].append(_log_likelihood(model, held_out, others))
    means = {penalty: float(np.nanmean(found)) for penalty, found in scores.items() if np.isfinite(found).any()}
    # Where nothing can be held out, the strongest.
    penalty = max(means, key=lambda each: (means[each], each)) if means else max(options.penalties)
    prepared, inputs, others = _prepare(cohort, names, train, rows, options, seed)
    return FoldModel(tuple(prepared), _fit(cohort, prepared, inputs, train, penalty, options), penalty, means), others


_Blocks = list[tuple[str, Prepared]]


def _prepare(
    cohort: OutcomeCohort, names: Sequence[str], train: np.ndarray, rows: np.ndarray, options: ModelOptions, seed: int
) -> tuple[_Blocks, np.ndarray, np.ndarray]:
    """Prepare blocks on training cases; their inputs, and those of other cases."""
    prepared, inputs, others = [], [np.empty((len(train), 0))], [np.empty((len(rows), 0))]
    for name in names:
        frame = cohort.blocks[name].features(train)
        block = Prepared.fit(frame.iloc[train], None if name == CLINICAL else options.components, seed)
        prepared.append((name, block))
        inputs.append(block.transform(frame.iloc[train]))
        others.append(block.transform(frame.iloc[rows]))
    return prepared, np.column_stack(inputs), np.column_stack(others)


def _fit(
    cohort: OutcomeCohort, blocks: _Blocks, inputs: np.ndarray, train: np.ndarray, penalty: float, options: ModelOptions
) -> CoxModel | LogisticModel:
    outcome = cohort.outcome.take(train)
    widths = [len(each.scale) if each.directions is None else each.directions.shape[1] for _, each in blocks]
    own = [CLINICAL_PENALTY if name == CLINICAL else penalty for name, _ in blocks]
    weights = np.repeat(np.array(own, np.float64), widths)
    if isinstance(outcome, Survival):
        return CoxModel.fit(inputs, outcome, weights, options.l1_ratio)
    return LogisticModel.fit(inputs, outcome, weights, options.l1_ratio)


def _log_likelihood(model: CoxModel | LogisticModel, outcome: Survival | Classes, inputs: np.ndarray) -> float:
    if isinstance(model, CoxModel):
        assert isinstance(outcome, Survival)
        return partial_log_likelihood(outcome, model.risk(inputs))
    assert isinstance(outcome, Classes)
    chance = model.probabilities(inputs)[np.arange(len(outcome)), outcome.codes]
    return float(np.log(np.maximum(chance, 1e-9)).mean())


def _input_frame(inputs: np.ndarray) -> Frame:
    import pandas as pd

    return pd.DataFrame(inputs, columns=pd.Index([f"input {number}" for number in range(inputs.shape[1])]))


def require_lifelines() -> Any:
    """The library lifelines, or the sentence that says how to install it."""
    try:
        import lifelines
        import lifelines.exceptions
    except ImportError as error:
        raise MissingExtra("lifelines", "A model of survival", "'cmrcnet[outcomes]'") from error
    return lifelines
