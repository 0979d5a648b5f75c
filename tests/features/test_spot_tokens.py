"""Views, orientations, neighbourhood and section standardisation, each against the obvious way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmrcnet.config import Config
from cmrcnet.features.section_tokens import gaussian_means, standardized
from cmrcnet.features.spot_tokens import spot_tokens, token_count
from cmrcnet.features.view_features import oriented, view_features
from cmrcnet.models.encoder_registry import create_image_encoder
from cmrcnet.slides.patches import crop_patches
from cmrcnet.slides.slide import ArraySlide, PatchScale
from cmrcnet.storage.cache import TokenCache

SCALE = PatchScale(size_px=160, mpp=0.7)


@pytest.fixture(scope="module")
def encoder():
    return create_image_encoder("timm:test_vit", weights="random", seed=1)


@pytest.fixture(scope="module")
def slide():
    pixels = np.random.default_rng(0).integers(0, 256, (400, 500, 3), dtype=np.uint8)
    return ArraySlide(pixels, mpp=0.7, name="noise")


CENTRES = np.array([[120.0, 130.0], [260.0, 200.0], [330.0, 90.0], [201.5, 303.25]])


def by_hand(encoder, slide, scale, ways) -> np.ndarray:
    (patches,) = crop_patches(slide, CENTRES, scale)
    with torch.inference_mode():
        turned = [encoder(oriented(encoder.prepare(patches), way)).mean(dim=1) for way in ways]
    return torch.stack(turned).mean(dim=0).numpy()


@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_view_is_the_mean_token_over_its_orientations(encoder, slide, count):
    found = view_features(encoder, slide, CENTRES, SCALE, orientations=count, batch=3)
    np.testing.assert_allclose(found, by_hand(encoder, slide, SCALE, range(count)), atol=1e-4)


def test_the_eight_orientations_are_all_different_and_a_turned_patch_has_the_same_features(encoder, slide):
    patches = torch.arange(9.0).reshape(1, 1, 3, 3).repeat(1, 3, 1, 1)
    assert len({tuple(oriented(patches, way).flatten().tolist()) for way in range(8)}) == 8
    turned = ArraySlide(np.ascontiguousarray(np.rot90(slide.read(0, 0, 500, 400))), mpp=0.7, name="turned")
    there = np.column_stack([CENTRES[:, 1], 500 - CENTRES[:, 0]])
    whole = [view_features(encoder, *each, SCALE, orientations=8) for each in ((slide, CENTRES), (turned, there))]
    np.testing.assert_allclose(*whole, atol=2e-3)


def test_a_second_time_nothing_is_encoded(encoder, slide, tmp_path, monkeypatch):
    cache = TokenCache(tmp_path)
    first = view_features(encoder, slide, CENTRES, SCALE, orientations=2, cache=cache)
    monkeypatch.setattr("cmrcnet.features.view_features.crop_patches", None)
    np.testing.assert_array_equal(view_features(encoder, slide, CENTRES, SCALE, orientations=2, cache=cache), first)


def config(**features) -> Config:
    settings = {f"features.{name}": value for name, value in features.items()}
    return Config.load("tiny").override(
        {"patch.size_px": 160, "model.standardize_tokens": False, "train.augment": False, **settings}
    )


def test_each_view_is_a_token_and_so_is_its_neighbourhood(encoder, slide):
    plan = config(views_um=[112.0, 80.0], neighbourhood_um=60.0)
    tokens = spot_tokens(encoder, slide, CENTRES, plan)
    assert tokens.shape == (4, 4, encoder.dim) and token_count(encoder, plan.features) == 4
    for place, side in enumerate((112.0, 80.0)):
        view = by_hand(encoder, slide, SCALE.showing(side), [0])
        np.testing.assert_allclose(tokens[:, place], view, atol=1e-4)
        distance = np.linalg.norm(CENTRES[:, None] - CENTRES[None], axis=2) * 0.7
        weights = np.where(distance <= 180, np.exp(-(distance**2) / (2 * 60.0**2)), 0)
        around = weights @ view / weights.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(tokens[:, 2 + place], around, atol=1e-4)


def test_without_views_tokens_are_the_patchs_own(encoder, slide):
    tokens = spot_tokens(encoder, slide, CENTRES, config())
    assert tokens.shape == (4, encoder.n_tokens, encoder.dim)


def test_within_a_section_every_feature_has_mean_0_and_deviation_1(encoder, slide):
    tokens = spot_tokens(encoder, slide, CENTRES, config(views_um=[112.0], standardize="section"))
    np.testing.assert_allclose(tokens.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(tokens.std(axis=0), 1, atol=1e-3)


def test_a_change_of_stain_that_scales_features_falls_away_and_a_constant_feature_becomes_0():
    tokens = np.random.default_rng(2).normal(size=(9, 2, 3)).astype(np.float32)
    np.testing.assert_allclose(standardized(3 * tokens + 5), standardized(tokens), atol=1e-4)
    tokens[:, 0, 0] = 7.0
    assert (standardized(tokens)[:, 0, 0] == 0).all()
    assert standardized(tokens[:0]).shape == (0, 2, 3)


def test_a_spot_by_itself_is_its_own_neighbourhood():
    tokens = np.random.default_rng(3).normal(size=(2, 1, 3)).astype(np.float32)
    np.testing.assert_allclose(gaussian_means(tokens, np.array([[0.0, 0.0], [9e3, 0.0]]), 100.0), tokens, atol=1e-6)


def test_permuting_spots_permutes_their_tokens():
    tokens, place = np.random.default_rng(4).normal(size=(12, 2, 3)), np.random.default_rng(5).uniform(0, 500, (12, 2))
    order = np.random.default_rng(6).permutation(12)
    np.testing.assert_allclose(
        gaussian_means(tokens, place, 150.0)[order], gaussian_means(tokens[order], place[order], 150.0), atol=1e-6
    )
