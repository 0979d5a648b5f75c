"""Choose and build the search of a bank: scan as few lists as the requested recall needs, and no fewer.

Recall is the share of the true nearest spots that an approximate search finds. It is measured on held-out queries:
spots of the bank whose own row counts neither as found nor as true, and which the centroids were not computed from
while recall was measured, because an index is at its best on what it was made from. A spot as similar as the k-th true
one counts as true: among equal similarities either spot is right. Vectors given as `queries` (image embeddings) are
used as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from cmrcnet.errors import BadOption, Incompatible
from cmrcnet.search.exact import ExactSearch, Searcher, unit_rows
from cmrcnet.search.ivf import IVFLists, IVFSearch, SearchParameters, list_count
from cmrcnet.search.stacked_arrays import StackedRows

KINDS = ("exact", "ivf", "ivf-compressed", "auto")
EXACT_BELOW = 100_000
"""Spots below which `auto` searches exactly."""
COMPRESSED_FROM = 500_000
"""Spots from which `auto` compresses the lists."""

MEASURED_AT = (1, 10, 50, 500)
"""Neighbours per query at which recall is measured; fewer where the bank has fewer spots."""
QUERIES = 256
SHARE_HELD_OUT = 0.1
_ROUNDING = 2e-6


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Kind of search, recall that it must reach, and what to fix of it.

    Parameters
    ----------
    kind : {"exact", "ivf", "ivf-compressed", "auto"}
        auto: exact below `EXACT_BELOW` spots, then ivf, and ivf-compressed from `COMPRESSED_FROM` on; exact again where
        that does not reach the recall.
    recall : float
        Share of the true k nearest spots that must be found, for each k at which it is measured.
    nprobe : int, optional
        ivf: number of lists to scan, for every k; tuned to the recall when left out.
    seed : int
        Of k-means and of the queries that recall is measured with.

    Raises
    ------
    BadOption
    """

    kind: Literal["exact", "ivf", "ivf-compressed", "auto"] = "auto"
    recall: float = 0.95
    nprobe: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadOption("search", self.kind, want=", ".join(KINDS))
        if not 0 < self.recall <= 1:
            raise BadOption("recall", self.recall, want="a share above 0, at most 1")
        if self.nprobe is not None and not self.kind.startswith("ivf"):
            want = f"nothing with --search {self.kind}; it belongs to ivf and ivf-compressed"
            raise BadOption("nprobe", self.nprobe, want=want)
        if self.nprobe is not None and self.nprobe < 1:
            raise BadOption("nprobe", self.nprobe, want="a whole number, 1 or more")

    def kind_for(self, spots: int) -> str:
        """Return the kind that a bank of so many spots gets.

        Parameters
        ----------
        spots : int
            Size of the bank.
        """
        if self.kind != "auto":
            return self.kind
        if spots < EXACT_BELOW:
            return "exact"
        return "ivf" if spots < COMPRESSED_FROM else "ivf-compressed"


@dataclass(frozen=True, eq=False)
class BuiltSearch:
    """A search and its measured recall.

    Parameters
    ----------
    kind : str
        Never auto.
    recall : dict of int to float
        Measured recall, by k; empty for exact search.
    queries : int
        Number of queries it was measured with.
    """

    kind: str
    searcher: ExactSearch | IVFSearch
    recall: dict[int, float] = field(default_factory=dict)
    queries: int = 0


def build_search(
    vectors: np.ndarray | StackedRows, config: SearchConfig, queries: np.ndarray | None = None
) -> BuiltSearch:
    """Build a search and measure its recall.

    Parameters
    ----------
    vectors : array or StackedRows, shape (bank, dim), float32
    queries : array, shape (queries, dim), optional
        To measure with, in place of spots of the bank.

    Returns
    -------
    BuiltSearch

    Raises
    ------
    Incompatible
        The recall is not reached, with the requested nprobe or with all lists.
    MissingExtra
    BadOption
        A vector is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from cmrcnet.search.build import SearchConfig, build_search
    >>> vectors = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
    >>> built = build_search(vectors, SearchConfig(kind="ivf", recall=0.9))
    >>> built.kind, min(built.recall.values()) >= 0.9
    ('ivf', True)
    """
    kind = config.kind_for(len(vectors))
    if kind == "exact":
        return BuiltSearch(kind, ExactSearch(vectors))
    held_out = HeldOutQueries.draw(vectors, config.seed, queries)
    own = held_out.own[held_out.own >= 0]
    lists, list_of_spot = IVFLists.fit(vectors, list_count(len(vectors)), config.seed, own)
    others = lists.plus(vectors[own], list_of_spot[own], sign=-1)
    searcher = IVFSearch(
        vectors, others, list_of_spot, SearchParameters(((1, 1),)), compressed=kind == "ivf-compressed"
    )
    recall, steps = {}, []
    for k in held_out.ks:
        nprobe = 1 if config.nprobe is None else config.nprobe
        while True:
            searcher.parameters = SearchParameters(((k, nprobe), (k + 1, nprobe)))
            recall[k] = held_out.recall(searcher, k)
            if recall[k] >= config.recall or config.nprobe is not None or nprobe >= len(lists):
                break
            nprobe = min(len(lists), max(nprobe + 1, nprobe * 5 // 4))
        steps.append((k, nprobe))
        if recall[k] < config.recall and config.kind == "auto":
            return BuiltSearch("exact", ExactSearch(vectors))  # no index finds enough in this bank
        if recall[k] < config.recall:
            raise Incompatible.from_sentence(
                f"The {kind} index finds {recall[k]:.3f} of the {k} nearest spots with nprobe {nprobe}, and "
                f"{config.recall:g} was asked for; raise --nprobe, leave it out to have it tuned, or take "
                "--search exact."
            )
    searcher.move_to(lists)
    searcher.parameters = SearchParameters(tuple(steps))
    return BuiltSearch(kind, searcher, recall, len(held_out.queries))


@dataclass(frozen=True, eq=False)
class HeldOutQueries:
    """Queries, and the least similarity of a true neighbour of each.

    Parameters
    ----------
    queries : numpy.ndarray, shape (queries, dim), float32
    own : numpy.ndarray, shape (queries,), int64
        Bank row of each query itself; -1 for one that is not of the bank.
    kth : numpy.ndarray, shape (queries, ks), float32
        Similarity of the k-th true neighbour, for each k.
    """

    queries: np.ndarray
    own: np.ndarray
    kth: np.ndarray
    ks: tuple[int, ...]

    @classmethod
    def draw(cls, vectors: np.ndarray | StackedRows, seed: int, queries: np.ndarray | None = None) -> HeldOutQueries:
        """Draw spots of the bank, or take other queries, and find their true neighbours by exact search.

        Parameters
        ----------
        vectors : array or StackedRows, shape (bank, dim)
        seed : int
            Of the draw.
        queries : array, shape (queries, dim), optional
            Used in place of spots of the bank.
        """
        if queries is None:
            count = min(QUERIES, max(1, int(SHARE_HELD_OUT * len(vectors))))
            own = np.sort(np.random.default_rng(seed).choice(len(vectors), count, replace=False))
            queries = unit_rows(vectors[own], "vectors")
        else:
            own = np.full(len(queries), -1)
        itself = int((own >= 0).any())
        most = max(1, len(vectors) - itself)
        ks = tuple(sorted({min(k, most) for k in MEASURED_AT}))
        found = ExactSearch(vectors).nearest(queries, min(len(vectors), ks[-1] + itself))
        true = -np.sort(-np.where(found.ids == own[:, None], -np.inf, found.similarity), axis=1)
        return cls(queries, own, true[:, [k - 1 for k in ks]], ks)

    def recall(self, searcher: Searcher, k: int) -> float:
        """Return the share of the k true neighbours that are found, over all queries.

        Parameters
        ----------
        k : int
            One of `ks`.
        """
        found = searcher.nearest(self.queries, min(len(searcher), k + int((self.own >= 0).any())))
        others = found.ids != self.own[:, None]
        true = others & (found.similarity >= self.kth[:, [self.ks.index(k)]] - _ROUNDING)
        return float(np.minimum(true.sum(axis=1), k).mean() / k)
