"""Matrices in files of HDF5 and Matrix Market, checked before any compiled code uses them.

An HDF5 file may point to other files (external links, external storage, virtual datasets), declare sizes that it does
not hold, and carry indices that point outside its matrix; a Matrix Market file may declare any size. All of it is
refused here. A flipped bit in the metadata of an HDF5 file can also make the library leave its memory, so a child
process reads each file first: it follows every group and reads every attribute, all text and the other datasets up to
`READ_BYTES` each.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadInput, CmrcnetError
from cmrcnet.readers.text_files import open_text
from cmrcnet.slides.slide_files import require_file
from cmrcnet.storage.arrays import LARGEST_SHAPE, sparse_fault
from cmrcnet.storage.child_process import ChildProcess, serve_files
from cmrcnet.storage.refusals import fault_of_file

FREE_BYTES = 256 << 20
"""Bytes that a dataset may declare whatever it takes on disk."""
MOST_INFLATED = 300
"""Largest factor between the declared size of a larger dataset and its size on disk."""

MOST_SECONDS, BYTES_A_SECOND = 15.0, 10 << 20
"""A file that takes longer to read than this, and its size at this speed, is broken."""
READ_BYTES = 16 << 20
MOST_TEXTS = 50_000_000
"""Most entries of a dataset of texts that are read."""


@contextmanager
def open_h5(path: Path, what: str, *, in_blocks: bool = False) -> Iterator[Any]:
    """Open an HDF5 file whose datasets all lie in it, have plausible sizes and sound sparse matrices.

    Parameters
    ----------
    what : str
        Kind of file, for the error: "a 10x count matrix (.h5)".
    in_blocks : bool
        The caller reads datasets in blocks, so that their declared sizes need no bound.

    Yields
    ------
    h5py.File

    Raises
    ------
    MissingInput
    BadInput
        Also for what h5py raises in the body of the `with` statement.
    """
    import h5py

    require_file(path, f"The file (wanted: {what})")
    try:  # what ends a process that reads it must not be this one; other faults are met again, and named, below
        _child.try_file(path, MOST_SECONDS + path.stat().st_size / BYTES_A_SECOND)
    except ChildProcessError as error:
        raise BadInput(path, what, f"the process that tried to read it {error}; the file is damaged") from error
    try:
        with h5py.File(path, "r", locking=False) as file:
            if why := h5_fault(file, in_blocks):
                raise BadInput(path, what, why)
            yield file
    except CmrcnetError:
        raise
    except (OSError, KeyError, ValueError, RuntimeError, TypeError, AttributeError, OverflowError) as error:
        raise BadInput(path, what, fault_of_file(error)) from error


def h5_fault(file: Any, in_blocks: bool) -> str | None:
    """Why an open HDF5 file is not to be trusted, or None; `in_blocks` as in `open_h5`."""
    import h5py
    from h5py import h5o  # pyright: ignore[reportAttributeAccessIssue]  (compiled)

    waiting, seen = [file], set()
    while waiting:
        group = waiting.pop()
        kind = str(group.attrs.get("encoding-type", group.attrs.get("h5sparse_format", ""))).removesuffix("_matrix")
        if kind in ("csr", "csc") and {"data", "indices", "indptr"} <= set(group):
            shape = group.attrs.get("shape", group.attrs.get("h5sparse_shape", ()))
            arrays = (group["data"], group["indices"], group["indptr"])
            if why := sparse_fault(*arrays, tuple(int(n) for n in shape), by_row=kind == "csr"):
                return f"the matrix {group.name} is damaged: {why}"
        for key in group:
            where, link = f"{group.name.rstrip('/')}/{key}", group.get(key, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                return f"{where} is a link to another file ({link.filename}), which is not followed"
            found = group.get(key)
            if isinstance(link, h5py.SoftLink) and not isinstance(found, h5py.Dataset):
                return f"{where} is a link to {link.path}, which is not followed"
            if isinstance(found, h5py.Group):
                address = h5o.get_info(found.id).addr
                if address not in seen:  # a group may hold itself
                    seen.add(address)
                    waiting.append(found)
            elif isinstance(found, h5py.Dataset) and (why := _dataset_fault(found, in_blocks)):
                return f"{where} {why}"
    return None


def _dataset_fault(dataset: Any, in_blocks: bool) -> str | None:
    if dataset.external or (dataset.is_virtual and any(s.file_name != "." for s in dataset.virtual_sources())):
        return "is stored in another file, which is not followed"
    stored = dataset.id.get_storage_size()
    if not in_blocks and dataset.nbytes > max(FREE_BYTES, MOST_INFLATED * stored):
        return f"declares {dataset.nbytes:,} bytes and holds {stored:,}"
    return None


def read_mtx(path: Path, shape: tuple[int, int]) -> sparse.csc_matrix:
    """Read a Matrix Market file of counts, gzipped or not.

    Parameters
    ----------
    shape : (int, int)
        Rows and columns that the lists beside it name.

    Returns
    -------
    scipy.sparse.csc_matrix, shape (rows, columns)
        As stored: int64 or float64.

    Raises
    ------
    MissingInput, BadInput
    """
    from scipy.io import mmread

    what = "a Matrix Market file of counts"
    with open_text(path, "The matrix file") as file:
        text = file.read()
    lines, kind, stated = io.BytesIO(text), "", ""
    for number in range(10_000):
        line = lines.readline(1 << 12).decode("ascii", "replace").strip()
        if number == 0:
            kind = line.lower()
        elif line and not line.startswith("%"):
            stated = line
            break
    if kind.split() not in (
        ["%%matrixmarket", "matrix", "coordinate", number_kind, "general"] for number_kind in ("integer", "real")
    ):
        raise BadInput(path, what, f"it begins with {kind[:60]!r}; wanted a general coordinate matrix of numbers")
    sizes = stated.split()
    if len(sizes) != 3 or not all(size.isdecimal() and len(size) < 20 for size in sizes):
        raise BadInput(path, what, f"its line of sizes is {stated[:60]!r}; wanted rows, columns and entries")
    rows, columns, entries = map(int, sizes)
    if (rows, columns) != shape or max(shape) > LARGEST_SHAPE:
        raise BadInput(path, what, f"it has {rows:,} x {columns:,} entries, and the lists beside it {shape}")
    body = text[lines.tell() :]  # SciPy reads 5.5 as 5 where it expects whole numbers, and 1,5 as 1
    if foreign := body.translate(None, b"0123456789+- \t\r\n" + (b".eE" if "real" in kind else b"")):
        raise BadInput(
            path, what, f"its entries hold {foreign[:1].decode('latin-1')!r}; wanted {kind.split()[3]} counts"
        )
    blank = np.isin(np.frombuffer(b" " + body, np.uint8), np.frombuffer(b" \t\r\n", np.uint8))
    numbers = int((blank[:-1] & ~blank[1:]).sum())
    if numbers != 3 * entries:
        raise BadInput(path, what, f"it declares {entries:,} entries of 3 numbers and holds {numbers:,} numbers")
    try:
        found: Any = mmread(io.BytesIO(text), spmatrix=False)
    except (ValueError, OverflowError, OSError) as error:
        raise BadInput(path, what, f"the file is truncated or damaged ({str(error)[:120]})") from error
    matrix = sparse.csc_matrix(found)
    if matrix.nnz < entries:  # SciPy has added them up
        raise BadInput(path, what, f"{entries - matrix.nnz:,} of its {entries:,} entries repeat a row and column")
    return matrix


_child = ChildProcess("from cmrcnet.readers.sparse_files import serve; serve()")


def serve() -> None:
    """In the child: read each file; any error that Python sees is met again, and named, by the caller."""

    def fault(path: Path) -> str:
        with contextlib.suppress(Exception):
            _read_all(path)
        return ""

    serve_files(fault)


def _read_all(path: Path) -> None:
    """Read attributes, text and small datasets of every group."""
    import h5py
    from h5py import h5o  # pyright: ignore[reportAttributeAccessIssue]  (compiled)

    with h5py.File(path, "r", locking=False) as file:
        with contextlib.suppress(Exception):
            h5_fault(file, in_blocks=True)  # the calls that follow in the caller, in their order
        waiting: list[Any] = [file]
        seen = set()
        while waiting:
            group = waiting.pop()
            links = ((key, group.get(key, getlink=True)) for key in group)
            for found in (group, *(group[key] for key, link in links if isinstance(link, h5py.HardLink))):
                with contextlib.suppress(Exception):
                    _ = dict(found.attrs)
                if hasattr(found, "nbytes"):
                    with contextlib.suppress(Exception):
                        if found.nbytes <= READ_BYTES or (found.dtype.kind == "O" and found.size <= MOST_TEXTS):
                            _ = found[()]
                elif found is not group:
                    address = h5o.get_info(found.id).addr
                    if address not in seen:  # a group may hold itself
                        seen.add(address)
                        waiting.append(found)
