"""Names of genes: Ensembl ids or symbols, species, why two lists do not match; control features and duplicates."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadOption, ShapeMismatch

ENSEMBL = re.compile(r"ENS([A-Z]{3,4})?G\d{11}(\.\d+)?")
"""Gene ids: ENSG00000141510, ENSMUSG00000059552.14. The letters name the species; none means human."""

SPECIES = {"": "human", "MUS": "mouse", "RNO": "rat", "DAR": "zebrafish", "SSC": "pig", "MMU": "macaque"}

NEXT_TO_NOTHING = 0.05
"""Share of the shorter list below which two lists of different naming count as disjoint."""

MOST = 0.6
"""Share of the names that must match a pattern."""


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
"""Control features by kind. Each pattern must match the whole name, so that NEGR1, ERCC2 or FO538757.1 are kept."""


@dataclass(frozen=True)
class Naming:
    """How a list of genes is named: kind "ensembl", "symbol" or "number", and species.

    The species follows from the letters of an Ensembl id, or by case (TP53 human, Trp53 mouse); None when unclear.
    """

    kind: str
    species: str | None

    def __str__(self) -> str:
        what = {"ensembl": "Ensembl ids", "symbol": "gene symbols", "number": "numbers"}[self.kind]
        return f"{self.species} {what}" if self.species else what


def naming_of(genes: Sequence[str]) -> Naming:
    """Determine how genes are named from the majority of the names.

    Examples
    --------
    >>> str(naming_of(["TP53", "ERBB2", "KRT8"])), str(naming_of(["ENSMUSG00000059552"]))
    ('human gene symbols', 'mouse Ensembl ids')
    """
    names = [str(gene) for gene in genes if gene]
    if not names:
        return Naming("symbol", None)
    ids = [match for match in map(ENSEMBL.fullmatch, names) if match]
    if len(ids) > MOST * len(names):
        letters = [match.group(1) or "" for match in ids]
        most_common = max(sorted(set(letters)), key=letters.count)
        return Naming("ensembl", SPECIES.get(most_common))
    if sum(name.isdigit() for name in names) > MOST * len(names):
        return Naming("number", None)
    worded = [name for name in names if sum(map(str.isalpha, name)) >= 3]
    upper = sum(name.upper() == name for name in worded)
    title = sum(any(map(str.islower, name)) and "orf" not in name for name in worded)  # human: C1orf159
    if worded and upper > MOST * len(worded):
        return Naming("symbol", "human")
    if worded and title > MOST * len(worded):
        return Naming("symbol", "mouse")
    return Naming("symbol", None)


def are_disjoint(left: Sequence[str], right: Sequence[str]) -> bool:
    """Whether two gene lists (not empty) have no name in common, or hardly any and a different naming.

    The second case is that of two species: human and mouse share C3, F5 and hardly another symbol.
    """
    ours, theirs = set(left), set(right)
    shared = len(ours & theirs)
    if shared >= NEXT_TO_NOTHING * min(len(ours), len(theirs)):
        return shared == 0
    return shared == 0 or naming_of(left) != naming_of(right)


def explain_no_shared_genes(left: Sequence[str], right: Sequence[str]) -> str:
    """Explain in one or two sentences why two gene lists, "the first" and "the second", do not match, and how to fix
    it.
    """
    if not len(left) or not len(right):
        return f"The {'first' if not len(left) else 'second'} names no genes at all."
    ours, theirs = naming_of(left), naming_of(right)
    shown = f"{_example(left, ours)} against {_example(right, theirs)}"
    if ours.kind != theirs.kind:
        return (
            f"The first uses {ours}, the second {theirs} ({shown}); "
            "name both alike, best by gene symbol, before reading them."
        )
    if ours.kind == "ensembl":
        if ours.species != theirs.species:
            return f"The first uses {ours}, the second {theirs} ({shown}); map one to its orthologues first."
        bare = {str(gene).split(".", 1)[0] for gene in left} & {str(gene).split(".", 1)[0] for gene in right}
        if bare:
            return f"{len(bare)} match without the version ({shown}); remove the dot and what follows."
    folded = {str(gene).upper() for gene in left} & {str(gene).upper() for gene in right}
    if folded:
        species = ""
        if {ours.species, theirs.species} == {"human", "mouse"}:
            species = f", as {ours.species} and {theirs.species} genes are written"
        return (
            f"{len(folded)} names match when upper and lower case are ignored ({shown}){species}; "
            "use sections of one species, or map one to its orthologues first."
        )
    alike = f"Both look like {ours}" if ours == theirs else f"The names look like {ours} and {theirs}"
    return f"{alike} ({shown}); check that both come from the same kind of assay."


def _example(genes: Sequence[str], naming: Naming) -> str:
    """The first name that matches the naming."""
    for gene in genes:
        name = str(gene)
        if (ENSEMBL.fullmatch(name) is not None) == (naming.kind == "ensembl") and len(name) > 2:
            return name
    return str(genes[0])


def kind_of_control(name: str) -> str | None:
    """Kind of control feature that bears this name, or None for a gene.

    Examples
    --------
    >>> kind_of_control("NegControlProbe_00042"), kind_of_control("NEGR1")
    ('negative control', None)
    """
    for kind, pattern in CONTROL_PATTERNS.items():
        if pattern.fullmatch(name):
            return kind
    return None


def clean_features(
    genes: Sequence[str], counts: sparse.csr_matrix, *, controls: Literal["drop", "keep"] = "drop"
) -> tuple[tuple[str, ...], sparse.csr_matrix, tuple[str, ...]]:
    """Drop control features and sum the columns of genes that are named several times.

    `genes` are named as the assay wrote them, `counts` (spots, features) raw. ``controls="keep"`` leaves controls in,
    as the released code does; features without a name are dropped and features of the same name are summed either way,
    because a panel needs one column per name.

    Returns the genes, all different and in order of first appearance, the counts (spots, genes), and a sentence per
    change.
    """
    if controls not in ("drop", "keep"):
        raise BadOption("controls", controls, want='"drop" or "keep"')
    if cast(Any, counts).shape[1] != len(genes):
        raise ShapeMismatch("counts", want=("spots", len(genes)), got=cast(Any, counts).shape)
    names = [str(gene).strip() for gene in genes]
    kinds = [kind_of_control(name) for name in names]
    nameless = [name in ("", "nan", "NaN", "None") for name in names]
    notes: list[str] = []
    if any(nameless):
        number = sum(nameless)
        notes.append(f"{number} feature{'' if number == 1 else 's'} without a name: dropped.")
    found = Counter(kind for kind in kinds if kind)
    if found:
        of_each = ", ".join(f"{number} {kind}" for kind, number in sorted(found.items()))
        what = "dropped" if controls == "drop" else "kept, as requested"
        number = sum(found.values())
        are = "feature is not a gene" if number == 1 else "features are not genes"
        notes.append(f"{number} {are} ({of_each}): {what}.")
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
    wide = np.result_type(counts.dtype, np.float32)
    gather = sparse.csr_matrix((np.ones(len(kept), dtype=wide), (kept, into)), shape=(len(names), len(column_of)))
    merged = sparse.csr_matrix(counts.astype(wide) @ gather)
    merged.sort_indices()
    return tuple(column_of), merged, tuple(notes)
