"""What a method is handed leads to no held-out count, however far it walks."""

from __future__ import annotations

import gc
import types

import numpy as np
import pytest
from scipy import sparse

from cmrcnet.evaluation.methods.method import location_of
from cmrcnet.evaluation.protocol.experiment import Experiment, FoldPlanner, TaskList
from cmrcnet.evaluation.protocol.fold_runner import FoldRunner
from cmrcnet.evaluation.protocol.folds import folds
from cmrcnet.slides.section import Cohort, CohortEntry, Section

_NOT_FOLLOWED = (types.ModuleType, types.FrameType, type, str, bytes, int, float)


def reachable(*starts: object) -> list[object]:
    """Every object that attributes, items, closures and defaults lead to. A function's globals are the program's."""
    found: dict[int, object] = {}
    stack = list(starts)
    while stack:
        each = stack.pop()
        if id(each) in found or isinstance(each, _NOT_FOLLOWED):
            continue
        found[id(each)] = each
        if isinstance(each, types.FunctionType):
            stack += [each.__closure__, each.__defaults__, each.__kwdefaults__, each.__dict__]
        elif isinstance(each, np.ndarray):
            stack.append(each.base)
        else:
            stack += gc.get_referents(each)
            stack.append(getattr(each, "__dict__", None))
    return list(found.values())


def held_out_counts(objects: list[object], held_out: Section) -> list[object]:
    """Those that are, or share memory with, the held-out counts; and the section itself, or a way to read it."""
    arrays = [held_out.counts.data, held_out.counts.indices]

    def is_bad(each: object) -> bool:
        if isinstance(each, np.ndarray):
            return any(np.shares_memory(each, array) for array in arrays)
        if sparse.issparse(each):
            return each.shape == held_out.counts.shape and (each != held_out.counts).nnz == 0
        if isinstance(each, Section):
            return each.name == held_out.name
        return isinstance(each, CohortEntry) and each.section == held_out.name

    return [each for each in objects if is_bad(each)]


@pytest.fixture
def handed(small_cohort, small_config, small_cache):
    """A runner, a method run, and what its method is handed, after every section was read."""
    runner = FoldRunner(small_cohort, small_cache)
    features = runner.features(small_config)
    for section in runner.cohort:
        features.of(section.slide, section.spots)
    from cmrcnet.evaluation.methods.controls import GeneMean

    experiment = Experiment(small_config, (GeneMean(),), folds(runner.cohort)[:1], (0,))
    (task,) = TaskList([experiment], [{}], 1).planned(FoldPlanner(runner.cohort))
    list(runner.run(task))
    data = runner.fold_data(task[0])
    assert data.pooled.size and data.expression.size
    return runner, task[0], data


def test_no_held_out_count_can_be_reached_from_training_data_or_place(handed):
    runner, run, data = handed
    held_out = runner.cohort.read(run.plan.fold.test[0])
    place = location_of(held_out, data.features)
    assert held_out_counts(reachable(data, place), held_out) == []


def test_the_walk_would_find_them(handed):
    """It reaches the training counts, and would see a held-out section in a closure or in a cohort."""
    runner, run, data = handed
    training, held_out = runner.cohort.read(data.cohort.sections[0]), runner.cohort.read(run.plan.fold.test[0])
    assert held_out_counts(reachable(data), training) != []

    def closure() -> Section:
        return held_out

    assert held_out_counts(reachable(closure), held_out) != []
    assert held_out_counts(reachable(runner.cohort), held_out) != []
    assert held_out_counts(reachable(Cohort.of([held_out])), held_out) != []


def test_what_methods_share_cannot_be_changed_by_one_of_them(handed):
    _, _, data = handed
    for array in (data.pooled, data.expression.data):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
