"""A table that was changed after it was written is refused, whatever was changed; one that others wrote is read."""

from __future__ import annotations

from typing import Any

import anndata
import h5py
import numpy as np
import pytest

from cmrcnet.errors import BadInput, Damaged
from cmrcnet.export import table_file
from cmrcnet.export.stored_prediction import StoredPrediction
from cmrcnet.export.table_file import TableFile
from tests.export.conftest import gradient_table
from tests.export.test_table_file import frame_of, write


def written(path):
    table = gradient_table()
    file = TableFile(path, table.n_obs, "a")
    write(file, table, slice(0, table.n_obs))
    file.finish(frame_of(table))
    return table


@pytest.fixture(params=["small", "large"])
def sealed(request, tmp_path, monkeypatch):
    """A table checked whole, and one checked where it is read, with the values that it has."""
    if request.param == "large":
        monkeypatch.setattr(table_file, "WHOLE", 0)
    return tmp_path / "t.h5ad", written(tmp_path / "t.h5ad")


def read_all(path) -> list[np.ndarray]:
    with StoredPrediction(path) as stored:
        stored.require_unchanged()
        everything = slice(0, len(stored))
        return [stored.rows(everything), stored.rows(everything, "neighbour_std"), stored.column(stored.genes[-1])]


def test_a_sealed_table_reads_as_it_was(sealed):
    path, table = sealed
    mean, spread, last = read_all(path)
    np.testing.assert_array_equal(mean, table.X)
    np.testing.assert_array_equal(spread, table.layers["neighbour_std"])
    np.testing.assert_array_equal(last, table.X[:, -1])
    np.testing.assert_array_equal(anndata.read_h5ad(path).X, table.X)
    with StoredPrediction(path) as stored:
        again = stored.to_ann_data()
    np.testing.assert_array_equal(again.X, table.X)
    np.testing.assert_array_equal(again.obsm["spatial"], table.obsm["spatial"])
    assert list(again.obs_names) == list(table.obs_names) and list(again.var_names) == list(table.var_names)


def test_any_flip_in_a_small_table_is_refused(tmp_path):
    path, taken = tmp_path / "t.h5ad", []
    written(path)
    whole = path.read_bytes()
    unsealed = len(whole) - len(table_file.MARK)  # a flip in the mark itself: no seal, and the content as it was
    for place in [*range(0, unsealed, max(1, unsealed // 400)), unsealed - 1]:
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        try:
            StoredPrediction(path).close()
            taken.append(place)
        except Damaged:
            pass
    assert taken == []


@pytest.mark.parametrize("key", ["X", "layers/neighbour_std", "obs/similarity", "obsm/spatial", "uns/cmrcnet/mpp"])
def test_a_changed_value_is_refused(sealed, key):
    path, _ = sealed
    seal = path.read_bytes()
    with h5py.File(path, "r") as file:
        place = file[key].id.get_offset()
        if place is None:
            place = file[key].id.get_chunk_info(0).byte_offset
    content = bytearray(seal)
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(Damaged, match=r"t\.h5ad is incomplete or damaged: it is not what cmrcnet wrote; predict again"):
        read_all(path)


def test_only_what_is_read_of_a_large_table_is_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(table_file, "WHOLE", 0)
    monkeypatch.setattr(table_file, "BLOCK", (8, 2))
    path, table = tmp_path / "t.h5ad", written(tmp_path / "t.h5ad")
    with h5py.File(path, "r") as file:
        at = file["X"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[at] ^= 1  # the first gene of the first location
    path.write_bytes(content)
    with StoredPrediction(path) as stored:
        np.testing.assert_array_equal(stored.column(stored.genes[-1]), np.asarray(table.X)[:, -1])
        np.testing.assert_array_equal(stored.rows(slice(8, 16)), np.asarray(table.X)[8:16])
        with pytest.raises(Damaged):
            stored.column(stored.genes[0])
        with pytest.raises(Damaged):
            stored.rows(slice(0, 1))
        with pytest.raises(Damaged):
            stored.require_unchanged()


def test_a_table_that_another_program_wrote_again_is_read(sealed):
    path, table = sealed
    changed = anndata.read_h5ad(path)
    changed.obs["cluster"] = "1"
    changed.write_h5ad(path)
    np.testing.assert_array_equal(read_all(path)[0], table.X)


def test_a_truncated_table_is_refused(sealed):
    path, _ = sealed
    whole = path.read_bytes()
    for keep in (0, 1, 100, len(whole) // 2):
        path.write_bytes(whole[:keep])
        with pytest.raises((Damaged, BadInput)):
            read_all(path)


def test_rows_that_changed_while_a_run_was_stopped_are_written_again(tmp_path):
    table, path = gradient_table(), tmp_path / "t.h5ad"
    first = TableFile(path, table.n_obs, "a")
    write(first, table, slice(0, 5))
    write(first, table, slice(5, 10))
    first.close()
    with h5py.File(path, "r+") as content:
        file: Any = content
        file["layers/neighbour_std"][7, 0] += 1
    again = TableFile(path, table.n_obs, "a")
    assert again.written == 5
    write(again, table, slice(5, table.n_obs))
    again.finish(frame_of(table))
    np.testing.assert_array_equal(anndata.read_h5ad(path).layers["neighbour_std"], table.layers["neighbour_std"])
