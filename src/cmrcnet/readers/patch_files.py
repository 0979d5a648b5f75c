"""Patches of a slide that another program laid out and encoded: the .h5 files of TRIDENT, CLAM and HEST.

=====================  =============================================================================================
``coords``             (patches, 2): x, y in level-0 pixels
its attributes         ``patch_size_level0`` (TRIDENT), or ``patch_size``, ``patch_level`` and ``downsample`` (CLAM):
                       the side of a patch; ``anchor``: "corner" (upper left) or "centre", which may be left out
                       where TRIDENT or CLAM wrote the attributes, whose coordinates are corners; ``name``: the slide
``features``           (patches, width): one vector a patch; HEST calls it ``embeddings``. Absent before encoding
its attribute          ``encoder``: what made them; or the folder ``features_NAME`` that TRIDENT writes to
=====================  =============================================================================================

Nothing of it is guessed: a file that does not state what is needed is refused with the attribute to add.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmrcnet.errors import BadInput, CmrcnetWarning, Incompatible, MissingInput
from cmrcnet.readers.sparse_files import open_h5
from cmrcnet.slides.section import Spots
from cmrcnet.slides.slide import Slide, known_scale, scales_differ
from cmrcnet.slides.slide_files import file_fingerprint
from cmrcnet.storage.hashing import fingerprint
from cmrcnet.storage.refusals import fault_of_file

WHAT = "a file of patches"
ENDINGS = (".h5", ".hdf5")
NEAR = 0.1
"""A location has the features of a patch whose centre is at most this share of its side away."""
LARGEST_WIDTH = 1 << 16

_FEATURES = ("features", "embeddings")
_FOLDER = re.compile(r"(?:^|[/\\])features_([^/\\]+)[/\\]*$")


@dataclass(frozen=True, eq=False)
class PatchFile:
    """Patches of one slide, and their features where it has any. Features stay on disk.

    Examples
    --------
    >>> import tempfile, h5py, numpy as np
    >>> path = Path(tempfile.mkdtemp()) / "C6.h5"
    >>> with h5py.File(path, "w") as file:  # as TRIDENT writes it
    ...     file["coords"] = np.array([[0, 0], [448, 0]])
    ...     file["coords"].attrs.update({"patch_size_level0": 448, "target_magnification": 20})
    ...     file["features"] = np.zeros((2, 1024), np.float32)
    ...     file["features"].attrs["encoder"] = "uni_v1"
    >>> patches = PatchFile.read(path)
    >>> patches.centre_px.tolist(), patches.encoder, patches.width
    ([[224.0, 224.0], [672.0, 224.0]], 'uni_v1', 1024)
    """

    path: Path
    slide: str
    """Name of the slide, "" where the file does not state it."""
    centre_px: np.ndarray
    """(patches, 2) float64: x, y in level-0 pixels."""
    side_px: float
    """Of a patch, in level-0 pixels."""
    encoder: str = ""
    """What made the features, "" where the file does not state it."""
    dataset: str = ""
    """Which holds the features, "" without any."""
    width: int = 0
    """Of a feature vector."""

    @classmethod
    def read(cls, path: Path | str) -> PatchFile:
        """Read and check everything but the features.

        Raises
        ------
        MissingInput, BadInput
            `BadInput` also where side or anchor are not stated.
        """
        path = Path(path)
        with open_h5(path, WHAT, in_blocks=True) as file:
            if "coords" not in file:
                raise BadInput(path, WHAT, f"it has no dataset coords, but {', '.join(map(str, file)) or 'nothing'}")
            stored = file["coords"]
            if len(stored.shape) != 2 or stored.shape[1] != 2 or stored.shape[0] < 1 or stored.dtype.kind not in "iuf":
                raise BadInput(path, WHAT, f"coords is {stored.dtype} {stored.shape}; wanted numbers (patches, 2)")
            if stored.nbytes > 300 * max(stored.id.get_storage_size(), 1 << 20):
                raise BadInput(path, WHAT, f"coords declares {stored.nbytes:,} bytes, which it does not hold")
            coords, stated = stored[:].astype(np.float64), dict(stored.attrs)
            if not (np.abs(coords) < 1e9).all():
                raise BadInput(path, WHAT, "coords holds what is no pixel of a slide")
            side_px = _side(stated, path)
            corner = _is_corner(stated, path)
            name = next((name for name in _FEATURES if name in file), "")
            width, encoder = 0, ""
            if name:
                features = file[name]
                shape = tuple(features.shape)
                if len(shape) != 2 or shape[0] != len(coords) or features.dtype.kind != "f":
                    what = f"{name} is {features.dtype} {shape}"
                    raise BadInput(path, WHAT, f"{what}; wanted floats ({len(coords)}, width), a row a patch of coords")
                if not 1 <= shape[1] <= LARGEST_WIDTH:
                    raise BadInput(path, WHAT, f"{name} has vectors of {shape[1]:,} numbers")
                if features.nbytes > 300 * max(features.id.get_storage_size(), 1 << 20):
                    raise BadInput(path, WHAT, f"{name} declares {features.nbytes:,} bytes, which it does not hold")
                width = shape[1]
                encoder = _encoder(dict(features.attrs), path)
            centre_px = coords + side_px / 2 if corner else coords
        return cls(path, _text(stated.get("name")), centre_px, side_px, encoder, name, width)

    def spots(self, slide: Slide) -> Spots:
        """The patches as locations of their slide, named by their row from 1; those centred off it are left out.

        Raises
        ------
        Incompatible
            The patches lie on no slide of this size, or on another one.
        ScaleError

        Warns
        -----
        CmrcnetWarning
            Patches are left out.
        """
        if not isinstance(slide, FeatureSlide):  # which has asked
            self.require_slide(slide)
        inside = (self.centre_px >= 0) & (self.centre_px < [slide.width_px, slide.height_px])
        on = np.asarray(inside.all(axis=1), bool)
        if not on.all():
            left = f"{int((~on).sum())} of {len(on)} patches are centred off the slide: left out"
            warnings.warn(f"{self.path.name}: {left}.", CmrcnetWarning, stacklevel=2)
        names = tuple(str(row + 1) for row in range(len(on)))
        return Spots(names, self.centre_px, self.side_px * known_scale(slide)).take(on)

    def require_slide(self, slide: Slide) -> None:
        """Refuse patches that do not lie on a slide, or whose file names another one: `Incompatible`."""
        low, high = self.centre_px.min(axis=0), self.centre_px.max(axis=0)
        size = np.array([slide.width_px, slide.height_px])
        if (low < -self.side_px / 2).any() or (high > size + self.side_px / 2).any():
            spans = f"centres from {low.round().astype(int).tolist()} to {high.round().astype(int).tolist()} px"
            why = f"its patches have {spans}, and {slide.name} has {slide.width_px} x {slide.height_px} px"
            raise Incompatible(self.path, why, "give the file of this slide, with coordinates in level-0 pixels")
        known = {slide.name, Path(str(getattr(slide, "path", ""))).stem, Path(str(getattr(slide, "path", ""))).name}
        if self.slide and self.slide not in known and Path(self.slide).stem not in known:
            hint = f'give the file of this slide, or where both are one: file["coords"].attrs["name"] = "{slide.name}"'
            raise Incompatible(self.path, f"it says that it was made from slide {self.slide}, not {slide.name}", hint)

    def rows_at(self, centre_px: np.ndarray, slide: str) -> np.ndarray:
        """The patch of each location: (locations,) int, rows of the file.

        Parameters
        ----------
        centre_px : array, shape (locations, 2)
            Level-0 pixels.
        slide : str
            Its name, for the error.

        Raises
        ------
        Incompatible
            A location is further than `NEAR` times the side of a patch from all centres.
        """
        from scipy.spatial import KDTree

        distance, rows = KDTree(self.centre_px).query(centre_px)
        far = distance > NEAR * self.side_px
        if far.any():
            why = (
                f"{int(far.sum())} of {len(far)} locations of {slide} have no patch centred within "
                f"{NEAR * self.side_px:.0f} px (the next one is up to {distance.max():.0f} px away)"
            )
            raise Incompatible(self.path, why, "encode patches that are centred at the locations")
        return np.asarray(rows, np.intp)

    def features(self, rows: np.ndarray) -> np.ndarray:
        """Feature vectors of some patches, (rows, width) float32.

        Raises
        ------
        BadInput
            They cannot be read, or are not finite.
        """
        import h5py

        first, last = int(rows.min()), int(rows.max())
        try:
            with h5py.File(self.path, "r", locking=False) as file:
                stored: Any = file[self.dataset]
                found = np.asarray(stored[first : last + 1], np.float32)[rows - first]
        except (OSError, KeyError, ValueError, RuntimeError, TypeError, IndexError) as error:
            raise BadInput(self.path, WHAT, fault_of_file(error)) from error
        broken = ~np.isfinite(found).all(axis=1)
        if broken.any():
            row = int(rows[broken][0])
            raise BadInput(self.path, WHAT, f"the features of patch {row} (counted from 0) are not all finite numbers")
        return found

    def fingerprint(self) -> str:
        """Hash of the file's content."""
        return fingerprint(file_fingerprint((self.path,)), self.dataset)


class FeatureSlide:
    """A slide together with features that another program computed of it; see `Slide`.

    A model or config whose encoder is ``external:NAME:WIDTH`` takes its features from it; to all else it is the slide.

    Parameters
    ----------
    slide : Slide
    patches : PatchFile or path
        With features.

    Raises
    ------
    MissingInput, BadInput
    Incompatible
        The patches do not lie on this slide.

    Examples
    --------
    >>> import tempfile, h5py, numpy as np
    >>> from cmrcnet import ArraySlide
    >>> path = Path(tempfile.mkdtemp()) / "C6.h5"
    >>> with h5py.File(path, "w") as file:
    ...     file["coords"] = np.array([[100.0, 100.0]])
    ...     file["coords"].attrs.update({"patch_size_level0": 224, "anchor": "centre"})
    ...     file["features"] = np.zeros((1, 4), np.float32)
    >>> slide = FeatureSlide(ArraySlide(np.full((300, 300, 3), 200, np.uint8), mpp=0.5, name="C6"), path)
    >>> slide.patches.spots(slide).diameter_um
    112.0
    """

    def __init__(self, slide: Slide, patches: PatchFile | Path | str) -> None:
        self.patches = patches if isinstance(patches, PatchFile) else PatchFile.read(patches)
        self.patches.require_slide(slide)
        self.slide = slide
        self.name, self.mpp = slide.name, slide.mpp
        self.width_px, self.height_px, self.downsamples = slide.width_px, slide.height_px, slide.downsamples

    def read(self, x: int, y: int, width: int, height: int, level: int = 0) -> np.ndarray:
        """See `Slide.read`."""
        return self.slide.read(x, y, width, height, level)

    def fingerprint(self) -> str:
        """Hash of the slide's pixels, without the features."""
        return self.slide.fingerprint()

    def close(self) -> None:
        """Free the pixels, where the slide is a file."""
        close = getattr(self.slide, "close", None)
        if close is not None:
            close()


def matching_patches(slide: Slide, encoder: str, width: int, side_um: float) -> PatchFile:
    """The patches that come with a slide, once their features are what a model needs.

    Parameters
    ----------
    slide : Slide
    encoder : str
        Name of the encoder.
    width : int
        Numbers of a feature vector.
    side_um : float
        Side of a patch in micrometres.

    Raises
    ------
    MissingInput
        The slide comes without features.
    Incompatible
        They are of another encoder, width or patch.
    ScaleError
    """
    if not isinstance(slide, FeatureSlide):
        raise MissingInput.from_sentence(
            f"{slide.name} comes without features, and this model reads those of {encoder} ({width} numbers a patch); "
            "give their file: --features FILE, or the column features of the cohort file."
        )
    patches = slide.patches
    if not patches.width:
        raise Incompatible(patches.path, "it holds coords and no features", f"encode its patches with {encoder}")
    if not patches.encoder:
        hint = f'if it is {encoder}, add: file["{patches.dataset}"].attrs["encoder"] = "{encoder}"'
        raise Incompatible(patches.path, "it does not state the encoder of its features", hint)
    if (patches.encoder, patches.width) != (encoder, width):
        found = f"{patches.width} numbers of {patches.encoder}"
        why = f"its features are {found}, and the model needs {width} of {encoder}"
        raise Incompatible(patches.path, why, f"encode its patches with {encoder}")
    here = patches.side_px * known_scale(slide)
    if scales_differ(here, side_um):
        why = f"its patches show {here:.4g} um a side on {slide.name}, and the model needs {side_um:.4g} um"
        raise Incompatible(patches.path, why, "encode patches of that side, or correct the slide's mpp")
    return patches


def _side(stated: Mapping[str, Any], path: Path) -> float:
    """Side of a patch in level-0 pixels."""
    side = _number(stated, "patch_size_level0", path)
    if side is None:
        side, level = _number(stated, "patch_size", path), _number(stated, "patch_level", path, least=0.0)
        step = 1.0 if level == 0 else _number(stated, "downsample", path)
        if side is None or level is None or step is None:
            hint = 'file["coords"].attrs["patch_size_level0"] = 512'
            raise BadInput(path, WHAT, f"it does not state the side of a patch in level-0 pixels; add it: {hint}")
        side *= step
    return side


def _is_corner(stated: Mapping[str, Any], path: Path) -> bool:
    """Whether coordinates are upper left corners, or centres."""
    anchor = _text(stated.get("anchor"))
    if anchor in ("corner", "centre", "center"):
        return anchor == "corner"
    if anchor:
        raise BadInput(path, WHAT, f"its anchor is {anchor[:40]!r}; wanted corner or centre")
    if "patch_level" in stated or {"patch_size_level0", "target_magnification"} <= set(stated):
        return True
    hint = 'file["coords"].attrs["anchor"] = "corner", or "centre"'
    raise BadInput(path, WHAT, f"it does not state whether coords are corners or centres of patches; add it: {hint}")


def _encoder(stated: Mapping[str, Any], path: Path) -> str:
    """Name of the encoder; "" where it is not stated."""
    said = _text(stated.get("encoder"))
    if said:
        return said
    for folder in (_text(stated.get("savetodir")), str(path.parent)):
        if found := _FOLDER.search(folder):
            return found[1]
    return ""


def _number(stated: Mapping[str, Any], name: str, path: Path, least: float = 1e-6) -> float | None:
    """A number, or several that are (nearly) equal; None where it is not stated."""
    if name not in stated:
        return None
    values = np.asarray(stated[name]).ravel()
    if values.dtype.kind in "iuf" and 1 <= values.size <= 2:
        low, high = float(values.min()), float(values.max())
        if math.isfinite(high) and least <= low and high <= 1.01 * low and high < 1e6:
            return (low + high) / 2
    raise BadInput(path, WHAT, f"its attribute {name} is {str(stated[name])[:60]!r}; wanted a number above 0")


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else ""
