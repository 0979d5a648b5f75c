"""Scaling of tables by kind: by hand, there and back, and what is refused."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from cmrcnet import Cohort, synthetic_cohort
from cmrcnet.config import PanelConfig
from cmrcnet.datasets.synthetic_tables import plant_table
from cmrcnet.errors import BadOption, CmrcnetWarning, SectionError
from cmrcnet.genes.gene_sets import choose_panel, gene_sets
from cmrcnet.genes.scaling import COUNTS, Scaling, centred_log_ratio, fit_scaling, normalize
from cmrcnet.genes.table import decode
from cmrcnet.heads.gene_decoder import GeneBasis, GeneDecoder
from cmrcnet.uncertainty.conformal import bounds


@pytest.fixture(scope="module")
def sections():
    return tuple(synthetic_cohort(patients=3, spots=16, genes=24))


def table(section, kind, values=None, names=None):
    planted = plant_table(section, kind, features=4).section
    if values is None:
        return planted
    names = names or [f"f{i}" for i in range(np.shape(values)[1])]
    values = np.asarray(values, np.float32)
    return replace(planted.take(np.arange(len(values))), counts=sparse.csr_matrix(values), genes=tuple(names))


def test_counts_are_scaled_as_ever(sections):
    wanted = normalize(sections[0].counts, 10_000.0)
    found = COUNTS.expression(sections[0])
    assert (found != wanted).nnz == 0
    np.testing.assert_allclose(COUNTS.inverse(found.toarray()).sum(axis=1), 10_000, rtol=1e-4)


def test_continuous_features_are_standardised_within_their_section_or_over_training(sections):
    made = [table(section, "continuous") for section in sections]
    within = Scaling("continuous").expression(made[0]).toarray()
    np.testing.assert_allclose(within.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(within.std(axis=0), 1, atol=1e-4)
    over = fit_scaling(made, PanelConfig(standardize="training"))
    whole = np.concatenate([each.counts.toarray() for each in made]).astype(np.float64)
    np.testing.assert_allclose(over.mean, whole.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(over.deviation, whole.std(axis=0), rtol=1e-9)
    stored = Scaling.from_dict(over.to_dict())
    assert stored == over
    back = stored.inverse(over.expression(made[1]).toarray(), made[1].genes)
    np.testing.assert_allclose(back, made[1].counts.toarray(), rtol=1e-4, atol=1e-4)
    with pytest.raises(BadOption, match="level of a new section is not known"):
        Scaling("continuous").inverse(within)


def test_a_feature_that_never_varies_is_zero_and_not_infinite(sections):
    made = table(sections[0], "continuous", [[1e6, 1], [1e6, 2], [1e6, 4]])
    assert np.isfinite(Scaling("continuous").expression(made).toarray()).all()
    over = fit_scaling([made], PanelConfig(standardize="training"))
    assert over.expression(made).toarray()[:, 0].tolist() == [0, 0, 0]


@given(st.lists(st.lists(st.integers(0, 40), min_size=4, max_size=4), min_size=1, max_size=5))
def test_log_ratios_sum_to_zero_and_lead_back_to_the_shares(counts):
    counts = np.array(counts, float)
    counts[:, 0] += 1
    shares = counts / counts.sum(axis=1, keepdims=True)
    logs = centred_log_ratio(shares, 0.01)
    np.testing.assert_allclose(logs.sum(axis=1), 0, atol=1e-9)
    back = Scaling("proportions", features=tuple("abcd")).inverse(logs)
    floored = np.maximum(shares, 0.01)
    np.testing.assert_allclose(back, floored / floored.sum(axis=1, keepdims=True), atol=1e-9)


@given(st.lists(st.just(0) | st.integers(1, 20), min_size=2, max_size=6), st.floats(1e-4, 0.15))
def test_log_ratios_keep_the_order_of_the_parts_and_tell_apart_those_above_the_floor(parts, floor):
    parts = np.array(parts, float)
    parts[0] += 500
    shares = parts / parts.sum()
    logs = centred_log_ratio(shares[None], floor)[0]
    order = np.argsort(shares, kind="stable")
    steps = np.diff(logs[order])
    assert (steps >= 0).all()
    apart = (np.diff(shares[order]) > 1e-9) & (shares[order][1:] > floor * 1.001)
    assert (steps[apart] > 0).all()


def test_the_log_ratio_by_hand():
    logs = np.log([0.5, 0.5, 0.02])
    np.testing.assert_allclose(centred_log_ratio(np.array([[0.5, 0.5, 0]]), 0.02)[0], logs - logs.mean(), rtol=1e-9)
    absent, rare, most = centred_log_ratio(np.array([[0, 0.002, 0.998]]), 0.01)[0]
    assert absent == rare < most


def test_shares_below_the_floor_are_reported_with_the_option(sections):
    few = table(sections[0], "proportions", [[0.004, 0.996], [0.3, 0.7]])
    with pytest.warns(CmrcnetWarning, match=r"More than 5% .* below panel.zero_replacement \(0.01\) and count as it"):
        fit_scaling([few], PanelConfig())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_scaling([few], PanelConfig(zero_replacement=0.004))
        fit_scaling([table(sections[0], "proportions", [[0, 1], [0.3, 0.7]])], PanelConfig())


def test_what_cannot_be_scaled_is_refused_with_the_reason(sections):
    parts = fit_scaling([table(sections[0], "proportions")], PanelConfig())
    other = table(sections[1], "proportions", [[0.5, 0.5], [0.25, 0.75]])
    with pytest.raises(SectionError, match="log-ratios compare only the same parts"):
        parts.expression(other)
    with pytest.raises(BadOption, match="all parts of the whole"):
        parts.inverse(np.zeros((1, 2)), parts.features[:2])
    with pytest.raises(BadOption, match="below 1 / 4"):
        fit_scaling([table(sections[0], "proportions")], PanelConfig(zero_replacement=0.3))
    with pytest.raises(SectionError, match="of kind binary, and the model or cohort holds proportions"):
        parts.expression(table(sections[0], "binary"))
    with pytest.raises(SectionError, match="one location"):
        Scaling("continuous").expression(table(sections[0], "continuous", [[1, 2]]))
    over = fit_scaling([table(sections[0], "continuous")], PanelConfig(standardize="training"))
    with pytest.raises(SectionError, match="lacks 2 of the 2"):
        over.expression(table(sections[1], "continuous", [[1, 2], [2, 3]]))


def test_no_prediction_of_a_share_nor_its_interval_leaves_0_to_1():
    scaling = Scaling("binary")
    stated = {"scaling": json.dumps(scaling.to_dict())}
    components, loadings, level = np.array([[1.0, 0], [-1, 0]]), np.array([[2.0, 1.0]]), np.array([0.5])
    assert decode(components, loadings, level, stated).ravel().tolist() == [1, 0]
    lower, upper = bounds(np.array([[0.9], [0.1]]), np.ones(2), np.array([-0.3]), np.array([0.4]), scaling.limits)
    np.testing.assert_allclose(np.column_stack([lower, upper]), [[0.6, 1], [0, 0.5]], rtol=1e-6)
    basis = GeneBasis(np.array([0.5]), np.array([[2.0]]))
    assert basis.expression(np.array([[1.0], [-1.0]]), np.array([0]), scaling.limits).ravel().tolist() == [1, 0]
    decoder = GeneDecoder(np.array([0.5]), np.ones(1), np.array([[2.0]]))
    how = {"covariance": np.eye(1), "variance_rescaling": 0.0, "limits": scaling.limits}
    assert decoder.expression(np.array([[1.0], [-1.0]]), np.array([0]), **how).ravel().tolist() == [1, 0]


def test_a_cohort_holds_tables_of_one_kind(sections):
    mixed = Cohort.of([sections[0], table(sections[1], "binary")])
    with pytest.raises(SectionError, match="of kind binary, and P1S1 holds counts"):
        choose_panel(mixed, PanelConfig())


def test_the_panel_of_another_kind_is_every_feature_and_its_sets_are_defined(sections):
    cohort = Cohort.of([table(section, "continuous") for section in sections])
    panel = choose_panel(cohort, PanelConfig())
    assert panel.genes == cohort.read("P1S1").genes
    sets = gene_sets(cohort, panel.scaling, 3)
    assert sets["HVG"] == sets["SVG"]
    assert sets["HEG"] == panel.genes[:3]


def test_pearson_residuals_are_those_of_scanpy_and_lead_to_the_same_sets(sections):
    import anndata
    import scanpy

    counts = sections[0].counts
    found = scanpy.experimental.pp.normalize_pearson_residuals(anndata.AnnData(counts.toarray()), inplace=False)
    scaling = Scaling(target="pearson")
    np.testing.assert_allclose(scaling.expression(sections[0]).toarray(), found["X"], rtol=1e-4, atol=1e-5)
    cohort = Cohort.of(sections)
    panel = choose_panel(cohort, PanelConfig(target="pearson"))
    assert panel.scaling == scaling
    assert gene_sets(cohort, scaling, 5) == gene_sets(cohort, COUNTS, 5)
    unlisted = replace(panel, genes=("not-listed", panel.genes[3]))
    picked = unlisted.select(sections[0]).toarray()
    assert not picked[:, 0].any()
    np.testing.assert_array_equal(picked[:, 1], panel.select(sections[0]).toarray()[:, 3])
    assert scaling.limits == (-np.inf, np.inf)
    with pytest.raises(BadOption, match="depth and the shares"):
        scaling.inverse(picked)
