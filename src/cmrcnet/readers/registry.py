"""Readers by format name, what they take and return, and which one fits a file.

A reader of your own is a function that takes a `SectionSource` and returns a `RawSection`:

    @register_reader("my_format", recognises=lambda path: path.suffix == ".mine")
    def read_mine(source: SectionSource) -> RawSection: ...

Controls, duplicates, invalid counts, spots off the image and a wrong scale are checked for all readers alike in
`section_checks`. Long because it is one thing: the interface of a reader.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadInput, BadOption, CmrcnetError, MissingInput
from cmrcnet.slides.section import Section
from cmrcnet.slides.slide import Slide

NEIGHBOURS_WITHIN = 1.3
"""Times the nearest distance: takes in all neighbours, not the next ring (1.41 on a square, 1.73 on a hexagon)."""


@dataclass(frozen=True, kw_only=True)
class SectionSource:
    """Where one section lies, and what the user said about it.

    Parameters
    ----------
    path : pathlib.Path
        The counts: a table, an `outs` folder, an `.h5ad` file, the root of a HEST folder.
    name : str or None
        Name of the section; None: the reader makes one from `path`.
    image, spots : pathlib.Path or None
        The picture and the spot file, where the format does not find them by itself.
    mpp : float or None
        Micrometres per pixel of the full-resolution picture. It wins over everything that a file says.
    spot_diameter_um : float or None
    """

    path: Path
    name: str | None = None
    image: Path | None = None
    spots: Path | None = None
    mpp: float | None = None
    spot_diameter_um: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class RawSection:
    """One section as its files tell it. `section_checks` makes a `Section` of it, or says what is wrong.

    Parameters
    ----------
    name : str
    patient : str or None
        When the files say so.
    slide : Slide
    barcodes : sequence of str, length spots
    centre_px : numpy.ndarray, shape (spots, 2), float64
        x, y in level-0 pixels of `slide`.
    diameter_um : float
        Diameter of a spot.
    counts : scipy.sparse.csr_matrix, shape (spots, features)
        As stored, not yet checked.
    genes : sequence of str, length features
        As stored: controls and duplicates included.
    absent_genes : {"zero", "unmeasured"}
    pitch_um : (float, float)
        Least and largest distance between neighbouring spots that this assay can have.
    pitch_px : float or None
        That distance in level-0 pixels, when the format gives a better measure than the nearest neighbour.
    notes : tuple of str
        What the reader dropped or assumed, one sentence each.
    """

    name: str
    patient: str | None
    slide: Slide
    barcodes: Sequence[str]
    centre_px: np.ndarray
    diameter_um: float
    counts: sparse.csr_matrix
    genes: Sequence[str]
    absent_genes: Literal["zero", "unmeasured"]
    pitch_um: tuple[float, float]
    pitch_px: float | None = None
    notes: tuple[str, ...] = ()


def neighbour_distance_px(centre_px: np.ndarray) -> float | None:
    """Distance between neighbouring spots of an array, in pixels; None for fewer than three spots.

    The median over all pairs of neighbours, not over each spot's nearest: where locations jitter, the nearest of four
    or
    six neighbours is always somewhat too near (6 % on the shared spinal cord sections).

    Parameters
    ----------
    centre_px : numpy.ndarray, shape (spots, 2)
    """
    from scipy.spatial import cKDTree

    centres = np.unique(np.asarray(centre_px, dtype=np.float64), axis=0)
    centres = centres[np.isfinite(centres).all(axis=1)]
    if len(centres) < 3:
        return None
    tree = cKDTree(centres)
    nearest = float(np.median(tree.query(centres, k=2)[0][:, 1]))
    pairs = tree.query_pairs(NEIGHBOURS_WITHIN * nearest, output_type="ndarray")
    return float(np.median(np.linalg.norm(centres[pairs[:, 0]] - centres[pairs[:, 1]], axis=1)))


BUILT_IN = ("legacy_st", "visium", "hest", "ann_data")
"""Modules of this room that register a reader of the same name."""

Reading = Callable[[SectionSource], RawSection]


@dataclass(frozen=True)
class Reader:
    """One way to read a section.

    Parameters
    ----------
    name : str
    read : callable
        `SectionSource` to `RawSection`.
    recognises : callable
        Path to bool; looks at names and first lines only.
    lacks : callable
        `SectionSource` to the errors that show without reading anything large: a missing picture or spot file.
    """

    name: str
    read: Reading
    recognises: Callable[[Path], bool]
    lacks: Callable[[SectionSource], list[CmrcnetError]]


_READERS: dict[str, Reader] = {}


def register_reader(
    name: str,
    *,
    recognises: Callable[[Path], bool],
    lacks: Callable[[SectionSource], list[CmrcnetError]] = lambda source: [],
) -> Callable[[Reading], Reading]:
    """Decorate a function so that `read_section`, `read_cohort` and `inspect` use it.

    Parameters
    ----------
    name : str
        Value of the cohort file's `format` column.
    recognises : callable
        Takes a path, tells whether this reader fits. Quick: names and first lines only.
    lacks : callable
        Takes a `SectionSource`, gives the errors that show without reading anything large.

    Raises
    ------
    BadOption
        When another function has the name already.
    """

    def register(read: Reading) -> Reading:
        known = _READERS.get(name)
        if known is not None and known.read.__qualname__ != read.__qualname__:
            raise BadOption("reader", name, want="a name that no reader has yet")
        _READERS[name] = Reader(name, read, recognises, lacks)
        return read

    return register


def reader_formats() -> tuple[str, ...]:
    """Names of the formats that can be read, those that ship first."""
    return tuple(_readers())


def sniff(path: Path) -> str:
    """Which format a file or folder is.

    Raises
    ------
    MissingInput, BadInput
        `BadInput` when no reader fits or when several do.
    """
    if not path.exists():
        raise MissingInput(path, "The section")
    fitting = [reader.name for reader in _readers().values() if reader.recognises(path)]
    if len(fitting) == 1:
        return fitting[0]
    why = f"it could be {' or '.join(fitting)}" if fitting else "no reader recognises it"
    raise BadInput.unclear_format(path, why, reader_formats())


def reader_of(source: SectionSource, format: str | None = None) -> Reader:
    """The reader of a section: the one named, or the one that fits.

    Raises
    ------
    MissingInput, BadInput
    """
    if format and format not in _readers():
        raise BadInput.unclear_format(source.path, f"there is no format {format!r}", reader_formats())
    return _readers()[format or sniff(source.path)]


def lacks(source: SectionSource, format: str | None = None) -> list[CmrcnetError]:
    """Everything that is missing, as far as it shows without reading anything large."""
    problems: list[CmrcnetError] = []
    for path, what in ((source.path, "The counts"), (source.spots, "The spot file"), (source.image, "The image")):
        if path is not None and not path.exists():
            problems.append(MissingInput(path, what))
    for option in ("mpp", "spot_diameter_um"):
        value = getattr(source, option)
        if value is not None and not 0 < value < float("inf"):
            problems.append(BadOption(option, value, want="micrometres, above 0"))
    if problems:
        return problems
    try:
        return list(reader_of(source, format).lacks(source))
    except CmrcnetError as error:
        return [error]


def read_raw(source: SectionSource, format: str | None = None) -> RawSection:
    """Read a section without checking it (see `read_section`)."""
    for problem in lacks(source, format):
        raise problem
    return reader_of(source, format).read(source)


def read_section(
    source: Path | str,
    *,
    format: str | None = None,
    name: str | None = None,
    patient: str | None = None,
    image: Path | str | None = None,
    spots: Path | str | None = None,
    mpp: float | None = None,
    spot_diameter_um: float | None = None,
    controls: Literal["drop", "keep"] = "drop",
    metadata: Mapping[str, str] | None = None,
) -> Section:
    """Read one paired section, checked.

    Parameters
    ----------
    source : path
        A counts table (legacy ST), an `outs` folder (Visium), the root of a HEST folder or an `.h5ad` in it, or any
        `.h5ad` with `obsm["spatial"]`.
    format : str, optional
        One of `reader_formats`; otherwise told from the files.
    name, patient : str, optional
        Otherwise from the files; a patient that nobody names is called after the section, and a note says so.
    image, spots : path, optional
        The full-resolution picture and the spot file, where the format does not bring them.
    mpp : float, optional
        Micrometres per pixel of the full-resolution picture. It wins over what the files say.
    spot_diameter_um : float, optional
        Otherwise the diameter of the format: 100 um (legacy ST), 55 um (Visium).
    controls : {"drop", "keep"}
        What happens to features that are no genes.
    metadata : mapping, optional
        Anything else that is known, as text.

    Returns
    -------
    Section
        `Section.notes` tells all that was dropped, merged or assumed.

    Raises
    ------
    MissingInput, BadInput, BadOption
        Of the files.
    SectionError, ScaleError
        Of what they hold.
    """
    from cmrcnet.readers.section_checks import checked_section

    place = section_source(source, name=name, image=image, spots=spots, mpp=mpp, spot_diameter_um=spot_diameter_um)
    return checked_section(read_raw(place, format), patient=patient, controls=controls, metadata=metadata)


def section_source(
    path: Path | str,
    *,
    name: str | None = None,
    image: Path | str | None = None,
    spots: Path | str | None = None,
    mpp: float | None = None,
    spot_diameter_um: float | None = None,
) -> SectionSource:
    """A `SectionSource` of paths given as text."""
    return SectionSource(
        path=Path(path),
        name=name,
        image=None if image is None else Path(image),
        spots=None if spots is None else Path(spots),
        mpp=mpp,
        spot_diameter_um=spot_diameter_um,
    )


def _readers() -> dict[str, Reader]:
    for module in BUILT_IN:
        if module not in _READERS:
            importlib.import_module(f"cmrcnet.readers.{module}")
    return {name: _READERS[name] for name in (*BUILT_IN, *(n for n in _READERS if n not in BUILT_IN))}
