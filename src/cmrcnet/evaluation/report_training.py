"""Training curves of the report, with the collapse meter."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cmrcnet.evaluation.evaluation_run import EvaluationRun


def training_curves(run: EvaluationRun) -> str:
    return ""
