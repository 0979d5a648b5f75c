"""Scales, test-time augmentation, neighbourhood and section standardisation, each against the obvious way."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from cmrcnet.errors import CmrcnetWarning, TooFew
from cmrcnet.features import tokens as tokens_module
from cmrcnet.features.extract import extract
from cmrcnet.features.spec import FeatureSpec
from cmrcnet.features.tokens import SectionTokens, Standardizer
from cmrcnet.models.encoders import create_image_encoder
from cmrcnet.models.image_encoder import ROTATIONS_FIRST, d4
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


def turned_by_hand(patches: torch.Tensor, way: int) -> torch.Tensor:
    """Quarter turns; from 4 on also mirrored."""
    turned = torch.rot90(patches, way % 4, (2, 3))
    return turned.flip(3) if way >= 4 else turned


def one_scale(encoder, slide, centres, augmentations=1, **given) -> np.ndarray:
    """Mean token over the augmentations of one patch."""
    spec = FeatureSpec(patch=SCALE, scales_um=(SCALE.side_um,), augmentations=augmentations)
    return extract(encoder, slide, centres, spec, **given)[:, 0]


def around(tokens: np.ndarray, location_um: np.ndarray, deviation_um: float) -> np.ndarray:
    """Neighbourhood means alone."""
    spec = FeatureSpec(scales_um=(1.0,) * tokens.shape[1], neighbourhood_um=deviation_um)
    return SectionTokens(tokens, location_um, spec).take(slice(0, len(tokens)))[:, tokens.shape[1] :]


def standardized(tokens: np.ndarray) -> np.ndarray:
    """Section standardisation alone."""
    spec = FeatureSpec(scales_um=(1.0,) * tokens.shape[1], standardize="section")
    return SectionTokens(tokens, np.zeros((len(tokens), 2)), spec).take(slice(0, len(tokens)))


def by_hand(encoder, slide, scale, ways) -> np.ndarray:
    (patches,) = crop_patches(slide, CENTRES, scale)
    with torch.inference_mode():
        turned = [encoder(turned_by_hand(encoder.prepare(patches), way)).mean(dim=1) for way in ways]
    return torch.stack(turned).mean(dim=0).numpy()


@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_scale_is_the_mean_token_over_its_augmentations(encoder, slide, count):
    found = one_scale(encoder, slide, CENTRES, count, batch=3)
    np.testing.assert_allclose(found, by_hand(encoder, slide, SCALE, range(count)), atol=1e-4)


def test_the_eight_ways_are_all_different_and_a_turned_patch_has_the_same_features(encoder, slide):
    patches = torch.arange(9.0).reshape(1, 1, 3, 3).repeat(1, 3, 1, 1)
    for number, way in enumerate(ROTATIONS_FIRST):
        torch.testing.assert_close(d4(patches, way), turned_by_hand(patches, number))
    assert len({tuple(d4(patches, way).flatten().tolist()) for way in range(8)}) == 8
    turned = ArraySlide(np.ascontiguousarray(np.rot90(slide.read(0, 0, 500, 400))), mpp=0.7, name="turned")
    there = np.column_stack([CENTRES[:, 1], 500 - CENTRES[:, 0]])
    whole = [one_scale(encoder, *each, 8) for each in ((slide, CENTRES), (turned, there))]
    np.testing.assert_allclose(*whole, atol=2e-3)


def test_a_second_time_nothing_is_encoded(encoder, slide, tmp_path, monkeypatch):
    cache = TokenCache(tmp_path)
    first = one_scale(encoder, slide, CENTRES, 2, cache=cache)
    monkeypatch.setattr("cmrcnet.features.extract.crop_patches", None)
    np.testing.assert_array_equal(one_scale(encoder, slide, CENTRES, 2, cache=cache), first)


@pytest.mark.parametrize("method", ["patches", "dense"])
def test_each_scale_may_have_its_own_number_of_augmentations(slide, tmp_path, method, monkeypatch):
    encoder = create_image_encoder("efficientnet-lite0", blocks=(4,))
    scales, cache = (32.0, 64.0), TokenCache(tmp_path)

    def tokens(augmentations, **more):
        how = {"patch": PatchScale(size_px=64), "method": method, "augmentations": augmentations, "device": "cpu"}
        return extract(encoder, slide, CENTRES, FeatureSpec(**how, scales_um=scales), **more)

    one, four = tokens(1, cache=cache), tokens(4, cache=cache)
    assert np.abs(one - four).max() > 0.01 * one.std()
    np.testing.assert_array_equal(tokens((1, 4)), np.stack([one[:, 0], four[:, 1]], axis=1))
    monkeypatch.setattr("cmrcnet.features.extract.open_engine", None)  # each scale is known by its own number
    monkeypatch.setattr("cmrcnet.features.dense.open_engine", None)
    np.testing.assert_array_equal(tokens((4, 1), cache=cache), np.stack([four[:, 0], one[:, 1]], axis=1))


def spec(**features) -> FeatureSpec:
    return FeatureSpec(patch=PatchScale(size_px=160), **features)


def test_each_scale_is_a_token_and_so_is_its_neighbourhood(encoder, slide):
    plan = spec(scales_um=(112.0, 80.0), neighbourhood_um=60.0)
    tokens = extract(encoder, slide, CENTRES, plan)
    assert tokens.shape == (4, 4, encoder.dim) and plan.token_count(encoder) == 4
    for place, side in enumerate((112.0, 80.0)):
        scale = by_hand(encoder, slide, SCALE.showing(side), [0])
        np.testing.assert_allclose(tokens[:, place], scale, atol=1e-4)
        distance = np.linalg.norm(CENTRES[:, None] - CENTRES[None], axis=2) * 0.7
        weights = np.where(distance <= 180, np.exp(-(distance**2) / (2 * 60.0**2)), 0)
        means = weights @ scale / weights.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(tokens[:, 2 + place], means, atol=1e-4)


def test_without_scales_tokens_are_the_patchs_own(encoder, slide):
    tokens = extract(encoder, slide, CENTRES, spec())
    assert tokens.shape == (4, encoder.n_tokens, encoder.dim)


def test_within_a_section_every_feature_has_mean_0_and_deviation_1(encoder, slide):
    plan = spec(scales_um=(112.0,), standardize="section")
    with pytest.raises(TooFew, match="1 location of noise to standardise features within"):
        extract(encoder, slide, CENTRES[:1], plan)
    with pytest.warns(CmrcnetWarning, match="standardised within 4 locations only"):
        tokens = extract(encoder, slide, CENTRES, plan)
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
    np.testing.assert_allclose(around(tokens, np.array([[0.0, 0.0], [9e3, 0.0]]), 100.0), tokens, atol=1e-6)


def test_permuting_spots_permutes_their_tokens():
    tokens, place = np.random.default_rng(4).normal(size=(12, 2, 3)), np.random.default_rng(5).uniform(0, 500, (12, 2))
    order = np.random.default_rng(6).permutation(12)
    np.testing.assert_allclose(
        around(tokens, place, 150.0)[order], around(tokens[order], place[order], 150.0), atol=1e-6
    )


SPOTS = 57


@pytest.fixture(scope="module")
def scales() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(SPOTS, 2, 5)) * rng.uniform(0.1, 10, (2, 5)) + 100).astype(np.float32)


@pytest.fixture(scope="module")
def location_um() -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 900, (SPOTS, 2))


@pytest.mark.parametrize("neighbourhood_um", [0.0, 120.0])
@pytest.mark.parametrize("standardize", ["training", "section"])
@pytest.mark.parametrize("at_once", [1, 8, 1000])
def test_any_rows_are_the_rows_of_the_whole(scales, location_um, monkeypatch, neighbourhood_um, standardize, at_once):
    wanted = scales
    if neighbourhood_um:
        wanted = np.concatenate([scales, around(scales, location_um, neighbourhood_um)], axis=1)
    if standardize == "section":
        wanted = standardized(wanted)
    monkeypatch.setattr(tokens_module, "LOCATIONS_AT_ONCE", at_once)
    plan = FeatureSpec(scales_um=(112.0, 175.0), neighbourhood_um=neighbourhood_um, standardize=standardize)
    tokens = SectionTokens(scales, location_um, plan)
    assert len(tokens) == SPOTS
    for rows in (slice(0, SPOTS), slice(3, 4), slice(40, SPOTS)):
        np.testing.assert_allclose(tokens.take(rows), wanted[rows], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("pairs, values", [(1, 1), (150, 7), (1 << 21, 1 << 24)])
def test_neighbourhoods_in_parts_are_those_of_the_whole(scales, location_um, monkeypatch, pairs, values):
    """Whatever the limits of memory, the order of the locations, and the array that holds them."""
    spec = FeatureSpec(scales_um=(112.0, 175.0), neighbourhood_um=120.0, standardize="section")
    wanted = SectionTokens(scales, location_um, spec).take(slice(0, SPOTS))
    monkeypatch.setattr(tokens_module, "PAIRS_AT_ONCE", pairs)
    monkeypatch.setattr(tokens_module, "VALUES_AT_ONCE", values)
    layers_first = np.ascontiguousarray(scales.swapaxes(0, 1)).swapaxes(0, 1)
    tokens = SectionTokens(layers_first, location_um, spec)
    np.testing.assert_array_equal(tokens.take(slice(10, 20)), wanted[10:20])  # the rest is asked for by itself
    np.testing.assert_array_equal(tokens.take(slice(0, SPOTS)), wanted)


def test_memory_does_not_grow_with_the_number_of_neighbours(monkeypatch):
    """Locations of 8 um: 2.4 million pairs within the reach, of which the limit takes a hundredth at once."""
    x, y = np.meshgrid(np.arange(40) * 8.0, np.arange(40) * 8.0)
    location_um = np.random.default_rng(0).permutation(np.column_stack([x.ravel(), y.ravel()]))
    tokens = SectionTokens(np.ones((1600, 2, 4), np.float32), location_um, FeatureSpec(neighbourhood_um=150.0))
    monkeypatch.setattr(tokens_module, "PAIRS_AT_ONCE", 25_000)
    tracemalloc.start()
    found = tokens.take(slice(0, 1600))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(found, 1.0, rtol=1e-6)
    assert peak < 12_000_000  # the whole takes 300 MB


def test_means_and_deviations_of_blocks_join_without_losing_digits():
    """Values far from 0, where a plain sum of squares would lose the deviation altogether."""
    values = np.random.default_rng(2).normal(1e7, 1.0, (1000, 1, 3))
    joined = Standardizer.fit(np.array_split(values, [1, 10, 500]))
    np.testing.assert_allclose(joined.mean, values.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(joined.deviation, values.std(axis=0), rtol=1e-9)


def test_anchors_and_sub_windows_by_hand():
    """Eight anchors, two fine locations, the second far from all: means over sub-windows of means over anchors."""
    rng, step = np.random.default_rng(7), 30.0
    anchor_um = rng.uniform(0, 300, (8, 2))
    location_um = np.concatenate([anchor_um, [[150.0, 140.0], anchor_um[3], [9000.0, 20.0]]])
    scales = rng.normal(size=(11, 1, 5)).astype(np.float32)
    plan = spec(scales_um=(60.0,), window_um=step, neighbourhood_um=50.0, standardize="section", method="dense")
    counts = np.array([2] * 8 + [1, 1, 2])
    nearest = np.linalg.norm(anchor_um - location_um[10], axis=1).argmin()

    def means_at(point):
        distance = np.linalg.norm(anchor_um - point, axis=1)
        weights = np.where(distance <= 150, np.exp(-(distance**2) / (2 * 50.0**2)), 0)
        return scales[nearest, 0] if weights.sum() == 0 else weights @ scales[:8, 0] / weights.sum()

    wanted = []
    for place, count, own in zip(location_um, counts, scales[:, 0], strict=True):
        centres = [0.0] if count == 1 else [-step / 2, step / 2]
        around = np.mean([means_at(place + np.array([x, y])) for x in centres for y in centres], axis=0)
        wanted.append(np.stack([own, around]))
    wanted = np.array(wanted)
    wanted = (wanted - wanted[:8].mean(axis=0)) / wanted[:8].std(axis=0)
    tokens = SectionTokens(scales, location_um, plan, 8, counts)
    np.testing.assert_allclose(tokens.take(slice(0, 11)), wanted, atol=1e-4)
    np.testing.assert_allclose(tokens.take(slice(7, 10)), wanted[7:10], atol=1e-4)
