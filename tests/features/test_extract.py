"""Encoding: once, in order, whatever interrupts it."""

from __future__ import annotations

import errno
import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from cmrcnet.errors import BadOption, NoSpace, ScaleError
from cmrcnet.features import extract as extract_module
from cmrcnet.features import resumable
from cmrcnet.features.extract import (
    PERTURBED,
    STATISTICS,
    FeatureSpec,
    cached_patches,
    extract,
    extract_chunks,
    extract_with,
)
from cmrcnet.slides.patches import crop_patches
from cmrcnet.slides.slide import ArraySlide, PatchScale
from cmrcnet.storage.cache import TokenCache
from cmrcnet.uncertainty.ood import (
    PERTURBED_LOCATIONS,
    PERTURBED_SCALES,
    evenly,
    image_statistics,
    perturbed_statistics,
)
from tests.features.conftest import SCALE, CountingEncoder, files_in

SPEC = FeatureSpec(patch=SCALE)


def plain(encoder, slide, centres, cache=None, batch="auto", **how) -> np.ndarray:
    """Tokens of one patch a location."""
    return extract(encoder, slide, centres, FeatureSpec(patch=SCALE, **how), cache=cache, batch=batch)


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

        monkeypatch.setattr("cmrcnet.features.extract.crop_patches", refuse)

    return stop


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("batch", [1, 4, 64])
def test_it_equals_one_patch_at_a_time(encoder, slide, centres, cache, cached, batch):
    tokens = plain(encoder, slide, centres, cache=cache if cached else None, batch=batch)
    assert tokens.shape == (21, 4, 3)
    assert tokens.dtype == np.float16
    np.testing.assert_allclose(
        tokens.astype(np.float32), obvious(encoder, slide, centres).astype(np.float32), rtol=2e-3
    )


def test_cached_tokens_are_mapped_and_equal_those_in_memory(encoder, slide, centres, cache):
    mapped = plain(encoder, slide, centres, cache=cache)
    assert not mapped.flags.writeable
    assert not mapped.flags.writeable
    np.testing.assert_array_equal(mapped, plain(encoder, slide, centres))


def test_a_second_run_neither_cuts_nor_encodes(encoder, slide, pixels, centres, cache, no_cropping):
    first = plain(encoder, slide, centres, cache=cache)
    assert encoder.patches == 21
    no_cropping()
    again = CountingEncoder()
    same = ArraySlide(pixels.copy(), 0.5, "by another name")
    np.testing.assert_array_equal(plain(again, same, centres, cache=TokenCache(cache.folder)), first)
    assert again.patches == 0


@pytest.mark.parametrize("change", ["encoder", "pixels", "centres", "scale", "mpp", "precision"])
def test_whatever_matters_is_in_the_name(encoder, slide, pixels, centres, cache, change):
    plain(encoder, slide, centres, cache=cache)
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
    extract(second, other, locations, FeatureSpec(patch=scale, precision=precision), cache=cache)
    assert second.patches == 21
    assert len(files_in(cache, "tokens")) == 2


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_entry_is_computed_again(encoder, slide, centres, cache, damage, caplog):
    first = np.array(plain(encoder, slide, centres, cache=cache))
    (entry,) = files_in(cache, "tokens")
    content = bytearray(entry.read_bytes())
    if damage == "flip":
        content[-30] ^= 1
    entry.write_bytes({"truncate": content[:-40], "flip": content, "empty": b""}[damage])
    second = CountingEncoder()
    np.testing.assert_array_equal(plain(second, slide, centres, cache=cache), first)
    assert second.patches == 21
    assert "is damaged or of another version, and is computed again" in caplog.text


def test_an_interrupted_run_goes_on_behind_its_last_part(encoder, slide, centres, cache, monkeypatch):
    monkeypatch.setattr(resumable, "CHUNK", 4)
    encoder.fail_after = 12
    with pytest.raises(KeyboardInterrupt):
        plain(encoder, slide, centres, cache=cache)
    assert len(files_in(cache, "tokens")) == 3
    assert not [path for path in cache.folder.rglob("*") if ".tmp-" in path.name]
    second = CountingEncoder()
    tokens = plain(second, slide, centres, cache=cache)
    assert second.patches == 21 - 12
    assert len(files_in(cache, "tokens")) == 1
    np.testing.assert_array_equal(tokens, plain(second, slide, centres))


def test_a_full_disk_is_said_and_leaves_nothing_half_written(encoder, slide, centres, cache, monkeypatch):
    real = type(cache.folder).replace

    def full(self, target):
        if "tokens" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(type(cache.folder), "replace", full)
    with pytest.raises(NoSpace, match="free space and run again"):
        plain(encoder, slide, centres, cache=cache)
    assert files_in(cache, "tokens") == []


def test_threads_that_encode_the_same_at_once_agree(slide, centres, cache, monkeypatch):
    monkeypatch.setattr(resumable, "CHUNK", 4)
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(plain, CountingEncoder(), slide, centres, cache=cache) for _ in range(3)]
        results = [np.array(job.result()) for job in jobs]
    for result in results:
        np.testing.assert_array_equal(result, plain(CountingEncoder(), slide, centres))
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
    tokens = plain(CountingEncoder(1e6), slide, centres)
    assert np.isfinite(tokens).all()
    assert tokens.max() == np.finfo(np.float16).max


def test_the_encoder_is_left_as_it_was(encoder, slide, centres):
    encoder.train()
    plain(encoder, slide, centres)
    assert encoder.training
    assert encoder.weight.grad is None


@pytest.mark.parametrize("cached", [False, True])
def test_no_places_give_no_tokens(encoder, slide, cache, cached):
    tokens = plain(encoder, slide, np.zeros((0, 2)), cache=cache if cached else None)
    assert tokens.shape == (0, 4, 3)


def test_bad_requests_are_refused(encoder, slide, pixels, centres):
    with pytest.raises(BadOption, match="batch is 0"):
        plain(encoder, slide, centres, batch=0)
    with pytest.raises(ScaleError, match="mpp"):
        plain(encoder, ArraySlide(pixels, None, "unknown"), centres)


def test_memory_stays_bounded(encoder, slide, cache, monkeypatch):
    """Of the patches at most three chunks are held: one that waits, one on its way, one that is encoded."""
    monkeypatch.setattr(resumable, "CHUNK", 8)
    alive, most = [], []

    def counted(*arguments, **options):
        import weakref

        for block in crop_patches(*arguments, **options):
            block = block.view(type("Block", (np.ndarray,), {}))
            alive.append(weakref.ref(block))
            most.append(sum(ref() is not None for ref in alive))
            yield block
            del block

    monkeypatch.setattr("cmrcnet.features.extract.crop_patches", counted)
    centres = np.random.default_rng(3).uniform(0, 100, (160, 2))
    plain(encoder, slide, centres, cache=cache)
    assert len(most) == 20
    assert max(most) <= 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_tokens_but_for_rounding(encoder, slide, centres):
    here = plain(encoder, slide, centres, device="cpu")
    there = plain(encoder, slide, centres, device="cuda")
    np.testing.assert_allclose(there.astype(np.float32), here.astype(np.float32), rtol=2e-2)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(resumable, "CHUNK", 8)


@pytest.mark.parametrize("cached", [False, True])
def test_parts_together_are_the_whole(encoder, slide, centres, cache, cached, small_chunks):
    given = {"cache": cache} if cached else {}
    found = [(rows, values) for rows, _, values in extract_chunks(encoder, slide, centres, SPEC, **given)]
    assert [rows.start for rows, _ in found] == [0, 8, 16]
    np.testing.assert_array_equal(np.concatenate([tokens for _, tokens in found]), plain(encoder, slide, centres))


def test_what_is_done_is_passed_over_and_what_is_cached_not_encoded(encoder, slide, centres, cache, small_chunks):
    list(extract_chunks(encoder, slide, centres, SPEC, cache=cache, done=lambda rows, _: rows.start == 8))
    assert encoder.patches == len(centres) - 8
    list(extract_chunks(encoder, slide, centres, SPEC, cache=cache))
    assert encoder.patches == len(centres)


def test_a_section_that_was_encoded_whole_is_not_encoded_in_parts(encoder, slide, centres, cache, small_chunks):
    whole = plain(encoder, slide, centres, cache=cache)
    found = np.concatenate([tokens for _, _, tokens in extract_chunks(encoder, slide, centres, SPEC, cache=cache)])
    np.testing.assert_array_equal(found, whole)
    assert encoder.patches == len(centres)


def test_cached_patches_are_those_that_would_be_cut_and_are_mapped(slide, centres, cache):
    patches = cached_patches(cache, slide, centres, SCALE)
    assert not patches.flags.writeable
    assert patches.dtype == np.uint8
    np.testing.assert_array_equal(patches, np.concatenate(list(crop_patches(slide, centres, SCALE))))


def test_cached_patches_are_cut_once(slide, centres, cache, monkeypatch):
    first = np.array(cached_patches(cache, slide, centres, SCALE))
    monkeypatch.setattr(extract_module, "crop_patches", None)  # not callable: cutting again would fail
    np.testing.assert_array_equal(cached_patches(cache, slide, centres, SCALE), first)


def test_damaged_patches_are_cut_again(slide, centres, cache):
    first = np.array(cached_patches(cache, slide, centres, SCALE))
    (entry,) = files_in(cache, "patches")
    entry.write_bytes(entry.read_bytes()[:500])
    np.testing.assert_array_equal(cached_patches(cache, slide, centres, SCALE), first)


def test_the_name_of_cached_patches_counts_the_pixels_that_are_cut(slide, centres):
    """If these pixels change on purpose, count `slides.patches.CROP_FORMAT` up, so that cached features are redone."""
    from cmrcnet.slides.patches import CROP_FORMAT, crop_patches
    from cmrcnet.storage.hashing import fingerprint

    cut = [np.concatenate(list(crop_patches(slide, centres, PatchScale(size_px=16, mpp=mpp)))) for mpp in (0.5, 1.3)]
    assert (CROP_FORMAT, fingerprint(*cut)) == (1, "cd405d06f940eaec29607eea1179cdee")


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(("scales_um", "reads"), [((), 2), ((200.0,), 1), ((40.0, 300.0), 2), ((8.0, 300.0), 2)])
def test_image_statistics_come_with_the_features_and_equal_those_of_a_second_reading(cache, cached, scales_um, reads):
    """Reads of a location: one a scale, and one more where no scale is cut from the level that the statistics need."""
    slide = CountedReads(np.random.default_rng(8).integers(0, 256, (900, 1000, 3), dtype=np.uint8))
    centres = np.random.default_rng(9).uniform(100, 800, (300, 2)).round(1)
    spec = FeatureSpec(patch=SCALE, scales_um=scales_um)
    plain = extract(CountingEncoder(), slide, centres, spec)
    assert slide.reads == 300 * max(len(scales_um), 1)
    slide.reads = 0
    store = cache if cached else None
    tokens, also = extract_with(CountingEncoder(), slide, centres, spec, (STATISTICS,), cache=store)
    statistics = also[STATISTICS]
    assert slide.reads == 300 * reads
    np.testing.assert_array_equal(tokens, plain)
    np.testing.assert_array_equal(statistics, image_statistics(slide, centres))
    if cached:
        slide.reads = 0
        again = extract_with(CountingEncoder(), slide, centres, spec, (STATISTICS,), cache=cache)
        np.testing.assert_array_equal(again[1][STATISTICS], statistics)
        np.testing.assert_array_equal(again[0], tokens)
        assert slide.reads == 0


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("scales_um", [(), (112.0, 350.0)])
def test_perturbed_statistics_come_from_the_regions_of_the_features(cache, cached, scales_um):
    """On a slide of one level nothing is read besides, and no token changes."""
    slide = CountedReads(np.random.default_rng(8).integers(0, 256, (900, 1000, 3), dtype=np.uint8), levels=1)
    centres = np.random.default_rng(9).uniform(100, 800, (300, 2)).round(1)
    spec, store = FeatureSpec(patch=SCALE, scales_um=scales_um), cache if cached else None
    plain = extract(CountingEncoder(), slide, centres, spec)
    slide.reads = 0
    layers = (STATISTICS, PERTURBED)
    tokens, also = extract_with(CountingEncoder(), slide, centres, spec, layers, cache=store)
    statistics, perturbed = also[STATISTICS], also[PERTURBED]
    assert slide.reads == 300 * max(len(scales_um), 1)
    np.testing.assert_array_equal(tokens, plain)
    np.testing.assert_array_equal(statistics, image_statistics(slide, centres))
    picked = centres[evenly(300, PERTURBED_LOCATIONS)]
    patches = [np.concatenate(list(crop_patches(slide, picked, scale))) for scale in PERTURBED_SCALES]
    np.testing.assert_array_equal(perturbed, perturbed_statistics(patches))
    if cached:
        slide.reads = 0
        again = extract_with(CountingEncoder(), slide, centres, spec, layers, cache=store)
        np.testing.assert_array_equal(again[1][PERTURBED], perturbed)
        assert slide.reads == 0


def test_statistics_alone_are_read_where_the_features_are_cached(encoder, slide, centres, cache):
    extract(encoder, slide, centres, SPEC, cache=cache)
    counted = encoder.patches
    chunks = list(extract_chunks(encoder, slide, centres, SPEC, layers=(STATISTICS,), cache=cache))
    assert encoder.patches == counted and [chunk.layer for chunk in chunks] == [STATISTICS]
    np.testing.assert_array_equal(chunks[0].values, image_statistics(slide, centres))
    assert extract_with(encoder, slide, centres, SPEC, (STATISTICS,), cache=cache)[0].shape == (21, 4, 3)


class CountedReads(ArraySlide):
    """A slide with a second level (or without), that counts how often it is read."""

    def __init__(self, pixels, levels=2):
        super().__init__(pixels, 0.5, "counted")
        self.downsamples = (1.0, 2.0)[:levels]
        self.half = ArraySlide(np.ascontiguousarray(pixels[::2, ::2]))
        self.reads = 0

    def read(self, x, y, width, height, level=0):
        self.reads += 1
        if level == 0:
            return super().read(x, y, width, height)
        return self.half.read(round(x / 2), round(y / 2), width, height)
