"""A slide of which only the patches around the spots are left, as in HEST-Bench."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cmrcnet.errors import BadInput, ShapeMismatch
from cmrcnet.slides.slide import WHITE
from cmrcnet.storage.hashing import fingerprint_stream

WHAT = "a HEST patch file (.h5)"
REDUCTIONS = (1, 4, 16)


class PatchSlide:
    """Serves regions from the patches of a HEST `.h5` file; what no patch shows is white.

    Its level-0 pixels are those of the patches (0.5 um per px in HEST), not those of the slide that they were cut
    from, so a region that is exactly one patch comes back pixel for pixel. Limits: patch corners are rounded to whole
    pixels (half a pixel, 0.25 um, at most); where patches overlap, the one whose centre is nearest to the region's
    wins; nothing is known between patches, so a slide like this is no whole slide to predict on.

    Parameters
    ----------
    path : pathlib.Path
        File with `img`, shape (patches, side, side, 3), uint8.
    corner_px : numpy.ndarray, shape (patches, 2), int64
        x, y of each top-left corner in this slide's pixels.
    mpp : float
    name : str
    """

    def __init__(self, path: Path, corner_px: np.ndarray, mpp: float, name: str) -> None:
        self.name = name
        self.mpp = mpp
        self.path = Path(path)
        self._file = None
        shape, kind = self._images.shape, self._images.dtype
        if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3 or kind != np.uint8:
            raise ShapeMismatch(f"img of {path}", want="(patches, side, side, 3) uint8", got=f"{shape} {kind}")
        self.side_px = int(shape[1])
        self.corner_px = np.asarray(corner_px, dtype=np.int64)
        if self.corner_px.shape != (shape[0], 2):
            raise ShapeMismatch("corner_px", want=(shape[0], 2), got=self.corner_px.shape)
        furthest = self.corner_px.max(axis=0) + self.side_px if shape[0] else np.zeros(2, np.int64)
        self.width_px, self.height_px = (max(1, int(end)) for end in furthest)
        self.downsamples = tuple(float(by) for by in REDUCTIONS if self.side_px % by == 0)

    @property
    def _images(self):
        """The open dataset; opened again after `close` or in another process."""
        if self._file is None:
            import h5py

            try:
                self._file = h5py.File(self.path, "r")
                self._file["img"]
            except (OSError, KeyError) as error:
                self._file = None
                raise BadInput(self.path, WHAT, "the file is truncated, damaged or lacks img") from error
        return self._file["img"]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None}

    def read(self, x: int, y: int, width: int, height: int, level: int = 0) -> np.ndarray:
        """See `Slide.read`."""
        by = int(self.downsamples[level])
        region = np.full((height, width, 3), WHITE, np.uint8)
        end = np.array([x + width * by, y + height * by])
        near = np.all((self.corner_px < end) & (self.corner_px + self.side_px > [x, y]), axis=1)
        rows = np.flatnonzero(near)
        middle = (np.array([x, y]) + end) / 2
        away = ((self.corner_px[rows] + self.side_px / 2 - middle) ** 2).sum(axis=1)
        for row in rows[np.argsort(-away, kind="stable")]:
            left, top = (int(v) for v in np.round((self.corner_px[row] - [x, y]) / by))
            _paste(region, self._patch(int(row), by), left, top)
        return region

    def fingerprint(self) -> str:
        """Name of the patches and of where they lie."""
        return fingerprint_stream(
            [self.corner_px, *(self._images[i : i + 256] for i in range(0, len(self.corner_px), 256))]
        )

    def close(self) -> None:
        """Close the file; it is opened again when something is read."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _patch(self, row: int, by: int) -> np.ndarray:
        try:
            pixels = self._images[row]
        except OSError as error:
            raise BadInput(self.path, WHAT, f"patch {row} cannot be read; the file is truncated or damaged") from error
        if by == 1:
            return pixels
        small = self.side_px // by
        return np.round(pixels.reshape(small, by, small, by, 3).mean(axis=(1, 3))).astype(np.uint8)


def _paste(region: np.ndarray, pixels: np.ndarray, left: int, top: int) -> None:
    """Put `pixels` on `region` with its corner at left, top, as far as they meet."""
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + pixels.shape[1], region.shape[1]), min(top + pixels.shape[0], region.shape[0])
    if x1 > x0 and y1 > y0:
        region[y0:y1, x0:x1] = pixels[y0 - top : y1 - top, x0 - left : x1 - left]
