"""Devices and precisions by name."""

from __future__ import annotations

import pytest
import torch

from cmrcnet.errors import BadOption
from cmrcnet.features.device import choose_device, choose_precision, mixed

CPU = torch.device("cpu")


def test_auto_takes_what_is_there():
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else choose_device("auto").type)
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:99", "meta"])
def test_an_absent_device_is_refused(name):
    with pytest.raises(BadOption, match=r"train\.device"):
        choose_device(name)


def test_a_cpu_computes_in_float32_unless_told():
    assert choose_precision("auto", CPU) == "float32"
    assert choose_precision("bf16", CPU) == "bf16"
    with pytest.raises(BadOption, match="fp16 needs an NVIDIA GPU"):
        choose_precision("fp16", CPU)
    with pytest.raises(BadOption, match="auto, float32, bf16 or fp16"):
        choose_precision("float64", CPU)


def test_mixed_precision_rounds_products():
    left, right = torch.full((1, 64), 1.003), torch.full((64, 1), 1.003)
    with mixed("float32", CPU):
        exact = left @ right
    with mixed("bf16", CPU):
        rounded = left @ right
    assert exact.dtype == torch.float32
    assert rounded.dtype == torch.bfloat16
