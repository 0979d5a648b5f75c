"""Encoding: once, in order, whatever interrupts it."""

from __future__ import annotations

import errno
import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from cmrcnet.errors import BadOption, NoSpace, ScaleError
from cmrcnet.features import encode, parts
from cmrcnet.features.encode import encode_patches
from cmrcnet.slides.patches import crop_patches
from cmrcnet.slides.slide import ArraySlide
from cmrcnet.storage.cache import TokenCache
from tests.features.conftest import SCALE, CountingEncoder, files_in


def obvious(encoder, slide, centres) -> np.ndarray:
    """One patch at a time, nothing kept."""
    encoder.eval()
    with torch.inference_mode():
        each = [
            encoder(encoder.prepare(next(iter(crop_patches(slide, [centre], SCALE)))))[0].half() for centre in centres
        ]
    return torch.stack(each).numpy()


@pytest.fixture
def no_cropping(monkeypatch):
    """From here on, nobody may cut a patch."""

    def stop():
        def refuse(*_arguments, **_options):
            raise AssertionError("patches were cut again")

        monkeypatch.setattr(encode, "crop_patches", refuse)

    return stop


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("batch", [1, 4, 64])
def test_it_equals_one_patch_at_a_time(encoder, slide, centres, cache, cached, batch):
    tokens = encode_patches(encoder, slide, centres, SCALE, cache=cache if cached else None, batch=batch)
    assert tokens.shape == (21, 4, 3)
    assert tokens.dtype == np.float16
    np.testing.assert_allclose(
        tokens.astype(np.float32), obvious(encoder, slide, centres).astype(np.float32), rtol=2e-3
    )


def test_cached_tokens_are_mapped_and_equal_those_in_memory(encoder, slide, centres, cache):
    mapped = encode_patches(encoder, slide, centres, SCALE, cache=cache)
    assert isinstance(mapped, np.memmap)
    assert not mapped.flags.writeable
    np.testing.assert_array_equal(mapped, encode_patches(encoder, slide, centres, SCALE))


def test_a_second_run_neither_cuts_nor_encodes(encoder, slide, pixels, centres, cache, no_cropping):
    first = encode_patches(encoder, slide, centres, SCALE, cache=cache)
    assert encoder.patches == 21
    no_cropping()
    again = CountingEncoder()
    same = ArraySlide(pixels.copy(), 0.5, "by another name")
    np.testing.assert_array_equal(encode_patches(again, same, centres, SCALE, cache=TokenCache(cache.folder)), first)
    assert again.patches == 0


def test_the_same_patches_on_another_slide_are_not_encoded_again(encoder, slide, pixels, centres, cache):
    """Tokens are named by the bytes of the patches, not by where they were cut."""
    shifted = ArraySlide(np.pad(pixels, ((30, 20), (10, 0), (0, 0)), constant_values=255), 0.5, "in a larger picture")
    inside = centres[(centres > 12).all(axis=1)]
    encode_patches(encoder, slide, inside, SCALE, cache=cache)
    counted = encoder.patches
    encode_patches(encoder, shifted, inside + np.array([10, 30]), SCALE, cache=cache)
    assert encoder.patches == counted
    assert len(files_in(cache, "tokens")) == 1
    assert len(files_in(cache, "locations")) == 2


@pytest.mark.parametrize("change", ["encoder", "pixels", "centres", "scale", "mpp", "precision"])
def test_whatever_matters_is_in_the_name(encoder, slide, pixels, centres, cache, change):
    encode_patches(encoder, slide, centres, SCALE, cache=cache)
    other, locations, scale, precision = slide, centres, SCALE, "auto"
    second = CountingEncoder(2.0 if change == "encoder" else 1.0)
    if change == "pixels":
        touched = pixels.copy()
        touched[int(centres[0, 1]) % 120, int(centres[0, 0]) % 140] ^= 255
        other = ArraySlide(touched, 0.5, "noise")
    elif change == "centres":
        locations = centres + np.array([0.0, 1.0])
    elif change == "scale":
        scale = type(SCALE)(size_px=16, mpp=0.6)
    elif change == "mpp":
        other = ArraySlide(pixels, 0.4, "noise")
    elif change == "precision":
        precision = "bf16"
    encode_patches(second, other, locations, scale, cache=cache, precision=precision)
    assert second.patches == 21
    assert len(files_in(cache, "tokens")) == 2


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_entry_is_computed_again(encoder, slide, centres, cache, damage, caplog):
    first = np.array(encode_patches(encoder, slide, centres, SCALE, cache=cache))
    (entry,) = files_in(cache, "tokens")
    content = bytearray(entry.read_bytes())
    if damage == "flip":
        content[-30] ^= 1
    entry.write_bytes({"truncate": content[:-40], "flip": content, "empty": b""}[damage])
    second = CountingEncoder()
    np.testing.assert_array_equal(encode_patches(second, slide, centres, SCALE, cache=cache), first)
    assert second.patches == 21
    assert "is damaged and is computed again" in caplog.text


def test_a_damaged_note_of_the_place_only_costs_cutting(encoder, slide, centres, cache):
    encode_patches(encoder, slide, centres, SCALE, cache=cache)
    (note,) = files_in(cache, "locations")
    note.write_text('{"format": 1, "patches"')
    cache.recall("nothing")  # asking for what is not there is no fault
    encode_patches(encoder, slide, centres, SCALE, cache=cache)
    assert len(files_in(cache, "tokens")) == 1


def test_an_interrupted_run_goes_on_behind_its_last_part(encoder, slide, centres, cache, monkeypatch):
    monkeypatch.setattr(parts, "PART", 4)
    encoder.fail_after = 12
    with pytest.raises(KeyboardInterrupt):
        encode_patches(encoder, slide, centres, SCALE, cache=cache)
    assert len(files_in(cache, "parts")) == 3
    assert not [path for path in cache.folder.rglob("*") if ".tmp-" in path.name]
    second = CountingEncoder()
    tokens = encode_patches(second, slide, centres, SCALE, cache=cache)
    assert second.patches == 21 - 12
    assert files_in(cache, "parts") == []
    np.testing.assert_array_equal(tokens, encode_patches(second, slide, centres, SCALE))


@pytest.mark.parametrize("shelf", ["tokens", "locations"])
def test_a_full_disk_is_said_and_leaves_nothing_half_written(encoder, slide, centres, cache, monkeypatch, shelf):
    real = type(cache.folder).replace

    def full(self, target):
        if shelf in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(type(cache.folder), "replace", full)
    with pytest.raises(NoSpace, match="free space and run again"):
        encode_patches(encoder, slide, centres, SCALE, cache=cache)
    assert files_in(cache, shelf) == []


def test_threads_that_encode_the_same_at_once_agree(slide, centres, cache, monkeypatch):
    monkeypatch.setattr(parts, "PART", 4)
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(encode_patches, CountingEncoder(), slide, centres, SCALE, cache=cache) for _ in range(3)]
        results = [np.array(job.result()) for job in jobs]
    for result in results:
        np.testing.assert_array_equal(result, encode_patches(CountingEncoder(), slide, centres, SCALE))
    assert len(files_in(cache, "tokens")) == 1
    assert not [path for path in cache.folder.rglob("*") if ".tmp-" in path.name]


def _write_often(folder, seed):
    values = np.full((50, 4), 7, np.float16)
    for _ in range(30):
        TokenCache(folder).put("tokens", "same", values.shape, np.float16, [values])


def test_processes_that_write_the_same_entry_never_show_half_of_it(cache):
    writers = [multiprocessing.get_context("fork").Process(target=_write_often, args=(cache.folder, i)) for i in (0, 1)]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers):
        found = cache.get("tokens", "same", (50, 4), np.float16)
        if found is not None:
            assert (found == 7).all()
            seen += 1
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert cache.get("tokens", "same", (50, 4), np.float16) is not None
    assert seen > 0
    assert len(files_in(cache, "tokens")) == 1


def test_huge_tokens_are_cut_off_not_infinite(slide, centres):
    tokens = encode_patches(CountingEncoder(1e6), slide, centres, SCALE)
    assert np.isfinite(tokens).all()
    assert tokens.max() == np.finfo(np.float16).max


def test_the_encoder_is_left_as_it_was(encoder, slide, centres):
    encoder.train()
    encode_patches(encoder, slide, centres, SCALE)
    assert encoder.training
    assert encoder.weight.grad is None


@pytest.mark.parametrize("cached", [False, True])
def test_no_places_give_no_tokens(encoder, slide, cache, cached):
    tokens = encode_patches(encoder, slide, np.zeros((0, 2)), SCALE, cache=cache if cached else None)
    assert tokens.shape == (0, 4, 3)


def test_bad_requests_are_refused(encoder, slide, pixels, centres):
    with pytest.raises(BadOption, match="batch is 0"):
        encode_patches(encoder, slide, centres, SCALE, batch=0)
    with pytest.raises(ScaleError, match="mpp"):
        encode_patches(encoder, ArraySlide(pixels, None, "unknown"), centres, SCALE)


def test_memory_stays_bounded(encoder, slide, cache, monkeypatch):
    """Of the patches at most three parts are held: one that waits, one on its way, one that is encoded."""
    monkeypatch.setattr(parts, "PART", 8)
    alive, most = [], []

    def counted(*arguments, **options):
        import weakref

        for block in crop_patches(*arguments, **options):
            block = block.view(type("Block", (np.ndarray,), {}))
            alive.append(weakref.ref(block))
            most.append(sum(ref() is not None for ref in alive))
            yield block
            del block

    monkeypatch.setattr(encode, "crop_patches", counted)
    centres = np.random.default_rng(3).uniform(0, 100, (160, 2))
    encode_patches(encoder, slide, centres, SCALE, cache=cache)
    assert len(most) == 20
    assert max(most) <= 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_tokens_but_for_rounding(encoder, slide, centres):
    here = encode_patches(encoder, slide, centres, SCALE, device="cpu")
    there = encode_patches(encoder, slide, centres, SCALE, device="cuda")
    np.testing.assert_allclose(there.astype(np.float32), here.astype(np.float32), rtol=2e-2)
