"""Values that each kind of table refuses, with the place of the first."""

import numpy as np
import pytest

from cmrcnet import Section
from cmrcnet.errors import BadOption, SectionError
from cmrcnet.slides.table_kinds import check_values


@pytest.mark.parametrize(
    ("kind", "row", "words"),
    [
        ("counts", [1.5, 2], "not raw counts: 1 values are fractional"),
        ("counts", [-1, 2], "negative"),
        ("continuous", [np.nan, 2], r"1 value is missing \(NaN\), the first \(nan\) at spot s2, feature A"),
        ("continuous", [np.inf, 2], "infinite"),
        ("continuous", [1e38, 2], "too large"),
        ("proportions", [0.5, 0.6], r"1 row does not sum to 1, the first \(sum 1.1\) at spot s2"),
        ("proportions", [-0.5, 1.5], r"negative, the first \(-0.5\) at spot s2, feature A"),
        ("proportions", [0, 0], "sum 0"),
        ("proportions", [np.nan, 1], "NaN"),
        ("binary", [0, 0.5], r"neither 0 nor 1, the first \(0.5\) at spot s2, feature B"),
        ("binary", [-1, 1], "neither 0 nor 1"),
        ("binary", [np.nan, 1], "NaN"),
    ],
)
def test_each_kind_refuses_its_own_bad_values(kind, row, words):
    values = np.array([[0.0, 1.0], row])
    with pytest.raises(SectionError, match=words):
        check_values(values, kind, "C1", barcodes=["s1", "s2"], features=["A", "B"])


@pytest.mark.parametrize("kind", ["counts", "continuous", "proportions", "binary"])
def test_each_kind_takes_what_all_may_hold(kind):
    check_values(np.eye(2), kind, "C1")


def test_a_section_has_a_kind_and_zeros_only_where_they_are_counts():
    import anndata
    import pandas as pd

    made = anndata.AnnData(np.array([[-1.5, 2], [3, 4]], np.float32), pd.DataFrame(index=["s1", "s2"]))
    made.obsm["spatial"] = np.array([[30.0, 40.0], [70.0, 40.0]])
    pixels = np.full((80, 100, 3), 200, np.uint8)
    options = {"mpp": 0.5, "spot_diameter_um": 55.0}
    section = Section.from_anndata(made, pixels, table_kind="continuous", **options)
    assert (section.table_kind, section.counts.min()) == ("continuous", -1.5)
    with pytest.raises(SectionError, match="or state the table_kind"):
        Section.from_anndata(made, pixels, **options)
    with pytest.raises(BadOption, match="one of counts, continuous, proportions, binary"):
        Section.from_anndata(made, pixels, table_kind="levels", **options)
    with pytest.raises(BadOption, match="absent_genes"):
        Section.from_anndata(made, pixels, table_kind="continuous", absent_genes="zero", **options)


def test_percentages_are_called_so():
    with pytest.raises(SectionError, match="all rows sum to 100: these are percentages, so divide them by 100"):
        check_values(np.array([[20.0, 80.0], [50, 50]]), "proportions", "C1")
