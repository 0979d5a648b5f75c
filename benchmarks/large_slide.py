"""Write a slide of a billion pixels and more, streamed tile by tile: an SVS as a scanner of Aperio writes it.

    python benchmarks/large_slide.py --out large.svs --side 40960
    python benchmarks/large_slide.py --out large.svs --tissue C6.jpg --mpp 0.6877

Made-up stained tissue (`datasets.synthetic`), or the middle of a real section's, is repeated, mirrored, over an
irregular piece of tissue on glass; JPEG tiles of 256 px; levels of 1, 4 and 16; Aperio's image description, so that
OpenSlide opens it as an Aperio slide. One row of tiles and the level of 4 (mapped from disk) are in memory, whatever
the side.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from cmrcnet.datasets.synthetic import synthetic_slide
from cmrcnet.slides.slide import open_slide
from cmrcnet.slides.tissue import make_query_grid

TILE, MPP, STEP, REAL = 256, 0.5, 4, 4096
GLASS = (244, 242, 245)


def tissue_row(texture: np.ndarray, side: int, radius: float, top: int) -> np.ndarray:
    """One row of tiles (TILE, side, 3): the texture where there is tissue, glass elsewhere."""
    row = np.full((TILE, side, 3), GLASS, np.uint8)
    reach = min(1.25 * radius, 0.5)
    first, last = int((0.5 - reach) * side), int((0.5 + reach) * side)
    rows, columns = np.arange(top, top + TILE), np.arange(first, last)
    x, y = columns / side - 0.5, rows / side - 0.5
    if np.abs(y).min() > reach:
        return row
    angle = np.arctan2(y[:, None], x[None])
    edge = radius * (1 + 0.14 * np.sin(3 * angle + 1) + 0.08 * np.sin(7 * angle))
    inside = x[None] ** 2 + (1.15 * y[:, None]) ** 2 <= edge**2
    period = texture.shape[0]
    row[:, first:last][inside] = texture[rows % period][:, columns % period][inside]
    return row


def reduced(pixels: np.ndarray) -> np.ndarray:
    """Means of STEP x STEP pixels."""
    total = np.zeros((pixels.shape[0] // STEP, pixels.shape[1] // STEP, 3), np.uint16)
    for down in range(STEP):
        for across in range(STEP):
            total += pixels[down::STEP, across::STEP]
    return ((total + STEP * STEP // 2) // (STEP * STEP)).astype(np.uint8)


def mirrored(texture: np.ndarray) -> np.ndarray:
    """Twice as large, so that its edges meet."""
    wide = np.concatenate([texture, texture[:, ::-1]], axis=1)
    return np.concatenate([wide, wide[::-1]], axis=0)


def synthetic_tissue(seed: int = 0) -> np.ndarray:
    """A square of made-up tissue."""
    slide = synthetic_slide(seed=seed)
    size = min(slide.width_px, slide.height_px, 2048)
    return slide.read(slide.width_px // 2 - size // 2, slide.height_px // 2 - size // 2, size, size)


def real_tissue(path: Path, mpp: float) -> np.ndarray:
    """A square of `REAL` pixels around the middle of a section's tissue."""
    slide = open_slide(path, mpp=mpp)
    x, y = np.median(make_query_grid(slide, None, None, 100.0)[0].centre_px, axis=0)
    size = round(REAL * MPP / mpp)
    pixels = slide.read(round(x - size / 2), round(y - size / 2), size, size)
    return np.asarray(Image.fromarray(pixels).resize((REAL, REAL), Image.Resampling.BICUBIC))


def write_large_slide(path: Path, side: int, tissue: np.ndarray, radius: float = 0.36) -> None:
    """Write the slide.

    Parameters
    ----------
    path : Path
        Ends in .svs.
    side : int
        Pixels; a multiple of 4096.
    tissue : array, shape (height, width, 3), uint8
        At 0.5 um a pixel.
    radius : float
        Of the piece of tissue, as a share of the side.
    """
    texture = mirrored(tissue)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        shape = (side // STEP, side // STEP, 3)
        small = np.memmap(Path(folder) / "level.bin", np.uint8, "w+", shape=shape)

        def tiles() -> Iterator[np.ndarray]:
            for top in range(0, side, TILE):
                row = tissue_row(texture, side, radius, top)
                small[top // STEP : (top + TILE) // STEP] = reduced(row)  # noqa: F821  deleted after the last tile
                for left in range(0, side, TILE):
                    yield row[:, left : left + TILE]

        about = f"Aperio Image Library v12.0.15\n{side}x{side} [0,0 {side}x{side}] (256x256) JPEG/RGB Q=80"
        options = {
            "tile": (TILE, TILE),
            "photometric": "rgb",  # stored as YCbCr
            "compression": "jpeg",
            "compressionargs": {"level": 80},
            "metadata": None,
            "dtype": np.uint8,
        }
        with tifffile.TiffWriter(path, bigtiff=True) as tiff:
            tiff.write(tiles(), shape=(side, side, 3), description=f"{about}|AppMag = 20|MPP = {MPP}", **options)
            smaller = (
                small.reshape(side // 16, 4, side // 16, 4, 3).mean(axis=(1, 3), dtype=np.float32).astype(np.uint8)
            )
            tiff.write(smaller[::4, ::4], photometric="rgb", description=f"{about} -> thumbnail", metadata=None)
            for level in (small, smaller):
                tiff.write(level, description=f"{about} -> {level.shape[1]}x{level.shape[0]}", subfiletype=1, **options)
        del small


def main() -> None:
    """Write it and say how long that took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--side", type=int, default=40_960)
    parser.add_argument("--radius", type=float, default=0.36, help="of the piece of tissue, as a share of the side")
    parser.add_argument("--tissue", type=Path, help="a section whose tissue is repeated; made-up tissue when left out")
    parser.add_argument("--mpp", type=float, help="of --tissue")
    arguments = parser.parse_args()
    start = time.perf_counter()
    tissue = synthetic_tissue() if arguments.tissue is None else real_tissue(arguments.tissue, arguments.mpp)
    write_large_slide(arguments.out, arguments.side, tissue, arguments.radius)
    size = arguments.out.stat().st_size / 1e6
    print(
        f"{arguments.out}: {arguments.side} x {arguments.side} px, {size:.0f} MB, {time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
