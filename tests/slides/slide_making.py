"""Made-up tissue, and slide files of true formats written from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

OME_PIXEL_UM = 0.25


def tissue_picture(height: int = 700, width: int = 900, seed: int = 0) -> np.ndarray:
    """Smooth structure of stain colours, (height, width, 3) uint8: it survives resampling, unlike noise."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    stain = ndimage.gaussian_filter(rng.normal(size=(2, height, width)), (0, 6, 6))
    stain = np.clip(stain / stain.std() * 0.3 + 0.6, 0, 1.5)
    absorbed = stain[0][..., None] * (0.65, 0.9, 0.35) + stain[1][..., None] * (0.1, 0.8, 0.3)
    return np.clip(255 * np.exp(-absorbed), 0, 255).astype(np.uint8)


def halved(pixels: np.ndarray, times: int = 1) -> np.ndarray:
    """Mean of 2 x 2 pixels, `times` times, as scanners build pyramids; an odd last row or column is dropped."""
    for _ in range(times):
        rows, columns = pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2
        four = pixels[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2, 3).astype(np.float32)
        pixels = (four.mean(axis=(1, 3)) + 0.5).astype(np.uint8)
    return pixels


def write_tiled_pyramid(path: Path, pixels: np.ndarray, levels: int = 3, **options) -> Path:
    """A tiled TIFF with its pyramid as further pages: OpenSlide opens it as generic-tiff."""
    import tifffile

    with tifffile.TiffWriter(path) as tiff:
        for level in range(levels):
            tiff.write(
                halved(pixels, level),
                tile=(128, 128),
                photometric="rgb",
                subfiletype=1 if level else 0,
                metadata=None,
                **(options if level == 0 else {k: v for k, v in options.items() if "resolution" not in k}),
            )
    return path


def write_aperio(path: Path, pixels: np.ndarray, mpp: float = 0.499, description: str | None = None, **options) -> Path:
    """As an SVS: Aperio's image description, level 0, a striped thumbnail, level 1."""
    import tifffile

    text = description or f"Aperio Image Library v12.0.15\n{pixels.shape[1]}x{pixels.shape[0]}|AppMag = 20|MPP = {mpp}"
    with tifffile.TiffWriter(path) as tiff:
        plain = {"photometric": "rgb", "metadata": None, **options}
        tiff.write(pixels, tile=(128, 128), description=text, **plain)
        tiff.write(halved(pixels, 3), rowsperstrip=16, description="Aperio thumbnail", **plain)
        tiff.write(halved(pixels, 2), tile=(128, 128), description="Aperio level", subfiletype=1, **plain)
    return path


def write_ome_pyramid(
    path: Path, pixels: np.ndarray, planar: bool = False, unit: str = "µm", size: float = OME_PIXEL_UM
) -> Path:
    """An OME-TIFF with two reduced levels in SubIFDs."""
    import tifffile

    def stored(level: int) -> np.ndarray:
        image = halved(pixels, level)
        return np.moveaxis(image, 2, 0) if planar else image

    metadata = {
        "axes": "CYX" if planar else "YXS",
        "PhysicalSizeX": size,
        "PhysicalSizeXUnit": unit,
        "PhysicalSizeY": size,
        "PhysicalSizeYUnit": unit,
    }
    colour = {"photometric": "minisblack"} if planar else {"photometric": "rgb"}
    options = dict(tile=(128, 128), compression="deflate", **colour)
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(stored(0), subifds=2, metadata=metadata, **options)
        for level in (1, 2):
            tiff.write(stored(level), subfiletype=1, **options)
    return path
