"""Localisation: AUC against scikit-learn and by hand, scores by hand, planted regions found, chance at one half."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from cmrcnet.analysis.localisation import (
    _auc_of_ranks,
    _rank,
    coarse,
    localise,
    mean_over_patients,
    measured_expression,
    signature_scores,
)
from cmrcnet.errors import BadOption, SectionError, TooFew


def auc(scores, inside):
    return float(_auc_of_ranks(_rank(scores[None].astype(float)), inside[None])[0])


def planted(seed=0, n=80, effect=2.0):
    """Spots of which the first half are cancer, where genes A and B are higher; C is noise, D is constant."""
    rng = np.random.default_rng(seed)
    inside = np.arange(n) < n // 2
    table = pd.DataFrame(rng.normal(size=(n, 3)), columns=list("ABC"), index=[f"s{i}" for i in range(n)])
    table.loc[inside, ["A", "B"]] += effect
    table["D"] = 1.0
    return table, pd.Series(np.where(inside, "cancer", "stroma"), index=table.index)


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.integers(-3, 3), min_size=4, max_size=30),  # whole numbers, so that ties are real
    seed=st.integers(0, 99),
)
def test_auc_is_scikit_learns_and_that_of_the_outside_is_its_complement(scores, seed):
    inside = np.random.default_rng(seed).random(len(scores)) < 0.5
    inside[:2] = [True, False]
    value = auc(np.array(scores), inside)
    assert value == pytest.approx(roc_auc_score(inside, scores))
    assert auc(np.array(scores), ~inside) == pytest.approx(1 - value)


def test_auc_by_hand():
    # inside 3 and 1, outside 2 and 1: of four pairs 3>2, 3>1 count one, 1=1 a half, 1<2 nothing.
    assert auc(np.array([3, 1, 2, 1]), np.array([True, True, False, False])) == pytest.approx(2.5 / 4)
    assert np.isnan(auc(np.array([1, 2]), np.array([True, True])))
    assert np.isnan(auc(np.array([1, np.nan]), np.array([True, False])))


def test_scores_by_hand():
    table = pd.DataFrame({"A": [0.0, 2.0], "B": [5.0, 1.0], "C": [1.0, 1.0]}, index=["p", "q"])
    scores, n_genes = signature_scores(
        table, {"one": ["A"], "both": ["A", "B"], "flat": ["C"], "with": ["A", "C", "X"]}
    )
    assert scores["one"].tolist() == [-1, 1]
    assert scores["both"].tolist() == [0, 0]
    assert scores["flat"].isna().all()
    assert scores["with"].tolist() == [-1, 1]
    assert n_genes.to_dict() == {"one": 1, "both": 2, "flat": 0, "with": 1}


def test_a_table_that_has_none_of_the_genes():
    with pytest.raises(SectionError, match=r"The signatures and the expression table share no genes"):
        signature_scores(pd.DataFrame({"A": [1.0, 2.0]}), {"s": ["Z"]})


@settings(max_examples=20, deadline=None)
@given(shift=st.floats(-5, 5), scale=st.floats(0.1, 10))
def test_scores_do_not_know_a_genes_level_or_scale(shift, scale):
    table, _ = planted()
    moved = table.assign(A=table["A"] * scale + shift)
    first, second = (signature_scores(each, {"s": ["A", "B"]})[0]["s"] for each in (table, moved))
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_a_planted_region_is_found_and_noise_is_not():
    truth, regions = planted(effect=2.0)
    prediction, _ = planted(seed=1, effect=0.7)
    found = localise(prediction, regions, {"tumour": ["A", "B"], "noise": ["C"]}, truth, n_bootstrap=300)
    by = found.set_index(["region", "signature"])
    tumour, noise = by.loc[("cancer", "tumour")], by.loc[("cancer", "noise")]
    assert tumour.ceiling > 0.95 > tumour.auc > 0.6
    assert tumour.auc_low < tumour.auc < tumour.auc_high and tumour.auc_low > 0.5
    assert noise.auc_low < 0.5 < noise.auc_high
    assert by.loc[("stroma", "tumour")].auc == pytest.approx(1 - tumour.auc)
    assert (tumour.n_spots, tumour.n_inside, tumour.n_genes, tumour.ceiling_genes) == (80, 40, 2, 2)
    inside = (regions == "cancer").to_numpy()
    scores = signature_scores(prediction, {"s": ["A", "B"]})[0]["s"]
    assert tumour.auc == pytest.approx(roc_auc_score(inside, scores))


def test_the_interval_is_the_percentiles_of_resampled_aucs():
    prediction, regions = planted(effect=0.7, n=40)
    row = localise(prediction, regions, {"s": ["A"]}, n_bootstrap=200, level=0.9, seed=3).iloc[0]
    draws = np.random.default_rng(3).integers(0, 40, (200, 40))
    inside, scores = (regions == "cancer").to_numpy(), prediction["A"].to_numpy()
    obvious = [roc_auc_score(inside[draw], scores[draw]) for draw in draws if 0 < inside[draw].sum() < 40]
    np.testing.assert_allclose([row.auc_low, row.auc_high], np.quantile(obvious, [0.05, 0.95]))


def test_the_same_seed_gives_the_same_table_and_the_order_of_spots_does_not_matter():
    prediction, regions = planted()
    signatures = {"s": ["A", "B"]}
    first = localise(prediction, regions, signatures, n_bootstrap=50, seed=1)
    pd.testing.assert_frame_equal(first, localise(prediction, regions, signatures, n_bootstrap=50, seed=1))
    turned = localise(prediction, regions[::-1], signatures, n_bootstrap=50, seed=1)
    pd.testing.assert_frame_equal(first, turned)


def test_truth_is_scored_on_the_very_same_spots():
    prediction, regions = planted()
    truth = prediction.iloc[::-1].iloc[5:]  # other order, five spots fewer
    found = localise(prediction, regions, {"s": ["A"]}, truth, n_bootstrap=0)
    assert (found.n_spots == 75).all()
    assert found.auc_low.isna().all()
    np.testing.assert_allclose(found.auc, found.ceiling)


def test_an_annotated_table_serves_as_a_frame_does():
    frame, regions = planted()
    table = anndata.AnnData(frame.to_numpy(np.float32))
    table.obs_names, table.var_names = list(frame.index), list(frame.columns)
    kept = localise(table, regions, {"s": ["A", "B"]}, n_bootstrap=0)
    np.testing.assert_allclose(kept.auc, localise(frame, regions, {"s": ["A", "B"]}, n_bootstrap=0).auc, atol=1e-6)


def test_what_says_nothing_is_on_neither_side():
    prediction, regions = planted()
    regions[60:] = "Unknown"
    found = localise(prediction, regions, {"s": ["A"]}, n_bootstrap=0)
    assert set(found.region) == {"cancer", "stroma"} and (found.n_spots == 60).all()


def test_small_regions_are_left_out_and_no_region_is_an_error():
    prediction, regions = planted()
    regions[:3] = "glands"
    assert "glands" not in set(localise(prediction, regions, {"s": ["A"]}, n_bootstrap=0).region)
    assert "glands" in set(localise(prediction, regions, {"s": ["A"]}, n_bootstrap=0, min_spots=3).region)
    with pytest.raises(TooFew, match=r"0 regions have enough spots"):
        localise(prediction, pd.Series("cancer", index=prediction.index), {"s": ["A"]})
    with pytest.raises(TooFew, match=r"check that both use the same spot names"):
        localise(prediction, {"elsewhere": "cancer"}, {"s": ["A"]})
    with pytest.raises(BadOption, match=r"level is 95; wanted a share"):
        localise(prediction, regions, {"s": ["A"]}, level=95)


def sections(values):
    rows = [{"section": s, "region": "cancer", "signature": "s", "auc": a, "ceiling": 0.9} for s, a in values.items()]
    return pd.DataFrame(rows)


def test_means_over_patients():
    table = sections({"B4": 0.5, "C2": 0.8, "C3": 0.9})
    [row] = mean_over_patients(table.assign(patient=table["section"].str[0])).to_dict("records")
    assert (row["auc"], row["n"], row["over"]) == (pytest.approx(0.675), 2, "patients")
    [row] = mean_over_patients(table.assign(patient="A")).to_dict("records")
    assert (row["auc"], row["n"], row["over"]) == (pytest.approx(2.2 / 3), 3, "sections")
    assert row["auc_low"] == pytest.approx(2.2 / 3 - 4.30265 * 0.208167 / np.sqrt(3), abs=1e-4)
    assert row["auc_high"] == 1.0  # an AUC is not above 1
    assert row["ceiling_low"] == row["ceiling_high"] == pytest.approx(0.9)
    [single] = mean_over_patients(sections({"B4": 0.5}).assign(patient="B")).to_dict("records")
    assert np.isnan(single["auc_low"]) and np.isnan(single["auc_high"])


@pytest.mark.parametrize(
    ("label", "short"),
    [
        ("cancer 2", "cancer"),
        ("immune : B/plasma cells, APC", "immune"),
        ("breast glands 1", "breast glands"),
        ("invasive cancer", "invasive cancer"),
    ],
)
def test_coarse_labels(label, short):
    assert coarse(label) == short


@pytest.mark.shared
def test_the_measured_tumour_signature_finds_the_cancer_of_her2st(her2st_csv):
    from cmrcnet.genes.markers import markers
    from cmrcnet.readers.annotations import read_cohort_regions
    from cmrcnet.readers.cohort import read_cohort

    section = read_cohort(her2st_csv).read("C6")
    signatures = markers("breast").measured(section.genes)
    truth = measured_expression(section, [gene for genes in signatures.values() for gene in genes])
    regions = read_cohort_regions(her2st_csv)["C6"].map(coarse)
    found = localise(truth, regions, signatures, n_bootstrap=100).set_index(["region", "signature"])
    assert found.loc[("cancer", "her2_amplicon")].auc > 0.75
    assert found.loc[("immune", "antigen_presentation")].auc > 0.7
    assert found.loc[("cancer", "plasma_cells")].auc < 0.3
