"""What is held in to choose the epoch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrcnet.config import Config
from cmrcnet.errors import CmrcnetWarning
from cmrcnet.training.validation_split import SPOTS_SHARE, choose_validation
from tests.training.conftest import made_up_pairs


def plan(**settings) -> Config:
    return Config().override(
        {f"train.{k}" if k != "group_by" else "evaluation.group_by": v for k, v in settings.items()}
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 50), kind=st.sampled_from(["group", "spots", "none"]))
def test_validation_and_rest_share_nothing_and_make_up_all(seed, kind):
    pairs = made_up_pairs(patients="ABC")
    found = choose_validation(pairs, plan(validation=kind, seed=seed))
    assert sorted([*found.ids, *found.rest]) == list(range(16))
    assert bool(found) == (kind != "none")
    again = choose_validation(pairs, plan(validation=kind, seed=seed))
    np.testing.assert_array_equal(found.ids, again.ids)


def test_a_whole_patient_is_validation_and_seeds_choose_which():
    pairs = made_up_pairs()  # patient A has sections S0 and S1, B has S2
    chosen = {
        choose_validation(pairs, plan(seed=seed)).name: choose_validation(pairs, plan(seed=seed)) for seed in range(20)
    }
    assert set(chosen) == {"patient A", "patient B"}
    assert sorted(chosen["patient A"].ids) == list(range(8))
    assert sorted(chosen["patient B"].ids) == list(range(8, 16))


def test_by_section_one_section_is_validation():
    found = {choose_validation(made_up_pairs(), plan(group_by="section", seed=seed)).name for seed in range(30)}
    assert found == {"section S0", "section S1", "section S2"}


def test_with_one_patient_a_section_is_validation():
    found = choose_validation(made_up_pairs(patients="AAA"), plan())
    assert found.name.startswith("section S")
    assert len({int(s) for s in made_up_pairs().section_of[found.ids]}) == 1


def test_with_one_section_nothing_is_validation_and_that_is_said():
    with pytest.warns(CmrcnetWarning, match="one training section only .S0.*last epoch is kept"):
        found = choose_validation(made_up_pairs(lengths=(9,), patients="A"), plan())
    assert not found
    assert len(found.rest) == 9


def test_loose_spots_are_a_share_of_all_sections():
    pairs = made_up_pairs(lengths=(100, 60, 40))
    found = choose_validation(pairs, plan(validation="spots"))
    assert len(found.ids) == SPOTS_SHARE * 200
    assert set(pairs.section_of[found.ids]) == {0, 1, 2}
