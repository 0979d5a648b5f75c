"""TIFF through tifffile, for what OpenSlide does not open: OME-TIFF, strips, planar axes, pyramids in SubIFDs.

Tiles are decoded and kept here rather than read through `TiffFile.aszarr`: that store keeps no decoded tile, so that
overlapping patches took 3 (tiles) to 28 (strips) times as long, and it cannot map uncompressed pixels. The header is
checked by `tiff_header` before.
"""

from __future__ import annotations

import math
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cmrcnet.errors import BadInput
from cmrcnet.slides.backends import FULL, depth_fault, over_white, to_8_bits
from cmrcnet.slides.slide import mean_scale

UNIT_UM = {
    "m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "nm": 1e-3, "Å": 1e-4,
    "in": 25_400.0,
}  # fmt: skip
"""Micrometres in a unit of length, as OME and ImageJ spell them (both code points of the Greek letter)."""

TILE_CACHE_BYTES = 64 << 20
"""Bytes of decoded tiles or strips that each slide keeps; the one read last always is."""

DEPTH_TILES = 16
"""Tiles of which at least one must show glass where 16-bit samples have no stated depth."""

_ORIENTATION, _MAX_SAMPLE = 274, 281
_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_JPEG = (6, 7, 33003, 33005, 34712)  # the codecs that turn YCbCr into RGB themselves


def beyond_openslide(path: Path) -> bool:
    """Whether a TIFF holds what OpenSlide misreads: OME metadata, more than 8 bits a channel, or an orientation.

    Raises
    ------
    BadInput
        It is no TIFF.
    """
    with _open(path) as tiff:
        first: Any = tiff.pages[0]
        return tiff.is_ome or first.dtype != np.uint8 or first.tags.valueof(_ORIENTATION, default=1) != 1


class TiffPixels:
    """Pixels of the largest image of a TIFF and of its pyramid; see `PixelSource`.

    Regions are read tile by tile (strip by strip) or, where the pixels lie uncompressed in one piece, mapped; a
    level is never held whole unless it is stored as one compressed strip. Missing tiles are white.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reset()
        try:
            with _open(path) as tiff:  # labels and overviews are smaller than the slide
                areas = [math.prod(_size(one)) if {"Y", "X"} <= set(one.axes) else 0 for one in tiff.series]
                if not any(areas):
                    raise BadInput(path, "a TIFF", "it holds no image")
                self._series = areas.index(max(areas))
                series = tiff.series[self._series]
                self.sizes = tuple(_size(level) for level in series.levels)
                self._planes = tuple(_check(level, path) for level in series.levels)
                self.mpp = _scale(tiff, series)
                pages: list[Any] = [page for level in series.levels for page in level.pages]
                self._files = tuple(sorted({Path(page.parent.filehandle.path) for page in pages}))
                self._top = _stated_top(tiff, series)
            if self._top is None:  # of 16 bits: their largest value, in the smallest level, must tell the depth
                level = len(self.sizes) - 1
                regions = (self._stored(level, *tile)[0][..., :3] for tile in self.tiles(level, DEPTH_TILES))
                fault = depth_fault(max(int(region.max(initial=0)) for region in regions))
                self.close()
                if fault:
                    raise BadInput(path, "a slide", fault)
        except BadInput:
            raise
        except Exception as error:  # whatever a damaged header makes tifffile raise
            raise BadInput(path, "a TIFF", f"its header is damaged ({error})") from error

    def files(self) -> tuple[Path, ...]:
        """See `PixelSource.files`; an OME-TIFF may name others."""
        return self._files

    def region(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        """See `PixelSource.region`."""
        with self._lock, self._decoding():
            stored, page = self._stored(level, left, top, width, height)
            if stored.dtype != np.uint8:
                stored = to_8_bits(stored, self._top or FULL, self.path)
            return _to_rgb(stored, page)

    def tiles(self, level: int, most: int) -> list[tuple[int, int, int, int]]:
        """Choose tiles of a level: left, top, width, height of those with most bytes, or else evenly spaced ones."""
        with self._lock, self._decoding():
            page: Any = self._file().series[self._series].levels[level].pages[0]
            frame, counts = page.keyframe, np.asarray(page.databytecounts)
            (width, height), (wide, high) = self.sizes[level], _step(page.keyframe)
            across, down = math.ceil(width / wide), math.ceil(height / high)
            counts = counts[: across * down]
            if len(counts) == across * down and frame.compression != 1:
                chosen = np.argsort(-counts, kind="stable")[:most]
            else:
                chosen = np.unique(np.linspace(0, across * down - 1, most + 2)[1:-1].astype(int))
            corners = [(int(one % across) * wide, int(one // across) * high) for one in chosen]
            return [(x, y, min(wide, width - x), min(high, height - y)) for x, y in corners]

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        """Turn whatever tifffile or a codec raises for damaged bytes into `BadInput`."""
        try:
            yield
        except BadInput:
            raise
        except Exception as error:
            raise BadInput(self.path, "a TIFF", f"its pixels cannot be decoded ({error})") from error

    def _stored(self, level: int, left: int, top: int, width: int, height: int) -> tuple[np.ndarray, Any]:
        """A region (height, width, samples) as stored, and its page."""
        pages: Any = self._file().series[self._series].levels[level].pages
        planes = [
            self._plane(level, number, pages[number], left, top, width, height) for number in range(self._planes[level])
        ]
        return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2), pages[0].keyframe

    def close(self) -> None:
        """See `PixelSource.close`."""
        with self._lock:
            if self._tiff is not None:
                self._tiff.close()
            self._reset()

    def _reset(self) -> None:
        self._tiff = None
        self._held: OrderedDict[tuple, np.ndarray] = OrderedDict()
        self._mapped: dict[tuple, np.ndarray | None] = {}
        self._lock = threading.RLock()

    def _file(self):
        if self._tiff is None:
            self._tiff = _open(self.path)
        return self._tiff

    def __getstate__(self) -> dict:
        return {
            name: value for name, value in self.__dict__.items() if name not in ("_tiff", "_held", "_mapped", "_lock")
        }

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._reset()

    def _plane(self, level: int, number: int, page, left: int, top: int, width: int, height: int) -> np.ndarray:
        """A region (height, width, samples) of one page, as stored."""
        whole = self._map(level, number, page)
        if whole is not None:
            return whole[top : top + height, left : left + width]
        frame = page.keyframe
        step_x, step_y = _step(frame)
        across, down = math.ceil(frame.imagewidth / step_x), math.ceil(frame.imagelength / step_y)
        separate = frame.samplesperpixel if frame.planarconfig == 2 else 1
        white = 0 if frame.photometric == _MINISWHITE else self._top or FULL
        region = np.full((height, width, frame.samplesperpixel), white, frame.dtype)
        for row in range(top // step_y, (top + height - 1) // step_y + 1):
            for column in range(left // step_x, (left + width - 1) // step_x + 1):
                for sample in range(separate):
                    segment = self._segment(level, number, page, (sample * down + row) * across + column)
                    if segment is None:
                        continue
                    x, y = column * step_x, row * step_y
                    x0, y0 = max(left, x), max(top, y)
                    x1, y1 = min(left + width, x + segment.shape[1]), min(top + height, y + segment.shape[0])
                    into = slice(sample, sample + 1) if separate > 1 else slice(None)
                    region[y0 - top : y1 - top, x0 - left : x1 - left, into] = segment[y0 - y : y1 - y, x0 - x : x1 - x]
        return region

    def _segment(self, level: int, number: int, page, index: int) -> np.ndarray | None:
        """One decoded tile or strip (height, width, samples), from memory where it was read lately."""
        key = (level, number, index)
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        size = page.databytecounts[index]
        if size == 0:
            return None
        file = page.parent.filehandle  # an OME-TIFF may have pages in other files
        if file.closed:
            file.open()
        file.seek(page.dataoffsets[index])
        data = file.read(size)
        if len(data) < size:
            raise BadInput(self.path, "a TIFF", "it is truncated (pixels are missing at its end)")
        decoded, _, shape = page.keyframe.decode(
            data, index, jpegtables=page.jpegtables, jpegheader=page.keyframe.jpegheader
        )
        if decoded is None:
            return None
        segment = np.asarray(decoded)[0, : shape[1], : shape[2]]
        self._held[key] = segment
        held = sum(part.nbytes for part in self._held.values())
        while held > TILE_CACHE_BYTES and len(self._held) > 1:
            held -= self._held.popitem(last=False)[1].nbytes
        return segment

    def _map(self, level: int, number: int, page) -> np.ndarray | None:
        """The whole page as a read-only map (height, width, samples), or None where it cannot be mapped."""
        key = (level, number)
        if key not in self._mapped:
            frame, mapped = page.keyframe, None
            if frame.compression == 1 and frame.is_memmappable and not frame.is_tiled:
                separate = frame.planarconfig == 2 and frame.samplesperpixel > 1
                grid = (frame.imagelength, frame.imagewidth)
                shape = (frame.samplesperpixel, *grid) if separate else (*grid, frame.samplesperpixel)
                kind = np.dtype(frame.dtype).newbyteorder(page.parent.byteorder)
                mapped = np.memmap(page.parent.filehandle.path, kind, "r", page.dataoffsets[0], shape)
                mapped = np.moveaxis(mapped, 0, 2) if separate else mapped
            self._mapped[key] = mapped
        return self._mapped[key]


def _open(path: Path):
    import tifffile

    try:
        tiff = tifffile.TiffFile(path)
        first: Any = tiff.pages[0] if len(tiff.pages) else None
        if first is not None and first.imagewidth:
            return tiff
    except Exception as error:  # whatever a damaged header makes tifffile raise
        raise BadInput(path, "a TIFF", f"its header is damaged ({error})") from error
    raise BadInput(path, "a TIFF", "it holds no image")


def _size(level) -> tuple[int, int]:
    """(width, height) of a series or level."""
    return int(level.shape[level.axes.index("X")]), int(level.shape[level.axes.index("Y")])


def _step(page) -> tuple[int, int]:
    """Width and height of a tile or strip."""
    if page.is_tiled:
        return page.tilewidth, page.tilelength
    return page.imagewidth, min(page.rowsperstrip, page.imagelength)


def _check(level, path: Path) -> int:
    """Number of pages that make the channels of a level: 1, or one a channel; `BadInput` unless grey or RGB."""
    page = level.keyframe
    if any(one is None for one in level.pages):
        raise BadInput(path, "a TIFF", "some of its pages are missing; copy or download it again")
    deep = level.dtype == np.uint16 and page.bitspersample > 8 and page.photometric in (_RGB, _YCBCR)
    if not deep and (level.dtype != np.uint8 or page.bitspersample != 8):
        kind = f"{page.bitspersample}-bit {np.dtype(level.dtype).name}" if level.dtype is not None else "unknown"
        raise BadInput(path, "a slide", f"its pixels are {kind}; convert it to 8-bit RGB")
    beyond = [f"{axis} = {n}" for axis, n in zip(level.axes, level.shape, strict=True) if axis not in "YXSC" and n > 1]
    if beyond:
        raise BadInput(path, "a slide", f"it is a stack ({', '.join(beyond)}); save one plane as RGB")
    channels = level.shape[level.axes.index("C")] if "C" in level.axes else 1
    samples = page.samplesperpixel * (channels if channels > 1 and len(level.pages) > 1 else 1)
    if samples not in (1, 3, 4) or (samples > 1 and channels > 1 and page.samplesperpixel > 1):
        raise BadInput(path, "a slide", f"it has {samples} channels; an H&E slide has 3 (RGB)")
    if page.photometric not in (_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _YCBCR) or (
        page.photometric == _YCBCR and page.compression not in _JPEG
    ):
        raise BadInput(path, "a slide", f"its colours are {page.photometric!r}; convert it to RGB")
    return len(level.pages) if channels > 1 and len(level.pages) > 1 else 1


def _to_rgb(stored: np.ndarray, page) -> np.ndarray:
    """(height, width, samples) as stored to (height, width, 3)."""
    if page.photometric == _PALETTE:
        return np.ascontiguousarray((page.colormap >> 8).astype(np.uint8).T[stored[..., 0]])
    if page.photometric == _MINISWHITE:
        stored = 255 - stored
    if stored.shape[2] == 1:
        return np.repeat(stored, 3, axis=2)
    if stored.shape[2] == 4 and page.extrasamples and page.extrasamples[0] in (1, 2):
        return over_white(stored[..., :3], stored[..., 3], premultiplied=page.extrasamples[0] == 1)
    return np.ascontiguousarray(stored[..., :3])


def _scale(tiff, series) -> float | None:
    """Micrometres per pixel: OME's PhysicalSize, Aperio's MPP, ImageJ's unit, or resolution tags."""
    page = series.keyframe
    if tiff.is_ome:
        stated = _ome_scale(tiff.ome_metadata, series)
        if stated is not None:
            return stated
    if tiff.is_svs:
        found = re.search(r"\|\s*MPP\s*=\s*([^|]+)", page.description)
        if found is None:
            return None
        stated = found[1].replace(",", ".")
        return mean_scale(stated, stated)
    try:
        across, down = (value[0] / value[1] for value in (page.tags[282].value, page.tags[283].value))
    except (KeyError, TypeError, ZeroDivisionError, IndexError):
        return None
    unit_um = {2: 25_400.0, 3: 10_000.0}.get(int(page.tags.valueof(296, default=2)))
    if unit_um is None and tiff.is_imagej:
        unit_um = UNIT_UM.get(str((tiff.imagej_metadata or {}).get("unit", "")).replace("\\u00B5", "µ"))
    if unit_um is None or across <= 0 or down <= 0:
        return None
    return mean_scale(unit_um / across, unit_um / down)


def _ome_scale(xml: str, series) -> float | None:
    """PhysicalSizeX and Y of the OME image that has the size of `series`, in micrometres."""
    pixels, sizes = _ome_pixels(xml, series), []
    for axis in "XY":
        unit = UNIT_UM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))  # OME: micrometres unless it says else
        try:
            sizes.append(float(pixels[f"PhysicalSize{axis}"]) * unit if unit else None)
        except (KeyError, ValueError):
            sizes.append(None)
    return mean_scale(sizes[0], sizes[1] if sizes[1] is not None else sizes[0])


def _ome_pixels(xml: str, series) -> dict[str, str]:
    """Attributes of the OME image that has the size of `series`."""
    from xml.etree import ElementTree

    width, height = _size(series)
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return {}
    for each in root.iter():
        found = each.tag.rpartition("}")[2] == "Pixels"
        if found and (each.get("SizeX"), each.get("SizeY")) == (str(width), str(height)):
            return each.attrib
    return {}


def _stated_top(tiff, series) -> int | None:
    """The value of white that a TIFF states, or None for 16-bit samples of which it states nothing."""
    page = series.keyframe
    if page.bitspersample < 16:
        return (1 << page.bitspersample) - 1
    top = page.tags.valueof(_MAX_SAMPLE, default=FULL)
    top = max(top) if isinstance(top, tuple) else top
    bits = _ome_pixels(tiff.ome_metadata, series).get("SignificantBits", "") if tiff.is_ome else ""
    if bits.isdecimal() and 8 <= int(bits) < 16:
        return (1 << int(bits)) - 1
    return int(top) if 0 < top < FULL else None
