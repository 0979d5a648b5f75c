"""Kinds of measured tables, and the values that each of them refuses.

=============  ===============================================  =====================================================
kind           what a row holds                                 refused, beside NaN and infinite values
=============  ===============================================  =====================================================
counts         molecules of each gene                           negative, fractional, `LARGEST_COUNT` and more
continuous     protein levels, pathway activities, radiomics    nothing else
proportions    shares of a whole: cell types                    negative, above 1, rows that do not sum to 1
binary         calls: mutated, positive, present                other than 0 and 1
=============  ===============================================  =====================================================
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadOption, SectionError

TableKind = Literal["counts", "continuous", "proportions", "binary"]
TABLE_KINDS: tuple[TableKind, ...] = get_args(TableKind)
FEATURE_WORD: dict[TableKind, str] = {kind: "gene" if kind == "counts" else "feature" for kind in TABLE_KINDS}
"""What a column is called where a user reads it."""

LARGEST_COUNT = 2**24
"""Counts are kept as float32, which holds every whole number below this one."""
FLOAT16_EXACT = 2048
"""Largest whole number up to which float16 holds every one."""
SUM_TOLERANCE = 0.01
"""How far the sum of a row of proportions may lie from 1: twenty shares rounded to three decimals."""
_GENE = re.compile(r"(?:(?<![\w-])|(?<=\b[Gg]ene-))([Gg])ene(s?)(?:(?=-(?:section|gene)\b)|(?![\w-]))")
_LARGEST = 1e30
"""Values are kept as float32, and their squares are summed."""


def table_kind(kind: object) -> TableKind:
    """`kind` if it is one of `TABLE_KINDS`, else `BadOption`."""
    for known in TABLE_KINDS:
        if kind == known:
            return known
    raise BadOption("table_kind", kind, want=f"one of {', '.join(TABLE_KINDS)}")


def feature_words(text: str, kind: str) -> str:
    """A sentence about genes, of features where the table of this kind holds none.

    Examples
    --------
    >>> feature_words("Genes: 50 gene-section pairs, GENE1 first, beside gene-mean", "binary")
    'Features: 50 feature-section pairs, GENE1 first, beside gene-mean'
    """
    if kind == "counts":
        return text
    return _GENE.sub(lambda found: ("F" if found[1] == "G" else "f") + f"eature{found[2]}", text)


def check_values(
    values: sparse.spmatrix | np.ndarray,
    kind: TableKind,
    section_name: str,
    *,
    barcodes: Sequence[str] | None = None,
    features: Sequence[str] | None = None,
) -> None:
    """Refuse values that are not of a kind.

    Parameters
    ----------
    values : sparse matrix or array, shape (spots, features)
    kind : {"counts", "continuous", "proportions", "binary"}
        See the table of this module.
    section_name : str
        For the message.
    barcodes, features : sequence of str, optional
        Names of rows and columns, so that the message can name the first wrong value.

    Raises
    ------
    SectionError

    Examples
    --------
    >>> check_values(np.array([[0.2, 0.8], [0.5, 0.5]]), "proportions", "C1")
    >>> check_values(np.array([[0.0, 2.0]]), "binary", "C1", barcodes=["10x15"], features=["KRAS"])
    Traceback (most recent call last):
    cmrcnet.errors.SectionError: The table of C1 is not binary: 1 value is neither 0 nor 1, the first (2) at spot \
10x15, feature KRAS; correct it, or state its table_kind: counts, continuous, proportions or binary.
    """
    if kind == "counts":
        check_counts(values, section_name, barcodes=barcodes, genes=features)
        return
    matrix = as_sparse(values)
    if matrix.dtype.kind not in "biuf":
        raise SectionError.not_of_kind(section_name, kind, f"its values are of type {matrix.dtype}, no numbers")
    data = matrix.data.astype(np.float64)
    faults = [("missing (NaN)", np.isnan(data)), ("infinite or too large", ~(np.abs(data) < _LARGEST))]
    if kind == "binary":
        faults.append(("neither 0 nor 1", (data != 0) & (data != 1)))
    if kind == "proportions":
        faults += [("negative", data < 0), ("above 1", data > 1 + SUM_TOLERANCE)]
    for what, bad in faults:
        if bad.any():
            at = np.flatnonzero(bad)
            value, place = first_of(matrix, at, barcodes, features, "feature")
            count = "1 value is" if len(at) == 1 else f"{len(at):,} values are"
            why = f"{count} {what}, the first ({value:g}) at {place}"
            sums = np.asarray(matrix.sum(axis=1), np.float64).ravel()
            if what == "above 1" and (np.abs(sums - 100) <= 100 * SUM_TOLERANCE).all():
                why += ", and all rows sum to 100: these are percentages, so divide them by 100"
            raise SectionError.not_of_kind(section_name, kind, why)
    if kind == "proportions":
        sums = np.asarray(matrix.sum(axis=1), np.float64).ravel()
        off = np.flatnonzero(np.abs(sums - 1) > SUM_TOLERANCE)
        if len(off):
            spot = barcodes[off[0]] if barcodes is not None else f"number {off[0] + 1}"
            count = "1 row does" if len(off) == 1 else f"{len(off):,} rows do"
            why = f"{count} not sum to 1, the first (sum {sums[off[0]]:.4g}) at spot {spot}"
            raise SectionError.not_of_kind(section_name, kind, why)


def check_counts(
    counts: sparse.spmatrix | np.ndarray,
    section_name: str,
    *,
    barcodes: Sequence[str] | None = None,
    genes: Sequence[str] | None = None,
) -> None:
    """Refuse values that are not raw counts: NaN, infinite, negative, fractional, or `LARGEST_COUNT` and more.

    Parameters
    ----------
    counts : sparse matrix or array, shape (spots, genes)
    section_name : str
        For the message.
    barcodes, genes : sequence of str, optional
        Names of rows and columns, so that the message can name the first wrong value.

    Raises
    ------
    SectionError
    """
    fault = count_fault(counts, barcodes, genes)
    if fault is not None:
        raise SectionError.not_counts(section_name, fault)


def as_sparse(counts: Any) -> Any:
    """A matrix of any stored type by rows; float16, which SciPy does not know, becomes float32."""
    return sparse.csr_matrix(counts.astype(np.float32) if counts.dtype == np.float16 else counts)


def count_fault(counts: Any, barcodes: Sequence[str] | None = None, genes: Sequence[str] | None = None) -> str | None:
    """Why a matrix (spots, genes) holds no raw counts, or None; see `check_counts`."""
    if counts.dtype.kind not in "biuf":
        return f"its values are of type {counts.dtype}, no numbers"
    matrix = as_sparse(counts)
    values = matrix.data
    if counts.dtype == np.float16 and values.max(initial=0) > FLOAT16_EXACT:
        return (
            f"they are stored as float16, which rounds counts above {FLOAT16_EXACT:,}, up to {values.max():,.0f} here"
        )
    if values.dtype.kind == "b" or values.dtype in (np.uint8, np.uint16):
        return None
    with np.errstate(invalid="ignore"):
        bad = np.flatnonzero(~((values >= 0) & (values < LARGEST_COUNT) & (values == np.floor(values))))
    if len(bad) == 0:
        return None
    value, place = first_of(matrix, bad, barcodes, genes, "gene")
    if np.isfinite(value):
        fault = "negative" if value < 0 else "fractional" if value != np.floor(value) else "too large (did they wrap?)"
    else:
        fault = "missing (NaN)" if np.isnan(value) else "infinite"
    return f"{len(bad):,} values are {fault}, the first ({value:g}) at {place}{_looks_like(matrix)}"


def first_of(
    matrix: Any, entries: np.ndarray, barcodes: Sequence[str] | None, names: Sequence[str] | None, word: str
) -> tuple[float, str]:
    """The value that comes first, row by row, among stored entries of a matrix by rows, and its spot and gene."""
    rows, columns = np.searchsorted(matrix.indptr, entries, side="right") - 1, matrix.indices[entries]
    first = int(np.lexsort((columns, rows))[0])
    row, column = int(rows[first]), int(columns[first])
    spot = barcodes[row] if barcodes is not None else f"number {row + 1}"
    name = names[column] if names is not None else f"number {column + 1}"
    return float(matrix.data[entries[first]]), f"spot {spot}, {word} {name}"


def _looks_like(counts: Any) -> str:
    """A guess at what a table holds instead of counts, from its range and its row sums."""
    values = counts.data[np.isfinite(counts.data)]
    if values.size == 0:
        return ""
    if (values < 0).any():
        return "; these look centred or scaled" if values.min() > -50 and values.max() < 50 else ""
    if values.max() <= 1:
        return "; these look like shares or probabilities"
    if values.max() > 20:  # log1p of any normalised count stays below: e^20 is half a billion
        sums = np.asarray(counts.sum(axis=1)).ravel()
        sums = sums[sums > 0]
        alike = sums.size > 1 and sums.std() < 1e-3 * sums.mean()
        return f"; these look scaled to a library size of {sums.mean():,.0f}" if alike else ""
    return "; these look log-normalised"
