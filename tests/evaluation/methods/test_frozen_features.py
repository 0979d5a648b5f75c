"""Frozen features, and the poorer ones beside them."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from cmrcnet.evaluation.methods.frozen_features import FeatureKind, PooledFeatures, colour_statistics
from cmrcnet.slides.patches import crop_patches


@pytest.fixture(scope="module")
def section(small_cohort):
    whole = small_cohort.read("P1S1")
    return whole.take(np.arange(6))


def test_the_last_layer_is_that_of_one_patch(section, small_config, small_cache):
    from cmrcnet.features.extract import extract
    from cmrcnet.features.spec import FeatureSpec
    from cmrcnet.models.encoders import create_image_encoder

    found = PooledFeatures(small_config, small_cache).of(section.slide, section.spots, "last")
    encoder = create_image_encoder(small_config.model.encoder)
    tokens = extract(encoder, section.slide, section.spots.centre_px, FeatureSpec(patch=small_config.patch))
    assert found.shape == (6, encoder.dim)
    np.testing.assert_allclose(found, np.asarray(tokens, np.float32).mean(axis=1), atol=2e-3, rtol=2e-3)


def test_the_untrained_encoder_has_the_same_shape_and_other_weights_by_the_seed(section, small_config, small_cache):
    features = PooledFeatures(small_config, small_cache)
    found = features.of(section.slide, section.spots, "untrained")
    trained = features.of(section.slide, section.spots)
    assert found.shape == trained.shape and not np.allclose(found, trained, atol=0.1)
    again = PooledFeatures(small_config, None).of(section.slide, section.spots, "untrained")
    np.testing.assert_allclose(again, found, atol=2e-3, rtol=2e-3)
    other = PooledFeatures(small_config.override({"train.seed": 7}), None).of(section.slide, section.spots, "untrained")
    assert not np.allclose(other, found, atol=1e-2)
    assert (found.std(axis=0) > 0).mean() > 0.9  # it does see something


def test_colour_is_that_of_the_patches_also_when_it_comes_from_the_cache(section, small_config, small_cache):
    (patches,) = crop_patches(section.slide, section.spots.centre_px, small_config.patch)
    expected = colour_statistics(patches)
    first, second = (
        PooledFeatures(small_config, small_cache).of(section.slide, section.spots, "colour") for _ in range(2)
    )
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(second, expected)
    np.testing.assert_array_equal(
        PooledFeatures(small_config, None).of(section.slide, section.spots, "colour"), expected
    )


def test_each_kind_is_computed_once(section, small_config, small_cache):
    features = PooledFeatures(small_config, small_cache)
    for kind in get_args(FeatureKind):
        first, again = (features.of(section.slide, section.spots, kind) for _ in range(2))
        assert first is again
