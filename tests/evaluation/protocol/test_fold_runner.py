"""The bench: what presets share, and what they must not."""

from __future__ import annotations

import pytest

from cmrcnet.config import Config
from cmrcnet.evaluation.protocol.fold_runner import _NOT_FEATURES, features_name


def test_configs_with_the_same_features_share_them():
    base = Config.load("tiny")
    for settings in ({"model.mask_rate": 0.3}, {"head.k": 3}, {"train.epochs": 1}, {"panel.n_hvg": 9}):
        assert features_name(base.override(settings)) == features_name(base)


@pytest.mark.parametrize(
    "settings",
    [{"model.blocks": [4]}, {"model.encoder": "dinov2-s"}, {"patch.mpp": 1.0}, {"train.seed": 1},
     {"model.weights": "random"}, {"train.precision": "bf16"}],
)  # fmt: skip
def test_configs_with_other_features_do_not(settings):
    base = Config.load("tiny")
    assert features_name(base.override(settings)) != features_name(base)


def test_settings_that_are_said_to_change_no_feature_exist():
    plain = Config().to_dict()
    assert set(_NOT_FEATURES[""]) <= set(plain)
    for part in ("model", "train"):
        assert set(_NOT_FEATURES[part]) <= set(plain[part])
