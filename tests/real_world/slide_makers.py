"""One picture written in every way that TIFF writers, scanners and picture programs write it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

WIDTH, HEIGHT = 150, 110


@cache
def picture() -> np.ndarray:
    """The source (110, 150, 3) uint8: smooth, so that lossy codecs stay close, and unlike each of its mirror images."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    red = 60 + 170 * x / WIDTH
    green = 40 + 150 * y / HEIGHT
    blue = 200 - 120 * (x / WIDTH) * (y / HEIGHT)
    return np.stack([red, green, blue], axis=2).round().astype(np.uint8)


@dataclass(frozen=True)
class Case:
    """One file.

    Parameters
    ----------
    name : str
        What is odd about it, for the test's identifier.
    write : callable
        Path to None.
    suffix : str
    expected : str
        "equal", "close" (a lossy codec: 4 levels at most on average), "grey" (equal to the grey of the source) or
        "refused".
    """

    name: str
    write: Callable[[Path], None]
    suffix: str = ".tif"
    expected: str = "equal"


LOSSLESS = (None, "lzw", "deflate", "packbits", "zstd", "lzma", "png", "jpegxl", "jpeg2000", "webp")
LOSSY = ("jpeg",)
LOSSLESS_ARGS = {"jpegxl": {"lossless": True}, "jpeg2000": {"level": 0}, "webp": {"lossless": True}}
LAYOUTS = {"tiles": {"tile": (32, 48)}, "strips": {"rowsperstrip": 16}, "one strip": {"rowsperstrip": HEIGHT}}


def tiff(data: np.ndarray, **options: object) -> Callable[[Path], None]:
    """A writer of `data` through tifffile."""
    settings = {"photometric": "rgb", "metadata": None, **options}
    top = {key: settings.pop(key) for key in ("byteorder", "bigtiff") if key in settings}
    return lambda path: tifffile.imwrite(path, data, **top, **settings)


def compressed(codec: str | None) -> dict[str, object]:
    """tifffile's options of a codec, without loss where the codec can."""
    if codec is None:
        return {}
    return {"compression": codec, "compressionargs": LOSSLESS_ARGS.get(codec, {})}


def tiffs() -> Iterator[Case]:
    """Compression x layout x orientation tag; byte order, planes, BigTIFF, predictor, depth, alpha, photometric."""
    rgb = picture()
    for codec, (layout, how), orientation in product((*LOSSLESS, *LOSSY), LAYOUTS.items(), (None, *range(1, 9))):
        tag = [] if orientation is None else [(274, "H", 1, orientation, False)]
        expected = "close" if codec in LOSSY else "equal"
        if codec in ("png", "jpegxl", "jpeg2000", "webp", "zstd", "lzma") and orientation not in (None, 3, 6):
            continue  # few programs write these codecs and fewer an orientation with them
        yield Case(
            f"{codec}, {layout}, orientation {orientation}",
            tiff(rgb, extratags=tag, **compressed(codec), **how), expected=expected,
        )  # fmt: skip
    for order, planar, big in product("<>", ("contig", "separate"), (False, True)):
        for codec, (layout, how) in product((None, "lzw", "deflate"), LAYOUTS.items()):
            data = rgb if planar == "contig" else np.ascontiguousarray(rgb.transpose(2, 0, 1))
            ends = "little" if order == "<" else "big"
            yield Case(
                f"{codec}, {layout}, {ends} endian, {planar}, {'BigTIFF' if big else 'classic'}",
                tiff(data, byteorder=order, planarconfig=planar, bigtiff=big, **compressed(codec), **how),
            )
    for codec, (layout, how) in product(("lzw", "deflate", "zstd"), LAYOUTS.items()):
        yield Case(f"{codec}, {layout}, predictor", tiff(rgb, predictor=True, **compressed(codec), **how))
    opaque = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
    grey = rgb[..., 1]
    for (layout, how), codec in product(LAYOUTS.items(), (None, "lzw", "deflate")):
        more = {**compressed(codec), **how}
        yield Case(f"{codec}, {layout}, opaque alpha", tiff(opaque, extrasamples=["unassalpha"], **more))
        yield Case(f"{codec}, {layout}, grey", tiff(grey, **{**more, "photometric": "minisblack"}), expected="grey")
        yield Case(
            f"{codec}, {layout}, grey, white is 0", tiff(255 - grey, **{**more, "photometric": "miniswhite"}),
            expected="grey",
        )  # fmt: skip
        sixteen = rgb.astype(np.uint16) * 257
        yield Case(f"{codec}, {layout}, 16 bits a channel", tiff(sixteen, **more))
        twelve = rgb.astype(np.uint16) * 16
        yield Case(f"{codec}, {layout}, 12 bits in 16", tiff(twelve, **more), expected="refused")
        yield Case(
            f"{codec}, {layout}, 16-bit grey", tiff(sixteen[..., 1], **{**more, "photometric": "minisblack"}),
            expected="refused",
        )  # fmt: skip
        yield Case(f"{codec}, {layout}, float", tiff(rgb.astype(np.float32) / 255, **more), expected="refused")
        yield Case(f"{codec}, {layout}, signed", tiff(rgb.astype(np.int16), **more), expected="refused")


def pictures() -> Iterator[Case]:
    """What Pillow writes: modes, orientation, progressive, interlaced, alpha, palette, depth."""
    rgb = picture()
    image = Image.fromarray(rgb)
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[274] = orientation
        for suffix, options, expected in (
            (".jpg", {"quality": 95, "subsampling": 0}, "close"),
            (".png", {}, "equal"),
            (".webp", {"lossless": True}, "equal"),
        ):
            data = exif.tobytes()
            yield Case(
                f"{suffix}, EXIF orientation {orientation}", saver(image, exif=data, **options), suffix, expected
            )
    for quality, progressive, subsampling in product((75, 95), (False, True), (0, 1, 2)):
        options = {"quality": quality, "progressive": progressive, "subsampling": subsampling}
        yield Case(f"JPEG {options}", saver(image, **options), ".jpg", "close")
    opaque = image.convert("RGBA")
    grey = Image.fromarray(rgb[..., 1])
    for suffix in (".png", ".webp", ".bmp", ".jp2"):
        more = {".webp": {"lossless": True}}.get(suffix, {})
        yield Case(f"{suffix}, plain", saver(image, **more), suffix)
        if suffix != ".bmp":
            yield Case(f"{suffix}, opaque alpha", saver(opaque, **more), suffix)
        if suffix != ".webp":
            yield Case(f"{suffix}, grey", saver(grey), suffix, "grey")
    yield Case(".png, grey with alpha", saver(grey.convert("LA")), ".png", "grey")
    few = Image.fromarray(rgb // 64 * 64)
    yield Case(".png, palette", lambda path: few.quantize(64).save(path), ".png", "few")
    yield Case(".png, 16-bit grey", saver(Image.fromarray(rgb[..., 1].astype(np.uint16) * 257)), ".png", "refused")
    yield Case(".jpg, CMYK", saver(image.convert("CMYK"), quality=95), ".jpg", "close")
    yield Case(".gif", lambda path: few.quantize(64).save(path), ".gif", "refused")


def saver(image: Image.Image, **options: object) -> Callable[[Path], None]:
    """A writer through Pillow."""
    return lambda path: image.save(path, **options)


def cases() -> list[Case]:
    """All slides."""
    return [*tiffs(), *pictures()]
