"""What is held in to choose the epoch."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrcnet.config import Config
from cmrcnet.errors import CmrcnetWarning
from cmrcnet.training.validation import (
    SPOTS_SHARE,
    CollapseReading,
    ValidationSplit,
    effective_rank,
    partner_ranks,
    read_collapse,
    validation_splits,
)
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


def choose_validation(pairs, config: Config) -> ValidationSplit:
    """The one split that chooses the epoch, or the one that leaves nothing out."""
    (found,) = validation_splits(pairs, config) or (ValidationSplit.nothing(len(pairs)),)
    return found


def gaussian(rows: int, dim: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(5))
def test_unrelated_embeddings_are_at_chance(seed):
    reading = read_collapse(gaussian(200, seed=seed), gaussian(200, seed=seed + 100), 1.0, candidates=64)
    assert reading.at_chance
    assert reading.recall_at_k == pytest.approx(reading.chance, abs=0.07)
    assert "the network is at chance" in reading.sentence


@pytest.mark.parametrize("noise", [0.0, 1.0, 3.0])
def test_partners_are_not(noise):
    image = gaussian(200)
    reading = read_collapse(image, image + noise * gaussian(200, seed=1), 0.4, candidates=64)
    assert not reading.at_chance
    assert reading.recall_at_k > 2 * reading.chance
    assert "better than chance" in reading.sentence


def test_all_patches_in_one_vector_are_at_chance_with_rank_one():
    reading = read_collapse(torch.ones(64, 8), gaussian(64, 8), 1.0, candidates=16)
    assert reading.at_chance
    assert reading.effective_rank == pytest.approx(1)
    same = read_collapse(torch.ones(64, 8), torch.ones(64, 8), 1.0, candidates=16)  # a tie is no hit
    assert same.recall_at_k == 0
    assert same.at_chance


def test_recall_is_counted_as_by_hand():
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    gene = torch.tensor([[1.0, 0.1], [1.0, 0.0], [-1.0, -1.0]])
    # patch 0: spot 1 is nearer than its own; patch 1: spot 0 is nearer; patch 2: its own is the farthest
    assert partner_ranks(image, gene).tolist() == [1, 1, 2]
    assert partner_ranks(10 * image, 0.1 * gene).tolist() == [1, 1, 2]  # cosine: length counts nothing


def test_chance_is_what_unrelated_embeddings_give():
    reading = read_collapse(gaussian(100), gaussian(100, seed=1), 1.0, candidates=50, k=5)
    assert reading.chance == pytest.approx(5 / 50)
    few = read_collapse(gaussian(6), gaussian(6, seed=1), 1.0, candidates=64, k=5)
    assert few.chance == pytest.approx(3 / 6)  # k is cut to half of the candidates


def test_effective_rank_is_the_exponential_of_the_entropy_of_singular_values():
    values = np.array([3.0, 2.0, 1.0])
    share = values / values.sum()
    by_hand = math.exp(-(share * np.log(share)).sum())
    rotation = torch.linalg.qr(gaussian(6, 6)).Q[:, :3].double()
    matrix = rotation * torch.tensor(values)
    assert effective_rank(matrix) == pytest.approx(by_hand, rel=1e-6)
    assert effective_rank(torch.eye(7)) == pytest.approx(7)
    assert effective_rank(torch.zeros(4, 3)) == 1


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 12), dim=st.integers(1, 12), scale=st.floats(0.01, 100))
def test_effective_rank_lies_between_one_and_the_rank_and_knows_no_scale(rows, dim, scale):
    vectors = gaussian(rows, dim)
    rank = effective_rank(vectors)
    assert 1 - 1e-9 <= rank <= min(rows, dim) + 1e-9
    assert effective_rank(vectors * scale) == pytest.approx(rank, rel=1e-4)


def test_a_reading_is_plain_values_and_comes_back():
    reading = read_collapse(gaussian(20), gaussian(20), 0.5, "validation P1")
    assert CollapseReading(**dataclasses.asdict(reading)) == reading
    assert "validation P1" in reading.sentence


def test_ranks_see_what_recall_of_a_hundred_misses():
    image = gaussian(100)
    reading = read_collapse(image, image + 16 * gaussian(100, seed=3), 0.99, candidates=32)
    assert reading.recall_at_k < 2 * reading.chance
    assert reading.ahead > 0.55
    assert not reading.at_chance


def test_a_guesser_stands_nearer_than_half_of_the_strangers():
    image, gene = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.eye(3, 2)
    reading = read_collapse(image, gene, 1.0, candidates=3)
    ranks = partner_ranks(image, gene).tolist()
    assert reading.ahead == pytest.approx(sum(2 - rank for rank in ranks) / 6)
    many = read_collapse(gaussian(2000), gaussian(2000, seed=9), 1.0, candidates=64)
    assert many.ahead == pytest.approx(0.5, abs=0.02)
