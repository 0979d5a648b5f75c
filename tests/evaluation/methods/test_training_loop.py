"""The training of every published baseline."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import sparse

from cmrcnet.errors import Diverged
from cmrcnet.evaluation.methods.baseline_training import Schedule, genes_learnt, train_baseline


def small_training(groups: str = "aabbcc", seed: int = 0) -> SimpleNamespace:
    """Twenty spots a letter; one gene is the second half of another."""
    section_of = np.repeat(list(groups), 20)
    expression = np.random.default_rng(seed).normal(size=(len(section_of), 3))
    sets = {"HVG": ("g0", "g1"), "HEG": ("g1",), "all": ("g0", "g1", "g2")}
    return SimpleNamespace(
        section_of=section_of, group_of=section_of, seed=seed, sets=sets, genes=sets["all"],
        expression=sparse.csr_matrix(expression), panel=SimpleNamespace(genes=("g2", "strange")),
    )  # fmt: skip


class Watched:
    """Learns nothing worth while; its validation guess is right in `best` and worse at every other evaluation."""

    def __init__(self, rows: np.ndarray, truth: np.ndarray, best: int, cost: float = 1.0) -> None:
        self.rows, self.truth, self.best, self.cost = rows, truth, best, cost
        self.network = torch.nn.Linear(1, 1, bias=False)
        self.epoch, self.guessed = 0, []

    def loss(self, rows):
        self.epoch += 1  # an epoch is one batch
        assert set(rows) == set(self.rows)
        return self.network.weight.sum() * self.cost

    def guess(self, rows):
        self.guessed.append(rows)
        noise = np.random.default_rng(self.epoch).normal(size=(len(rows), 2))
        return self.truth[rows] + noise * abs(self.epoch - self.best)


def learnt_with(best: int, schedule: Schedule, groups: str = "aabbcc"):
    training, made = small_training(groups), []

    def make(rows):
        made.append(Watched(rows, training.expression.toarray()[:, :2], best))
        return made[-1]

    return train_baseline(training, make, schedule), made, training


def test_the_best_epoch_on_the_validation_group_is_trained_again_on_everything():
    learnt, (searcher, final), training = learnt_with(6, Schedule(most_epochs=30, evaluate_every=2, patience=2))
    assert learnt.record["epochs"] == 6 and final.epoch == 6
    assert searcher.epoch == 10  # two evaluations without a better score
    outside = np.flatnonzero(training.group_of == learnt.record["validation"])
    assert not set(searcher.rows) & set(outside) and len(searcher.rows) + len(outside) == 120
    np.testing.assert_array_equal(final.rows, np.arange(120))
    np.testing.assert_array_equal(searcher.guessed[0], outside)
    assert final.guessed == [] and learnt.trainable is final and not final.network.training


def test_the_searcher_goes_back_to_its_best_weights():
    learnt, (searcher, _), _ = learnt_with(6, Schedule(most_epochs=30, evaluate_every=2, patience=2))
    again, (other, _), _ = learnt_with(6, Schedule(most_epochs=6, evaluate_every=2, patience=2))
    torch.testing.assert_close(searcher.network.weight, other.network.weight)
    assert [e for e, _ in learnt.record["validation_scores"]] == [2, 4, 6, 8, 10] and again.record["epochs"] == 6


def test_with_one_group_nothing_is_validation():
    learnt, made, _ = learnt_with(6, Schedule(most_epochs=4), groups="a")
    assert learnt.record == {"validation": "nothing", "validation_scores": [], "epochs": 4}
    assert len(made) == 1 and made[0].epoch == 4 and learnt.searcher is None


def test_torchs_own_generator_is_left_as_it_was():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    learnt_with(2, Schedule(most_epochs=4))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_loss_that_is_no_number_stops_at_once():
    training = small_training()
    with pytest.raises(Diverged, match="not finite in epoch 1"):
        train_baseline(training, lambda rows: Watched(rows, training.expression.toarray(), 1, float("nan")), Schedule())


def test_hvg_come_first_among_the_genes_learnt_then_heg_then_the_panel():
    training = small_training()
    assert genes_learnt(training).tolist() == [0, 1, 2]
    assert genes_learnt(training, most=1).tolist() == [0, 1]  # the HVG are always in
