"""Every method that ships, walked by one test each: what the interface promises, and that it learns something."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from cmrcnet.evaluation.methods import method_of, shipped_methods
from cmrcnet.evaluation.methods.frozen_features import PooledFeatures
from cmrcnet.evaluation.methods.method import DiagnosticLocation, FoldData, Location, Method, location_of
from cmrcnet.evaluation.protocol.folds import folds
from cmrcnet.genes.gene_sets import choose_panel, gene_sets
from cmrcnet.genes.scaling import normalize
from cmrcnet.genes.spatial_stats import pearson_per_gene

TRAINED_NETWORKS = {"cmrcnet", "contrastive-only", "permuted-pairs"}
"""Trained by the config itself; test_protocol and test_leaks run them."""
BLIND = {"gene-mean", "random-k"}
SEES_NO_FEATURES = BLIND | {"coordinates-knn", "depth-null"}
WALKED = [name for name in shipped_methods() if name not in TRAINED_NETWORKS]


@pytest.fixture(scope="module")
def new_training(small_cohort, small_config, small_cache):
    """Makes the training data of the first fold, afresh, the frozen features remembered."""
    fold = folds(small_cohort)[0]
    inside = small_cohort.only(fold.train)
    panel = choose_panel(inside, small_config.panel)
    sets = gene_sets(inside, panel.scaling, size=12)
    features = PooledFeatures(small_config, small_cache)
    models = {}
    return lambda: FoldData(inside, fold, small_config, panel, sets, features, small_cache, models=models)


@pytest.fixture(scope="module")
def held_out(small_cohort, new_training):
    return small_cohort.read(new_training().fold.test[0])


@pytest.fixture(scope="module")
def fitted(new_training):
    """Fits each method once for all tests of this file."""
    return cache(lambda name: method_of(name).fit(new_training()))


@pytest.fixture(scope="module")
def place_for(held_out, new_training):
    return lambda name: location_of(held_out, new_training().features, method_of(name))


@pytest.mark.parametrize("name", shipped_methods())
def test_a_method_is_called_what_the_registry_calls_it(name):
    method = method_of(name)
    assert isinstance(method, Method) and method.name == name
    assert method.about and "\n" not in method.about
    assert (getattr(method, "diagnostic", False) is True) == (name == "depth-null")


@pytest.mark.parametrize("name", WALKED)
def test_a_method_predicts_every_training_gene_and_says_what_it_chose(name, fitted, place_for, new_training):
    said = fitted(name).predict(place_for(name))
    assert said.genes == new_training().genes
    assert said.mean.shape == (60, len(said.genes)) and said.mean.dtype == np.float32
    assert np.isfinite(said.mean).all()
    assert isinstance(fitted(name).record, dict)


@pytest.mark.parametrize("name", [name for name in WALKED if name not in BLIND])
def test_a_method_that_looks_beats_one_that_does_not(name, fitted, place_for, held_out, new_training):
    training = new_training()
    hvg = training.sets["HVG"]
    truth = normalize(held_out.counts, training.config.panel.target_sum).toarray()
    truth = truth[:, [held_out.genes.index(gene) for gene in hvg]]

    def score(which: str) -> float:
        return float(np.nanmean(pearson_per_gene(truth, fitted(which).predict(place_for(which)).take(hvg))))

    if name not in SEES_NO_FEATURES:
        assert score(name) > max(score("random-k"), 0) + MARGIN
    else:  # a diagnostic may score or not; on this tissue neither place nor depth tells what the picture tells
        assert score(name) < score("ridge")
    assert np.isnan(pearson_per_gene(truth, fitted("gene-mean").predict(place_for("gene-mean")).take(hvg))).all()


MARGIN = 0.1


@pytest.mark.parametrize("name", WALKED)
def test_the_same_seed_gives_the_same_prediction(name, fitted, place_for, new_training):
    again = method_of(name).fit(new_training())
    np.testing.assert_array_equal(again.predict(place_for(name)).mean, fitted(name).predict(place_for(name)).mean)
    assert again.record == fitted(name).record


@pytest.mark.parametrize("name", [name for name in WALKED if name not in BLIND])
def test_the_order_of_the_spots_changes_nothing(name, fitted, place_for):
    place = place_for(name)
    order = np.random.default_rng(0).permutation(len(place.spots))
    given = {
        "section": place.section,
        "slide": place.slide,
        "spots": place.spots.take(order),
        "features": place.features,
    }
    if isinstance(place, DiagnosticLocation):
        mixed = DiagnosticLocation(**given, log_depth=place.log_depth[order])
    else:
        mixed = Location(**given)
    straight, turned = fitted(name).predict(place).mean, fitted(name).predict(mixed).mean
    np.testing.assert_allclose(turned, straight[order], atol=2e-3)


def test_the_seed_matters_where_something_is_drawn(new_training, small_config, place_for, fitted):
    """So that the test of sameness can fail."""
    from dataclasses import replace

    other = replace(new_training(), config=small_config.override({"train.seed": 5}))
    changed = method_of("st-net").fit(other).predict(place_for("st-net"))
    assert not np.array_equal(changed.mean, fitted("st-net").predict(place_for("st-net")).mean)


@pytest.mark.filterwarnings("ignore::cmrcnet.errors.CmrcnetWarning")
def test_contrastive_only_is_cmrcnet_without_reconstruction(new_training, held_out):
    """The same as asking for it in the config, and not the same as the config itself."""
    from dataclasses import replace

    training = new_training()
    place = location_of(held_out, training.features)
    alone = method_of("contrastive-only").fit(training).predict(place)
    without = replace(training, config=training.config.override({"model.reconstruct": "none"}), models={})
    np.testing.assert_array_equal(alone.mean, method_of("cmrcnet").fit(without).predict(place).mean)
    assert not np.array_equal(alone.mean, method_of("cmrcnet").fit(training).predict(place).mean)
