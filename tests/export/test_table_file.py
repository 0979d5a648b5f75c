"""A table filled block by block: stopped anywhere it goes on, and at the end it is an AnnData like any other."""

from __future__ import annotations

import anndata
import h5py
import numpy as np
import pytest

from cmrcnet.export.table_file import BLOCK, TableFile
from tests.export.conftest import gradient_table


def frame_of(table: anndata.AnnData) -> anndata.AnnData:
    return anndata.AnnData(obs=table.obs, var=table.var, uns=table.uns, obsm={"spatial": table.obsm["spatial"]})


def write(file: TableFile, table: anndata.AnnData, rows: slice) -> None:
    neighbours = {name: table.obsm[name][rows] for name in ("neighbour_ids", "neighbour_similarity")}
    file.write(
        rows,
        table.X[rows],
        layers={"neighbour_std": table.layers["neighbour_std"][rows]},
        obsm=neighbours,
        obs={"number": np.arange(rows.start, rows.stop, dtype=np.int32)},
    )


def test_a_file_of_blocks_is_the_table(tmp_path):
    table = gradient_table()
    file = TableFile(tmp_path / "t.h5ad", table.n_obs, "a")
    for start in range(0, table.n_obs, 10):
        write(file, table, slice(start, min(start + 10, table.n_obs)))
    np.testing.assert_array_equal(file.neighbour_rows(), [0])
    file.finish(frame_of(table))
    found = anndata.read_h5ad(tmp_path / "t.h5ad")
    np.testing.assert_array_equal(found.X, table.X)
    np.testing.assert_array_equal(found.layers["neighbour_std"], table.layers["neighbour_std"])
    np.testing.assert_array_equal(found.obs["number"], np.arange(table.n_obs))
    assert set(found.obsm) == set(table.obsm) and set(found.uns) == set(table.uns)
    assert [path.name for path in tmp_path.iterdir()] == ["t.h5ad"]
    backed = anndata.read_h5ad(tmp_path / "t.h5ad", backed="r")
    np.testing.assert_array_equal(backed[5:9].X, table.X[5:9])


def test_it_goes_on_behind_what_was_written_under_its_name(tmp_path):
    table, path = gradient_table(), tmp_path / "t.h5ad"
    write(TableFile(path, table.n_obs, "a"), table, slice(0, 10))  # never closed: as a killed process leaves it
    assert TableFile(path, table.n_obs, "b").written == 0
    file = TableFile(path, table.n_obs, "a")
    assert file.written == 10
    with pytest.raises(RuntimeError, match="rows 12 follow 10"):
        write(file, table, slice(12, 14))
    write(file, table, slice(10, table.n_obs))
    file.finish(frame_of(table))
    np.testing.assert_array_equal(anndata.read_h5ad(path).X, table.X)


def test_killed_while_it_is_finished_the_table_is_written_again(tmp_path, monkeypatch):
    table, path = gradient_table(), tmp_path / "t.h5ad"
    file = TableFile(path, table.n_obs, "a")
    write(file, table, slice(0, table.n_obs))

    def stops(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("anndata.io.write_elem", stops)
    with pytest.raises(KeyboardInterrupt):
        file.finish(frame_of(table))
    assert TableFile(path, table.n_obs, "a").written == 0


def test_a_map_of_one_gene_reads_a_small_part_of_the_file(tmp_path):
    file = TableFile(tmp_path / "t.h5ad", 600, "a")
    file.write(slice(0, 600), np.ones((600, 300), np.float32), layers={})
    file.close()
    with h5py.File(tmp_path / "t.h5ad") as stored:
        assert stored["X"].chunks == BLOCK and stored["X"].compression is None
        assert (stored["X"][:] == 1).all()
