"""The course of a training: what each epoch gave, and which was best."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from cmrcnet.training.validate import Look


@dataclass
class Course:
    """Grows by a row an epoch; plain values, so that a checkpoint can keep it.

    Parameters
    ----------
    select_by : {"pearson", "objective"}
        What the best epoch is best in.
    history : list of dict
        One entry an epoch, by name.
    best_epoch : int or None
        Epochs behind the best validation score so far; the earliest of equals. None before any is defined.
    best_score : float or None
    """

    select_by: Literal["pearson", "objective"]
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int | None = None
    best_score: float | None = None

    def consider(self, epoch: int, look: Look) -> bool:
        """Whether this epoch is the best yet; if so, it is noted."""
        score = look.pearson if self.select_by == "pearson" else _negative(look.objective)
        if score is None or (self.best_score is not None and score <= self.best_score):
            return False
        self.best_epoch, self.best_score = epoch, score
        return True

    def last_reading(self, phase: str, epoch: int) -> dict[str, Any] | None:
        """The last row of a phase, up to an epoch, on which the collapse meter was read."""
        rows = [row for row in self.history if row["phase"] == phase and row["epoch"] <= epoch and "meter_k" in row]
        return rows[-1] if rows else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` and JSON understand."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Course:
        """Build from `to_dict`."""
        return cls(**values)


def _negative(value: float | None) -> float | None:
    return None if value is None else -value
