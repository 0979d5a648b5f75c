"""LazySlide's protocols for students: the signatures, and predictions equal to our own."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pytest
import torch

from cmrcnet.errors import BadOption, ShapeMismatch, UnknownName
from cmrcnet.features.extract import extract
from cmrcnet.features.spec import FeatureSpec
from cmrcnet.heads.pca import FeaturePCA
from cmrcnet.interop import LazySlideStudent
from cmrcnet.slides.patches import crop_patches
from tests.inference.small_model import noise_slide
from tests.models.test_student import GENES, small_student


@runtime_checkable
class FeaturePredictionModelProtocol(Protocol):
    """As in lazyslide_models 0.1.0, base.py."""

    model: Any
    name: str

    def get_transform(self): ...
    def to(self, device): ...
    def try_compile(self, **compile_kws: Any): ...
    def predict(self, features, coords=None) -> dict[str, Any]: ...


CENTRES = np.array([[200.0, 300.0], [340.0, 300.0], [480.0, 410.0], [205.0, 520.0], [600.0, 205.0]])
CENTRES = np.concatenate([CENTRES, CENTRES + np.array([30.0, -20.0])])


def scaled_student(**features):
    """A student with scales, its PCA of the width that they need."""
    student = small_student()
    changes = {f"features.{name}": value for name, value in features.items()}
    config = student.config.override({"model.standardize_tokens": False, "train.augment": False, **changes})
    tokens = FeatureSpec.of(config, student.encoder).token_count(student.encoder) if features else 1
    width = tokens * student.encoder.dim
    rng = np.random.default_rng(5)
    pca = FeaturePCA(rng.normal(size=width).astype(np.float32), rng.normal(size=(width, 5)).astype(np.float32))
    return dataclasses.replace(student, config=config, pca=pca)


def test_it_has_the_members_and_signatures_that_lazyslide_calls():
    adapter = LazySlideStudent(small_student())
    assert isinstance(adapter, FeaturePredictionModelProtocol)
    for name in ("get_transform", "to", "try_compile", "predict"):
        theirs = inspect.signature(getattr(FeaturePredictionModelProtocol, name)).parameters
        ours = inspect.signature(getattr(LazySlideStudent, name)).parameters
        assert [(p.name, p.kind, p.default) for p in ours.values()] == [
            (p.name, p.kind, p.default) for p in theirs.values()
        ]
    assert adapter.to("cpu") is adapter and not adapter.needs_coords and not adapter.whole_slide
    adapter.try_compile(mode="default")


def test_installed_lazyslide_accepts_it():
    base = pytest.importorskip("lazyslide_models.base")
    adapter = LazySlideStudent(small_student())
    assert isinstance(adapter, base.FeaturePredictionModelProtocol) and isinstance(adapter, base.ImageModelProtocol)


def features_as_lazyslide_makes_them(adapter, slide) -> np.ndarray:
    """Tiles cut, transformed one by one and encoded, scale after scale, side by side."""
    transform, found = adapter.get_transform(), []
    for scale in adapter.spec.scales:
        tiles = torch.stack([transform(tile) for tile in next(crop_patches(slide, CENTRES, scale))])
        found.append(adapter.encode_image(tiles).numpy())
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize(
    "features",
    [
        {},
        {"scales_um": [40.0]},
        {"scales_um": [40.0, 80.0], "augmentations": 4, "neighbourhood_um": 60.0, "standardize": "section"},
    ],
)
def test_predictions_equal_those_from_our_own_features(features):
    student, slide = scaled_student(**features), noise_slide(3, side=800)
    adapter = LazySlideStudent(student, genes=GENES[3:6], slide_mpp=slide.mpp, tile_px=64.0)
    assert adapter.needs_coords == ("neighbourhood_um" in features) == adapter.whole_slide
    spec = FeatureSpec.of(student.config, student.encoder)
    tokens = np.asarray(extract(student.encoder, slide, CENTRES, spec), np.float32)
    ours = tokens.reshape(len(tokens), -1) if features else tokens.mean(axis=1)
    wanted = student.predict(ours, np.array([3, 4, 5]))
    found = adapter.predict(features_as_lazyslide_makes_them(adapter, slide), CENTRES - 32.0)
    assert list(found) == list(GENES[3:6])
    np.testing.assert_allclose(np.column_stack(list(found.values())), wanted, atol=2e-2)


def test_what_does_not_fit_is_refused():
    adapter = LazySlideStudent(small_student())
    with pytest.raises(ShapeMismatch, match="features of tiles"):
        adapter.predict(np.zeros((2, 3), np.float32))
    with pytest.raises(UnknownName, match="NOGENE"):
        LazySlideStudent(small_student(), genes=["NOGENE"])
    neighbours = scaled_student(scales_um=[40.0], neighbourhood_um=60.0)
    with pytest.raises(BadOption, match="slide_mpp"):
        LazySlideStudent(neighbours)
    with pytest.raises(BadOption, match=r"features\.augmentations is \[1, 4\]"):
        LazySlideStudent(scaled_student(scales_um=[40.0, 80.0], augmentations=[1, 4]))
    with pytest.raises(BadOption, match="coords"):
        LazySlideStudent(neighbours, slide_mpp=0.5).predict(np.zeros((2, neighbours.encoder.dim), np.float32))
