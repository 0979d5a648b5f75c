"""Gene-gene correlation: numpy's, errors by hand, batch effects that make no pair, a picture that is one."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import sparse

from cmrcnet.errors import ShapeMismatch, TooFew
from cmrcnet.evaluation.metrics.set_metrics import GeneCorrelation, gene_correlation
from cmrcnet.evaluation.report.gene_section import cluster_order, gene_correlation_png

GENES = ("A", "B", "C", "D")


def section(seed=0, spots=40, genes=4):
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(spots, 1))
    return rng.normal(size=(spots, genes)) + shared * np.linspace(0, 2, genes)


def test_one_section_is_numpys_correlation_dense_or_sparse():
    truth, guess = section(0), section(1)
    found = gene_correlation([(sparse.csr_matrix(truth), guess)], GENES)
    np.testing.assert_allclose(found.truth, np.corrcoef(truth.T), atol=1e-12)
    np.testing.assert_allclose(found.prediction, np.corrcoef(guess.T), atol=1e-12)


def test_the_errors_by_hand():
    truth = np.array([[1, 0.5, 0.0], [0.5, 1, -0.5], [0.0, -0.5, 1]])
    guess = np.array([[1, 0.9, 0.0], [0.9, 1, -0.2], [0.0, -0.2, 1]])
    found = GeneCorrelation(("A", "B", "C"), truth, guess)
    assert found.rms == pytest.approx(np.linalg.norm(truth - guess) / np.sqrt(6))
    assert found.rms == pytest.approx(np.sqrt((0.4**2 + 0 + 0.3**2) / 3))
    assert found.agreement == pytest.approx(np.corrcoef([0.5, 0, -0.5], [0.9, 0, -0.2])[0, 1])
    assert len(found.pairs[0]) == 3


def test_the_truth_predicted_is_without_error():
    truth = section()
    found = gene_correlation([(truth, truth * 3 + 1)], GENES)  # neither level nor scale of a gene matters
    assert found.rms == pytest.approx(0, abs=1e-9)
    assert found.agreement == pytest.approx(1)


def test_a_constant_gene_is_counted_and_left_out():
    truth = section()
    guess = truth.copy()
    guess[:, 2] = 0.1 + 0.2  # constant but for rounding
    found = gene_correlation([(truth, guess)], GENES)
    assert np.isnan(found.prediction[2]).all()
    assert len(found.pairs[0]) == 3  # of 6
    assert found.rms == pytest.approx(0, abs=1e-9)
    nothing = gene_correlation([(truth, np.zeros_like(truth))], GENES)
    assert len(nothing.pairs[0]) == 0
    assert np.isnan([nothing.rms, nothing.agreement]).all()


@settings(max_examples=20, deadline=None)
@given(shift=st.floats(-50, 50))
def test_a_difference_between_sections_makes_no_pair(shift):
    one, two = section(0), section(1)
    apart = gene_correlation([(one, one), (two, two)], GENES)
    moved = gene_correlation([(one, one), (two + shift, two + shift)], GENES)
    np.testing.assert_allclose(moved.truth, apart.truth, atol=1e-9)


def test_two_sections_are_their_centred_spots_together():
    one, two = section(0), section(1, spots=25)
    together = np.vstack([one - one.mean(axis=0), two - two.mean(axis=0)])
    np.testing.assert_allclose(gene_correlation([(one, one), (two, two)], GENES).truth, np.corrcoef(together.T))


def test_genes_that_go_together_stand_together():
    rng = np.random.default_rng(0)
    groups = np.array([0, 1, 0, 1, 0, 1])
    values = rng.normal(size=(100, 2))[:, groups] + 0.1 * rng.normal(size=(100, 6))
    order = cluster_order(np.corrcoef(values.T))
    assert sorted(order) == list(range(6))
    assert len({tuple(groups[order[:3]]), tuple(groups[order[3:]])}) == 2 and len(set(groups[order[:3]])) == 1
    assert cluster_order(np.full((4, 4), np.nan)).shape == (4,)
    assert list(cluster_order(np.eye(2))) == [0, 1]


def test_the_figure_is_the_same_png_every_time():
    found = gene_correlation([(section(0), section(1))], GENES)
    png = gene_correlation_png(found)
    assert png == gene_correlation_png(found)
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG" and picture.width > 900
        colours = np.asarray(picture.convert("RGB"), dtype=int)
    assert (np.abs(colours - (103, 0, 31)).sum(axis=2) < 30).sum() > 200  # the diagonal, 1, darkest red
    many = gene_correlation([(section(0, genes=80), section(1, genes=80))], [f"G{i}" for i in range(80)])
    assert gene_correlation_png(many).startswith(b"\x89PNG")


def test_bad_input():
    with pytest.raises(ShapeMismatch, match=r"The prediction has shape \(40, 3\)"):
        gene_correlation([(section(), section()[:, :3])], GENES)
    with pytest.raises(TooFew, match=r"1 genes, but at least 2"):
        gene_correlation([], ["A"])
    with pytest.raises(TooFew, match=r"0 spots, but at least 3"):
        gene_correlation([], GENES)
