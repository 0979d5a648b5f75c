"""What the header of a TIFF declares, held against the file itself before any library allocates for it.

A TIFF is a chain of pages, each a list of tags that point into the file. tifffile and OpenSlide silently skip pages and
tags beyond its end, so that half a colour slide may be read as a whole grey one; and a damaged width, tile size or
count makes them allocate by it, which ends the process. Nothing is decoded here.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cmrcnet.errors import BadInput

LARGEST_TILE_BYTES = 1 << 30
"""Decoded bytes of one tile."""
LARGEST_STRIP_BYTES = 1 << 32
"""Decoded bytes of one strip; a picture may be stored as one."""
LARGEST_RATIO = 2_000
"""Decoded over stored bytes of a strip or tile, for the codecs below; deflate reaches 1,032, LZW 1,400."""
MOST_PAGES = 100_000
MOST_PARTS = 1 << 26
"""Tiles or strips of a page."""

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_KINDS = {
    1: "B", 2: "B", 3: "H", 4: "I", 5: "II", 6: "b", 7: "B", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d", 13: "I",
    16: "Q", 17: "q", 18: "Q",
}  # fmt: skip
"""Format of the values of each type, as `struct` spells it."""
_WIDTH, _LENGTH, _BITS, _COMPRESSION, _SAMPLES, _ROWS, _PLANAR = 256, 257, 258, 259, 277, 278, 284
_STRIPS, _STRIP_BYTES, _TILE_WIDTH, _TILE_LENGTH, _TILES, _TILE_BYTES = 273, 279, 322, 323, 324, 325
_PHOTOMETRIC, _COLOURS, _SUBPAGES, _NDPI = 262, 320, 330, 65420
_PALETTE, _THREE = 3, (2, 6, 8)  # what the photometric interpretation says; RGB, YCbCr and L*a*b* have three samples
_NUMBERS = frozenset({
    _WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _STRIPS, _SAMPLES, _ROWS, _STRIP_BYTES, _PLANAR, 317, _COLOURS,
    _TILE_WIDTH, _TILE_LENGTH, _TILES, _TILE_BYTES, _SUBPAGES, 338, 339,
})  # fmt: skip
_NEEDED = _NUMBERS | {270, 347}
"""Those, the description and the JPEG tables must be whole. A scanner's private tags may be odd and do no harm."""
_BOUNDED = (
    1,
    5,
    7,
    8,
    32773,
    32946,
)  # none, LZW, JPEG, deflate, PackBits: these shrink pixels by `LARGEST_RATIO` at most

_TRUNCATED = "it is truncated (parts beyond its end are missing); copy it again"


@dataclass(frozen=True)
class _Tag:
    kind: str  # of one value, with the byte order before it
    count: int
    place: int  # of the values in the file

    @property
    def end(self) -> int:
        return self.place + self.count * struct.calcsize(self.kind)


class _Form:
    """Byte order and widths of the numbers of one file."""

    def __init__(self, head: bytes) -> None:
        big = head[2:4] in (b"+\0", b"\0+")
        self.order = "<" if head[:2] == b"II" else ">"
        self.offset, self.width = ("Q", 8) if big else ("I", 4)
        self.number, self.first = ("Q", 8) if big else ("H", 4)  # the number of tags; where the first page is told
        self.step = 4 + 2 * self.width  # a tag: code, type, number of values, and the values or their place

    def read(self, file: BinaryIO, kind: str) -> int:
        """One number at the file's position; `EOFError` beyond its end."""
        form = self.order + kind
        found = file.read(struct.calcsize(form))
        if len(found) < struct.calcsize(form):
            raise EOFError
        return struct.unpack(form, found)[0]

    def page(self, file: BinaryIO, at: int, size: int) -> tuple[dict[int, _Tag], int]:
        """Tags of the page at an offset, and the offset of the next page."""
        file.seek(at)
        count = self.read(file, self.number)
        first = file.tell()
        if first + count * self.step > size:
            raise EOFError
        listed, tags = file.read(count * self.step), {}
        for start in range(0, len(listed), self.step):
            code, kind, values = struct.unpack_from(f"{self.order}HH{self.offset}", listed, start)
            if kind in _KINDS:
                place = first + start + 4 + self.width
                if values * struct.calcsize(self.order + _KINDS[kind]) > self.width:
                    (place,) = struct.unpack_from(self.order + self.offset, listed, start + 4 + self.width)
                tags[code] = _Tag(self.order + _KINDS[kind], values, place)
        return tags, self.read(file, self.offset)


def check_tiff(path: Path) -> None:
    """Check that a TIFF holds what its header announces, and that what it announces can be.

    Raises
    ------
    BadInput
        It is truncated, or a size in its header is impossible for a file of this length.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            for number, tags in enumerate(_pages(file, size)):
                fault = _page_fault(file, tags, size) if number < MOST_PAGES else f"over {MOST_PAGES:,} pages"
                if fault:
                    raise BadInput(path, "a TIFF", fault)
    except EOFError:
        raise BadInput(path, "a TIFF", _TRUNCATED) from None


def _pages(file: BinaryIO, size: int) -> Iterator[dict[int, _Tag]]:
    """The tags of every page and subpage; of an NDPI file only those before the first page of its own kind."""
    form = _Form(file.read(4))
    file.seek(form.first)
    waiting, seen = [form.read(file, form.offset)], {0}
    while waiting:
        page = waiting.pop()
        if page in seen:
            continue
        seen.add(page)
        tags, following = form.page(file, page, size)
        if _NDPI in tags:  # its offsets wrap at 4 GiB in a way of its own
            return
        yield tags
        waiting.append(following)
        if _SUBPAGES in tags:
            waiting += _values(file, tags[_SUBPAGES], size).tolist()


def _values(file: BinaryIO, tag: _Tag, size: int) -> np.ndarray:
    """The numbers of a tag; `EOFError` where they lie beyond the end."""
    if tag.end > size:
        raise EOFError
    file.seek(tag.place)
    return np.frombuffer(file.read(tag.end - tag.place), np.dtype(tag.kind))


def _page_fault(file: BinaryIO, tags: dict[int, _Tag], size: int) -> str:
    """What is wrong with a page: the end of a sentence, or ""."""
    if any(tag.end > size for code, tag in tags.items() if code in _NEEDED):
        return _TRUNCATED
    numbers = {code: tag for code, tag in tags.items() if code in _NUMBERS}
    if any(tag.kind[1:] not in tuple("HIQ") or tag.count > MOST_PARTS for tag in numbers.values()):
        return "its header is damaged (a size is no whole number)"

    def first(code: int, default: int) -> int:
        return int(_values(file, tags[code], size)[0]) if code in tags and tags[code].count else default

    tiled = _TILE_WIDTH in tags or _TILE_LENGTH in tags
    parts, lengths = tags.get(_TILES if tiled else _STRIPS), tags.get(_TILE_BYTES if tiled else _STRIP_BYTES)
    if parts is None and not tiled:
        return ""  # no picture
    sizes = {"width": first(_WIDTH, 0), "height": first(_LENGTH, 0)}
    if tiled:
        sizes |= {"tile width": first(_TILE_WIDTH, 0), "tile height": first(_TILE_LENGTH, 0)}
    else:
        sizes |= {"width of a strip": sizes["width"], "rows per strip": min(first(_ROWS, 1 << 32), sizes["height"])}
    sizes |= {"samples per pixel": first(_SAMPLES, 1), "bits per sample": first(_BITS, 1)}
    if low := [f"{what} is {value}" for what, value in sizes.items() if value < 1]:
        return f"its header is damaged ({low[0]})"
    width, height, across, down, samples, bits = sizes.values()
    planar, colours = first(_PLANAR, 1), first(_PHOTOMETRIC, 1)
    if planar not in (1, 2) or (colours in _THREE and samples < 3) or (colours == _PALETTE and _COLOURS not in tags):
        return f"its header is damaged (colours {colours} with {samples} samples per pixel, laid out as {planar})"
    planes = samples if planar == 2 else 1
    decoded = across * down * math.ceil(samples / planes) * math.ceil(bits / 8)
    if decoded > (LARGEST_TILE_BYTES if tiled else LARGEST_STRIP_BYTES):
        kind = "tiles" if tiled else "strips"
        return f"it declares {kind} of {across} x {down} px, {decoded / 1e9:,.1f} GB each, which no slide has"
    needed = math.ceil(width / across) * math.ceil(height / down) * planes
    held = min(0 if parts is None else parts.count, needed if lengths is None else lengths.count)
    if needed > held or parts is None:
        return f"it declares {width} x {height} px, which are {needed:,} tiles or strips, and lists {held:,}"
    starts = _values(file, parts, size).astype(np.float64)
    stored = starts * 0 if lengths is None else _values(file, lengths, size).astype(np.float64)
    if (starts[:held] + stored[:held] > size).any():
        return _TRUNCATED
    most = stored.max(initial=0)
    if first(_COMPRESSION, 1) in _BOUNDED and 0 < LARGEST_RATIO * most + (1 << 20) < decoded and most:
        return f"it declares {decoded:,} bytes of pixels in one part where at most {most:,.0f} are stored"
    return ""
