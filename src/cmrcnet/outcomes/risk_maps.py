"""Risk on the slide: which locations raise or lower the predicted log hazard, by models that did not see the case.

Both attributions are sums, not approximations. Of mean expression, a location adds the coefficients of the genes times
its expression, less the mean over all slides; the mean over locations is the slide's part of the log hazard, but for
values that the model drew in. Of gated attention, a location adds its weight times its output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cmrcnet.evaluation.report.map_section import TissueView, map_jpeg
from cmrcnet.evaluation.report.page import render
from cmrcnet.outcomes.cohort import EXPRESSION, Survival
from cmrcnet.outcomes.pooling import SlideStack
from cmrcnet.outcomes.protocol import ATTENTION, OutcomeRun

if TYPE_CHECKING:
    from cmrcnet.evaluation import Frame

SHOWN = 4
"""Cases on the page: of the highest, the lowest, and evenly between."""


def location_risks(run: OutcomeRun, case: int) -> Frame:
    """What each location of a case adds to its log hazard, by the models of the first repeat that did not see it.

    Parameters
    ----------
    case : int
        Number of the case.

    Returns
    -------
    pandas.DataFrame
        One row a location: `slide, x_px, y_px, expression` and, where attention was run, `attention`.
    """
    import pandas as pd

    stack = _stack_of(run)
    weights, maps = _of_case(run, case)
    level = np.mean([stack.expression(n).mean(axis=0, dtype=np.float64) for n in range(len(stack.slides))], axis=0)
    parts, start = [], 0
    for number in stack.of_case[case]:
        slide = stack.slides[number]
        columns: dict[str, Any] = {"slide": slide.slide, "x_px": slide.centre_px[:, 0], "y_px": slide.centre_px[:, 1]}
        columns[EXPRESSION] = (stack.expression(int(number)) - level) @ weights
        if maps is not None:
            columns[ATTENTION] = maps[start : start + len(slide.centre_px)]
        start += len(slide.centre_px)
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def _stack_of(run: OutcomeRun) -> SlideStack:
    assert run.cohort.stack is not None, "the cohort has slides"
    return run.cohort.stack


def _of_case(run: OutcomeRun, case: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Coefficients of the genes, and the attention map, of the fold that tested the case."""
    fold = int(run.folds.of[0, case])
    stack, found = _stack_of(run), run.first_repeat[EXPRESSION, fold].weights
    assert found is not None
    given = dict(zip(*found, strict=True))
    weights = np.array([given.get(gene, 0.0) for gene in stack.gene_names])
    attended = run.first_repeat.get((ATTENTION, fold))
    return weights, None if attended is None else attended.maps[case]


def risk_maps(run: OutcomeRun) -> str:
    """Render the slides of a few cases with what each location adds; empty without slides or without survival."""
    if run.cohort.stack is None or not isinstance(run.cohort.outcome, Survival):
        return ""
    risk = run.predicted[EXPRESSION].risk[0]
    order = np.argsort(-risk, kind="stable")
    shown = [int(order[round(i)]) for i in np.linspace(0, len(order) - 1, min(SHOWN, len(order)))]
    rows = []
    for case in shown:
        slide = run.cohort.stack.slides[run.cohort.stack.of_case[case][0]]
        every = location_risks(run, case)
        mine = every[every.slide == slide.slide]
        # The slide's picture, cut to its locations and a little around them.
        centres, radius = slide.centre_px / slide.downsample, slide.side_px / slide.downsample / 2
        border = 0.04 * float(np.ptp(centres, axis=0).max(initial=0)) + 3 * radius
        left, top = np.floor(np.maximum(centres.min(axis=0) - border, 0)).astype(int)
        right, bottom = np.ceil(centres.max(axis=0) + border).astype(int)
        view = TissueView(slide.picture[top:bottom, left:right, :3] / 255.0, centres - (left, top), radius)
        outcome = run.cohort.outcome
        pictures = []
        for name in (EXPRESSION, ATTENTION):
            if name in mine:
                values = mine[name].to_numpy(np.float64)
                values = values if name == EXPRESSION else values * len(every)
                image, low, high = map_jpeg(view, values, "RdBu_r", centred=True)
                pictures.append({"name": name, "image": image, "low": f"{low:+.2f}", "high": f"{high:+.2f}"})
        rows.append(
            {
                "case": run.cohort.cases[case],
                "slide": slide.slide,
                "risk": f"{risk[case]:+.2f}",
                "rank": f"{int((risk > risk[case]).sum()) + 1} of {len(risk)}",
                "outcome": f"{'event' if outcome.event[case] else 'censored'} at {outcome.time[case]:.3g}",
                "pictures": pictures,
            }
        )
    return str(render("outcome_maps.html", {"rows": rows}))
