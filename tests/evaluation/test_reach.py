"""What a method is handed leads to no held-out count, however far it walks."""

from __future__ import annotations

import gc
import types

import numpy as np
import pytest
from scipy import sparse

from cmrcnet.evaluation.methods.method import location_of
from cmrcnet.evaluation.protocol.experiment import FoldPlanner, Study
from cmrcnet.evaluation.protocol.fold_runner import Bench
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
    """Bench, a task, and what its method is handed, after every section was read."""
    bench = Bench(small_cohort, small_cache)
    bench.warm(small_config)
    from cmrcnet.evaluation.methods.baselines import GeneMean

    study = Study(small_config, (GeneMean(),), folds(bench.cohort)[:1], (0,))
    (task,) = study.tasks(0, FoldPlanner(bench.cohort))
    bench.run(task)
    return bench, task, bench._training_data(task)


def test_no_held_out_count_can_be_reached_from_training_data_or_place(handed):
    bench, task, data = handed
    held_out = bench.cohort.read(task.plan.fold.test[0])
    place = location_of(held_out, data.features)
    assert held_out_counts(reachable(data, place), held_out) == []


def test_the_walk_would_find_them(handed):
    """It reaches the training counts, and would see a held-out section in a closure or in a cohort."""
    bench, task, data = handed
    training, held_out = bench.cohort.read(data.cohort.sections[0]), bench.cohort.read(task.plan.fold.test[0])
    assert held_out_counts(reachable(data), training) != []

    def closure() -> Section:
        return held_out

    assert held_out_counts(reachable(closure), held_out) != []
    assert held_out_counts(reachable(bench.cohort), held_out) != []
    assert held_out_counts(reachable(Cohort.of([held_out])), held_out) != []


def test_what_methods_share_cannot_be_changed_by_one_of_them(handed):
    _, _, data = handed
    for array in (data.pooled, data.expression.data):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
