"""A cohort file: one section a row, read one at a time.

    section,patient,format,counts,spots,image,mpp,spot_diameter_um,disease
    C6,C,legacy_st,C6_counts.tsv.gz,C6_spots.tsv,C6.jpg,0.6877,100,HER2+ breast cancer

`section`, `patient` and `counts` (or `path`) are required, the others where the format needs them; an empty
`format` is recognised from the files. Six more columns have a meaning: `table_kind` (counts, continuous, proportions
or binary; see `slides.table_kinds`), `assay` (genes or proteins, of a 10x matrix that holds both), `affine` (six
numbers or a file, see `affine`), `bin_um`, and `library`, which says which section of a file of several a row is: the
suffix of its barcodes in a matrix of `spaceranger aggr`, or its name in an `.h5ad`; and `features`, an .h5 of patches
that you encoded elsewhere (`patch_files`). Paths are relative to the cohort file. `NA` in one of these columns (but
section and patient) states nothing. Further columns become the section's metadata.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from cmrcnet.errors import BadInput, BadOption, CmrcnetError, MissingInput, TooFew
from cmrcnet.readers.affine import Affine, read_affine
from cmrcnet.readers.patch_files import FeatureSlide
from cmrcnet.readers.raw_section import RawSection, checked_section
from cmrcnet.readers.registry import Assay, SectionSource, input_problems, known_assay, read_raw
from cmrcnet.readers.tables import NOTHING, Table, read_table
from cmrcnet.readers.text_files import open_text
from cmrcnet.slides.section import Cohort, CohortEntry, Section
from cmrcnet.slides.table_kinds import table_kind as known_kind
from cmrcnet.storage.names import file_name

WHAT = "a cohort file"
NUMBERS = ("mpp", "spot_diameter_um", "bin_um")
OUR_COLUMNS = (
    "section", "patient", "format", "counts", "path", "spots", "image", "affine", "table_kind", "assay",
    "features", *NUMBERS,
)  # fmt: skip

SCALE_ALIAS = "um_per_px"
"""Accepted as the name of the column ``mpp``."""


@dataclass(frozen=True)
class CohortRow:
    """One row of a cohort file, paths resolved.

    Parameters
    ----------
    where : str
        "cohort.csv, line 3 (C2)", the prefix of every error of this row.
    metadata : dict
        Further columns.
    problems : tuple of CmrcnetError
        Errors that are found without reading much.
    features : Path, optional
        Of the slide's patches, computed elsewhere.
    """

    where: str
    patient: str
    source: SectionSource
    format: str | None
    metadata: dict[str, str] = field(default_factory=dict)
    problems: tuple[CmrcnetError, ...] = ()
    features: Path | None = None

    def read_raw(self) -> RawSection:
        """Read the section, unchecked."""
        return read_raw(self.source, self.format)

    def or_scale(self, mpp: float | None) -> CohortRow:
        """The same row with this scale, unless it states its own."""
        if mpp is None or self.source.mpp is not None:
            return self
        return replace(self, source=replace(self.source, mpp=mpp))


def read_cohort(csv: Path | str, *, controls: Literal["drop", "keep"] = "drop", mpp: float | None = None) -> Cohort:
    """Open a cohort file. Its sections are read one by one, on demand.

    What can be checked without reading counts or pixels is checked at once: columns, numbers, files, formats, repeated
    names, and sections entered twice.

    Parameters
    ----------
    csv : path
        Separated by commas, tabs or semicolons; UTF-8 or as Excel writes it.
    controls : {"drop", "keep"}
        What happens to features that are no genes (see `clean_features`).
    mpp : float, optional
        Micrometres per level-0 pixel of the rows that do not give their own.

    Returns
    -------
    Cohort
        Named after the file, or after its folder when the file is called cohort.csv.

    Raises
    ------
    MissingInput, BadInput, BadOption, TooFew
        With the line. When there are several, the first is raised and the others are counted;
        `cmrcnet inspect` lists them all.

    Examples
    --------
    >>> import tempfile
    >>> from cmrcnet import synthetic_cohort
    >>> from cmrcnet.datasets.cohort_files import write_cohort
    >>> csv = write_cohort(synthetic_cohort(patients=2, spots=12), Path(tempfile.mkdtemp()) / "made")
    >>> cohort = read_cohort(csv)
    >>> cohort.name, cohort.sections, len(cohort.read("P1S1").spots)
    ('made', ('P1S1', 'P2S1'), 12)
    """
    rows = [row.or_scale(mpp) for row in cohort_rows(csv)]
    problems = [problem for row in rows for problem in row.problems]
    if problems:
        more = len(problems) - 1
        raise located(problems[0], "", f" ({more} more problem(s): cmrcnet inspect {csv})" if more else "")
    path = Path(csv).resolve()
    entries = tuple(
        CohortEntry(row.source.name or "", row.patient, partial(_load, row, controls), dict(row.metadata), str(path))
        for row in rows
    )
    return Cohort(path.parent.name if path.stem == "cohort" else path.stem, entries)


def cohort_rows(csv: Path | str) -> tuple[CohortRow, ...]:
    """The rows of a cohort file, each with its own problems; only a file that is no cohort raises.

    Raises
    ------
    MissingInput, BadInput, TooFew
    """
    table = _scale_column_renamed(read_table(Path(csv), WHAT))
    missing = [column for column in ("section", "patient") if column not in table.columns]
    if not {"counts", "path"} & set(table.columns):
        missing.append("counts")
    if missing:
        raise BadInput.columns(table.path, missing, table.columns)
    if not len(table):
        raise TooFew(f"sections in {csv}", 0, 1, "write one row a section")
    return tuple(_mark_repeats([_row(table, i) for i in range(len(table))]))


def located(error: CmrcnetError, where: str, after: str = "") -> CmrcnetError:
    """The same error with the line of the cohort file before its sentence, and `after` behind it."""
    copied = copy.copy(error)
    copied.args = (f"{where}: {error}{after}" if where else f"{error}{after}",)
    return copied


def is_cohort_file(path: Path) -> bool:
    """Whether a file's first line names the columns of a cohort (and is no table of counts)."""
    if not path.is_file() or not path.name.lower().removesuffix(".gz").endswith((".csv", ".tsv", ".txt")):
        return False
    with open_text(path, "The cohort file") as file:
        first = file.readline(4096).decode("utf-8", "ignore")
    cells = {cell.strip().strip('"') for cell in first.replace(";", ",").replace("\t", ",").split(",")}
    return len(cells & {"section", "patient", "counts", "image", "spots", "path"}) >= 2


def _scale_column_renamed(table: Table) -> Table:
    """The table with its scale column called ``mpp``; ``um_per_px`` is accepted as well, but not both."""
    if SCALE_ALIAS not in table.columns:
        return table
    if "mpp" in table.columns:
        raise BadOption("columns", f"mpp and {SCALE_ALIAS}", want="one column of micrometres per pixel")
    columns = tuple("mpp" if column == SCALE_ALIAS else column for column in table.columns)
    rows = tuple({"mpp" if key == SCALE_ALIAS else key: cell for key, cell in row.items()} for row in table.rows)
    return replace(table, columns=columns, rows=rows)


def _row(table: Table, i: int) -> CohortRow:
    cells, folder = table.rows[i], table.path.parent
    name, patient = cells["section"], cells["patient"]
    cells = cells | {key: "" for key in (*OUR_COLUMNS[2:], "library") if cells.get(key, "").lower() in NOTHING}
    where = f"{table.path.name}, line {table.lines[i]}" + (f" ({name})" if name else "")
    problems: list[CmrcnetError] = []
    for column in ("section", "patient"):
        if not cells[column]:
            problems.append(BadOption(column, "", want="a name (sections of one patient must share it, or tests leak)"))
            continue
        try:
            file_name(cells[column])
        except BadOption as error:
            problems.append(located(error, column))
    counts = cells.get("counts") or cells.get("path") or ""
    if not counts:
        problems.append(BadOption("counts", "", want="the path of the counts (or of the section's folder)"))
    numbers: dict[str, float | None] = dict.fromkeys(NUMBERS)
    for column in numbers:
        cell = cells.get(column, "")
        try:
            value = table.number(cell) if cell else None
        except ValueError:
            value = float("nan")
        if value is None or 0 < value < float("inf"):
            numbers[column] = value
        else:
            problems.append(BadOption(column, cell, want="a number of micrometres above 0, or nothing"))
    affine: Affine | None = None
    if cells.get("affine"):
        try:
            affine = read_affine(cells["affine"], folder=folder, decimal_comma=table.decimal_comma)
        except CmrcnetError as error:
            problems.append(error)
    kind = None
    if cells.get("table_kind"):
        try:
            kind = known_kind(cells["table_kind"].lower())
        except BadOption as error:
            problems.append(error)
    assay: Assay = "genes"
    try:
        assay = known_assay(cells.get("assay", "").lower() or "genes")
    except BadOption as error:
        problems.append(error)
    source = SectionSource(
        path=folder / counts,
        name=name or None,
        spots=folder / cells["spots"] if cells.get("spots") else None,
        image=folder / cells["image"] if cells.get("image") else None,
        affine=affine,
        library=cells.get("library") or None,
        table_kind=kind,
        assay=assay,
        **numbers,
    )
    format = cells.get("format") or None
    if counts and (affine is not None or not cells.get("affine")):  # what a broken affine leads to says nothing more
        problems += input_problems(source, format)
    features = folder / cells["features"] if cells.get("features") else None
    if features is not None and not features.is_file():
        problems.append(MissingInput(features, "The file of features"))
    metadata = {column: cells[column] for column in table.columns if column and column not in OUR_COLUMNS}
    located_problems = tuple(located(problem, where) for problem in problems)
    return CohortRow(where, patient, source, format, metadata, located_problems, features)


def _mark_repeats(rows: Sequence[CohortRow]) -> list[CohortRow]:
    """Add the problems between rows: a name used twice, the same counts entered twice."""
    names: dict[str | None, str] = {}
    entered: dict[tuple, str] = {}
    found = []
    for row in rows:
        extra: list[CmrcnetError] = []
        name = row.source.name
        if name is not None and name in names:
            extra.append(BadOption("section", name, want=f"a name of its own ({names[name]} has this one)"))
        files = (row.source.path, row.source.spots, row.source.library, row.source.assay)
        if files in entered and not row.problems and row.source.path.is_file():
            want = f"each section entered once ({entered[files]} is the same)"
            extra.append(BadOption("counts", row.source.path.name, want=want))
        names.setdefault(name, row.where)
        entered.setdefault(files, row.where)
        problems = (*row.problems, *(located(problem, row.where) for problem in extra))
        found.append(replace(row, problems=problems))
    return found


def _load(row: CohortRow, controls: Literal["drop", "keep"]) -> Section:
    try:
        section = checked_section(row.read_raw(), patient=row.patient, controls=controls, metadata=row.metadata)
        return section if row.features is None else replace(section, slide=FeatureSlide(section.slide, row.features))
    except CmrcnetError as error:
        raise located(error, row.where) from error
