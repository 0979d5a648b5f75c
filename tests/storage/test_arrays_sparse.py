"""A matrix that would make compiled code leave its memory is found."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy import sparse

from cmrcnet.storage.arrays import sparse_fault

MATRIX = sparse.csr_matrix(np.array([[0, 3, 0], [1, 0, 2]]))


@pytest.mark.parametrize("matrix", [MATRIX, sparse.csr_matrix((0, 3)), sparse.csr_matrix((2, 0))])
def test_sound_matrices_have_no_fault(matrix):
    assert sparse_fault(matrix.data, matrix.indices, matrix.indptr, matrix.shape, by_row=True) is None
    turned = matrix.tocsc()
    assert sparse_fault(turned.data, turned.indices, turned.indptr, turned.shape, by_row=False) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"indices": [1, 0, 3]}, "an index is 3, outside 0 to 2"),
        ({"indices": [1, 0, -1]}, "an index is -1, outside"),
        ({"indices": np.array([1, 0, 2**63], np.uint64)}, "an index is 9223372036854775808"),
        ({"indices": [1, 2, 2]}, "1 entries repeat a row and column"),
        ({"indices": [1, 0]}, "3 values and 2 indices"),
        ({"indices": [1.0, 0.0, 2.0]}, "indices has shape .* float64"),
        ({"indptr": [0, 4, 3]}, "does not ascend"),
        ({"indptr": np.array([0, 2**63, 3], np.uint64)}, "does not ascend"),
        ({"indptr": [0, 1, 2]}, "runs from 0 to 2; wanted 0 to 3"),
        ({"indptr": [1, 1, 3]}, "runs from 1 to 3"),
        ({"indptr": [0, 3]}, "indptr has 2 entries; wanted 3"),
        ({"data": np.array(["a", "b", "c"])}, "data has shape .* <U1"),
        ({"data": [[1, 2, 3]]}, r"data has shape \(1, 3\)"),
        ({"shape": (2, -1)}, "its shape is"),
        ({"shape": (2, 2**40)}, "its shape is"),
        ({"shape": (2, 3, 1)}, "its shape is"),
    ],
)
def test_faults_are_named(change, said):
    parts = {"data": MATRIX.data, "indices": MATRIX.indices, "indptr": MATRIX.indptr, "shape": MATRIX.shape, **change}
    shape = parts.pop("shape")
    fault = sparse_fault(**{name: np.asarray(part) for name, part in parts.items()}, shape=shape, by_row=True)
    assert fault is not None
    assert re.search(said, fault), fault
