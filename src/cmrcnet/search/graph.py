"""Hierarchical navigable small world (hnsw): a graph of near spots that a query walks along.

The graph holds the vectors themselves. A spot cannot be taken out of it, so a bank that is edited builds it anew; banks
that change are better served by the inverted file.
"""

from __future__ import annotations

import numpy as np

from cmrcnet.search.cells import ROWS_AT_ONCE
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
        FAISS's own form.
    rows : array of int32
        Bank row of each spot in the graph.
    effort : Effort
        Candidates kept while walking.

    Raises
    ------
    MissingExtra
    """

    def __init__(self, vectors: np.ndarray | StackedRows, graph: np.ndarray, rows: np.ndarray, effort: Effort) -> None:
        self.vectors, self.rows, self.effort = vectors, rows, effort
        self._faiss = load_faiss()
        self._index = self._faiss.deserialize_index(np.asarray(graph))

    @classmethod
    def empty(cls, vectors: np.ndarray | StackedRows) -> GraphSearch:
        """A graph without spots.

        Parameters
        ----------
        vectors : array or StackedRows, shape (bank, dim), float32
        """
        faiss = load_faiss()
        index = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = BREADTH_WHILE_BUILDING
        return cls(vectors, faiss.serialize_index(index), np.zeros(0, np.int32), Effort(((1, 1),)))

    def add(self, rows: np.ndarray) -> None:
        """Link some of the bank's spots with near ones of those that are there.

        Parameters
        ----------
        rows : array of int

        Raises
        ------
        BadOption
            A vector is not finite.
        """
        for start in range(0, len(rows), ROWS_AT_ONCE):
            self._index.add(unit_rows(self.vectors[rows[start : start + ROWS_AT_ONCE]], "vectors"))
        self.rows = np.concatenate([self.rows, rows]).astype(np.int32)

    @property
    def graph(self) -> np.ndarray:
        """The graph in FAISS's own form, an array of uint8."""
        return self._faiss.serialize_index(self._index)

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
        similarity, nodes = self._index.search(queries, min(k, len(self.rows)), params=options)
        ids = np.where(nodes >= 0, self.rows[nodes], -1).astype(np.int64)
        if len(self.rows) < k:
            similarity, ids = (
                np.pad(a, ((0, 0), (0, k - len(self.rows))), constant_values=-1) for a in (similarity, ids)
            )
        lost = np.flatnonzero((ids < 0).any(axis=1))
        if len(lost):  # a spot that no walk reaches; rare, and only where k comes near the bank's length
            best = ExactSearch(self.vectors).nearest(queries[lost], k)
            ids[lost], similarity[lost] = best.ids, best.similarity
        return ranked(ids, similarity, k)
