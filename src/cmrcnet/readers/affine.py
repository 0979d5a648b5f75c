"""Affine maps from the coordinates of an assay to the level-0 pixels of an H&E slide.

Six numbers ``a b c d e f`` are the rows of a 2x3 matrix: ``x_px = a*x + b*y + c`` and ``y_px = d*x + e*y + f``. They
are written out (the column `affine` of a cohort file, ``read_section(affine=...)``) or stand in a file: `.csv`, `.tsv`
or `.txt` (numbers only), `.json` (a list) or `.npy`, as 2x3 or as 3x3 with the last row 0 0 1. What x and y are, pixels
of another picture or micrometres, is stated by each reader.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmrcnet.errors import BadInput, BadOption, MissingInput
from cmrcnet.readers.text_files import read_text
from cmrcnet.slides.slide_files import require_file
from cmrcnet.storage.refusals import first_line

WHAT = "an affine (six numbers a b c d e f, or a .csv, .txt, .json or .npy file of a 2x3 or 3x3 matrix)"
LARGEST_FILE = 1 << 16
"""Bytes; a file of nine numbers has a few hundred."""
MOST_STRETCH = 1.5
"""Largest factor between the scales of the two axes; both sides are pictures of the same tissue with square pixels."""
SMALLEST_SCALE, LARGEST_SCALE = 1e-4, 1e4
"""Pixels of the slide for one unit of the assay, beyond which the matrix is taken as singular or wrong."""


@dataclass(frozen=True)
class Affine:
    """A 2x3 matrix that maps (x, y) of the assay to level-0 pixels.

    Parameters
    ----------
    a, b, c, d, e, f : float
        ``x_px = a*x + b*y + c``, ``y_px = d*x + e*y + f``.

    Raises
    ------
    BadOption
        The numbers are not finite, the matrix is singular, or one axis is stretched `MOST_STRETCH` times as much as
        the other.

    Examples
    --------
    >>> Affine(0, -2, 100, 2, 0, 0).apply([[10.0, 5.0]]).tolist()  # a quarter turn, doubled
    [[90.0, 20.0]]
    """

    a: float
    b: float
    c: float
    d: float
    e: float
    f: float

    def __post_init__(self) -> None:
        if not np.isfinite(self.matrix).all():
            raise BadOption("affine", self.text, want="six finite numbers")
        least, most = np.linalg.svd(self.matrix[:, :2], compute_uv=False)[::-1]
        if not least > most * 1e-6:
            raise BadOption(
                "affine", self.text, want="a matrix that is not singular (this one maps all spots to a line)"
            )
        if most > MOST_STRETCH * least:
            want = (
                f"one scale for both axes (this one stretches one axis {most / least:.3g} times as much as the other)"
            )
            raise BadOption("affine", self.text, want=want)
        if not SMALLEST_SCALE <= self.scale <= LARGEST_SCALE:
            want = f"a plausible scale (this one makes a unit of the assay {self.scale:.3g} px of the slide)"
            raise BadOption("affine", self.text, want=want)

    @property
    def matrix(self) -> np.ndarray:
        """The numbers as an array of shape (2, 3), float64."""
        return np.array([[self.a, self.b, self.c], [self.d, self.e, self.f]], dtype=np.float64)

    @property
    def text(self) -> str:
        """The six numbers, as they are written in a cohort file."""
        return " ".join(f"{value:.10g}" for value in self.matrix.ravel())

    @property
    def scale(self) -> float:
        """Pixels of the slide for one unit of the assay: the square root of the change in area."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix[:, :2]))))

    def apply(self, xy: np.ndarray) -> np.ndarray:
        """Map coordinates (n, 2) of the assay to level-0 pixels (n, 2), float64."""
        return np.asarray(xy, dtype=np.float64).reshape(-1, 2) @ self.matrix[:, :2].T + self.matrix[:, 2]

    def inverse(self) -> Affine:
        """The map from level-0 pixels to coordinates of the assay."""
        linear = np.linalg.inv(self.matrix[:, :2])
        return Affine(*np.column_stack([linear, -linear @ self.matrix[:, 2]]).ravel().tolist())

    @classmethod
    def of(cls, values: Sequence | np.ndarray, where: object = "affine") -> Affine:
        """Make an affine of six numbers, or of a 2x3 or 3x3 matrix.

        Parameters
        ----------
        values : sequence or numpy.ndarray
            Numbers, flat or nested.
        where : object
            The file or option, for the error.

        Raises
        ------
        BadInput, BadOption
        """
        try:
            numbers = np.asarray(values, dtype=np.float64)
        except (ValueError, TypeError) as error:
            raise BadInput(where, WHAT, "it holds something else than numbers in rows of one length") from error
        if numbers.shape == (3, 3):
            if not np.allclose(numbers[2], [0, 0, 1], rtol=0, atol=1e-9):
                last = " ".join(f"{value:g}" for value in numbers[2])
                raise BadInput(where, WHAT, f"its last row is {last}, not 0 0 1, so it is not affine but projective")
            numbers = numbers[:2]
        if numbers.shape not in ((2, 3), (6,)):
            shape = " x ".join(map(str, numbers.shape)) or "single"
            raise BadInput(where, WHAT, f"it holds {shape} numbers")
        return cls(*numbers.ravel().tolist())


def read_affine(
    value: str | Path | Sequence | np.ndarray,
    *,
    folder: Path = Path(),
    decimal_comma: bool = False,
    alignment: bool = False,
) -> Affine:
    """Make an affine of what a user states: numbers, text of six numbers, or a file.

    Parameters
    ----------
    value : str, path, sequence or numpy.ndarray
        Six numbers (a sequence, or text with blanks or commas between them), a 2x3 or 3x3 array, or a path.
    folder : pathlib.Path
        Folder that a relative path starts from.
    decimal_comma : bool
        Text of six numbers has decimal commas, and blanks between the numbers.
    alignment : bool
        A file called ``*alignment.csv`` is wanted. Xenium Explorer exports such files, which map from the H&E to the
        assay's image and not back, so they are refused otherwise.

    Raises
    ------
    MissingInput, BadInput, BadOption

    Examples
    --------
    >>> read_affine("0.5 0 10 0 0.5 -20").apply([[100, 100]]).tolist()
    [[60.0, 30.0]]
    """
    if not isinstance(value, str | Path):
        return Affine.of(value)
    text = str(value).strip()
    parts = text.replace(",", ".").split() if decimal_comma else [part for part in re.split(r"[\s,;]+", text) if part]
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        return _read_file(folder / text, alignment)
    return Affine.of(numbers)


def _read_file(path: Path, alignment: bool) -> Affine:
    """An affine in a file."""
    if path.name.endswith("alignment.csv") and not alignment:
        why = "it is an alignment of Xenium Explorer, from pixels of the H&E to pixels of the DAPI image and not back; "
        raise BadInput(path, WHAT, why + "put it beside the H&E, where format xenium finds it, and give no affine")
    if not path.exists():
        hint = "give six numbers a b c d e f, or the path of a file that holds a matrix"
        raise MissingInput(path, "The affine", hint)
    if require_file(path, "The affine").stat().st_size > LARGEST_FILE:
        raise BadInput(path, WHAT, f"it has {path.stat().st_size} bytes, more than any matrix")
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            return Affine.of(np.load(path, allow_pickle=False), path)
        text = read_text(path, "The affine", LARGEST_FILE)
        if suffix == ".json":
            return Affine.of(json.loads(text), path)
        rows = [
            [float(part) for part in re.split(r"[\s,;]+", line.strip(" \t,;"))]
            for line in text.splitlines()
            if line.strip()
        ]
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, BadInput | BadOption):
            raise
        raise BadInput(path, WHAT, first_line(error)) from error
    return Affine.of(rows[0] if len(rows) == 1 else rows, path)
