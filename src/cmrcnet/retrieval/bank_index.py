"""The search index of a bank on disk: written beside it, opened with it, and refused where it is another bank's.

Its arrays lie in ``index/<name>/``, named by the fingerprint of their content and of the bank they were made for: sums
and counts of the IVF lists, and the list of each spot. The vectors themselves stay with the sections.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cmrcnet.errors import Incompatible
from cmrcnet.retrieval.store import INDEX
from cmrcnet.search.build import BuiltSearch
from cmrcnet.search.exact import ExactSearch
from cmrcnet.search.ivf import IVFLists, IVFSearch, SearchParameters
from cmrcnet.search.stacked_arrays import StackedRows
from cmrcnet.storage.arrays import open_array, write_array
from cmrcnet.storage.atomic import atomic_folder
from cmrcnet.storage.hashing import fingerprint
from cmrcnet.storage.ownership import remove_ours


def write_index(folder: Path, built: BuiltSearch, bank: str, wanted: float) -> dict[str, Any] | None:
    """Write a search index into a bank's folder.

    Parameters
    ----------
    folder : Path
        The bank's.
    bank : str
        Fingerprint of the bank.
    wanted : float
        Recall that was asked for.

    Returns
    -------
    dict or None
        Its record for the manifest; None for exact search, which needs no file.

    Raises
    ------
    NoSpace, Unwritable
    """
    search = built.searcher
    if isinstance(search, ExactSearch):
        return None
    record = {
        "kind": built.kind,
        "recall": {str(k): round(value, 4) for k, value in built.recall.items()},
        "recall_wanted": wanted,
        "measured_with": {"queries": built.queries, "spots": len(search)},
        "nprobe": [list(step) for step in search.parameters.steps],
    }
    return write_lists(folder, record, search.lists, search.list_of_spot, bank)


def write_lists(
    folder: Path, record: dict[str, Any], lists: IVFLists, list_of_spot: np.ndarray, bank: str, changed: int = 0
) -> dict[str, Any]:
    """Write the lists of an index; recall and nprobe stay as they were measured.

    Parameters
    ----------
    folder : Path
        The bank's.
    record : dict
        Of the index, with its recall and nprobe.
    list_of_spot : array of int, shape (spots,)
    bank : str
        Fingerprint of the bank that the lists belong to.
    changed : int
        Spots added and dropped since recall was measured.

    Returns
    -------
    dict
        The record, completed.
    """
    arrays = {"sums": lists.sums, "counts": lists.counts, "list_of_spot": list_of_spot.astype(np.int32)}
    name = _name(bank, arrays)
    remove_ours(folder / INDEX / name)  # a damaged one of the same content
    with atomic_folder(folder / INDEX / name) as tmp:
        for what, array in arrays.items():
            write_array(tmp / f"{what}.npy", array.shape, array.dtype, [array])
    shapes = {what: [list(array.shape), array.dtype.str] for what, array in arrays.items()}
    return {**record, "changed": changed, "arrays": shapes, "name": name}


def open_index(folder: Path, record: dict[str, Any], bank: str, vectors: StackedRows) -> IVFSearch:
    """Open the search index of a bank.

    Parameters
    ----------
    folder : Path
        The bank's.
    record : dict
        From its manifest.
    bank : str
        Fingerprint of the bank.
    vectors : StackedRows
        Of all its sections.

    Raises
    ------
    Incompatible
        A file is missing or damaged, or was made for another bank.
    MissingExtra
    """
    lists, list_of_spot = read_lists(folder, record, bank)
    if len(list_of_spot) != len(vectors):
        raise Incompatible.index(folder, f"it has {len(list_of_spot):,} spots, and the bank has {len(vectors):,}")
    parameters = SearchParameters(tuple((int(k), int(value)) for k, value in record["nprobe"]))
    return IVFSearch(vectors, lists, list_of_spot, parameters, compressed=record["kind"] == "ivf-compressed")


def read_lists(folder: Path, record: dict[str, Any], bank: str) -> tuple[IVFLists, np.ndarray]:
    """Read the lists of an index, and check that they are complete and this bank's.

    Parameters
    ----------
    folder : Path
        The bank's.
    record : dict
        From its manifest.
    bank : str
        Fingerprint of the bank.

    Returns
    -------
    lists : IVFLists
    list_of_spot : numpy.ndarray, shape (spots,), int32
        Memory-mapped.

    Raises
    ------
    Incompatible
    """
    arrays = {}
    for name, (shape, dtype) in record["arrays"].items():
        path = folder / INDEX / record["name"] / f"{name}.npy"
        found = open_array(path, tuple(shape), np.dtype(dtype))
        if found is None:
            why = "is cut short, changed or of another shape" if path.exists() else "is missing"
            raise Incompatible.index(folder, f"{name}.npy {why}")
        arrays[name] = found
    if _name(bank, arrays) != record["name"]:
        raise Incompatible.index(folder, "it was made for another bank, or for this one before it was changed")
    return IVFLists(np.array(arrays["sums"]), np.array(arrays["counts"])), arrays["list_of_spot"]


def _name(bank: str, arrays: dict[str, np.ndarray]) -> str:
    return fingerprint(bank, *(part for name in sorted(arrays) for part in (name, np.asarray(arrays[name]))))
