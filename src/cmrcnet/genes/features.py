"""Features that are no genes, and genes that are named twice."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadOption, ShapeMismatch

CONTROL_PATTERNS: dict[str, re.Pattern[str]] = {
    # Reads that fit several genes or none (HTSeq, ST Pipeline): "__ambiguous[A+B]", "__ambiguous.A.B", "__no_feature".
    "ambiguous": re.compile(r"__\w.*"),
    # Xenium "BLANK_0006", MERSCOPE "Blank-12".
    "blank": re.compile(r"(?:BLANK|Blank)[_-]\d+"),
    # Xenium "NegControlProbe_00042", "NegControlCodeword_0500"; CosMx "NegPrb3", "Negative12"; GeoMx "NegProbe-WTX".
    "negative control": re.compile(r"NegControl(?:Probe|Codeword)_\S+|NegPrb\d+|Negative\d+|NegProbe-\S+"),
    # Xenium "antisense_PROKR2".
    "antisense": re.compile(r"antisense_\S+"),
    # Xenium "UnassignedCodeword_0018", "DeprecatedCodeword_0018"; Visium probe sets "DEPRECATED_ENSG...".
    "unassigned": re.compile(r"(?:Unassigned|Deprecated)Codeword_\S+|DEPRECATED_ENS\S+"),
    # Xenium Prime "Intergenic_Region_1001".
    "intergenic": re.compile(r"Intergenic_Region_\d+"),
    # CosMx "SystemControl45", "FalseCode7".
    "system control": re.compile(r"SystemControl\d+|FalseCode\d+"),
    # Spike-ins "ERCC-00002"; the genes ERCC1 and Ercc4 are none.
    "spike-in": re.compile(r"ERCC-\d{5}"),
}
"""What is no gene, by kind. Each pattern must fit the WHOLE name, so that NEGR1, ERCC2 or FO538757.1 stay."""


def kind_of_control(name: str) -> str | None:
    """Which kind of control a feature is, or None for a gene.

    Parameters
    ----------
    name : str
        As the assay wrote it.
    """
    for kind, pattern in CONTROL_PATTERNS.items():
        if pattern.fullmatch(name):
            return kind
    return None


def clean_features(
    genes: Sequence[str], counts: sparse.csr_matrix, *, controls: Literal["drop", "keep"] = "drop"
) -> tuple[tuple[str, ...], sparse.csr_matrix, tuple[str, ...]]:
    """Drop what is no gene and add up what is named twice.

    Parameters
    ----------
    genes : sequence of str, length features
    counts : scipy.sparse.csr_matrix, shape (spots, features)
    controls : {"drop", "keep"}
        "keep" leaves controls in, as the released code does. Features without any name are dropped and features of
        the same name are added up either way, because a panel needs one column a name.

    Returns
    -------
    genes : tuple of str
        All different, in the order of their first appearance.
    counts : scipy.sparse.csr_matrix, shape (spots, genes)
    notes : tuple of str
        One sentence for each thing that was done.

    Raises
    ------
    BadOption, ShapeMismatch
    """
    if controls not in ("drop", "keep"):
        raise BadOption("controls", controls, want='"drop" or "keep"')
    if counts.shape[1] != len(genes):
        raise ShapeMismatch("counts", want=("spots", len(genes)), got=counts.shape)
    names = [str(gene).strip() for gene in genes]
    kinds = [kind_of_control(name) for name in names]
    nameless = [name in ("", "nan", "NaN", "None") for name in names]
    notes: list[str] = []
    if any(nameless):
        notes.append(f"{_features(sum(nameless))} without a name: dropped.")
    found = Counter(kind for kind in kinds if kind)
    if found:
        of_each = ", ".join(f"{number} {kind}" for kind, number in sorted(found.items()))
        what = "dropped" if controls == "drop" else "kept, as asked"
        number = sum(found.values())
        are = "is no gene" if number == 1 else "are no genes"
        notes.append(f"{_features(number)} {are} ({of_each}): {what}.")
    stays = [not bare and (kind is None or controls == "keep") for bare, kind in zip(nameless, kinds, strict=True)]

    column_of: dict[str, int] = {}
    for name, kept in zip(names, stays, strict=True):
        if kept:
            column_of.setdefault(name, len(column_of))
    often = Counter(name for name, kept in zip(names, stays, strict=True) if kept)
    twice = [name for name in column_of if often[name] > 1]
    if twice:
        shown = ", ".join(twice[:5]) + (f" and {len(twice) - 5} more" if len(twice) > 5 else "")
        notes.append(f"{len(twice)} gene name(s) on several columns ({shown}): counts added up.")

    kept = np.flatnonzero(stays)
    if len(kept) == len(names) == len(column_of):
        return tuple(names), sparse.csr_matrix(counts), tuple(notes)
    into = np.array([column_of[names[i]] for i in kept], dtype=np.int64)
    gather = sparse.csr_matrix(
        (np.ones(len(kept), dtype=counts.dtype), (kept, into)), shape=(len(names), len(column_of))
    )
    merged = sparse.csr_matrix(counts @ gather)
    merged.sort_indices()
    return tuple(column_of), merged, tuple(notes)


def _features(number: int) -> str:
    return f"{number} feature" if number == 1 else f"{number} features"
