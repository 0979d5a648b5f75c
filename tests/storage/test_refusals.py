"""A refusal of the system is told from damage, also where a library hides its number."""

from __future__ import annotations

import errno

import pytest

from cmrcnet.storage.refusals import error_number, fault_of_file, raise_refusal


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.EMFILE, "x"), errno.EMFILE),
        (OSError("cannot open (name = 'a.h5', errno = 24, error message = 'Too many open files')"), errno.EMFILE),
        (RuntimeError("I/O error: File too large (os error 27)"), errno.EFBIG),
        (ValueError("not an HDF5 file"), None),
    ],
)
def test_the_number_is_found(error, number):
    assert error_number(error) == number


def test_a_refusal_is_not_called_damage():
    refused = OSError("Unable to open file (errno = 13, error message = 'Permission denied')")
    assert fault_of_file(refused) == "the system refuses it (permission denied)"
    with pytest.raises(PermissionError, match=r"a\.h5ad"):
        raise_refusal(refused, "a.h5ad")
    damaged = OSError("Unable to open file (file signature not found)")
    raise_refusal(damaged, "a.h5ad")
    assert fault_of_file(damaged).startswith("the file is truncated, damaged or of another kind (Unable to open file")
