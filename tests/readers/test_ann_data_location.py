"""One row of a table on disk: the same as the row of the whole table, and plain words for what is none."""

from __future__ import annotations

import numpy as np
import pytest

from cmrcnet.analysis.attribution import attribution
from cmrcnet.errors import BadInput, MissingInput, UnknownName
from cmrcnet.inference.predict import predict
from cmrcnet.readers.ann_data import read_location
from cmrcnet.retrieval.bank import build_bank
from tests.inference.small_model import locations, noise_slide, small_cohort, small_model


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    model = small_model()
    table = predict(model, noise_slide(9), bank=build_bank(model, small_cohort()), spots=locations(6, seed=3))
    path = tmp_path_factory.mktemp("one") / "p.h5ad"
    table.copy().write_h5ad(path)
    return table, path


def test_a_row_is_that_of_the_whole_table(stored):
    table, path = stored
    one = read_location(path, "spot4")
    assert one.shape == (1, table.n_vars) and list(one.obs_names) == ["spot4"]
    np.testing.assert_array_equal(one.X[0], table.X[4])
    for name in ("neighbour_ids", "neighbour_weight", "patient_weights", "spatial"):
        np.testing.assert_array_equal(one.obsm[name][0], table.obsm[name][4])
    mine, whole = attribution(one, "spot4"), attribution(table, "spot4")
    assert mine.spots.astype(str).equals(whole.spots.astype(str)) and mine.patient_weights == whole.patient_weights


def test_what_is_no_table_or_no_place_is_refused(stored, tmp_path):
    with pytest.raises(UnknownName, match="There is no location in the prediction 'spot9'; known: spot0, spot1"):
        read_location(stored[1], "spot9")
    with pytest.raises(MissingInput, match=r"The file .wanted: a prediction table. .*nothing\.h5ad does not exist"):
        read_location(tmp_path / "nothing.h5ad", "spot0")
    (tmp_path / "text.h5ad").write_text("no table")
    with pytest.raises(BadInput, match=r"text\.h5ad cannot be read as a prediction table: "):
        read_location(tmp_path / "text.h5ad", "spot0")
