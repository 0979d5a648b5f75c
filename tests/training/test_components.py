"""The course of a config that works on expression components: every unit held in, heads fitted, all stored."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from cmrcnet.config import Config
from cmrcnet.errors import BadOption, CmrcnetWarning
from cmrcnet.genes.components import find_components
from cmrcnet.inference.predict import predict
from cmrcnet.models.trained_model import TrainedModel
from cmrcnet.retrieval.bank import ReferenceBank, build_bank
from cmrcnet.testing import assert_prediction_table
from cmrcnet.training import data as data_module
from cmrcnet.training import loop as loop_module
from cmrcnet.training.checkpoint import Checkpoints
from cmrcnet.training.fit import fit
from tests.training.conftest import changed, with_counts
from tests.training.test_resume import Stopping, assert_equal


def test_every_unit_is_validation_and_the_epoch_is_best_on_their_mean(model, cohort):
    history = [row for row in model.provenance.history if row["phase"] == "search"]
    by_epoch = {}
    for row in history:
        if row.get("validation_pearson") is not None:
            by_epoch.setdefault(row["epoch"], []).append(row["validation_pearson"])
    assert {len(values) for values in by_epoch.values()} == {3}
    assert model.provenance.chosen_epoch == max(by_epoch, key=lambda epoch: np.mean(by_epoch[epoch]))
    assert [row["epoch"] for row in model.provenance.history if row["phase"] == "refit"] == list(
        range(1, model.provenance.chosen_epoch + 1)
    )


def test_the_record_says_what_was_chosen(model):
    record = model.provenance.facts["head"]
    assert set(record["weights"]) == {"retrieval", "ridge", "kernel"}
    assert record["validation_pearson"]["ensemble"] > 0.2
    assert record["epoch"] == model.provenance.chosen_epoch


@pytest.mark.parametrize("kind", ["retrieval", "ridge", "kernel", "ensemble"])
def test_each_head_finds_what_tissue_shows(model, bank, cohort, cache, kind):
    section = cohort.read(cohort.sections[0])
    table = predict(model, section.slide, bank=bank, spots=section.spots, head=kind, cache=cache)
    assert_prediction_table(table)
    scores = model.components.scores(model.panel.select(section))
    found = model.components.scores(np.asarray(table[:, list(model.panel.genes)].X))
    assert np.corrcoef(found[:, 0], scores[:, 0])[0, 1] > 0.5
    assert table.uns["cmrcnet"]["head"] == kind


def test_saving_and_loading_changes_no_prediction(model, bank, cohort, cache, tmp_path):
    section = cohort.read(cohort.sections[1])
    model.save_pretrained(tmp_path / "model")
    bank.save(tmp_path / "bank")
    again, there = TrainedModel.from_pretrained(tmp_path / "model"), ReferenceBank.load(tmp_path / "bank")
    assert again.fingerprint == model.fingerprint and there.fingerprint == bank.fingerprint
    first, second = (
        predict(m, section.slide, bank=b, spots=section.spots, cache=cache) for m, b in ((model, bank), (again, there))
    )
    np.testing.assert_array_equal(np.asarray(first.X), np.asarray(second.X))


def test_a_resumed_training_ends_alike(model, cohort, cache, plan, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(cohort, plan, cache=cache, checkpoints=Stopping(tmp_path / "state", "refit", 1))
    resumed = fit(cohort, plan, cache=cache, checkpoints=Checkpoints(tmp_path / "state"), resume=True)
    assert_equal(resumed, model)


@pytest.mark.filterwarnings(
    "ignore:This training found no signal"
)  # two epochs, and a third of the pairs are scrambled
def test_the_validation_unit_is_not_trained_on(model, cohort, cache, plan, monkeypatch):
    """Scrambled counts of a unit change nothing that is retrieved for it; the components, made of all, are kept."""
    known = find_components((model.panel.select(section) for section in cohort), 4)
    monkeypatch.setattr(data_module, "find_components", lambda *given: known)
    spied = []
    search = loop_module.cross_search
    monkeypatch.setattr(loop_module, "cross_search", lambda *given: spied.append(search(*given)) or spied[-1])
    name = cohort.sections[0]
    order = np.random.default_rng(1).permutation(len(cohort.read(name).spots))
    other = changed(cohort, name, lambda section: with_counts(section, section.counts[order]))
    for each in (cohort, other):
        fit(each, plan.override({"train.epochs": 2}), panel=model.panel, cache=cache)
    rows = np.arange(len(order))
    np.testing.assert_array_equal(spied[0].retrieved[rows], spied[1].retrieved[rows])
    assert not np.array_equal(spied[0].retrieved[len(order) :], spied[1].retrieved[len(order) :])


def test_one_training_section_gives_middle_settings_and_says_so(cohort, cache, plan):
    alone = cohort.only(cohort.sections[:1])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", CmrcnetWarning)
        model = fit(alone, plan.override({"train.epochs": 2}), cache=cache)
    assert "one training section only" in str(said[0].message)
    assert list(model.head.ensemble.weights.values()) == pytest.approx([1 / 3] * 3)
    section = alone.read(alone.sections[0])
    table = predict(model, section.slide, bank=build_bank(model, alone), spots=section.spots, cache=cache)
    assert np.isfinite(np.asarray(table.X)).all()


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"head.kind": "ensemble"}, "target.ranks"),
        ({"head.variance_rescaling": 0.5}, "target.ranks"),
        ({"target.ranks": [3]}, "each"),
        ({"features.augmentations": 4}, "scales_um"),
        ({"model.pool": "components"}, "standardize_tokens"),
        ({"features.scales_um": [112], "model.train_encoder": True}, "frozen"),
        ({"model.trained_blocks": 2}, "without train_encoder"),
        ({"model.trained_blocks": 0, "model.train_encoder": True}, "1 or more"),
        ({"model.reconstruct": "tokens", "model.fusion_dim": 128}, "fusion_dim is embedding_dim"),
    ],
)
def test_settings_that_need_each_other(settings, wanted):
    with pytest.raises(BadOption, match=wanted):
        Config.load("tiny").override(settings)


def test_a_head_that_the_model_does_not_have(cohort, cache, config):
    plain = fit(cohort, config.override({"train.epochs": 1}), cache=cache)
    section = cohort.read(cohort.sections[0])
    with pytest.raises(BadOption, match="components"):
        predict(plain, section.slide, bank=build_bank(plain, cohort), spots=section.spots, head="ridge", cache=cache)
