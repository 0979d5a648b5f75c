"""Baselines against what they claim to be."""

from __future__ import annotations

import numpy as np
import pytest

from cmrcnet.errors import ShapeMismatch, UnknownName
from cmrcnet.evaluation.methods.baselines import PENALTIES, RIDGE, SAME, choose_penalty
from cmrcnet.evaluation.methods.controls import GeneMean, RandomSpots
from cmrcnet.evaluation.methods.frozen_features import PooledFeatures
from cmrcnet.evaluation.methods.method import FoldData, Location, Prediction, location_of
from cmrcnet.evaluation.protocol.folds import folds
from cmrcnet.genes.gene_sets import choose_panel, gene_sets
from cmrcnet.genes.scaling import normalize


@pytest.fixture(scope="module")
def training(small_cohort, small_config, small_cache) -> FoldData:
    fold = folds(small_cohort)[0]
    inside = small_cohort.only(fold.train)
    panel = choose_panel(inside, small_config.panel)
    sets = gene_sets(inside, panel.scaling, size=12)
    return FoldData(inside, fold, small_config, panel, sets, PooledFeatures(small_config, small_cache), small_cache)


@pytest.fixture(scope="module")
def place(training, small_cohort) -> Location:
    return location_of(small_cohort.read(training.fold.test[0]), training.features)


def test_training_rows_and_columns_belong_together(training):
    first, second = training.cohort
    assert training.expression.shape == (len(first.spots) + len(second.spots), len(training.genes))
    assert list(training.section_of) == [first.name] * len(first.spots) + [second.name] * len(second.spots)
    expected = normalize(second.counts, training.config.panel.target_sum)[7, second.genes.index(training.genes[3])]
    assert training.expression[len(first.spots) + 7, 3] == pytest.approx(expected)
    assert training.pooled.shape[0] == training.expression.shape[0]
    np.testing.assert_array_equal(training.group_of, [first.patient] * 60 + [second.patient] * 60)


def test_features_are_the_mean_token_of_each_spot(training):
    from cmrcnet.features.extract import extract
    from cmrcnet.features.spec import FeatureSpec
    from cmrcnet.models.encoders import create_image_encoder

    section = training.cohort.read(training.cohort.sections[0])
    model = training.config.model
    encoder = create_image_encoder(model.encoder, weights=model.weights, blocks=model.blocks)
    tokens = extract(encoder, section.slide, section.spots.centre_px[:5], FeatureSpec(patch=training.config.patch))
    np.testing.assert_allclose(training.pooled[:5], np.asarray(tokens, np.float32).mean(axis=1), atol=2e-3, rtol=2e-3)


def test_the_gene_mean_is_the_training_mean_everywhere(training, place):
    said = GeneMean().fit(training).predict(place)
    assert said.genes == training.genes
    np.testing.assert_allclose(said.mean, np.tile(training.expression.toarray().mean(0), (60, 1)), rtol=1e-5)


def test_random_spots_are_means_of_k_training_spots_the_same_at_every_call(training, place):
    draw = RandomSpots().fit(training)
    said = draw.predict(place).mean
    np.testing.assert_array_equal(said, draw.predict(place).mean)
    assert draw.record == {"k": 10}
    expression = training.expression.toarray()
    assert (said >= expression.min(0) - 1e-5).all() and (said <= expression.max(0) + 1e-5).all()
    assert len(np.unique(said, axis=0)) > 40  # each spot draws its own


def test_ridge_equals_the_formula_at_its_penalty(training, place):
    fitted = RIDGE.fit(training)
    inputs, wanted = training.pooled.astype(np.float64), training.expression.toarray().astype(np.float64)
    mean, deviation = inputs.mean(0), inputs.std(0)
    deviation[deviation == 0] = 1
    scaled = (inputs - mean) / deviation
    # PCA that keeps every component of the training spots is a rotation, which ridge does not feel.
    penalty = fitted.record["penalty"]
    gram = scaled @ scaled.T
    weights = np.linalg.solve(gram + penalty * np.eye(len(gram)), wanted - wanted.mean(0))
    at = (place.pooled() - mean) / deviation
    np.testing.assert_allclose(fitted.predict(place).mean, at @ scaled.T @ weights + wanted.mean(0), atol=5e-3)


def test_the_penalty_is_the_best_on_validation_patients_of_the_grid(training):
    penalty, tried = choose_penalty(training, training.pooled)
    assert set(tried) == {f"{p:g}" for p in PENALTIES}
    best = [p for p in PENALTIES if tried[f"{p:g}"] >= max(tried.values()) - SAME]
    assert penalty == min(best)


def test_a_single_training_section_has_no_validation_group(training, small_cohort):
    alone = FoldData(
        small_cohort.only(training.cohort.sections[:1]), training.fold, training.config, training.panel,
        training.sets, training.features,
    )  # fmt: skip
    assert choose_penalty(alone, alone.pooled) == (PENALTIES[len(PENALTIES) // 2], {})


def test_a_prediction_gives_genes_in_the_order_asked_for():
    said = Prediction(("a", "b", "c"), np.arange(6, dtype=np.float32).reshape(2, 3))
    np.testing.assert_array_equal(said.take(("c", "a")), [[2, 0], [5, 3]])
    with pytest.raises(UnknownName, match="no predicted gene 'z'"):
        said.take(("a", "z"))
    with pytest.raises(ShapeMismatch, match="A prediction has shape"):
        Prediction(("a",), np.zeros((2, 3)))
