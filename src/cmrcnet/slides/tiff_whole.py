"""Tell a truncated TIFF from its header alone.

A TIFF is a chain of pages, each a list of tags that point into the file. tifffile and OpenSlide silently leave out
the pages and tags that point beyond the end, so that half a colour slide may come back as a whole grey one.
"""

from __future__ import annotations

import struct
from pathlib import Path

_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_NEEDED_TAGS = frozenset({258, 270, 273, 279, 324, 325, 330, 347})
"""Bits, description, strips, tiles, SubIFDs, JPEG tables. Private tags of a scanner may be odd and do no harm."""


def is_whole(tiff, path: Path) -> bool:
    """Whether every page, needed tag and pixel that a TIFF announces lies within the file.

    Parameters
    ----------
    tiff : tifffile.TiffFile
        Of `path`.
    path : Path
    """
    size = path.stat().st_size
    return (tiff.is_ndpi or _tags_are_whole(tiff.tiff, path, size)) and all(
        start + length <= size
        for page in tiff.pages
        for start, length in zip(page.dataoffsets, page.databytecounts, strict=False)
    )


def _tags_are_whole(form, path: Path, size: int) -> bool:
    """Walk the chain of pages; `form` is tifffile's TiffFormat (byte order and widths)."""
    with path.open("rb") as file:

        def number(offset: int, kind: str, length: int) -> int | None:
            file.seek(offset)
            found = file.read(length)
            return struct.unpack(kind, found)[0] if len(found) == length else None

        page, seen = number(8 if form.offsetsize == 8 else 4, form.offsetformat, form.offsetsize), set()
        while page and page not in seen:
            seen.add(page)
            count = number(page, form.tagnoformat, form.tagnosize)
            if count is None:
                return False
            tags = page + form.tagnosize
            file.seek(tags)
            listed = file.read(count * form.tagsize)
            if len(listed) < count * form.tagsize:
                return False
            for start in range(0, len(listed), form.tagsize):
                if not _tag_is_whole(form, listed[start : start + form.tagsize], size):
                    return False
            page = number(tags + count * form.tagsize, form.offsetformat, form.offsetsize)
        return page is not None


def _tag_is_whole(form, tag: bytes, size: int) -> bool:
    """Whether a tag's value lies within the file. A tag is: code, type, number of values, the value or its place."""
    code, kind = struct.unpack(f"{form.byteorder}HH", tag[:4])
    if code not in _NEEDED_TAGS:
        return True
    width = form.offsetsize
    (count,) = struct.unpack(form.offsetformat, tag[4 : 4 + width])
    length = count * _TYPE_BYTES.get(kind, 1)
    (place,) = struct.unpack(form.offsetformat, tag[4 + width : 4 + 2 * width])
    return length <= width or place + length <= size
