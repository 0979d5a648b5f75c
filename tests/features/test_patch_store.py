"""Patches on disk are those that would be cut."""

from __future__ import annotations

import numpy as np

from cmrcnet.features import patch_store
from cmrcnet.features.patch_store import PatchStore
from cmrcnet.slides.patches import crop_patches
from tests.features.conftest import SCALE, files_in


def test_they_are_those_that_would_be_cut_and_are_mapped(slide, centres, cache):
    patches = PatchStore.beside(cache).patches(slide, centres, SCALE)
    assert isinstance(patches, np.memmap)
    assert patches.dtype == np.uint8
    np.testing.assert_array_equal(patches, np.concatenate(list(crop_patches(slide, centres, SCALE))))


def test_they_are_cut_once(slide, centres, cache, monkeypatch):
    first = np.array(PatchStore(cache.folder).patches(slide, centres, SCALE))
    monkeypatch.setattr(patch_store, "crop_patches", None)  # not callable: cutting again would fail
    np.testing.assert_array_equal(PatchStore(cache.folder).patches(slide, centres, SCALE), first)


def test_a_damaged_file_is_cut_again(slide, centres, cache):
    first = np.array(PatchStore(cache.folder).patches(slide, centres, SCALE))
    (entry,) = files_in(cache, "patches")
    entry.write_bytes(entry.read_bytes()[:500])
    np.testing.assert_array_equal(PatchStore(cache.folder).patches(slide, centres, SCALE), first)


def test_other_code_that_cuts_makes_other_names(slide, centres, monkeypatch):
    from cmrcnet.features import patch_names

    before = patch_names.place_name(slide, centres, SCALE)
    assert before == patch_names.place_name(slide, centres, SCALE)
    monkeypatch.setattr(patch_names, "_cropper", lambda: "another way of cutting")
    assert patch_names.place_name(slide, centres, SCALE) != before
