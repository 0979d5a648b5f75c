"""Readers by format name, what they take and return, and which one fits a file.

A reader of your own is a function that takes a `SectionSource` and returns a `RawSection`:

    @register_reader("my_format", recognises=lambda path: path.suffix == ".mine")
    def read_mine(source: SectionSource) -> RawSection: ...

Controls, duplicates, invalid counts, spots off the image and a wrong scale are checked for all readers alike in
`raw_section`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from cmrcnet.errors import BadInput, BadOption, CmrcnetError
from cmrcnet.readers.affine import Affine, read_affine
from cmrcnet.readers.raw_section import RawSection, checked_section, placed
from cmrcnet.slides.section import Section
from cmrcnet.slides.slide_files import require_file
from cmrcnet.slides.table_kinds import TableKind
from cmrcnet.slides.table_kinds import table_kind as known_kind


@dataclass(frozen=True, kw_only=True)
class SectionSource:
    """Files of one section, and what the user states about it.

    Parameters
    ----------
    path : pathlib.Path
        The counts: a table, an `outs` folder, an `.h5ad` file, the root of a HEST folder.
    name : str or None
        Name of the section; None: the reader makes one from `path`.
    image, spots : pathlib.Path or None
        The picture and the spot file, where the format does not find them by itself.
    mpp : float or None
        Micrometres per pixel of the full-resolution picture. It overrides the files.
    spot_diameter_um : float or None
        Diameter of a spot in micrometres; it overrides the files.
    affine : Affine or None
        Map from the assay's coordinates to level-0 pixels of `image`; it overrides the files. `mpp` is then the scale
        of `image`, which need not be the picture that the assay's coordinates belong to.
    bin_um : float or None
        Side of the square bins in which counts are summed, for the formats that have a choice.
    library : str or None
        Which section it is, where the file holds several: the suffix of its barcodes in a matrix of
        `spaceranger aggr` ("2"), its name in an `.h5ad`, or its coordinate system in a SpatialData store.
    table_kind : {"counts", "continuous", "proportions", "binary"} or None
        What the table holds; None: what the format says, which is counts where it does not.
    assay : {"genes", "proteins"}
        Which rows of a 10x matrix that holds both (Visium, Xenium).
    """

    path: Path
    name: str | None = None
    image: Path | None = None
    spots: Path | None = None
    mpp: float | None = None
    spot_diameter_um: float | None = None
    affine: Affine | None = None
    bin_um: float | None = None
    library: str | None = None
    table_kind: TableKind | None = None
    assay: Assay = "genes"

    @classmethod
    def of(
        cls,
        path: Path | str,
        *,
        image: Path | str | None,
        spots: Path | str | None,
        affine: Affine | Path | str | Sequence | np.ndarray | None,
        name: str | None = None,
        mpp: float | None = None,
        spot_diameter_um: float | None = None,
        bin_um: float | None = None,
        library: str | None = None,
        table_kind: str | None = None,
        assay: str | None = None,
    ) -> SectionSource:
        """Make one of paths as text and of any form of an affine (see `read_affine`)."""
        return cls(
            path=Path(path),
            name=name,
            image=None if image is None else Path(image),
            spots=None if spots is None else Path(spots),
            mpp=mpp,
            spot_diameter_um=spot_diameter_um,
            affine=affine if affine is None or isinstance(affine, Affine) else read_affine(affine),
            bin_um=bin_um,
            library=library,
            table_kind=None if table_kind is None else known_kind(table_kind),
            assay=known_assay(assay or "genes"),
        )


Assay = Literal["genes", "proteins"]


def known_assay(assay: str) -> Assay:
    """`assay` if it is genes or proteins, else `BadOption`."""
    if assay == "genes":
        return "genes"
    if assay == "proteins":
        return "proteins"
    raise BadOption("assay", assay, want="genes or proteins")


BUILT_IN = (
    "legacy_st",
    "visium",
    "hest",
    "ann_data",
    "visium_hd",
    "xenium",
    "spatialdata",
    "stomics",
    "cosmx",
    "merscope",
    "slide_seq",
    "feature_table",
    "slide_table",
)
"""Modules beside this one that register a reader of the same name."""

Reading = Callable[[SectionSource], RawSection]


@dataclass(frozen=True)
class Reader:
    """One way to read a section.

    Parameters
    ----------
    read : callable
        `SectionSource` to `RawSection`.
    recognises : callable
        Path to bool; reads names and first lines only.
    problems : callable
        `SectionSource` to the errors that are found without reading much: a missing picture or spot file.
    binned : bool
        Whether `bin_um` is an option of this format; stated for another one it is an error.
    proteins : bool
        Whether the format may hold proteins beside genes, likewise.
    """

    name: str
    read: Reading
    recognises: Callable[[Path], bool]
    problems: Callable[[SectionSource], list[CmrcnetError]]
    binned: bool = False
    proteins: bool = False


_READERS: dict[str, Reader] = {}


def register_reader(
    name: str,
    *,
    recognises: Callable[[Path], bool],
    problems: Callable[[SectionSource], list[CmrcnetError]] = lambda source: [],
    binned: bool = False,
    proteins: bool = False,
) -> Callable[[Reading], Reading]:
    """Register a function that `read_section`, `read_cohort` and `inspect` then use.

    Parameters
    ----------
    name : str
        Value of the cohort file's `format` column.
    recognises : callable
        Path to bool; reads names and first lines only.
    problems : callable
        `SectionSource` to the errors that are found without reading much.
    binned : bool
        Whether `bin_um` is an option of this format.
    proteins : bool
        Whether the format may hold proteins beside genes.

    Raises
    ------
    BadOption
        Another function has this name already.
    """

    def register(read: Reading) -> Reading:
        known = _READERS.get(name)
        if known is not None and known.read.__qualname__ != read.__qualname__:
            raise BadOption("reader", name, want="a name that no reader has yet")
        _READERS[name] = Reader(name, read, recognises, problems, binned, proteins)
        return read

    return register


def reader_formats() -> tuple[str, ...]:
    """Names of the formats that can be read, built-in ones first.

    Examples
    --------
    >>> reader_formats()[:4]
    ('legacy_st', 'visium', 'hest', 'ann_data')
    """
    return tuple(_readers())


def sniff(path: Path) -> str:
    """The format of a file or folder; `BadInput` when no reader or several recognise it."""
    require_file(path, "The section", or_folder=True)
    fitting = [reader.name for reader in _readers().values() if reader.recognises(path)]
    if len(fitting) == 1:
        return fitting[0]
    why = f"it could be {' or '.join(fitting)}" if fitting else "no reader recognises it"
    raise BadInput.unclear_format(path, why, reader_formats())


def reader_of(source: SectionSource, format: str | None = None) -> Reader:
    """The reader that is named, or the one that recognises the files."""
    if format and format not in _readers():
        raise BadInput.unclear_format(source.path, f"there is no format {format!r}", reader_formats())
    return _readers()[format or sniff(source.path)]


def input_problems(source: SectionSource, format: str | None = None) -> list[CmrcnetError]:
    """Missing files and wrong options, as far as they are found without reading much."""
    problems: list[CmrcnetError] = []
    for path, what in ((source.path, "The counts"), (source.spots, "The spot file"), (source.image, "The image")):
        try:
            if path is not None:
                require_file(path, what, or_folder=True)
        except CmrcnetError as error:
            problems.append(error)
    for option in ("mpp", "spot_diameter_um", "bin_um"):
        value = getattr(source, option)
        if value is not None and not 0 < value < float("inf"):
            problems.append(BadOption(option, value, want="micrometres, above 0"))
    if source.affine is not None and source.image is None:
        problems.append(BadOption("image", None, want="the H&E picture to whose level-0 pixels the affine maps"))
    if problems:
        return problems
    try:
        reader = reader_of(source, format)
        if source.bin_um is not None and not reader.binned:
            return [BadOption("bin_um", source.bin_um, want=f"nothing: sections of format {reader.name} have no bins")]
        if source.assay == "proteins" and not reader.proteins:
            want = f"genes: no proteins are told from genes in sections of format {reader.name}"
            return [BadOption("assay", source.assay, want=want)]
        return list(reader.problems(source))
    except CmrcnetError as error:
        return [error]


def read_raw(source: SectionSource, format: str | None = None) -> RawSection:
    """Read a section without checking it, its spots in level-0 pixels of its slide (see `read_section`)."""
    for problem in input_problems(source, format):
        raise problem
    raw = reader_of(source, format).read(source)
    if source.table_kind is not None and raw.table_kind != source.table_kind:
        raw = replace(raw, table_kind=source.table_kind)
    affine = source.affine or raw.affine
    return raw if affine is None else placed(raw, affine)


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
    affine: Affine | Path | str | Sequence | np.ndarray | None = None,
    bin_um: float | None = None,
    library: str | None = None,
    table_kind: str | None = None,
    assay: str | None = None,
    controls: Literal["drop", "keep"] = "drop",
    metadata: Mapping[str, str] | None = None,
) -> Section:
    """Read one paired section, checked.

    Parameters
    ----------
    source : path
        A counts table (legacy ST), an `outs` folder (Visium, Visium HD), the output folder of Xenium, CosMx, MERSCOPE
        or Slide-seq, a `.gem` table (STOmics), a SpatialData store, the root of a HEST folder or an `.h5ad` in it,
        any `.h5ad` with `obsm["spatial"]`, or a CSV or parquet table of features with positions.
    format : str, optional
        One of `reader_formats`; otherwise recognised from the files.
    name, patient : str, optional
        Otherwise from the files; without any patient the section's name is used, and noted.
    image, spots : path, optional
        The full-resolution picture and the spot file, where the format does not include them.
    mpp : float, optional
        Micrometres per pixel of the full-resolution picture. It overrides the files.
    spot_diameter_um : float, optional
        Otherwise the diameter of the format: 100 um (legacy ST), 55 um (Visium), the side of the bin.
    affine : path, six numbers or a 2x3 or 3x3 matrix, optional
        Maps the assay's coordinates to level-0 pixels of `image`, where these are not the same (see `read_affine`).
    bin_um : float, optional
        Side of the square bins in which counts are summed: 8 by default for Visium HD and 50 for STOmics; for Xenium,
        CosMx and MERSCOPE cells, and for Slide-seq beads, by default.
    library : str, optional
        Which section it is, where the file holds several: the suffix of its barcodes in a matrix of
        `spaceranger aggr` ("2"), its name in an `.h5ad`, or its coordinate system in a SpatialData store.
    table_kind : {"counts", "continuous", "proportions", "binary"}, optional
        What the table holds (see `slides.table_kinds`); counts unless the format says otherwise.
    assay : {"genes", "proteins"}, optional
        Which rows of a 10x matrix that holds both; genes when left out.
    controls : {"drop", "keep"}
        What happens to features that are no genes.
    metadata : mapping, optional
        Further facts (disease, site), as text.

    Returns
    -------
    Section
        `Section.notes` lists all that was dropped, merged or assumed.

    Raises
    ------
    MissingInput, BadInput, BadOption
        Of the files.
    SectionError, ScaleError
        Of what they hold.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from cmrcnet import synthetic_cohort
    >>> from cmrcnet.datasets.cohort_files import write_cohort
    >>> folder = write_cohort(synthetic_cohort(patients=1, spots=12), Path(tempfile.mkdtemp()) / "made").parent
    >>> section = read_section(folder / "P1S1_counts.tsv.gz", mpp=1.0, patient="P1")
    >>> section.name, len(section.spots)
    ('P1S1', 12)
    """
    files = SectionSource.of(
        source,
        name=name,
        image=image,
        spots=spots,
        mpp=mpp,
        spot_diameter_um=spot_diameter_um,
        affine=affine,
        bin_um=bin_um,
        library=library,
        table_kind=table_kind,
        assay=assay,
    )
    return checked_section(read_raw(files, format), patient=patient, controls=controls, metadata=metadata)


def _readers() -> dict[str, Reader]:
    for module in BUILT_IN:
        if module not in _READERS:
            importlib.import_module(f"cmrcnet.readers.{module}")
    return {name: _READERS[name] for name in (*BUILT_IN, *(n for n in _READERS if n not in BUILT_IN))}
