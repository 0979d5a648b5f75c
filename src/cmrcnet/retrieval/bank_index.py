"""The search that a bank holds on disk: written beside it, opened with it, and refused where it is another bank's.

Its arrays lie in ``search/<name>/``; the name is that of their content and of the bank they were made for. They are
cells and each spot's cell (ivf), or the graph (hnsw); the vectors themselves stay with the sections.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from cmrcnet.errors import Incompatible
from cmrcnet.retrieval.manifest import SEARCH
from cmrcnet.search.build import BuiltSearch
from cmrcnet.search.cells import Cells
from cmrcnet.search.effort import Effort
from cmrcnet.search.exact import ExactSearch
from cmrcnet.search.graph import GraphSearch
from cmrcnet.search.inverted_file import InvertedFile
from cmrcnet.search.searcher import Searcher
from cmrcnet.search.stacked_rows import StackedRows
from cmrcnet.storage.arrays import open_array, write_array
from cmrcnet.storage.atomic import atomic_folder
from cmrcnet.storage.hashing import fingerprint


def write_search(folder: Path, built: BuiltSearch, bank: str, wanted: float) -> dict[str, Any] | None:
    """Write a search into a bank's folder.

    Parameters
    ----------
    folder : Path
        The bank's.
    built : BuiltSearch
    bank : str
        Fingerprint of the bank.
    wanted : float
        Recall that was asked for.

    Returns
    -------
    dict or None
        What the manifest must say of it; None for exact search, which needs no file.

    Raises
    ------
    NoSpace, Unwritable
    """
    if isinstance(built.searcher, ExactSearch):
        return None
    arrays = arrays_of(built.searcher)
    facts = {
        "kind": built.kind,
        "recall": {str(k): round(value, 4) for k, value in built.recall.items()},
        "recall_wanted": wanted,
        "measured_with": {"queries": built.queries, "spots": len(built.searcher)},
        "changed": 0,
        "effort": [list(step) for step in built.searcher.effort.steps],
        "arrays": _shapes(arrays),
        "name": _name(bank, arrays),
    }
    _write_arrays(folder, facts["name"], arrays)
    return facts


def rewrite_search(
    folder: Path, facts: dict[str, Any], arrays: dict[str, np.ndarray], bank: str, changed: int
) -> dict[str, Any]:
    """Write the arrays of an edited bank; the recall stays said as it was measured before the edit.

    Parameters
    ----------
    folder : Path
    facts : dict
        Of the search before the edit.
    arrays : dict of arrays
        As `arrays_of` gives them.
    bank : str
        Fingerprint of the edited bank.
    changed : int
        Spots added and dropped since recall was measured.
    """
    facts = {**facts, "changed": changed, "arrays": _shapes(arrays), "name": _name(bank, arrays)}
    _write_arrays(folder, facts["name"], arrays)
    return facts


def open_search(folder: Path, facts: dict[str, Any] | None, bank: str, vectors: StackedRows) -> Searcher:
    """Open the search of a bank.

    Parameters
    ----------
    folder : Path
        The bank's.
    facts : dict or None
        What its manifest says; None: exact search.
    bank : str
        Fingerprint of the bank.
    vectors : StackedRows

    Raises
    ------
    Incompatible
        A file is missing or damaged, or was made for another bank.
    MissingExtra
    """
    if facts is None:
        return ExactSearch(vectors)
    arrays = stored_arrays(folder, facts, bank)
    effort = Effort(tuple((int(k), int(value)) for k, value in facts["effort"]))
    if facts["kind"] == "hnsw":
        return GraphSearch(vectors, arrays["graph"], arrays["rows"], effort)
    if len(arrays["cell_of_spot"]) != len(vectors):
        raise Incompatible.index(
            folder, f"it knows {len(arrays['cell_of_spot']):,} spots, and the bank has {len(vectors):,}"
        )
    cells = Cells(np.array(arrays["sums"]), np.array(arrays["counts"]))
    return InvertedFile(vectors, cells, arrays["cell_of_spot"], effort, compressed=facts["kind"] == "ivf-compressed")


def stored_arrays(folder: Path, facts: dict[str, Any], bank: str) -> dict[str, np.ndarray]:
    """The arrays of a search, known to be whole and this bank's.

    Parameters
    ----------
    folder : Path
    facts : dict
    bank : str

    Raises
    ------
    Incompatible
    """
    arrays = {}
    for name, (shape, dtype) in facts["arrays"].items():
        path = folder / SEARCH / facts["name"] / f"{name}.npy"
        found = open_array(path, tuple(shape), np.dtype(dtype))
        if found is None:
            why = "is cut short, changed or of another shape" if path.exists() else "is missing"
            raise Incompatible.index(folder, f"{name}.npy {why}")
        arrays[name] = found
    if _name(bank, arrays) != facts["name"]:
        raise Incompatible.index(folder, "it was made for another bank, or for this one before it was changed")
    return arrays


def arrays_of(searcher: InvertedFile | GraphSearch) -> dict[str, np.ndarray]:
    """What must be stored of a search.

    Parameters
    ----------
    searcher : InvertedFile or GraphSearch
    """
    if isinstance(searcher, GraphSearch):
        return {"graph": searcher.graph, "rows": searcher.rows}
    return arrays_of_cells(searcher.cells, searcher.cell_of_spot)


def arrays_of_cells(cells: Cells, cell_of_spot: np.ndarray) -> dict[str, np.ndarray]:
    """What must be stored of an inverted file.

    Parameters
    ----------
    cells : Cells
    cell_of_spot : array of int, shape (spots,)
    """
    return {"sums": cells.sums, "counts": cells.counts, "cell_of_spot": cell_of_spot.astype(np.int32)}


def _shapes(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: [list(array.shape), array.dtype.str] for name, array in arrays.items()}


def _write_arrays(folder: Path, name: str, arrays: dict[str, np.ndarray]) -> None:
    place = folder / SEARCH / name
    shutil.rmtree(place, ignore_errors=True)  # a damaged one of the same content
    with atomic_folder(place) as tmp:
        for what, array in arrays.items():
            write_array(tmp / f"{what}.npy", array.shape, array.dtype, [array])


def _name(bank: str, arrays: dict[str, np.ndarray]) -> str:
    return fingerprint(bank, *(part for name in sorted(arrays) for part in (name, np.asarray(arrays[name]))))
