"""Which search a bank gets, and how good it must be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cmrcnet.errors import BadOption

Kind = Literal["exact", "hnsw", "ivf", "ivf-compressed", "auto"]
KINDS = ("exact", "hnsw", "ivf", "ivf-compressed", "auto")

EXACT_BELOW = 100_000
"""Spots up to which `auto` searches exactly."""

COMPRESSED_FROM = 500_000
"""Spots from which on `auto` compresses the lists."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Kind of search, recall that it must reach, and what to fix of it.

    Parameters
    ----------
    kind : {"exact", "hnsw", "ivf", "ivf-compressed", "auto"}
        auto: exact below `EXACT_BELOW` spots, then ivf, and ivf-compressed from `COMPRESSED_FROM` on.
    recall : float
        Share of the true k nearest spots that must be found, for each k at which it is measured.
    probes : int, optional
        ivf: cells looked into, for every k; found by trying when left out.
    breadth : int, optional
        hnsw: candidates kept while walking, for every k; found by trying when left out.
    seed : int
        Of the division into cells and of the queries that recall is measured with.

    Raises
    ------
    BadOption
    """

    kind: Kind = "auto"
    recall: float = 0.95
    probes: int | None = None
    breadth: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadOption("search", self.kind, want=", ".join(KINDS))
        if not 0 < self.recall <= 1:
            raise BadOption("recall", self.recall, want="a share above 0, at most 1")
        for name, value, kinds in (
            ("probes", self.probes, ("ivf", "ivf-compressed")),
            ("breadth", self.breadth, ("hnsw",)),
        ):
            if value is not None and self.kind not in kinds:
                raise BadOption(
                    name, value, want=f"nothing with --search {self.kind}; it belongs to {' and '.join(kinds)}"
                )
            if value is not None and value < 1:
                raise BadOption(name, value, want="a whole number, 1 or more")

    def kind_for(self, spots: int) -> str:
        """The kind that a bank of so many spots gets.

        Parameters
        ----------
        spots : int
        """
        if self.kind != "auto":
            return self.kind
        if spots < EXACT_BELOW:
            return "exact"
        return "ivf" if spots < COMPRESSED_FROM else "ivf-compressed"
