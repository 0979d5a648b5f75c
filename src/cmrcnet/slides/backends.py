"""Pixels through OpenSlide (whole-slide formats) and Pillow (JPEG, PNG); transparency and depth, also for `tiff`.

Colour of more than 8 bits a channel is scaled to 8 by the depth that the file states, or refused. A camera of 12 bits
often writes 0 to 4095 into samples of 16 bits. Without a stated depth these look like a slide that is nearly black, and
nothing tells them from one: full 16-bit pictures are recognised by values in the upper half.
"""

from __future__ import annotations

import math
import mmap
import struct
import threading
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from cmrcnet.errors import BadInput
from cmrcnet.slides.slide import WHITE, mean_scale
from cmrcnet.slides.slide_files import files_of_slide

FULL = (1 << 16) - 1
"""Largest value of 16 bits."""
STRIP_ROWS = 1024
"""Rows of pixels that are asked of OpenSlide at once."""
_HEAD_BYTES = 1 << 16
_SIZES = b"\xff\x4f\xff\x51"  # of a JPEG 2000 codestream; the depth of its first channel is 42 bytes on


class OpenSlidePixels:
    """Pixels through OpenSlide; see `PixelSource`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as slide:
            self.sizes = tuple((int(width), int(height)) for width, height in slide.level_dimensions)
            properties = slide.properties
            self.mpp = mean_scale(properties.get("openslide.mpp-x"), properties.get("openslide.mpp-y"))
            self._vendor = properties.get("openslide.vendor", "")
        self._slide = None

    def files(self) -> tuple[Path, ...]:
        """See `PixelSource.files`."""
        return files_of_slide(self.path, self._vendor)

    def region(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        """See `PixelSource.region`."""
        import openslide

        if self._slide is None:
            self._slide = self._open()
        step = self._slide.level_downsamples[level]
        # strips bound the memory of its 4 bytes a pixel; where the step is no whole number they would move the pixels
        rows = STRIP_ROWS if float(step).is_integer() else height
        found = np.empty((height, width, 3), np.uint8)
        for start in range(0, height, rows):
            size = width, min(rows, height - start)
            try:
                strip = self._slide.read_region((round(left * step), round((top + start) * step)), level, size)
            except openslide.OpenSlideError as error:
                self.close()  # OpenSlide refuses every later read once one has failed
                raise BadInput(self.path, "a slide", f"its pixels cannot be decoded ({error})") from error
            pixels = np.asarray(strip)
            found[start : start + rows] = over_white(pixels[..., :3], pixels[..., 3])
        return found

    def close(self) -> None:
        """See `PixelSource.close`."""
        if self._slide is not None:
            self._slide.close()
            self._slide = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_slide": None}

    def _open(self):
        import openslide

        try:
            return openslide.OpenSlide(str(self.path))
        except openslide.OpenSlideError as error:
            raise BadInput(self.path, "a slide", f"OpenSlide says: {error}") from error


FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "JPEG2000")
LARGEST_PX = 1 << 30
"""A picture is decoded whole, at 4 bytes a pixel; above 4 GiB a tiled slide is needed."""
MOST_PX_A_BYTE = {"PNG": 8_500, "JPEG": 512, "MPO": 512, "BMP": 128, "JPEG2000": 100_000, "WEBP": 1_000_000}
"""Pixels that a byte can stand for: deflate shrinks 1,032-fold (and a PNG may have 1 bit a pixel); JPEG spends at least
a bit on 8 x 8 pixels. A picture that declares more is no picture, and decoding it would only take memory."""
PICTURE_CACHE_BYTES = 800_000_000
"""Total bytes of decoded pictures that are kept (two of 9,300 x 9,900 px); the one read last always is."""

_LAST_MARK = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}
_DECODING = (OSError, SyntaxError, ValueError, struct.error, zlib.error, EOFError, MemoryError)

_holders: list[weakref.ref[PicturePixels]] = []  # those that hold a decoded picture, read longest ago first
_lock = threading.RLock()


class PicturePixels:
    """Pixels of one picture; see `PixelSource`. There is one level.

    The pixels are taken as stored: an EXIF orientation is NOT applied, because spot coordinates refer to the stored
    pixels, and no colour profile is applied. Transparent pixels are laid on white. RGB of more than 8 bits a channel is
    scaled (see `depth`); grey of more is refused (which value is white is unknown).

    A decoded picture is kept until `close`, until the object is deleted, or until other pictures need the memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._picture = None
        self.mpp: float | None = None
        with self._opened() as picture:
            self.sizes = (picture.size,)
            mark, self._kind = _LAST_MARK.get(picture.format), picture.format
            if picture.mode.startswith(("I", "F")):
                raise BadInput(
                    path, "a slide", "it holds more than 8 bits a pixel and is grey; convert it to 8-bit RGB"
                )
        self._bits = picture_bits(path, self._kind)
        if mark is None:
            return
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.rfind(mark, _pixels_start(content)) < 0:
                raise BadInput(path, "a picture", "it is truncated (its end is missing); copy or download it again")

    def files(self) -> tuple[Path, ...]:
        """See `PixelSource.files`."""
        return (self.path,)

    def region(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        """See `PixelSource.region`."""
        piece = self._decoded().crop((left, top, left + width, top + height))
        if piece.mode == "RGB":
            return np.asarray(piece).copy()
        if piece.has_transparency_data:
            rgba = np.asarray(piece.convert("RGBA"))
            return over_white(rgba[..., :3], rgba[..., 3])
        return np.asarray(piece.convert("RGB")).copy()

    def close(self) -> None:
        """See `PixelSource.close`."""
        with _lock:
            self._picture = None
            _holders[:] = [ref for ref in _holders if ref() is not None and ref() is not self]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_picture": None}

    def _decoded(self):
        """The decoded picture. Only one is decoded at a time, so that memory holds at most one beyond the budget."""
        picture = self._picture  # our own reference: another thread may make room meanwhile
        if picture is not None and _holders and _holders[-1]() is self:
            return picture
        with _lock:
            picture = self._picture
            if picture is None:
                held = [source for ref in _holders if (source := ref()) is not None and source is not self]
                taken = [4 * math.prod(source.sizes[0]) for source in (*held, self)]  # Pillow keeps RGB in 4 bytes
                while held and sum(taken) > PICTURE_CACHE_BYTES:  # those read longest ago are closed first
                    held.pop(0).close()
                    taken.pop(0)
                picture = self._picture = self._decode()
            _holders[:] = [ref for ref in _holders if ref() is not None and ref() is not self]
            _holders.append(weakref.ref(self))
        return picture

    def _decode(self):
        from PIL import Image

        if self._bits > 8:
            return Image.fromarray(read_deep_picture(self.path, self._kind, self._bits))
        with self._opened() as picture:
            try:
                picture.load()
            except _DECODING as error:
                raise BadInput(self.path, "a picture", f"its pixels cannot be decoded ({error})") from error
        return picture

    @contextmanager
    def _opened(self) -> Iterator:
        """The picture with its header read, or `BadInput`; the file is closed at the end, decoded pixels stay."""
        from PIL import Image, UnidentifiedImageError

        with _lock:
            # Pillow refuses large images. Its limit is global, so it is restored at once; ours is below.
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                picture = Image.open(self.path, formats=FORMATS)
            except UnidentifiedImageError as error:
                raise BadInput(
                    self.path, "a slide", "it is neither a whole-slide format, a TIFF, nor a picture (JPEG, PNG)"
                ) from error
            except _DECODING as error:
                raise BadInput(self.path, "a picture", str(error)) from error
            finally:
                Image.MAX_IMAGE_PIXELS = limit
        try:
            if picture.width * picture.height > LARGEST_PX:
                raise BadInput(
                    self.path,
                    "a picture",
                    f"{picture.width} x {picture.height} px are too many to decode whole; convert it to a tiled "
                    "pyramidal TIFF (vips tiffsave --tile --pyramid)",
                )
            if picture.width * picture.height > MOST_PX_A_BYTE.get(picture.format or "", 1) * self.path.stat().st_size:
                size = f"{picture.width} x {picture.height} px in {self.path.stat().st_size:,} bytes"
                raise BadInput(self.path, "a picture", f"it declares {size}, which cannot be")
            yield picture
        finally:
            if picture.fp is not None:
                picture.fp.close()


def _pixels_start(content: mmap.mmap) -> int:
    """Offset of the compressed pixels of a JPEG; 0 for another format.

    The segments before them are skipped: the preview that a camera or scanner puts there is a whole JPEG with an end
    mark of its own. Each is 0xFF, its kind, and its length in two bytes (ITU T.81, B.1.1).
    """
    offset = 2
    if content[:2] != b"\xff\xd8":
        return 0
    while content[offset : offset + 1] == b"\xff" and len(content) >= offset + 4:
        kind = content[offset + 1]
        if kind == 0xDA:  # start of scan
            return offset
        if kind == 0xFF:  # filler
            offset += 1
        else:
            offset += 2 + int.from_bytes(content[offset + 2 : offset + 4], "big")
    return min(offset, len(content))


def over_white(colour: np.ndarray, alpha: np.ndarray, premultiplied: bool = False) -> np.ndarray:
    """Composite partly transparent pixels onto white.

    Parameters
    ----------
    colour : numpy.ndarray, shape (height, width, 3), uint8
    alpha : numpy.ndarray, shape (height, width), uint8
        255 is opaque.
    premultiplied : bool
        Whether `colour` was multiplied by alpha already (TIFF: "associated alpha").

    Returns
    -------
    numpy.ndarray, shape (height, width, 3), uint8
    """
    if alpha.min(initial=WHITE) == WHITE:
        return np.ascontiguousarray(colour)
    share = alpha[..., None].astype(np.uint32)
    own = colour.astype(np.uint32) * (WHITE if premultiplied else share)
    mixed = (own + WHITE * (WHITE - share) + WHITE // 2) // WHITE
    return np.minimum(mixed, WHITE).astype(np.uint8)


def picture_bits(path: Path, kind: str | None) -> int:
    """Bits of a channel that the header of a PNG or JPEG 2000 states; 8 for other kinds of picture."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if kind == "PNG":
        return head[24] if len(head) > 24 else 8
    if kind == "JPEG2000" and 0 <= (start := head.find(_SIZES)) < len(head) - 42:
        return (head[start + 42] & 0x7F) + 1
    return 8


def read_deep_picture(path: Path, kind: str, bits: int) -> np.ndarray:
    """Decode a PNG or JPEG 2000 of 9 to 16 bits a channel.

    Returns
    -------
    numpy.ndarray, shape (height, width, 3 or 4), uint8

    Raises
    ------
    BadInput
        It is grey, cannot be decoded, or its depth is unknown.
    """
    import imagecodecs

    try:
        decode = imagecodecs.png_decode if kind == "PNG" else imagecodecs.jpeg2k_decode
        values = np.asarray(decode(path.read_bytes()))
    except Exception as error:  # whatever a codec raises for damaged bytes
        raise BadInput(path, "a picture", f"its pixels cannot be decoded ({error})") from error
    if values.ndim != 3 or values.shape[2] not in (3, 4) or values.dtype != np.uint16:
        raise BadInput(path, "a slide", f"it holds {bits} bits a pixel and is no RGB; convert it to 8-bit RGB")
    if bits == 16 and (fault := depth_fault(int(values[..., :3].max(initial=0)))):
        raise BadInput(path, "a slide", fault)
    return to_8_bits(values, (1 << bits) - 1, path)


def depth_fault(largest: int) -> str:
    """Why samples of 16 bits cannot be scaled when `largest` is the largest of them: the end of a sentence, or ""."""
    if largest > FULL // 2:
        return ""
    return (
        f"its samples of 16 bits reach only {largest} of {FULL}, so how many bits the camera had is unknown and it "
        "would be read too dark; convert it to 8-bit RGB, or state the depth (TIFF: MaxSampleValue; OME: "
        "SignificantBits)"
    )


def to_8_bits(values: np.ndarray, top: int, path: Path) -> np.ndarray:
    """Scale 0 to `top` to 0 to 255, rounded.

    Parameters
    ----------
    values : array, uint16
    top : int
        The value of white.
    path : Path
        Of the slide, for the message.

    Raises
    ------
    BadInput
        A value is larger.
    """
    largest = int(values.max(initial=0))
    if largest > top:
        raise BadInput(path, "a slide", f"a sample is {largest}, above the {top} that it states as the largest")
    table = (np.arange(top + 1, dtype=np.int64) * 255 + top // 2) // top
    return table.astype(np.uint8)[values]
