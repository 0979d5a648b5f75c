"""Fingerprints: the same content has the same name, in every run, and other content another."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrcnet.storage.hashing import fingerprint, fingerprint_stream

PARTS = [b"bytes", "text", np.arange(6, dtype=np.int32), {"b": 1, "a": [1.5, None]}, 7, None, True]


def test_a_fingerprint_is_32_hexadecimal_digits_of_blake2b():
    found = fingerprint(b"slide", "C6", 3)
    assert len(found) == 32 and set(found) <= set("0123456789abcdef")
    assert found == hashlib.blake2b(b"bytes 5\nslidetext 2\nC6json 1\n3", digest_size=16).hexdigest()


def test_it_is_the_same_in_another_process():
    code = (
        "import numpy as np; from cmrcnet.storage.hashing import fingerprint\n"
        "print(fingerprint(b'bytes', 'text', np.arange(6, dtype=np.int32), {'b': 1, 'a': [1.5, None]}, 7, None, True))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == fingerprint(*PARTS)


def test_a_stream_has_the_name_of_its_parts():
    assert fingerprint_stream(iter(PARTS)) == fingerprint(*PARTS)


def test_different_content_has_different_names():
    array = np.arange(6, dtype=np.int32)
    different = [
        (),
        (b"ab",),
        ("ab",),
        (b"a", b"b"),
        (b"b", b"a"),
        ("1",),
        (1,),
        (1.0,),
        (None,),
        ([1, 2],),
        ([2, 1],),
        ({"a": 1},),
        (array,),
        (array.reshape(2, 3),),
        (array.reshape(3, 2),),
        (array.astype(np.int64),),
        (array.astype(np.uint32),),
        (array.astype(">i4"),),
        (array[::-1],),
        (array.tobytes(),),
    ]
    assert len({fingerprint(*parts) for parts in different}) == len(different)


def test_the_order_of_a_dictionary_and_the_layout_of_an_array_do_not_count():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    array = np.arange(24).reshape(4, 6)
    assert fingerprint(array) == fingerprint(np.asfortranarray(array)) == fingerprint(np.repeat(array, 2, 0)[::2])


def test_a_part_that_cannot_be_written_down_is_refused():
    with pytest.raises(TypeError):
        fingerprint({1, 2})  # a set has no order


@pytest.mark.parametrize("shape", [(0,), (0, 3), ()])
def test_empty_and_single_arrays_have_names(shape):
    assert len(fingerprint(np.zeros(shape, np.float32))) == 32


@settings(max_examples=50, deadline=None)
@given(one=st.lists(st.binary(max_size=4), max_size=4), two=st.lists(st.binary(max_size=4), max_size=4))
def test_parts_do_not_run_into_each_other(one, two):
    assert (fingerprint(*one) == fingerprint(*two)) == (one == two)


def test_a_part_cannot_pretend_to_be_two():
    assert fingerprint(b"2", b"hello") != fingerprint(b"bytes 5hello")
