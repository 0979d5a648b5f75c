"""Dense features: a convolutional encoder looks at every pixel of a scale once, however many locations share it.

The slide is resampled to the micrometres per pixel of a scale, and the network runs over it in large tiles. The output
of a block is a map of cells; the feature of a location is the mean of each map over the location's window (the square
that a patch would show), where a cell at the edge counts by the share that lies inside::

    v_i = mean over D4 augmentations of [ mean over window i of the map of block b,  for each block b ]

A patch is encoded alone, with zeros around it; here each window has its true surroundings, so that features of the two
ways are alike but not equal, and a model trained with one is used with that one.

**Sub-windows.** With `FeatureSpec.window_um` a location is the mean of the sub-windows that fill the square of its
smallest scale: sub-windows of that scale, and at larger scales the whole squares around the centre of each. A location
of fewer sub-windows, one in the end, is thus seen as a part of a whole one, and parts average to it.

**Tiles.** The pixels lie on a grid that starts at the slide's upper left corner. A location belongs to one tile, and
its window is pooled from that tile's maps alone: the input is the rectangle around the windows of the tile's locations
and `HALO_PX` pixels more on every side (outside the slide it is white, as for patches). Locations are cut in two, and
the parts again, where the rectangles of both are expected to have fewest pixels, until each has at most those of the
largest tile. Such rectangles follow the tissue: on breast sections at 100 um they have 7 to 11 % fewer pixels than
squares of a fixed grid. All locations of a slide are cut at once, so that their features depend neither on their order
nor on how often a run was killed; they depend on the tiling only through what the network sees beyond the halo. On a
real section, tiles of 448 px (where every window lies near an edge) with halos of 56, 112, 160, 192 and 224 px differ
from one tile over all by a root mean square of .52, .12, .036, .018 and .004 deviations in block 14 of
EfficientNet-Lite0, and by less than .002 in blocks 4, 7 and 10 from 112 px on. 224 px, a correlation of .99999, stay
below the rounding of bfloat16 (.9998).

**Where a cell lies.** Cell i of a map of stride s stands for the pixels from s i to s (i + 1). TensorFlow's padding,
which EfficientNet-Lite has, centres the field of a cell (s - 1) / 2 pixels further; but the learnt filters look back:
on a real section the features of a picture, and of the same picture turned by half a turn, agree best when cells are
placed 0.2 strides before to 0.1 after the place above (blocks 4, 7, 10, 14, windows of 48 px).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from cmrcnet.errors import BadOption
from cmrcnet.features.engine import Engine, open_engine
from cmrcnet.features.spec import PERTURBED, STATISTICS, FeatureSpec, map_strides
from cmrcnet.models.image_encoder import ROTATIONS_FIRST, ImageEncoder, d4
from cmrcnet.slides.patches import PixelGrid, crop_scales
from cmrcnet.slides.slide import PatchScale, Slide, known_scale
from cmrcnet.uncertainty.ood import (
    DETAIL_UM,
    PERTURBED_SCALES,
    STATISTICS_SCALE,
    perturbed_statistics,
    statistics_maps,
    statistics_of_means,
)

if TYPE_CHECKING:
    from cmrcnet.progress import Meter

TILE_PX = 1792
"""Side of the square of locations whose input is the largest that a tile may have, whatever its shape."""
HALO_PX = 224
"""Pixels of a tile's input beyond the windows of its locations."""
BLOCK_PX = 128
"""The slide is resampled in blocks of so many pixels, which every stride divides."""
ALIGN_PX = 32
"""Inputs begin and end at multiples of it, and of the largest stride."""
CUT_PX = 50_000
"""Pixels that must be saved by cutting a tile in two which has room: what a tile costs apart from them."""
DENSE_FORMAT = 2
"""Counts up when the same slide, encoder, tiles and halo give other features."""

_ROWS_AT_ONCE = 256


def tiles(slide: Slide, centre_px: np.ndarray, scale: PatchScale) -> list[np.ndarray]:
    """The locations (indices, ascending) of each tile of a scale, the largest tile first.

    An engine that has the memory for it needs no more; the others come in the order of the cuts, neighbours together.
    """
    if len(centre_px) == 0:
        return []
    at, margin = centre_px * (known_scale(slide) / scale.mpp), scale.size_px + 2 * HALO_PX
    found, left = [], [np.arange(len(at))]
    while left:
        parts = _cut_in_two(at, left.pop(), margin)
        (found if len(parts) == 1 else left).extend(parts)
    largest = int(np.argmax([np.prod(np.ptp(at[rows], axis=0) + margin) for rows in found]))
    return [found.pop(largest), *found]


def _cut_in_two(at: np.ndarray, rows: np.ndarray, margin: float) -> list[np.ndarray]:
    """Some locations as they are, if they make one tile; else the two parts that are expected to have fewest pixels."""
    area = float(np.prod(np.ptp(at[rows], axis=0) + margin))
    least, parts = area if area <= (TILE_PX + margin) ** 2 else math.inf, [rows]
    for axis in (0, 1):
        order = rows[np.argsort(at[rows, axis], kind="stable")]
        along, across = at[order, axis], at[order, 1 - axis]
        ends = np.flatnonzero(np.diff(np.floor(along / ALIGN_PX)))  # of the first part
        pixels = _expected_px(along[ends] - along[0], _spreads(across)[ends], margin)
        pixels += _expected_px(along[-1] - along[ends + 1], _spreads(across[::-1])[::-1][ends + 1], margin)
        if len(ends) and pixels.min() + CUT_PX < least:
            least, end = float(pixels.min()) + CUT_PX, ends[pixels.argmin()] + 1
            parts = [np.sort(order[end:]), np.sort(order[:end])]
    return parts


def _spreads(values: np.ndarray) -> np.ndarray:
    """Largest minus smallest of the first 1, 2, ... values."""
    return np.maximum.accumulate(values) - np.minimum.accumulate(values)


def _expected_px(width: np.ndarray, height: np.ndarray, margin: float) -> np.ndarray:
    """Pixels of the inputs that cover rectangles of locations, cut into equal tiles of the fewest pixels."""
    columns = np.arange(1, 2 + 2 * math.ceil(width.max(initial=0) / TILE_PX))
    room = (TILE_PX + margin) ** 2 / (width[:, None] / columns + margin) - margin  # of a tile's locations, downwards
    rows = np.maximum(np.ceil(height[:, None] / np.maximum(room, 1e-9)), 1)
    pixels = (width[:, None] + columns * margin) * (height[:, None] + rows * margin)
    return np.where(room > 0, pixels, math.inf).min(axis=1)


def statistics_host(slide: Slide, spec: FeatureSpec) -> int:
    """The scale whose pixels image statistics come from, the largest of their level; `STATISTICS` for none."""
    level = PixelGrid(slide, STATISTICS_SCALE.mpp).level
    hosts = [i for i, scale in enumerate(spec.scales) if PixelGrid(slide, scale.mpp).level == level]
    return max(hosts, key=lambda i: spec.scales_um[i], default=STATISTICS)


def tiles_of_layer(slide: Slide, centre_px: np.ndarray, spec: FeatureSpec, layer: int) -> list[np.ndarray]:
    """The locations of each tile of a layer; image statistics have the tiles of their host."""
    scale = layer if layer >= 0 else statistics_host(slide, spec)
    return tiles(slide, centre_px, STATISTICS_SCALE if scale < 0 else spec.scales[scale])


class Field(NamedTuple):
    """A picture, or maps of one, and the windows of some locations on it.

    A location has `counts` x `counts` sub-windows, around a middle one at `left` and `top`; None: one each.
    """

    pixels: list[np.ndarray]
    left: np.ndarray
    top: np.ndarray
    counts: np.ndarray | None = None


class _Windows(NamedTuple):
    """The windows of a tile's locations (`left`, `top`) and its input (`across`, `down`), in pixels of a grid."""

    grid: PixelGrid
    across: slice
    down: slice
    left: np.ndarray
    top: np.ndarray

    @property
    def columns(self) -> range:
        """The columns of blocks that hold the input."""
        return self.grid.blocks(self.across.start, self.across.stop)

    @property
    def rows(self) -> range:
        """The rows of blocks that hold the input."""
        return self.grid.blocks(self.down.start, self.down.stop)


class DenseRun:
    """An encoder, for one slide and one spec whose engine is chosen; the dense counterpart of `extract.PatchRun`."""

    def __init__(self, encoder: ImageEncoder, slide: Slide, spec: FeatureSpec) -> None:
        strides = map_strides(encoder)
        if strides is None or not spec.scales_um:
            raise BadOption("method", "dense", "patches, without scales or with an encoder that is not convolutional")
        self.encoder, self.slide, self.spec, self.strides = encoder, slide, spec, strides
        self.grids = [PixelGrid(slide, scale.mpp, BLOCK_PX) for scale in spec.scales]
        self.statistics_grid = PixelGrid(slide, STATISTICS_SCALE.mpp, BLOCK_PX)
        self.host = statistics_host(slide, spec)

    @cached_property
    def engine(self) -> Engine:
        """Opened when the first tile is encoded."""
        return open_engine(self.encoder, self.spec)

    def chunks(self, centre_px: np.ndarray, layers: tuple[int, ...]) -> Iterator[tuple[np.ndarray, list[int]]]:
        """Locations that are read together, and their layers: each scale by itself, statistics with their host."""
        statistics = [layer for layer in layers if layer < 0]
        groups = [[layer] + statistics * (layer == self.host) for layer in layers if layer >= 0]
        if statistics and (self.host < 0 or self.host not in layers):
            groups.append(statistics)
        for group in groups:
            yield from ((rows, group) for rows in tiles_of_layer(self.slide, centre_px, self.spec, group[0]))

    def grouped(self, missing: list[tuple[int, str]]) -> list[list[tuple[int, str]]]:
        """Layers of a tile that are read together: all, by `chunks`."""
        return [missing] if missing else []

    def cut(
        self, centre_px: np.ndarray, picked: np.ndarray, layers: list[int], counts: np.ndarray | None = None
    ) -> list[Field]:
        """The pixels of some layers of a tile, from one region of the slide; `counts` are those of `Field`."""
        fields, region = [], None
        asked = [self._windows(centre_px, layer, counts) for layer in layers if layer != PERTURBED]
        if asked:
            bounds = np.array([each.grid.bounds(each.columns, each.rows) for each in asked])
            region = asked[0].grid.read(*bounds[:, :2].min(axis=0).tolist(), *bounds[:, 2:].max(axis=0).tolist())
        for layer in layers:
            if layer == PERTURBED:
                patches = crop_scales(self.slide, centre_px[picked], PERTURBED_SCALES, region)
                fields.append(Field(patches, picked, picked))
                continue
            assert region is not None
            its = asked.pop(0)
            grid, columns, rows = its.grid, its.columns, its.rows
            x, y = columns[0] * grid.block_px, rows[0] * grid.block_px
            if layer == STATISTICS:
                # made some rows at a time, because the picture may be large
                strips = [
                    statistics_maps(grid.picture(columns, rows[i : i + 2], region)) for i in range(0, len(rows), 2)
                ]
                pixels = [np.concatenate(each) for each in zip(*strips, strict=True)]
                fields.append(Field(pixels, its.left - x, its.top - y))
            else:
                picture = grid.picture(columns, rows, region)[
                    its.down.start - y : its.down.stop - y, its.across.start - x : its.across.stop - x
                ]
                fields.append(Field([picture], its.left - its.across.start, its.top - its.down.start, counts))
        return fields

    def _sides_px(self, layer: int) -> tuple[float, float]:
        """Side of a sub-window at a scale, and the distance of neighbouring ones; without them that of a location."""
        step = self.spec.window_um / self.spec.scales[layer].mpp
        smallest = self.spec.scales_um[layer] == self.spec.side_um
        return step if step and smallest else self.spec.patch.size_px, step

    def _windows(self, centre_px: np.ndarray, layer: int, counts: np.ndarray | None) -> _Windows:
        """Where a tile's windows and its input lie."""
        grid = self.statistics_grid if layer == STATISTICS else self.grids[layer]
        side, halo = STATISTICS_SCALE.size_px, 0.0
        if layer != STATISTICS:
            side, step = self._sides_px(layer)
            halo = HALO_PX + (0.0 if counts is None else step * (counts.max(initial=1) - 1) / 2)
        left, top = (centre_px / grid.px_of_slide - side / 2).T
        align = max(ALIGN_PX, *self.strides)
        across, down = (
            slice(
                math.floor((each.min() - halo) / align) * align, math.ceil((each.max() + side + halo) / align) * align
            )
            for each in (left, top)
        )
        return _Windows(grid, across, down, left, top)

    def values(self, field: Field, layer: int, meter: Meter) -> np.ndarray:
        """Features (locations, dim) float32, or image statistics, of a tile's locations."""
        if layer == PERTURBED:
            found = perturbed_statistics(field.pixels)
        elif layer == STATISTICS:
            height_um = len(field.pixels[-1]) * max(DETAIL_UM) * 2
            means = [
                window_means(
                    torch.from_numpy(each).permute(2, 0, 1),
                    field,
                    STATISTICS_SCALE.size_px,
                    height_um // len(each),
                )
                for each in field.pixels
            ]
            found = statistics_of_means(torch.cat(means, dim=1).numpy())
        else:
            found = self._features(field, layer)
        meter.advance(len(found))
        return found

    def _features(self, field: Field, layer: int) -> np.ndarray:
        """Encode a tile turned each way, and pool the windows, which are turned with it."""
        side, step = self._sides_px(layer)
        (picture,) = field.pixels
        height, width = picture.shape[:2]
        augmentations = self.spec.augmentations_of(layer)
        total = torch.zeros((len(field.left), self.encoder.dim))
        for way in ROTATIONS_FIRST[:augmentations]:
            left = width - side - field.left if way & 1 else field.left
            top = height - side - field.top if way & 2 else field.top
            turned = Field([], *((top, left) if way & 4 else (left, top)), field.counts)
            maps = self.engine.maps(d4(torch.from_numpy(picture[None]), way, rows=1, columns=2).contiguous().numpy())
            channels = np.cumsum([0, *(each.shape[1] for each in maps)])
            for number, stride in enumerate(self.strides):  # a block at a time: a fine map has 100,000 windows a tile
                means = window_means(maps[number][0], turned, side, stride, step).cpu()
                total[:, channels[number] : channels[number + 1]] += means
        return total.div_(augmentations).numpy()


def window_means(cells: Tensor, windows: Field, side: float, stride: float, step: float = 0.0) -> Tensor:
    """Mean of a map (channels, height, width) over each location's windows: (locations, channels) float32.

    Sub-windows have `side` pixels and are `step` apart; a row of them has one profile. A location is separable: the map
    is first averaged over rows, once for all of the same height on the slide, and then over columns.
    """
    channels, height, width = cells.shape
    cells = cells.float().permute(1, 2, 0).reshape(height, width * channels)
    counts = np.ones(len(windows.left), np.int64) if windows.counts is None else windows.counts
    found = torch.empty((len(counts), channels), device=cells.device)
    for count in np.unique(counts).tolist():
        these = np.flatnonzero(counts == count)
        tops, row_of = np.unique(windows.top[these], return_inverse=True)
        columns, across = _weights(windows.left[these], count, side, width, stride, step)
        for first in range(0, len(tops), _ROWS_AT_ONCE):
            rows, down = _weights(tops[first : first + _ROWS_AT_ONCE], count, side, height, stride, step)
            averaged = _weighted_sums(cells, rows, down).reshape(-1, channels)
            which = np.flatnonzero((row_of >= first) & (row_of < first + _ROWS_AT_ONCE))
            at = columns[which] + width * (row_of[which, None] - first)
            found[torch.from_numpy(these[which])] = _weighted_sums(averaged, at, across[which])
    return found


def _weighted_sums(rows: Tensor, which: np.ndarray, weights: np.ndarray) -> Tensor:
    """Weighted sums of rows (rows, width): (sums, width), for `which` and `weights` (sums, terms)."""
    at, weight = torch.from_numpy(which).to(rows.device), torch.from_numpy(weights).to(rows.device)
    return embedding_bag(at, rows, mode="sum", per_sample_weights=weight)


def _weights(
    start: np.ndarray, count: int, side: float, cells: int, stride: float, step: float
) -> tuple[np.ndarray, np.ndarray]:
    """The cells that each location covers along one axis, and the share of it that each covers: (locations, covered).

    A location has `count` windows, of which the middle one starts at `start`.
    """
    start = start[:, None] - (count - 1) / 2 * step
    covered = np.floor(start / stride).astype(np.int64) + np.arange(int((side + (count - 1) * step) / stride) + 2)
    share = np.zeros(covered.shape)
    for number in range(count):
        at = start + number * step
        share += np.maximum(np.minimum(stride * (covered + 1), at + side) - np.maximum(stride * covered, at), 0.0)
    share = np.where((covered >= 0) & (covered < cells), share, 0.0)
    return covered.clip(0, cells - 1), (share / share.sum(axis=1, keepdims=True)).astype(np.float32)
