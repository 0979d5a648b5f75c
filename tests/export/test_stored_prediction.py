"""A table read from disk a gene or some locations at a time."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from cmrcnet.errors import BadInput, Incompatible, MissingInput, TooFew, UnknownName
from cmrcnet.export import stored_prediction
from cmrcnet.export.stored_prediction import StoredPrediction, genes_to_show
from tests.export.conftest import GENES, gradient_table


def test_it_gives_what_the_table_holds(prediction):
    table = gradient_table()
    assert len(prediction) == table.n_obs and prediction.genes == list(table.var_names)
    for gene in prediction.genes:
        np.testing.assert_array_equal(prediction.column(gene), table[:, gene].X[:, 0])
    np.testing.assert_array_equal(prediction.rows(slice(3, 9)), table.X[3:9])
    np.testing.assert_array_equal(prediction.rows(slice(3, 9), "neighbour_std"), table.layers["neighbour_std"][3:9])
    assert prediction.slide_px == (700, 500) and prediction.side_px == 100
    picture, step = prediction.picture
    assert picture.shape == (500, 700, 3) and step == 1


def test_what_is_no_prediction_is_refused(tmp_path):
    with pytest.raises(MissingInput, match=r"The prediction table .* does not exist; write one: cmrcnet predict"):
        StoredPrediction(tmp_path / "none.h5ad")
    (tmp_path / "text.h5ad").write_text("no HDF5")
    with pytest.raises(BadInput, match=r"it is not an \.h5ad file, or is truncated"):
        StoredPrediction(tmp_path / "text.h5ad")
    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["X"] = np.zeros((2, 2))
    with pytest.raises(BadInput, match="cmrcnet did not write it"):
        StoredPrediction(tmp_path / "other.h5ad")
    later = gradient_table()
    later.uns["cmrcnet"]["format"] = 99
    later.write_h5ad(tmp_path / "later.h5ad")
    with pytest.raises(Incompatible, match="has format 99, and this version reads 4"):
        StoredPrediction(tmp_path / "later.h5ad")


def test_genes_are_those_named_or_those_that_vary_most(prediction, monkeypatch):
    assert genes_to_show(prediction, None) == list(GENES)
    assert genes_to_show(prediction, ["DOWN", "ACROSS", "DOWN"]) == ["DOWN", "ACROSS"]
    monkeypatch.setattr(stored_prediction, "FEW", 2)
    monkeypatch.setattr(stored_prediction, "SHOWN", 2)
    assert genes_to_show(prediction, None) == ["ACROSS", "DOWN"]
    with pytest.raises(UnknownName, match="There is no gene in the prediction 'ACTB'; known: ACROSS, DOWN"):
        genes_to_show(prediction, ["ACTB"])
    with pytest.raises(TooFew, match="0 genes to show, but at least 1 are needed"):
        genes_to_show(prediction, [])
