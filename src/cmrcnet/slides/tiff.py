"""TIFF through tifffile, for what OpenSlide does not open: OME-TIFF, strips, planar axes, pyramids in SubIFDs.

Tiles are decoded and kept here rather than read through `TiffFile.aszarr`: that store keeps no decoded tile, so that
overlapping patches took 3 (tiles) to 28 (strips) times as long, and it cannot map uncompressed pixels. A TIFF is a
chain of pages, each a list of tags that point into the file; tifffile and OpenSlide silently skip pages and tags beyond
its end, so that half a colour slide may be read as a whole grey one: `_is_whole` finds that.
Long because it is one thing: this format.
"""

from __future__ import annotations

import math
import struct
import threading
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from cmrcnet.errors import BadInput
from cmrcnet.slides.backends import UNIT_UM, mean_scale, over_white, plausible_scale

TILE_CACHE_BYTES = 64 << 20
"""Bytes of decoded tiles or strips that each slide keeps; the one read last always is."""

_DECODING = (RuntimeError, ValueError, OSError, NotImplementedError, IndexError, TypeError, struct.error, zlib.error)
_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_JPEG = (6, 7, 33003, 33005, 34712)  # the codecs that turn YCbCr into RGB themselves


def beyond_openslide(path: Path) -> bool:
    """Whether a TIFF holds what OpenSlide ignores: OME metadata, or more than 8 bits a channel.

    Raises
    ------
    BadInput
        It is no TIFF, or a truncated one.
    """
    with _open(path) as tiff:
        if not _is_whole(tiff, path):
            raise BadInput(path, "a TIFF", "it is truncated (parts beyond its end are missing); copy it again")
        return tiff.is_ome or tiff.pages[0].dtype != np.uint8


class TiffPixels:
    """Pixels of the largest image of a TIFF and of its pyramid; see `PixelSource`.

    Regions are read tile by tile (strip by strip) or, where the pixels lie uncompressed in one piece, mapped; a
    level is never held whole unless it is stored as one compressed strip. Missing tiles are white.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reset()
        with _open(path) as tiff:
            try:  # labels and overviews are smaller than the slide
                areas = [math.prod(_size(one)) if {"Y", "X"} <= set(one.axes) else 0 for one in tiff.series]
                if not any(areas):
                    raise BadInput(path, "a TIFF", "it holds no image")
                self._series = areas.index(max(areas))
                levels = tiff.series[self._series].levels
                self.sizes = tuple(_size(level) for level in levels)
                self._planes = tuple(_check(level, path) for level in levels)
                self.mpp = _scale(tiff, tiff.series[self._series])
            except _DECODING as error:
                if isinstance(error, BadInput):
                    raise
                raise BadInput(path, "a TIFF", f"its header is damaged ({error})") from error

    def region(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        """See `PixelSource.region`."""
        with self._lock:
            try:
                pages: Any = self._file().series[self._series].levels[level].pages
                planes = [
                    self._plane(level, number, pages[number], left, top, width, height)
                    for number in range(self._planes[level])
                ]
                stored = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
                return _to_rgb(stored, pages[0].keyframe)
            except _DECODING as error:
                if isinstance(error, BadInput):
                    raise
                raise BadInput(self.path, "a TIFF", f"its pixels cannot be decoded ({error})") from error

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
        step_x = frame.tilewidth if frame.is_tiled else frame.imagewidth
        step_y = frame.tilelength if frame.is_tiled else min(frame.rowsperstrip, frame.imagelength)
        across, down = math.ceil(frame.imagewidth / step_x), math.ceil(frame.imagelength / step_y)
        separate = frame.samplesperpixel if frame.planarconfig == 2 else 1
        region = np.full(
            (height, width, frame.samplesperpixel), 0 if frame.photometric == _MINISWHITE else 255, np.uint8
        )
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
        file = self._file().filehandle
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
                mapped = np.memmap(self.path, np.uint8, "r", page.dataoffsets[0], shape)
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
    except (tifffile.TiffFileError, *_DECODING) as error:
        raise BadInput(path, "a TIFF", f"its header is damaged ({error})") from error
    raise BadInput(path, "a TIFF", "it holds no image")


def _size(level) -> tuple[int, int]:
    """(width, height) of a series or level."""
    return int(level.shape[level.axes.index("X")]), int(level.shape[level.axes.index("Y")])


def _check(level, path: Path) -> int:
    """Number of pages that make the channels of a level: 1, or one a channel; `BadInput` unless 8-bit grey or RGB."""
    page = level.keyframe
    if any(one is None for one in level.pages):
        raise BadInput(path, "a TIFF", "some of its pages are missing; copy or download it again")
    if level.dtype != np.uint8 or page.bitspersample != 8:
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
    """Micrometres per pixel: OME's PhysicalSize, ImageJ's unit, or plausible resolution tags."""
    if tiff.is_ome:
        stated = _ome_scale(tiff.ome_metadata, series)
        if stated is not None:
            return stated
    page = series.keyframe
    try:
        across, down = (value[0] / value[1] for value in (page.tags[282].value, page.tags[283].value))
    except (KeyError, TypeError, ZeroDivisionError, IndexError):
        return None
    unit_um = {2: 25_400.0, 3: 10_000.0}.get(int(page.tags.valueof(296, default=2)))
    if unit_um is None and tiff.is_imagej:
        unit_um = UNIT_UM.get(str((tiff.imagej_metadata or {}).get("unit", "")).replace("\\u00B5", "µ"))
    if unit_um is None or across <= 0 or down <= 0:
        return None
    return plausible_scale(mean_scale(unit_um / across, unit_um / down))


def _ome_scale(xml: str, series) -> float | None:
    """PhysicalSizeX and Y of the OME image that has the size of `series`, in micrometres."""
    from xml.etree import ElementTree

    width, height = _size(series)
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return None
    for pixels in root.iter():
        if pixels.tag.rpartition("}")[2] != "Pixels":
            continue
        if (pixels.get("SizeX"), pixels.get("SizeY")) != (str(width), str(height)):
            continue
        sizes = []
        for axis in "XY":
            unit = UNIT_UM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))  # OME: micrometres unless it says else
            size = pixels.get(f"PhysicalSize{axis}")
            sizes.append(None if size is None or unit is None else float(size) * unit)
        return mean_scale(sizes[0], sizes[1] if sizes[1] is not None else sizes[0])
    return None


_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_NEEDED_TAGS = frozenset({258, 270, 273, 279, 324, 325, 330, 347})
"""Bits, description, strips, tiles, SubIFDs, JPEG tables. Private tags of a scanner may be odd and do no harm."""


def _is_whole(tiff, path: Path) -> bool:
    """Whether every page, needed tag and pixel that the header of a `tifffile.TiffFile` announces is in its file."""
    size = path.stat().st_size
    return (tiff.is_ndpi or _tags_are_whole(tiff.tiff, path, size)) and all(
        start + length <= size
        for page in tiff.pages
        for start, length in zip(page.dataoffsets, page.databytecounts, strict=False)
    )


def _tags_are_whole(form, path: Path, size: int) -> bool:
    """Walk the chain of pages; `form` is tifffile's TiffFormat (byte order and widths)."""
    width = form.offsetsize
    with path.open("rb") as file:

        def number(offset: int, kind: str, length: int) -> int | None:
            file.seek(offset)
            found = file.read(length)
            return struct.unpack(kind, found)[0] if len(found) == length else None

        page, seen = number(8 if width == 8 else 4, form.offsetformat, width), set()
        while page and page not in seen:
            seen.add(page)
            count = number(page, form.tagnoformat, form.tagnosize)
            if count is None:
                return False
            first = page + form.tagnosize
            file.seek(first)
            tags = file.read(count * form.tagsize)
            if len(tags) < count * form.tagsize:
                return False
            for start in range(0, len(tags), form.tagsize):
                # A tag is: code, type, number of values, and the value, or its place where it is longer than that.
                code, kind = struct.unpack_from(f"{form.byteorder}HH", tags, start)
                (values,) = struct.unpack_from(form.offsetformat, tags, start + 4)
                (place,) = struct.unpack_from(form.offsetformat, tags, start + 4 + width)
                length = values * _TYPE_BYTES.get(kind, 1)
                if code in _NEEDED_TAGS and length > width and place + length > size:
                    return False
            page = number(first + count * form.tagsize, form.offsetformat, width)
        return page is not None
