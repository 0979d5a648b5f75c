"""Dense features: a slide seen in tiles, whatever the tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmrcnet.config import Config
from cmrcnet.errors import BadOption
from cmrcnet.features import dense
from cmrcnet.features.engine import TorchEngine, choose_engine
from cmrcnet.features.extract import chunk_numbers, extract, extract_chunks, extract_with
from cmrcnet.features.resumable import ResumableFeatures
from cmrcnet.features.spec import PERTURBED, STATISTICS, FeatureSpec, choose_method, map_strides
from cmrcnet.models.encoders import create_image_encoder
from cmrcnet.models.image_encoder import block_outputs
from cmrcnet.slides.patches import PixelGrid, crop_patches
from cmrcnet.slides.slide import ArraySlide, PatchScale
from cmrcnet.uncertainty.ood import PERTURBED_LOCATIONS, evenly, image_statistics
from tests.features.test_extract import CountedReads

PATCH = PatchScale(size_px=64, mpp=0.5)
SCALES = (32.0, 64.0)
SEES = 64
"""Pixels; more than half of the field of block 4."""


@pytest.fixture(scope="module")
def lite0():
    return create_image_encoder("efficientnet-lite0", blocks=(4,))


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    """Blobs of several sizes and colours on white."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    noise = sum(gaussian_filter(rng.normal(size=(420, 500, 3)), (s, s, 0)) * s for s in (1, 3, 9))
    return np.clip(190 + 90 * np.asarray(noise), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def centres() -> np.ndarray:
    """On the whole picture, some of them on its very edge."""
    inside = np.random.default_rng(1).uniform(0, (500, 420), (20, 2)).round(1)
    return np.concatenate([inside, [[0.0, 0.0], [500.0, 420.0], [3.5, 417.0]]])


def spec(**how) -> FeatureSpec:
    return FeatureSpec(**{"patch": PATCH, "scales_um": SCALES, "method": "dense", "device": "cpu"} | how)


def test_maps_are_those_that_move_with_the_pixels():
    of = {
        name: map_strides(create_image_encoder(name, weights=weights, blocks=blocks))
        for name, weights, blocks in (
            ("efficientnet-lite0", "pretrained", (4, 7, 10, 14)),
            ("timm:test_resnet", "random", (0,)),
            ("timm:test_convnext", "random", ()),
            ("timm:test_efficientnet", "random", ()),  # squeeze and excitation: every pixel sees every other
            ("timm:test_vit", "random", ()),
        )
    }
    assert of["efficientnet-lite0"] == (8, 16, 16, 32)
    assert of["timm:test_resnet"] == (4,) and of["timm:test_convnext"] == (32,)
    assert of["timm:test_efficientnet"] is None and of["timm:test_vit"] is None


def test_a_tile_and_the_tile_turned_agree_best_where_the_cells_are_said_to_lie(lite0, tissue):
    """Pooled over a window of two cells, a wrong place of the cells shows at once."""
    small = choose_engine(lite0, spec(patch=PatchScale(size_px=16), scales_um=(8.0,)))
    run = dense.DenseRun(lite0, ArraySlide(tissue, 0.5), small)
    centres = np.random.default_rng(2).uniform(150, 300, (60, 2))
    (field,) = run.cut(centres, np.array([]), [0])
    turned = [np.ascontiguousarray(field.pixels[0][::-1, ::-1])]

    def apart(wrong_px: float) -> float:
        one = dense.Field(field.pixels, field.left + wrong_px, field.top + wrong_px)
        height, width = field.pixels[0].shape[:2]
        two = dense.Field(turned, width - 16 - field.left + wrong_px, height - 16 - field.top + wrong_px)
        return float(np.square(run._features(one, 0) - run._features(two, 0)).mean())

    assert apart(0.0) < 0.8 * min(apart(-4.0), apart(4.0))


@pytest.mark.parametrize("mpp", [0.5, 0.41])
def test_two_tilings_agree(lite0, tissue, centres, mpp, monkeypatch):
    slide, found = ArraySlide(tissue, mpp), []
    monkeypatch.setattr(dense, "HALO_PX", SEES)
    for tile in (150, 2000):
        monkeypatch.setattr(dense, "TILE_PX", tile)
        found.append(extract(lite0, slide, centres, spec(augmentations=2)))
    assert len(dense.tiles(slide, centres, PATCH)) == 1
    np.testing.assert_allclose(found[0], found[1], atol=2e-4 * float(found[0].std()))


def test_a_picture_moved_by_whole_cells_has_the_same_features(lite0, tissue, centres, monkeypatch):
    monkeypatch.setattr(dense, "HALO_PX", SEES)
    moved = np.full((420 + 96, 500 + 64, 3), 255, np.uint8)
    moved[96:, 64:] = tissue
    one, two = (
        extract(lite0, ArraySlide(pixels, 0.5), at, spec(scales_um=(32.0,)))
        for pixels, at in ((tissue, centres), (moved, centres + np.array([64, 96])))
    )
    np.testing.assert_allclose(one, two, atol=2e-4 * float(one.std()))


def test_a_feature_is_the_mean_of_the_cells_under_the_window(lite0, tissue):
    """A window that covers cells wholly, in a picture encoded by itself."""
    centre = np.array([[200.0, 160.0]])  # 64 px from 168 and 128 on: cells 21 to 28 and 16 to 23
    with torch.inference_mode():
        (cells,) = block_outputs(lite0.backbone, (4,), lite0.prepare(tissue[None, :416, :496]))
    wanted = cells[0, :, 16:24, 21:29].mean(dim=(1, 2)).numpy()
    found = extract(lite0, ArraySlide(tissue, 0.5), centre, spec(scales_um=(32.0,)))[0, 0]
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.std()))


def test_neither_order_nor_company_of_the_locations_matters(lite0, tissue, centres):
    slide, order = ArraySlide(tissue, 0.5), np.random.default_rng(3).permutation(len(centres))
    whole = extract(lite0, slide, centres, spec(scales_um=(32.0,)))
    np.testing.assert_array_equal(extract(lite0, slide, centres[order], spec(scales_um=(32.0,))), whole[order])


def test_the_windows_are_those_of_patches():
    """An encoder of one 8 px cell a mean colour: then a dense feature is the mean colour of the patch."""
    picture = np.random.default_rng(4).integers(0, 256, (256, 384, 3), dtype=np.uint8)
    slide, centres = ArraySlide(picture, 0.5), np.array([[100.0, 130.0], [203.0, 97.25], [0.0, 10.0]])
    grid = PixelGrid(slide, 0.5)
    blocks = range(-1, 4), range(-1, 3)
    region = grid.read(*grid.bounds(*blocks))
    shown = grid.picture(*blocks, region)
    np.testing.assert_array_equal(shown[128:-128, 128 : 128 + 384], picture)
    field = dense.Field([], centres[:, 0] + 128 - 32, centres[:, 1] + 128 - 32)
    means = dense.window_means(torch.from_numpy(shown).permute(2, 0, 1), field, 64, 1).numpy()
    (patches,) = crop_patches(slide, centres, PATCH)
    np.testing.assert_allclose(means, patches.mean(axis=(1, 2)), atol=0.2)


def test_an_input_holds_its_windows_and_halo_and_little_more(lite0, tissue, centres):
    run, scale = dense.DenseRun(lite0, ArraySlide(tissue, 0.5), spec()), 1
    windows = run._windows(centres[:20], scale, None)
    for ends, first in ((windows.across, windows.left), (windows.down, windows.top)):
        assert ends.start % 32 == ends.stop % 32 == 0
        assert 0 <= first.min() - dense.HALO_PX - ends.start < 32
        assert 0 <= ends.stop - (first.max() + PATCH.size_px + dense.HALO_PX) < 32
    (field,) = run.cut(centres[:20], np.empty(0, np.int64), [scale])
    assert field.pixels[0].shape[1::-1] == tuple(ends.stop - ends.start for ends in (windows.across, windows.down))
    shown = run._windows(centres[:1], scale, None)
    (one,) = run.cut(centres[:1], np.empty(0, np.int64), [scale])
    x, y = shown.across.start - windows.across.start, shown.down.start - windows.down.start
    height, width = one.pixels[0].shape[:2]
    np.testing.assert_array_equal(field.pixels[0][y : y + height, x : x + width], one.pixels[0])


def test_the_largest_tile_comes_first(tissue):
    slide, at = ArraySlide(tissue, 0.5), np.array([[10.0, 10.0], [5400.0, 20.0], [5500.0, 150.0], [30.0, 4000.0]])
    first, *others = [rows.tolist() for rows in dense.tiles(slide, at, PATCH)]
    assert first == [1, 2] and sorted(others) == [[0], [3]]
    assert dense.tiles(slide, at[:0], PATCH) == []


def input_px(at: np.ndarray) -> float:
    """Pixels of the input of a tile with these locations."""
    return float(np.prod(np.ptp(at, axis=0) + PATCH.size_px + 2 * dense.HALO_PX))


@pytest.mark.parametrize("pitch", [20.0, 200.0])
@pytest.mark.parametrize("shape", ["square", "ring", "diagonal"])
def test_tiles_follow_the_tissue(tissue, shape, pitch):
    """Each location has one tile, none is too large, and all have fewer pixels than squares of a fixed grid."""
    at = np.stack(np.meshgrid(np.arange(50.0, 12_000, pitch), np.arange(80.0, 9_000, pitch)), axis=-1).reshape(-1, 2)
    x, y = (at / [6_000, 4_500] - 1).T
    inside = {"square": np.ones(len(at), bool), "ring": abs(np.hypot(x, y) - 0.8) < 0.2, "diagonal": abs(x - y) < 0.3}
    at = at[inside[shape]]
    found = dense.tiles(ArraySlide(tissue, 0.5), at, PATCH)
    np.testing.assert_array_equal(np.sort(np.concatenate(found)), np.arange(len(at)))
    most = (dense.TILE_PX + PATCH.size_px + 2 * dense.HALO_PX) ** 2
    assert input_px(at[found[0]]) == max(input_px(at[rows]) for rows in found) <= most
    square = np.floor(at / dense.TILE_PX) @ [1, 1000]
    fixed = sum(input_px(at[square == each]) for each in np.unique(square))
    assert sum(input_px(at[rows]) for rows in found) < fixed


def test_tiles_do_not_depend_on_the_order_of_the_locations(tissue):
    at = np.random.default_rng(5).uniform(0, 9_000, (400, 2))
    order = np.random.default_rng(6).permutation(len(at))
    one, two = (dense.tiles(ArraySlide(tissue, 0.5), each, PATCH) for each in (at, at[order]))
    assert [set(rows.tolist()) for rows in one] == [set(order[rows].tolist()) for rows in two]


def test_a_killed_run_goes_on_behind_its_last_tile(lite0, tissue, centres, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(dense, "TILE_PX", 200)
    slide, plan, asked = ArraySlide(tissue, 0.5), spec(), []
    through = TorchEngine.maps
    monkeypatch.setattr(TorchEngine, "maps", lambda run, pixels: asked.append(1) or through(run, pixels))
    numbers = np.stack([chunk_numbers(slide, centres, plan, layer) for layer in (0, 1)])

    def kept() -> ResumableFeatures:
        return ResumableFeatures((2, len(centres), lite0.dim), "same", tmp_path / "kept", numbers)

    def fill(store: ResumableFeatures, most: int) -> None:
        chunks = extract_chunks(lite0, slide, centres, plan, done=store.has)
        for (rows, layer, values), _ in zip(chunks, range(most), strict=False):
            store.keep(rows, values, layer)

    fill(kept(), 3)
    before = len(asked)
    store = kept()
    assert store.done.sum() == 3
    fill(store, 1000)
    tiles = sum(len(np.unique(each)) for each in numbers)
    assert len(asked) - before == tiles - 3
    whole = extract(lite0, slide, centres, plan, cache=cache)
    np.testing.assert_array_equal(kept().values(), whole)
    before = len(asked)
    np.testing.assert_array_equal(extract(lite0, slide, centres, plan, cache=cache), whole)
    assert len(asked) == before


@pytest.mark.parametrize(("scales_um", "reads"), [((64.0, 256.0), 2), ((64.0,), 2)])
def test_image_statistics_come_from_pixels_that_are_read_anyway(lite0, tissue, centres, scales_um, reads):
    """A read a tile and scale, one more where no scale has the level of the statistics."""
    slide = CountedReads(np.tile(tissue, (3, 3, 1)), levels=2)
    at = centres * 2 + 100
    plan = spec(scales_um=scales_um, augmentations=1, patch=PatchScale(size_px=128))
    tokens, also = extract_with(lite0, slide, at, plan, (STATISTICS,))
    assert slide.reads == reads
    np.testing.assert_array_equal(tokens, extract(lite0, slide, at, plan))
    medians = [np.median(each, axis=0) for each in (also[STATISTICS], image_statistics(slide, at))]
    # a patch between two pixels is interpolated, the grid is not
    np.testing.assert_allclose(medians[0], medians[1], atol=0.3)
    on_grid = np.array([[320.0, 384.0], [640.0, 448.0]])  # corners at multiples of 32 um
    same = extract_with(lite0, slide, on_grid, plan, (STATISTICS,))[1][STATISTICS]
    np.testing.assert_allclose(same, image_statistics(slide, on_grid), atol=1e-4)


def test_perturbed_statistics_are_those_of_patches(lite0, tissue, centres):
    slide, few = ArraySlide(np.tile(tissue, (3, 3, 1)), 0.5), centres * 2 + 100
    ways = [spec(scales_um=(64.0,), method=method) for method in ("patches", "dense")]
    one, two = (extract_with(lite0, slide, few, way, (PERTURBED,))[1][PERTURBED] for way in ways)
    assert len(one) == len(evenly(len(few), PERTURBED_LOCATIONS))
    np.testing.assert_array_equal(one, two)


def test_auto_takes_what_the_encoder_allows_and_dense_is_refused_where_it_cannot_be_had(lite0):
    plan = Config.load("tiny").override({"features.scales_um": [112.0]})
    vit = create_image_encoder("timm:test_vit", weights="random")
    assert choose_method(plan, lite0) == "dense"
    assert choose_method(plan, vit) == "patches"
    assert choose_method(plan.override({"features.method": "patches"}), lite0) == "patches"
    assert choose_method(Config.load("tiny"), lite0) == "patches"
    with pytest.raises(BadOption, match="no convolutional network"):
        choose_method(plan.override({"features.method": "dense"}), vit)
    with pytest.raises(BadOption, match="auto or patches, unless"):
        Config.load("tiny").override({"features.method": "dense"})


def test_the_sub_windows_of_a_location_average_to_it(lite0, tissue):
    """At both scales, also at the edge of the slide, whatever else the tile holds."""
    slide, centres = ArraySlide(tissue, 0.5), np.array([[200.0, 160.0], [263.5, 201.25], [4.0, 0.0]])
    plan = spec(window_um=8.0, augmentations=2)
    steps = (np.arange(4) - 1.5) * 16
    apart = np.array([(x, y) for x in steps for y in steps])
    parts = (centres[:, None] + apart).reshape(-1, 2)
    counts = np.array([4] * 3 + [1] * 48)
    found = np.empty((51, 2, lite0.dim), np.float32)
    for rows, layer, values in extract_chunks(lite0, slide, np.r_[centres, parts], plan, sub_windows=counts):
        found[rows, layer] = values
    np.testing.assert_allclose(found[3:].reshape(3, 16, 2, -1).mean(axis=1), found[:3], atol=2e-4 * found.std())
    whole = extract(lite0, slide, centres, spec(augmentations=2))
    np.testing.assert_allclose(found[:3, 0], whole[:, 0], atol=2e-4 * found.std())  # one square, however divided
    assert np.abs(found[:3, 1] - whole[:, 1]).max() > 0.01 * found.std()  # the surroundings of its parts


def test_whole_and_divided_features_share_no_cache_entry(lite0, tissue, cache):
    slide, centres = ArraySlide(tissue, 0.5), np.array([[200.0, 160.0]])
    whole, again, divided = (
        extract(lite0, slide, centres, spec(window_um=window_um), cache=cache) for window_um in (0.0, 0.0, 8.0)
    )
    np.testing.assert_array_equal(whole, again)
    assert np.abs(whole[:, 1] - divided[:, 1]).max() > 0
