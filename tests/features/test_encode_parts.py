"""Tokens part by part equal tokens of the whole, and too large a batch is halved."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmrcnet.errors import BadOption
from cmrcnet.features import parts
from cmrcnet.features.batch_size import ON_CPU, ON_GPU, choose_batch, in_memory_of_the_device
from cmrcnet.features.encode import encode_parts, encode_patches
from tests.features.conftest import SCALE


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(parts, "PART", 8)


@pytest.mark.parametrize("cached", [False, True])
def test_parts_together_are_the_whole(encoder, slide, centres, cache, cached):
    given = {"cache": cache} if cached else {}
    found = list(encode_parts(encoder, slide, centres, SCALE, **given))
    assert [rows.start for rows, _ in found] == [0, 8, 16]
    np.testing.assert_array_equal(
        np.concatenate([tokens for _, tokens in found]), encode_patches(encoder, slide, centres, SCALE)
    )


def test_what_is_done_is_passed_over_and_what_is_cached_not_encoded(encoder, slide, centres, cache):
    list(encode_parts(encoder, slide, centres, SCALE, cache=cache, done=lambda rows: rows.start == 8))
    assert encoder.patches == len(centres) - 8
    list(encode_parts(encoder, slide, centres, SCALE, cache=cache))
    assert encoder.patches == len(centres)


def test_a_section_that_was_encoded_whole_is_not_encoded_in_parts(encoder, slide, centres, cache):
    whole = encode_patches(encoder, slide, centres, SCALE, cache=cache)
    found = np.concatenate([tokens for _, tokens in encode_parts(encoder, slide, centres, SCALE, cache=cache)])
    np.testing.assert_array_equal(found, whole)
    assert encoder.patches == len(centres)


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
    torch.testing.assert_close(in_memory_of_the_device(forward, batch), batch * 2)
    assert max(size for size in sizes if size <= 3) == 3 and sizes[0] == 11

    def never(batch):
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        in_memory_of_the_device(never, batch)
