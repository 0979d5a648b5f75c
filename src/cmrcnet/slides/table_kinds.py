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
from typing import Literal, get_args

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadOption, SectionError
from cmrcnet.slides.spot_tables import as_sparse, check_counts, first_of

TableKind = Literal["counts", "continuous", "proportions", "binary"]
TABLE_KINDS: tuple[TableKind, ...] = get_args(TableKind)

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


def feature_word(kind: TableKind) -> str:
    """What a column is called where a user reads it: "gene" or "feature"."""
    return "gene" if kind == "counts" else "feature"


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
            raise SectionError.not_of_kind(section_name, kind, why)
    if kind == "proportions":
        sums = np.asarray(matrix.sum(axis=1), np.float64).ravel()
        off = np.flatnonzero(np.abs(sums - 1) > SUM_TOLERANCE)
        if len(off):
            spot = barcodes[off[0]] if barcodes is not None else f"number {off[0] + 1}"
            count = "1 row does" if len(off) == 1 else f"{len(off):,} rows do"
            why = f"{count} not sum to 1, the first (sum {sums[off[0]]:.4g}) at spot {spot}"
            raise SectionError.not_of_kind(section_name, kind, why)
