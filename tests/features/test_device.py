"""Devices and precisions by name."""

from __future__ import annotations

import pytest
import torch

from cmrcnet.errors import BadOption
from cmrcnet.features.device import (
    ON_CPU,
    ON_GPU,
    choose_batch,
    choose_device,
    choose_precision,
    mixed,
    split_on_memory_error,
)

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


def test_auto_suits_the_device_and_no_patches_are_no_batch():
    assert choose_batch("auto", torch.device("cpu")) == ON_CPU
    assert choose_batch("auto", torch.device("cuda")) == ON_GPU
    assert choose_batch(7, torch.device("cpu")) == 7
    with pytest.raises(BadOption, match="batch is 0; wanted 1 patch or more, or auto"):
        choose_batch(0, torch.device("cpu"))


def test_a_batch_for_which_the_device_has_no_memory_is_halved():
    sizes = []

    def forward(batch):
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError
        return batch * 2

    batch = torch.arange(11.0)
    torch.testing.assert_close(split_on_memory_error(forward, batch), batch * 2)
    assert max(size for size in sizes if size <= 3) == 3 and sizes[0] == 11

    def never(batch):
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        split_on_memory_error(never, batch)
