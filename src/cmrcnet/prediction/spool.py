"""Sections put down on disk one after another, then put together gene by gene.

Sections arrive spot by spot, each with genes of its own; a bank is read gene by gene. Turning one into the other
happens here in parts, so that neither all sections nor the whole bank are ever in memory.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from cmrcnet.encoding.stored_array import write_array
from cmrcnet.tissue.section import Section

if TYPE_CHECKING:
    import pandas as pd

    from cmrcnet.encoding.token_cache import TokenCache

SPOT_COLUMNS = ("section", "patient", "barcode", "x", "y")
AT_ONCE = 2**22
"""Values that are put together at once."""

_PREFIX = "bank-in-use-"
_ABANDONED_SECONDS = 7 * 24 * 3600.0


class Spool:
    """Spots of many sections in a temporary folder, which goes with this object.

    Parameters
    ----------
    cache : TokenCache or None
        Where the temporary folder is made; by default in the system's own.
    """

    def __init__(self, cache: TokenCache | None) -> None:
        if cache is not None:
            _sweep(cache)
        within = None if cache is None else cache.folder
        self._folder = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=within, ignore_cleanup_errors=True)
        self.genes: dict[str, int] = {}  # gene -> column, in order of first appearance
        self._tables: list[pd.DataFrame] = []
        self._vectors: list[np.ndarray] = []
        self._parts: list[sparse.csc_matrix] = []
        self._lists: list[frozenset[str] | None] = []  # None: the section measured every gene

    def add(self, section: Section, expression: sparse.csr_matrix, vectors: np.ndarray) -> None:
        """Put down one section.

        Parameters
        ----------
        section : Section
        expression : scipy.sparse.csr_matrix, shape (spots, genes of the section), float32
        vectors : numpy.ndarray, shape (spots, dim), float32
        """
        import pandas as pd

        for gene in section.genes:
            self.genes.setdefault(gene, len(self.genes))
        values = expression.tocoo()
        columns = np.array([self.genes[gene] for gene in section.genes])[values.col]
        part = sparse.csc_matrix((values.data, (values.row, columns)), shape=(len(section.spots), len(self.genes)))
        part.sort_indices()
        number = len(self._parts)
        self._vectors.append(self._put(f"vectors_{number}", vectors))
        data = self._put(f"data_{number}", part.data)
        self._parts.append(csc_of(data, self._put(f"rows_{number}", part.indices), part.indptr, part.shape))
        self._lists.append(None if section.absent_genes == "zero" else frozenset(section.genes))
        x, y = section.spots.centre_px.T
        named = {"section": section.name, "patient": section.patient, "barcode": list(section.spots.barcodes)}
        self._tables.append(pd.DataFrame({**named, "x": x, "y": y}, columns=list(SPOT_COLUMNS)))

    def spots(self) -> pd.DataFrame:
        """Section, patient, barcode, x and y of every spot."""
        import pandas as pd

        return pd.concat(self._tables, ignore_index=True)

    def vectors(self) -> np.ndarray:
        """Every spot's vector: (spots, dim) float32, memory-mapped."""
        shape = (sum(map(len, self._vectors)), self._vectors[0].shape[1])
        return write_array(self._path("vectors"), shape, np.dtype(np.float32), self._vectors)

    def expression(self) -> sparse.csc_matrix:
        """Every spot's expression, (spots, genes) float32, gene by gene, memory-mapped."""
        counts = np.zeros(len(self.genes), np.int64)
        for part in self._parts:
            counts[: part.shape[1]] += np.diff(part.indptr)
        ends = np.concatenate([[0], np.cumsum(counts)])
        stored = (int(ends[-1]),)
        data = write_array(self._path("data"), stored, np.dtype(np.float32), (b.data for b in self._blocks(ends)))
        rows = write_array(self._path("rows"), stored, np.dtype(np.int32), (b.indices for b in self._blocks(ends)))
        return csc_of(data, rows, ends, (sum(part.shape[0] for part in self._parts), len(self.genes)))

    def measured(self) -> np.ndarray:
        """Which section measured which gene: (sections, genes) bool."""
        return np.array([[known is None or gene in known for gene in self.genes] for known in self._lists])

    def _blocks(self, ends: np.ndarray) -> Iterator[sparse.csc_matrix]:
        """All sections' values of some genes, then of the next."""
        first = 0
        while first < len(self.genes):
            last = max(first + 1, int(np.searchsorted(ends, ends[first] + AT_ONCE, side="right")) - 1)
            yield sparse.vstack([_columns(part, first, last) for part in self._parts], format="csc")
            first = last

    def _put(self, name: str, values: np.ndarray) -> np.ndarray:
        return write_array(self._path(name), values.shape, values.dtype, [values])

    def _path(self, name: str) -> Path:
        return Path(self._folder.name) / f"{name}.npy"


def csc_of(data: np.ndarray, rows: np.ndarray, ends: np.ndarray, shape: tuple[int, int]) -> sparse.csc_matrix:
    """A CSC matrix of these very arrays, memory-mapped ones included.

    scipy's own constructor would copy the rows of a matrix with more than 2^31 values.

    Parameters
    ----------
    data : numpy.ndarray, float32
    rows : numpy.ndarray, int32
        Row of each value, rising within a column.
    ends : numpy.ndarray, shape (columns + 1,)
        Where each column starts and ends in `data`.
    shape : tuple of int
    """
    matrix = sparse.csc_matrix(shape, dtype=np.float32)
    small = ends[-1] <= np.iinfo(np.int32).max
    matrix.data, matrix.indices, matrix.indptr = data, rows, ends.astype(np.int32 if small else np.int64)
    matrix.has_sorted_indices = matrix.has_canonical_format = True
    return matrix


def _columns(part: sparse.csc_matrix, first: int, last: int) -> sparse.csc_matrix:
    """Columns `first` to `last`; those that the section did not know yet are empty."""
    ends = part.indptr[np.minimum(np.arange(first, last + 1), part.shape[1])]
    values = slice(ends[0], ends[-1])
    return csc_of(part.data[values], part.indices[values], ends - ends[0], (part.shape[0], last - first))


def _sweep(cache: TokenCache) -> None:
    """Make the cache's folder, and remove what killed processes left in it."""
    cache.folder.mkdir(parents=True, exist_ok=True)
    for left in sorted(cache.folder.glob(f"{_PREFIX}*")):
        if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
