"""Marker genes: published signatures of an organ's tissues and cells, in versioned YAML files with their sources.

Each file under ``markers/`` names its sources. `Signature.checked` tells whether the genes were compared with a table
or the text of the source.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import yaml

from cmrcnet.errors import BadInput, BadOption, UnknownName
from cmrcnet.genes.naming import naming_of
from cmrcnet.slides.section import Cohort

FORMAT = 1
SHARED = "shared"
"""File of signatures that several organs use; not an organ itself."""


@dataclass(frozen=True)
class Source:
    """A publication: author, title, journal and year; the DOI is empty when unknown."""

    cite: str
    doi: str = ""


@dataclass(frozen=True)
class Signature:
    """Marker genes of one tissue, cell type or state.

    `genes` and `mouse` are human and mouse symbols; without mouse ones the human ones are matched ignoring case. The
    main source comes first; `checked` tells whether the genes were compared with a table or the text of the source.
    `regions` are words in the label of regions where the signature is expected to be high.
    """

    name: str
    about: str
    genes: tuple[str, ...]
    mouse: tuple[str, ...]
    sources: tuple[Source, ...]
    checked: bool
    regions: tuple[str, ...] = ()


@dataclass(frozen=True)
class MarkerList:
    """The signatures of one organ, in the order of the file, shared ones last.

    `version` increases with every change of a gene, `words` identify the organ in a cohort's `disease`, `aliases` are
    the older names of a gene.
    """

    organ: str
    version: int
    signatures: dict[str, Signature]
    words: tuple[str, ...]
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def measured(self, genes: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Genes of each signature that a cohort measures, in the cohort's spelling; empty when there are none.

        A gene is found by its symbol, else by an older name, else by either ignoring case (ERBB2, Erbb2), as most human
        and mouse orthologues are named. Ensembl ids are a `BadOption`.

        Examples
        --------
        >>> skin = markers("skin")
        >>> found = skin.measured(["KRT5", "KRT14", "MLANA"])
        >>> sorted({gene for genes in found.values() for gene in genes})
        ['KRT14', 'KRT5', 'MLANA']
        """
        naming = naming_of(genes)
        if naming.kind != "symbol":
            raise BadOption("genes", str(naming), "gene symbols, which marker lists are written in")
        known = dict.fromkeys(genes)
        folded: dict[str, str] = {}
        for gene in genes:
            folded.setdefault(gene.upper(), gene)
        mouse = naming.species == "mouse"

        def find(gene: str) -> str | None:
            names = (gene, *self.aliases.get(gene.upper(), ()))
            exact = next((name for name in names if name in known), None)
            return exact or next((folded[name.upper()] for name in names if name.upper() in folded), None)

        return {
            name: tuple(
                dict.fromkeys(
                    found
                    for gene in (signature.mouse if mouse and signature.mouse else signature.genes)
                    if (found := find(gene)) is not None
                )
            )
            for name, signature in self.signatures.items()
        }

    def expected_in(self, label: str) -> tuple[str, ...]:
        """Signatures expected to be high in a region of this label, such as ``immune : APC, B-cell``."""
        spoken = label.lower()
        return tuple(
            name for name, signature in self.signatures.items() if any(word in spoken for word in signature.regions)
        )


def marker_organs() -> tuple[str, ...]:
    """Organs with a marker list, sorted.

    Examples
    --------
    >>> marker_organs()
    ('breast', 'colorectal', 'liver', 'skin', 'spinal cord')
    """
    folder = resources.files("cmrcnet") / "genes" / "markers"
    names = (entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    return tuple(sorted(name.replace("_", " ") for name in names if name != SHARED))


@cache
def markers(organ: str) -> MarkerList:
    """Load the marker list of an organ of `marker_organs` ("spinal_cord" and "spinal-cord" work too), else
    `UnknownName`.
    """
    name = re.sub(r"[\s_-]+", " ", organ.strip().lower())
    if name not in marker_organs():
        raise UnknownName("marker list for the organ", organ, marker_organs(), "Give genes of your own as a list.")
    own, shared = _read(name.replace(" ", "_")), _read(SHARED)
    missing = [also for also in own.get("also", []) if also not in shared["signatures"]]
    if missing:
        raise BadInput(f"{name}.yaml", "a marker list", f"shared.yaml has no {missing[0]}")
    signatures = {key: _signature(key, value, own["sources"]) for key, value in own["signatures"].items()}
    signatures |= {key: _signature(key, shared["signatures"][key], shared["sources"]) for key in own.get("also", [])}
    aliases = {gene.upper(): tuple(old) for gene, old in (shared["aliases"] | own.get("aliases", {})).items()}
    return MarkerList(own["organ"], int(own["version"]), signatures, tuple(own["words"]), aliases)


def organ_of(*words: str) -> str:
    """Identify the organ from words about a cohort, such as its `disease` column.

    The name of the organ or of its disease must occur as a whole word; none or several organs are an `UnknownName`.

    Examples
    --------
    >>> organ_of("HER2-positive breast cancer")
    'breast'
    """
    text = " ".join(words).lower()
    named = [
        organ
        for organ in marker_organs()
        if any(re.search(rf"(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])", text) for word in markers(organ).words)
    ]
    if len(named) != 1:
        why = f"It names {' and '.join(named)}. " if named else ""
        raise UnknownName(
            "single organ named in", " ".join(words), marker_organs(), f"{why}Say which one it is (organ)."
        )
    return named[0]


def organ_of_cohort(cohort: Cohort) -> str:
    """Identify a cohort's organ from the columns `organ`, `disease` and `site` of its file; no section is read."""
    texts = dict.fromkeys(
        entry.metadata[column]
        for entry in cohort.entries
        for column in ("organ", "disease", "site")
        if column in entry.metadata
    )
    return organ_of(*texts)


def source_lines(chosen: MarkerList, signatures: Iterable[str] | None = None) -> list[str]:
    """List the sources of some signatures (all when left out) for a report, a line each: citation, DOI if known,
    signatures.
    """
    used: dict[Source, list[str]] = {}
    for name in chosen.signatures if signatures is None else signatures:
        for source in chosen.signatures[name].sources:
            used.setdefault(source, []).append(name)
    return [
        f"{source.cite}{f' (doi:{source.doi})' if source.doi else ''}: {', '.join(names)}"
        for source, names in used.items()
    ]


def _read(name: str) -> dict[str, Any]:
    content = (resources.files("cmrcnet") / "genes" / "markers" / f"{name}.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(content)
    if values.get("format") != FORMAT:
        raise BadInput(f"{name}.yaml", "a marker list", f"its format is {values.get('format')}, not {FORMAT}")
    return values


def _signature(name: str, values: Mapping[str, Any], sources: Mapping[str, Mapping[str, str]]) -> Signature:
    keys = [values["source"], *values.get("more_sources", [])]
    return Signature(
        name,
        values["about"],
        tuple(values["genes"]),
        tuple(values.get("mouse", [])),
        tuple(Source(sources[key]["cite"], sources[key].get("doi", "")) for key in keys),
        bool(values["checked"]),
        tuple(values["regions"]),
    )
