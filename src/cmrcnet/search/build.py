"""Build the search that a bank is asked for: as much effort as the recall needs, and no more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from cmrcnet.errors import NotAvailable
from cmrcnet.search.cells import Cells, cells_for
from cmrcnet.search.effort import Effort
from cmrcnet.search.exact import ExactSearch
from cmrcnet.search.graph import GraphSearch
from cmrcnet.search.inverted_file import InvertedFile
from cmrcnet.search.recall import HeldOutQueries
from cmrcnet.search.search_config import SearchConfig
from cmrcnet.search.searcher import Searcher
from cmrcnet.search.stacked_rows import StackedRows

WIDEST = 8192
"""Candidates that a walk along the graph keeps at most while the breadth is found by trying."""


@dataclass(frozen=True, eq=False)
class BuiltSearch:
    """A search, and what was measured of it.

    Parameters
    ----------
    kind : str
        Never auto.
    searcher : Searcher
    recall : dict of int to float
        Measured recall, by k; empty for exact search.
    queries : int
        How many it was measured with.
    """

    kind: str
    searcher: Searcher
    recall: dict[int, float] = field(default_factory=dict)
    queries: int = 0


def build_search(
    vectors: np.ndarray | StackedRows, config: SearchConfig, queries: np.ndarray | None = None
) -> BuiltSearch:
    """Build a search and measure its recall.

    Parameters
    ----------
    vectors : array or StackedRows, shape (bank, dim), float32
    config : SearchConfig
    queries : array, shape (queries, dim), optional
        To measure with, in place of spots of the bank.

    Returns
    -------
    BuiltSearch

    Raises
    ------
    NotAvailable
        With the probes or the breadth that were asked for, or with the widest walk.
    MissingExtra
    BadOption
        A vector is not finite.
    """
    kind = config.kind_for(len(vectors))
    if kind == "exact":
        return BuiltSearch(kind, ExactSearch(vectors))
    held_out = HeldOutQueries.draw(vectors, config.seed, queries, absent=kind == "hnsw" and queries is None)
    own = held_out.own[held_out.own >= 0]
    recall, steps = {}, []
    searcher, parameter, fixed, most, put_in = (_graph if kind == "hnsw" else _cells)(vectors, kind, config, own)
    for k in held_out.ks:
        tried = [fixed] if fixed is not None else _ladder(most, k if kind == "hnsw" else 1)
        value, recall[k] = _enough(searcher, held_out, k, tried, config.recall)
        steps.append((k, value))
        if recall[k] < config.recall:
            raise NotAvailable.from_sentence(
                f"The {kind} index finds {recall[k]:.3f} of the {k} nearest spots with {parameter} {value}, and "
                f"{config.recall:g} was asked for; raise --{parameter}, leave it out to have it found, or take "
                "--search exact."
            )
    put_in()
    searcher.effort = Effort(tuple(steps))
    return BuiltSearch(kind, searcher, recall, len(held_out.queries))


Begun = tuple[InvertedFile | GraphSearch, str, int | None, int, Callable[[], None]]
"""A search that the held-out spots have no part in, its parameter, what that is fixed at, its most, and what puts the
held-out spots in."""


def _graph(vectors: np.ndarray | StackedRows, kind: str, config: SearchConfig, own: np.ndarray) -> Begun:
    searcher = GraphSearch.empty(vectors)
    searcher.add(np.delete(np.arange(len(vectors)), own))
    return searcher, "breadth", config.breadth, WIDEST, lambda: searcher.add(own)


def _cells(vectors: np.ndarray | StackedRows, kind: str, config: SearchConfig, own: np.ndarray) -> Begun:
    cells, cell_of_spot = Cells.learn(vectors, cells_for(len(vectors)), config.seed, own)
    others = cells.plus(vectors[own], cell_of_spot[own], sign=-1)
    searcher = InvertedFile(vectors, others, cell_of_spot, Effort(((1, 1),)), compressed=kind == "ivf-compressed")
    return searcher, "probes", config.probes, len(cells), lambda: searcher.move_to(cells)


def _enough(
    searcher: InvertedFile | GraphSearch,
    held_out: HeldOutQueries,
    k: int,
    tried: Iterator[int] | list[int],
    wanted: float,
) -> tuple[int, float]:
    """The first value that reaches the recall wanted, or the last; and the recall."""
    value, recall = 1, 0.0
    for value in tried:
        searcher.effort = Effort(((k, value), (k + 1, value)))
        recall = held_out.recall(searcher, k)
        if recall >= wanted:
            break
    return value, recall


def _ladder(most: int, first: int) -> Iterator[int]:
    """Values to try, each a quarter more than the one before, and the most at last."""
    value = min(first, most)
    while value < most:
        yield value
        value = max(value + 1, value * 5 // 4)
    yield most
