"""Patients with an outcome, and the blocks of features that are compared on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cmrcnet.errors import BadInput, BadOption, ShapeMismatch, TooFew, UnknownName
from cmrcnet.evaluation import Frame

if TYPE_CHECKING:
    from cmrcnet.outcomes.pooling import SlideStack

CLINICAL, EXPRESSION = "clinical", "expression"

FEWEST_EVENTS = 50
"""Events (for classes: patients of the smallest class) below which a comparison says "too few events to say": ten for
each of five folds, so that a fold's concordance has something to rank."""


@dataclass(frozen=True, eq=False)
class Survival:
    """Follow-up of each case: `time` (cases,) float64, above 0 in any one unit; `event` (cases,) bool, False censored.

    Raises
    ------
    ShapeMismatch, BadOption
    """

    time: np.ndarray
    event: np.ndarray
    unit: str = "time"

    def __post_init__(self) -> None:
        if self.time.shape != self.event.shape or self.time.ndim != 1:
            raise ShapeMismatch("event", want=self.time.shape, got=self.event.shape)
        if not (np.isfinite(self.time).all() and (self.time > 0).all()):
            raise BadOption("time", float(np.nanmin(self.time)), "follow-up above 0 for every patient")

    def __len__(self) -> int:
        return len(self.time)

    @property
    def strata(self) -> np.ndarray:
        """What folds are balanced by: the event."""
        return self.event.astype(np.int64)

    def take(self, rows: np.ndarray) -> Survival:
        """Some cases."""
        return Survival(self.time[rows], self.event[rows], self.unit)


@dataclass(frozen=True, eq=False)
class Classes:
    """Class of each case: `codes` (cases,) int64, positions in `names`."""

    codes: np.ndarray
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.names) < 2:
            raise TooFew("classes of the outcome", len(self.names), 2, "name a label column with two values or more")

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def strata(self) -> np.ndarray:
        """What folds are balanced by: the class."""
        return self.codes

    def take(self, rows: np.ndarray) -> Classes:
        """Some cases."""
        return Classes(self.codes[rows], self.names)


class Block(Protocol):
    """Features of every case, of which all that is learnt is learnt from the rows `train`."""

    def features(self, train: np.ndarray) -> Frame:
        """Table (cases, features): numbers, NaN where missing; text columns are categories."""
        ...


@dataclass(frozen=True, eq=False)
class Columns:
    """A block that needs no learning: columns of a table (cases, features)."""

    frame: Frame

    def features(self, train: np.ndarray) -> Frame:
        """The columns."""
        return self.frame


@dataclass(frozen=True, eq=False)
class Permuted:
    """A block whose rows belong to other cases: case i gets those of case ``order[i]``."""

    block: Block
    order: np.ndarray

    def features(self, train: np.ndarray) -> Frame:
        """Learn from the cases that stand in the places of `train`."""
        found = self.block.features(self.order[train])
        return found.iloc[self.order].set_axis(found.index)


@dataclass(frozen=True, eq=False)
class OutcomeCohort:
    """Cases, their patients, their outcome and their blocks of features.

    A case is what has one outcome: a patient, or, with classes, a slide or region of a patient. Folds and intervals go
    by patient.

    Parameters
    ----------
    name : str
        For titles.
    cases, patients : tuple of str
        Name of each case, and its patient.
    outcome : Survival or Classes
        In the order of the cases.
    blocks : mapping of str to Block
        "clinical", "expression" and others; what is compared.
    facts : mapping
        Origin, for the report.
    stack : SlideStack, optional
        The slides, for attention over their locations.

    Raises
    ------
    ShapeMismatch, BadOption, TooFew
    """

    name: str
    cases: tuple[str, ...]
    patients: tuple[str, ...]
    outcome: Survival | Classes
    blocks: Mapping[str, Block]
    facts: Mapping[str, Any] = field(default_factory=dict)
    stack: SlideStack | None = None

    def __post_init__(self) -> None:
        if not len(self.cases) == len(self.patients) == len(self.outcome):
            raise ShapeMismatch("outcome", want=len(self.cases), got=len(self.outcome))
        if repeated := sorted({name for name in self.cases if self.cases.count(name) > 1}):
            raise BadOption("cases", repeated[0], "every case once")
        if isinstance(self.outcome, Survival) and len(set(self.patients)) < len(self.patients):
            raise BadOption("patients", "one of them twice", "one follow-up for each patient")
        if self.rarest < 2:
            what = "events" if isinstance(self.outcome, Survival) else "patients of the smallest class"
            raise TooFew(what, self.rarest, 2, "nothing can be learnt from fewer")

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def patient_codes(self) -> np.ndarray:
        """Number of each case's patient: (cases,) int64."""
        known = {name: number for number, name in enumerate(dict.fromkeys(self.patients))}
        return np.array([known[name] for name in self.patients])

    @property
    def rarest(self) -> int:
        """Patients with an event, or of the smallest class: several cases of a patient are one."""
        strata = self.outcome.strata
        counted = [1] if isinstance(self.outcome, Survival) else range(len(self.outcome.names))
        return min(len(np.unique(self.patient_codes[strata == each])) for each in counted)

    @property
    def too_few(self) -> str:
        """The sentence in place of a verdict, or empty."""
        if self.rarest >= FEWEST_EVENTS:
            return ""
        what = "events" if isinstance(self.outcome, Survival) else "patients in the smallest class"
        return f"Too few events to say: {self.rarest} {what}; a comparison is judged from {FEWEST_EVENTS} on."


def cohort_of_table(
    table: Frame,
    *,
    name: str,
    time: str | None = None,
    event: str | None = None,
    label: str | None = None,
    clinical: Sequence[str] = (),
    features: Sequence[str] | None = None,
    leave_out: Sequence[str] = (),
) -> OutcomeCohort:
    """Make a cohort of a table of cases.

    Parameters
    ----------
    table : pandas.DataFrame
        One row a case, with the column ``patient``; ``case`` names cases where a patient has several. Columns are
        numbers or text (`readers.patient_table.read_patients`).
    name : str
        Of the cohort.
    time, event : str, optional
        Columns of follow-up and of the event (1 or 0), for survival.
    label : str, optional
        Column of the class, for classification.
    clinical : sequence of str
        Clinical columns; those of text are categories.
    features : sequence of str, optional
        Columns of predicted expression or other numbers of the slides; all others that are numbers when None. An empty
        list takes none (slides give them: `pooling.with_slides`).
    leave_out : sequence of str
        Columns that are neither.

    Returns
    -------
    OutcomeCohort

    Raises
    ------
    UnknownName, BadOption, BadInput, TooFew

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"patient": list("abcd"), "months": [3.0, 9, 7, 5], "dead": [1, 0, 1, 1], "age": [61, 55,
    ...     70, 64], "ESR1": [0.1, 1.2, 0.4, 0.3]})
    >>> cohort = cohort_of_table(table, name="four", time="months", event="dead", clinical=["age"])
    >>> sorted(cohort.blocks), cohort.rarest
    (['clinical', 'expression'], 3)
    """
    from pandas.api.types import is_numeric_dtype

    known = [str(column) for column in table.columns]
    if (label is None) == (time is None or event is None):
        raise BadOption("outcome", "", "either --time and --event, or --label")
    for column in ("patient", *(c for c in (time, event, label) if c), *clinical, *(features or ()), *leave_out):
        if column not in known:
            raise UnknownName("column in the table of patients", column, known)
    taken = {"patient", "case", time, event, label, *leave_out}
    if both := [column for column in clinical if column in taken]:
        raise BadOption("clinical", both[0], "a column that is not also the outcome, a name or left out")
    outcome = _classes(table, label) if label is not None else _survival(table, str(time), str(event))
    used = taken | {*clinical}
    given = features
    if features is None:
        features = [column for column in known if column not in used]
        if text := [column for column in features if not is_numeric_dtype(table[column])]:
            sentence = (
                f"The column {text[0]} of the table of patients is text ({_no_number(table, text[0])}); correct it, or "
                "name the column in --clinical (then it is a category) or in --leave-out."
            )
            raise BadOption.from_sentence(sentence)
    if both := [column for column in features if column in used]:
        raise BadOption("features", both[0], "a column that is not also the outcome, clinical or left out")
    if text := [column for column in features if not is_numeric_dtype(table[column])]:
        why = f"the column {text[0]} is text ({_no_number(table, text[0])})"
        raise BadInput("the table of patients", "features", why)
    blocks: dict[str, Block] = {}
    for kind, columns in ((CLINICAL, clinical), (EXPRESSION, features)):
        if len(columns):
            blocks[kind] = Columns(table[list(columns)].reset_index(drop=True))
    if not blocks and given is None:
        raise TooFew("columns to predict the outcome from", 0, 1, "name some: --clinical or --features")
    patients = tuple(map(str, table["patient"]))
    cases = tuple(map(str, table["case"])) if "case" in known else patients
    facts = {"label": label} if label is not None else {"time": time, "event": event}
    facts |= {"clinical": list(clinical), "features": list(features)}
    return OutcomeCohort(name, cases, patients, outcome, blocks, facts)


def refuse_expression(cohort: OutcomeCohort) -> None:
    """Refuse columns of expression where slides or sections give it: one of them would not be compared."""
    if EXPRESSION in cohort.blocks:
        want = "none beside slides or paired sections, which give the expression; other columns are --clinical"
        raise BadOption("features", EXPRESSION, want)


def _no_number(table: Frame, column: str) -> str:
    """The first cell that keeps a column from being numbers."""
    import pandas as pd

    numbers = np.asarray(pd.to_numeric(table[column], errors="coerce"), np.float64)
    row = int((np.isnan(numbers) & table[column].notna().to_numpy()).argmax())
    return f"{str(table[column].iloc[row])!r} of patient {table['patient'].iloc[row]} is no number"


def _survival(table: Frame, time: str, event: str) -> Survival:
    from pandas.api.types import is_numeric_dtype

    for column in (time, event):
        missing, number = int(table[column].isna().sum()), is_numeric_dtype(table[column])
        if missing or not number:
            why = f"{missing} rows have no value" if number else f"{_no_number(table, column)}"
            why += "" if number or column == time else "; code the event as 1 and a censored patient as 0"
            raise BadInput("the table of patients", "follow-up", f"in the column {column}, {why}")
    happened = table[event].to_numpy(np.float64)
    if wrong := sorted(set(happened) - {0.0, 1.0}):
        raise BadInput(
            "the table of patients", "follow-up", f"the column {event} holds {wrong[0]:g}; wanted 1 (event) or 0"
        )
    if table[time].le(0).any():
        row = int(table[time].le(0).to_numpy().argmax())
        who = f"patient {table['patient'].iloc[row]}"
        raise BadInput("the table of patients", "follow-up", f"{who} has the {time} {table[time].iloc[row]:g}, not > 0")
    return Survival(table[time].to_numpy(np.float64), happened.astype(bool), time)


def _classes(table: Frame, label: str) -> Classes:
    from pandas.api.types import is_numeric_dtype

    values = table[label]
    if values.isna().any():
        raise BadInput(
            "the table of patients", "classes", f"{int(values.isna().sum())} rows have no value in the column {label}"
        )
    if is_numeric_dtype(values):  # 1.0 is the class 1; no digit of a code is lost
        text = [str(int(value)) if float(value).is_integer() else repr(float(value)) for value in values]
    else:
        text = [str(value).strip() for value in values]
    names = tuple(sorted(set(text)))
    if len(names) > max(10, len(text) // 5):
        raise BadInput("the table of patients", "classes", f"the column {label} has {len(names)} different values")
    return Classes(np.array([names.index(value) for value in text]), names)
