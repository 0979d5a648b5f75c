"""Nested cross-validation of outcome models: every method on the same folds, with its baselines and its null.

Outer folds go by patient and are balanced by event (or class); everything is fitted on their training cases. They are
repeated with other folds, since one division moves a concordance by some hundredths.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

from cmrcnet.errors import BadOption, UnknownName
from cmrcnet.evaluation import Frame
from cmrcnet.outcomes.cohort import CLINICAL, EXPRESSION, Block, Columns, OutcomeCohort, Permuted, Survival
from cmrcnet.outcomes.folds import Folds, outer_folds
from cmrcnet.outcomes.models import CoxModel, ModelOptions, fit_linear
from cmrcnet.outcomes.paired import PairedExpression
from cmrcnet.outcomes.scoring import Predicted, main_metric, main_pairs, score_differences, score_methods
from cmrcnet.progress import tracked
from cmrcnet.workers import run_in_workers

if TYPE_CHECKING:
    from cmrcnet.outcomes.pooling import SlideStack

ATTENTION = "attention"
NOTHING = "none"
"""The method that knows the outcome of the training cases only."""


@dataclass(frozen=True)
class OutcomeMethod:
    """A name, and the blocks that it may use."""

    name: str
    blocks: tuple[str, ...]
    about: str


@dataclass(frozen=True, kw_only=True)
class ProtocolOptions:
    """How methods are compared."""

    folds: int = 5
    """Outer folds."""
    repeats: int = 2
    """Times that the outer folds are drawn anew."""
    permutations: int = 20
    """Times that all but the clinical blocks are given to other patients, for the null."""
    bootstrap: int = 1000
    """Samples of patients for the interval of a method."""
    seed: int = 0
    """Of folds, permutations and bootstrap."""
    models: ModelOptions = field(default_factory=ModelOptions)
    """How models are fitted."""

    def __post_init__(self) -> None:
        least = {"folds": 2, "repeats": 1, "permutations": 0, "bootstrap": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise BadOption(name, getattr(self, name), f"{low} or more")

    def to_dict(self) -> dict[str, Any]:
        """All options, JSON-able."""
        values = asdict(self)
        values["models"]["penalties"] = list(self.models.penalties)
        return values


_ABOUT = {
    CLINICAL: "the clinical columns",
    EXPRESSION: "predicted expression, mean over the patient's slides",
    "spatial": "quantiles, regional shares, Moran's I and co-occurrence of signatures",
    "components": "means and quantiles of expression components that were found in training",
    "embedding": "image embeddings of the expression model, mean over locations",
    "imagenet": "features of an encoder trained on ImageNet, mean over locations",
    "colour": "colour of the slide: mean, deviation and histogram of each channel",
    "shuffled": "predicted expression of a model that was trained on shuffled pairs",
    "attention": "gated attention over the locations' predicted expression, learnt with the outcome",
}


def methods_of(cohort: OutcomeCohort) -> tuple[OutcomeMethod, ...]:
    """Each block alone, and each with the clinical columns; first the method that knows nothing."""
    found = [OutcomeMethod(NOTHING, (), "no feature: the outcome of the training cases")]
    for name in cohort.blocks:
        found.append(OutcomeMethod(name, (name,), _ABOUT.get(name, f"the columns of {name}")))
    if CLINICAL in cohort.blocks:
        for name in cohort.blocks:
            if name != CLINICAL:
                found.append(OutcomeMethod(f"{CLINICAL} + {name}", (CLINICAL, name), f"both: {CLINICAL} and {name}"))
    if {EXPRESSION, "colour"} <= set(cohort.blocks):
        found.append(OutcomeMethod("colour + expression", ("colour", EXPRESSION), "both: colour and expression"))
    if cohort.stack is not None:
        found.append(OutcomeMethod(ATTENTION, (ATTENTION,), _ABOUT[ATTENTION]))
    return tuple(found)


def questions_of(methods: Sequence[OutcomeMethod]) -> tuple[tuple[str, str], ...]:
    """Pairs of methods whose difference answers a question; the first is the one that the report is about."""
    known = [method.name for method in methods]
    main = [(f"{CLINICAL} + {EXPRESSION}", CLINICAL)]
    main += [(EXPRESSION, other) for other in (CLINICAL, "imagenet", "shuffled", "colour")]
    main += [("colour + expression", "colour")]
    main += [(name, EXPRESSION) for name in ("spatial", "components", "embedding", "attention")]
    main += [(f"{CLINICAL} + imagenet", CLINICAL), (f"{CLINICAL} + colour", CLINICAL), (EXPRESSION, NOTHING)]
    return tuple(pair for pair in main if set(pair) <= set(known)) or tuple((name, NOTHING) for name in known[1:])


def order_of_patients(patients: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw whose features each case gets: those of another patient's cases, in any order; repeated if there are fewer.

    Cases of a patient are not independent, so that permuting cases would make the null too narrow. `patients` (cases,)
    numbers the patient of each.

    Examples
    --------
    >>> order_of_patients(np.array([0, 0, 1, 2, 2]), np.random.default_rng(3)).tolist()
    [3, 4, 2, 0, 1]
    """
    rows = [np.flatnonzero(patients == patient) for patient in range(int(patients.max()) + 1)]
    order = np.empty(len(patients), np.int64)
    for mine, other in zip(rows, rng.permutation(len(rows)), strict=True):
        order[mine] = np.resize(rng.permutation(rows[other]), len(mine))
    return order


_Task = tuple[int, int, int]
"""Number of the permutation (0: none), of the method, and of the fold over all repeats."""


@dataclass(frozen=True, eq=False)
class FoldResult:
    """Predictions of one method for the test cases of one fold.

    `risk`, `high` (cases,) and `curves` are as in `Predicted`. What the locations of a slide add to the risk: `weights`
    are the genes, and the log hazard that a unit of each adds; `maps` the part of each location, by number of the case.
    """

    risk: np.ndarray
    high: np.ndarray
    curves: np.ndarray
    record: dict[str, Any]
    weights: tuple[tuple[str, ...], np.ndarray] | None = None
    maps: Mapping[int, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class FoldRunner:
    """Fits one method in one fold; sent to workers whole."""

    cohort: OutcomeCohort
    methods: tuple[OutcomeMethod, ...]
    folds: Folds
    options: ProtocolOptions
    trained: tuple[Mapping[str, Block], ...] = ()
    """Of each fold: what its trained expression models predict, by block."""

    def permuted(self, number: int, fold: int) -> OutcomeCohort:
        """The cohort whose blocks, but for the clinical one, belong to other cases; 0 is the cohort itself."""
        blocks = {**self.cohort.blocks, **(self.trained[fold] if self.trained else {})}
        if number > 0:
            order = order_of_patients(self.cohort.patient_codes, np.random.default_rng([self.options.seed, number]))
            blocks = {name: b if name == CLINICAL else Permuted(b, order) for name, b in blocks.items()}
        return replace(self.cohort, blocks=blocks)

    @threadpool_limits.wrap(limits=1)  # small matrices: several threads only wait for each other
    def run(self, task: _Task) -> FoldResult:
        """Fit, and predict the fold's test cases."""
        number, method, fold = task
        chosen, (train, test) = self.methods[method], self.folds.splits[fold]
        record: dict[str, Any] = {"method": chosen.name, "fold": fold}
        if chosen.blocks == (ATTENTION,):
            assert self.cohort.stack is not None
            return self._attend(self.cohort.stack, train, test, record)
        cohort = self.permuted(number, fold)
        rows = np.concatenate([test, train])
        fitted, inputs = fit_linear(cohort, chosen.blocks, train, rows, self.options.models, self.options.seed)
        tried = {f"{penalty:g}": score for penalty, score in fitted.tried.items()}
        record |= {"penalty": fitted.penalty, "tried": tried}
        inside = len(test)
        if not isinstance(fitted.model, CoxModel):
            chance = fitted.model.probabilities(inputs[:inside])
            return FoldResult(np.full(inside, np.nan), np.zeros(inside, bool), chance, record)
        risk = fitted.model.risk(inputs)
        curves = fitted.model.survival(inputs[:inside], self.folds.times)
        weights = fitted.columns(EXPRESSION) if number == 0 else None
        return FoldResult(risk[:inside], risk[:inside] > np.median(risk[inside:]), curves, record, weights)

    def _attend(self, stack: SlideStack, train: np.ndarray, test: np.ndarray, record: dict[str, Any]) -> FoldResult:
        from cmrcnet.outcomes.attention import fit_attention

        model = fit_attention(self.cohort, stack, train, self.options.models.inner_folds, self.options.seed)
        record["epochs"] = model.epochs
        if model.baseline is None:
            chance = model.probabilities(stack, test)
            return FoldResult(np.full(len(test), np.nan), np.zeros(len(test), bool), chance, record)
        risk = model.output(stack, np.concatenate([test, train]))
        mine, curves = risk[: len(test), 0], model.baseline.survival(risk[: len(test)], self.folds.times)
        maps = {int(case): model.contributions(stack, int(case)) for case in test}
        return FoldResult(mine, mine > np.median(risk[len(test) :, 0]), curves, record, None, maps)


@dataclass(frozen=True, eq=False)
class OutcomeRun:
    """Everything that a comparison found.

    `scores` has a row for each method and metric: `method, metric, value, low, high`; `differences` one for each
    question: `method, other, metric, difference, low, high, higher_in, folds` (those with a pair to rank); `null` one
    for each permutation: `method, permutation, value`, and `observed`, that of the method itself in the first repeat.
    """

    cohort: OutcomeCohort
    methods: tuple[OutcomeMethod, ...]
    options: ProtocolOptions
    folds: Folds
    predicted: Mapping[str, Predicted]
    records: tuple[dict[str, Any], ...]
    scores: Frame
    differences: Frame
    null: Frame
    first_repeat: Mapping[tuple[str, int], FoldResult]
    """Results of the first repeat by method and fold, for risk maps."""

    @property
    def metric(self) -> str:
        """The metric that differences and the null are in."""
        return main_metric(self.cohort.outcome)

    def score(self, method: str, metric: str | None = None) -> Any:
        """Row of `scores`, with value, low and high."""
        table = self.scores
        found = table[(table.method == method) & (table.metric == (metric or self.metric))]
        if not len(found):
            raise UnknownName("score", f"{method} {metric or self.metric}", sorted(set(table.metric)))
        return found.iloc[0]

    def p_value(self, method: str) -> float:
        """Share of permutations in which the method scores at least as high as with its own patients (repeat 1)."""
        mine = self.null[self.null.method == method]
        if not len(mine):
            return float("nan")
        observed = mine["observed"].iloc[0]
        return float((1 + (mine["value"] >= observed).sum()) / (1 + len(mine)))


def compare(
    cohort: OutcomeCohort,
    options: ProtocolOptions | None = None,
    *,
    methods: Sequence[OutcomeMethod] | None = None,
    questions: Sequence[tuple[str, str]] | None = None,
    workers: int = 1,
    engine: str = "local",
) -> OutcomeRun:
    """Compare methods on a cohort by nested cross-validation.

    Parameters
    ----------
    cohort : OutcomeCohort
        With the blocks to compare.
    options : ProtocolOptions, optional
        Folds, repeats, permutations and models.
    methods : sequence of OutcomeMethod, optional
        `methods_of` the cohort when left out.
    questions : sequence of (str, str), optional
        Pairs of methods whose difference is reported; `questions_of` the methods when left out.
    workers : int
        Processes; results do not depend on it.
    engine : str
        Where they run, as in `WorkerOptions`.

    Returns
    -------
    OutcomeRun

    Raises
    ------
    TooFew, MissingExtra, UnknownName, Diverged

    Examples
    --------
    >>> import pandas as pd
    >>> rng = np.random.default_rng(0)
    >>> gene = rng.normal(size=80)
    >>> table = pd.DataFrame({"patient": [f"p{i}" for i in range(80)], "ESR1": gene, "label": gene > 0})
    >>> from cmrcnet.outcomes.cohort import cohort_of_table
    >>> cohort = cohort_of_table(table.astype({"label": float}), name="made", label="label")
    >>> run = compare(cohort, ProtocolOptions(repeats=1, permutations=0, bootstrap=100))
    >>> bool(run.score("expression").value > 0.95)
    True
    """
    options = options or ProtocolOptions()
    methods = tuple(methods if methods is not None else methods_of(cohort))
    known = [method.name for method in methods]
    questions = tuple(questions if questions is not None else questions_of(methods))
    for name in {name for pair in questions for name in pair}:
        if name not in known:
            raise UnknownName("method", name, known)
    folds = outer_folds(cohort, options.folds, options.repeats, options.seed)
    runner = FoldRunner(cohort, methods, folds, options, _trained(cohort, folds))
    # the null is made of expression, alone and with the clinical columns
    asked = [known.index(name) for name in known if name in (EXPRESSION, f"{CLINICAL} + {EXPRESSION}")]
    tasks: list[_Task] = [(0, method, fold) for method in range(len(methods)) for fold in range(len(folds.splits))]
    tasks += [(n, m, f) for n in range(1, options.permutations + 1) for m in asked for f in range(options.folds)]
    results = dict(tracked(_run(runner, tasks, workers, engine), "outcomes", total=len(tasks), unit="fits"))
    predicted = {
        name: _gather(folds, {task[2]: results[task] for task in tasks if task[:2] == (0, number)}, options.repeats)
        for number, name in enumerate(known)
    }
    records = tuple(results[task].record for task in tasks if task[0] == 0)
    first = {(known[m], f): found for (n, m, f), found in results.items() if n == 0 and f < options.folds}
    scores = score_methods(cohort, folds, predicted, options.bootstrap, options.seed)
    differences = score_differences(cohort, folds, predicted, questions, options.bootstrap, options.seed)
    null = _null(cohort, folds, predicted, results, asked, methods, options)
    return OutcomeRun(cohort, methods, options, folds, predicted, records, scores, differences, null, first)


def _trained(cohort: OutcomeCohort, folds: Folds) -> tuple[Mapping[str, Block], ...]:
    """What the expression models of every fold predict, once for all methods, penalties and permutations."""
    blocks = {name: block for name, block in cohort.blocks.items() if isinstance(block, PairedExpression)}
    if not blocks:
        return ()
    trains = tracked([train for train, _ in folds.splits], "expression models", unit="folds")
    return tuple({name: Columns(block.features(train)) for name, block in blocks.items()} for train in trains)


def _run(runner: FoldRunner, tasks: Iterable[_Task], workers: int, engine: str) -> Iterator[tuple[_Task, FoldResult]]:
    if (workers, engine) == (1, "local"):
        for task in tasks:
            yield task, runner.run(task)
        return
    for task, found in run_in_workers(tasks, partial(attrgetter("run"), runner), count=workers, engine=engine):
        if isinstance(found, Exception):
            raise found
        yield task, found


def _gather(folds: Folds, results: Mapping[int, FoldResult], repeats: int) -> Predicted:
    """Predictions of one method over the folds of `repeats` repeats."""
    cases = folds.of.shape[1]
    risk, high = np.empty((repeats, cases)), np.empty((repeats, cases), bool)
    width = next(iter(results.values())).curves.shape[1]
    curves = np.empty((repeats, cases, width))
    each = len(results) // repeats
    for fold, found in results.items():
        where = fold // each, folds.splits[fold][1]
        risk[where], high[where], curves[where] = found.risk, found.high, found.curves
    return Predicted(risk, high, curves)


def predictions_table(run: OutcomeRun) -> Frame:
    """Out-of-fold predictions: a row for each method, repeat and case, with risk or the probability of each class."""
    import pandas as pd

    outcome, parts = run.cohort.outcome, []
    for name, found in run.predicted.items():
        for repeat in range(run.options.repeats):
            columns: dict[str, object] = {"method": name, "repeat": repeat + 1, "fold": run.folds.of[repeat] + 1}
            columns |= {"case": run.cohort.cases, "patient": run.cohort.patients}
            if isinstance(outcome, Survival):
                columns |= {"risk": found.risk[repeat], "high": found.high[repeat].astype(int)}
            else:
                columns |= {f"p {each}": found.curves[repeat][:, code] for code, each in enumerate(outcome.names)}
            parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def _null(
    cohort: OutcomeCohort,
    folds: Folds,
    predicted: Mapping[str, Predicted],
    results: Mapping[_Task, FoldResult],
    asked: Sequence[int],
    methods: Sequence[OutcomeMethod],
    options: ProtocolOptions,
) -> Frame:
    """Main metric of each permutation in the first repeat, and that of the method itself (`observed`)."""
    import pandas as pd

    rows: list[dict[str, object]] = []

    def value_of(found: Predicted) -> float:
        pairs = main_pairs(cohort.outcome, found, 0, folds.of[0])
        return float(np.mean([each.value()[0] for each in pairs]))

    for method in asked:
        name = methods[method].name
        observed = value_of(predicted[name])
        for number in range(1, options.permutations + 1):
            found = _gather(folds, {f: results[number, method, f] for f in range(options.folds)}, 1)
            rows.append({"method": name, "permutation": number, "value": value_of(found), "observed": observed})
    return pd.DataFrame(rows, columns=pd.Index(["method", "permutation", "value", "observed"]))
