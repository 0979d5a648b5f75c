"""Hierarchical navigable small world (hnsw): a graph of near spots that a query walks along.

The graph holds the vectors themselves. A spot cannot be taken out of it, so a bank that is edited builds it anew; banks
that change are better served by the inverted file.
"""

from __future__ import annotations

import numpy as np

from cmrcnet.search.cells import unit_blocks
from cmrcnet.search.effort import Effort
from cmrcnet.search.exact import ExactSearch
from cmrcnet.search.faiss_library import load_faiss
from cmrcnet.search.neighbours import Neighbours
from cmrcnet.search.rank import ranked
from cmrcnet.search.stacked_rows import StackedRows
from cmrcnet.search.unit import require_query, unit_rows

LINKS = 32
"""Neighbours that a spot is linked with."""
BREADTH_WHILE_BUILDING = 100


class GraphSearch:
    """Approximate search along a graph.

    Parameters
    ----------
    vectors : array or StackedRows, shape (bank, dim), float32
    graph : array of uint8
        As `build_graph` gives it.
    effort : Effort
        Candidates kept while walking.

    Raises
    ------
    MissingExtra
    """

    def __init__(self, vectors: np.ndarray | StackedRows, graph: np.ndarray, effort: Effort) -> None:
        self.vectors, self.graph, self.effort = vectors, graph, effort
        self._faiss = load_faiss()
        self._index = self._faiss.deserialize_index(np.asarray(graph))

    def __len__(self) -> int:
        return len(self.vectors)

    def nearest(self, queries: np.ndarray, k: int) -> Neighbours:
        """Find the k nearest bank spots of each query, as far as the walk comes upon them.

        Parameters
        ----------
        queries : array, shape (queries, dim), float32
        k : int

        Returns
        -------
        Neighbours
            With exact cosines, most similar first; among equals the lower row of the bank first.

        Raises
        ------
        ShapeMismatch, BadOption
        """
        queries = unit_rows(require_query(queries, k, self.vectors.shape), "queries")
        options = self._faiss.SearchParametersHNSW(efSearch=max(k, self.effort.at(k)))
        similarity, ids = self._index.search(queries, k, params=options)
        lost = np.flatnonzero((ids < 0).any(axis=1))
        if len(lost):  # a spot that no walk reaches; rare, and only where k comes near the bank's length
            best = ExactSearch(self.vectors).nearest(queries[lost], k)
            ids[lost], similarity[lost] = best.ids, best.similarity
        return ranked(ids, similarity, k)


def build_graph(vectors: np.ndarray | StackedRows) -> np.ndarray:
    """Link every spot with near ones: the graph as an array of uint8.

    Parameters
    ----------
    vectors : array or StackedRows, shape (bank, dim), float32

    Raises
    ------
    MissingExtra
    BadOption
        A vector is not finite.
    """
    faiss = load_faiss()
    index = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = BREADTH_WHILE_BUILDING
    for _, unit in unit_blocks(vectors):
        index.add(unit)
    return faiss.serialize_index(index)
