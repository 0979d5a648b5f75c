"""A model's features may come from another engine than those that it was trained on: predictions say so and agree."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cmrcnet.features.engine import has_bf16
from cmrcnet.inference.location_features import LocationEncoder, LocationFeatures
from cmrcnet.inference.predict import predict
from tests.inference.small_model import locations, noise_slide

pytest.importorskip("openvino", reason="extra `fast`")


def test_predictions_of_engines_agree_and_say_what_made_their_features(model, bank):
    """float32 to rounding; bf16 to a tenth of a gene's deviation (see docs/how-to/engines.md)."""
    slide, spots = noise_slide(9), locations(10, seed=3)

    def by(engine: str, precision: str):
        asked = model.config.override({"features.engine": engine, "train.precision": precision})
        return predict(dataclasses.replace(model, config=asked), slide, bank=bank, spots=spots, k=len(bank))

    wanted = by("torch", "float32")
    assert wanted.uns["cmrcnet"]["features_made_by"] == "torch float32 on cpu"
    for precision, most in (("float32", 1e-4), ("bf16", 0.1)):
        if precision == "bf16" and not has_bf16():
            continue
        found = by("openvino", precision)
        assert found.uns["cmrcnet"]["features_made_by"] == f"openvino {precision} on cpu"
        assert found.uns["cmrcnet"]["model_fingerprint"] == model.fingerprint
        assert (np.abs(found.X - wanted.X) / wanted.X.std(axis=0)).max() < most


def test_kept_features_of_another_engine_are_not_continued(model):
    slide, at = noise_slide(9), locations(10, seed=3)
    encoder = LocationEncoder.of_model(model)
    other = dataclasses.replace(encoder, spec=dataclasses.replace(encoder.spec, engine="openvino"))
    assert LocationFeatures(encoder, slide, at).name != LocationFeatures(other, slide, at).name
