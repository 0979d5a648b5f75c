"""The gene basis: what it says by hand, nothing lost of a teacher on components, the best of one that averages."""

from __future__ import annotations

import numpy as np
import pytest

from cmrcnet.heads.gene_decoder import GeneBasis, GeneDecoder, basis_of_decoder, basis_of_predictions

RNG = np.random.default_rng(0)


def in_blocks(values: np.ndarray, step: int):
    def blocks():
        for start in range(0, values.shape[1], step):
            yield slice(start, min(start + step, values.shape[1])), values[:, start : start + step]

    return blocks


def test_it_equals_the_formula_written_out_by_hand():
    basis = GeneBasis(np.array([1.0, -3.0, 0.5], np.float32), np.array([[1, 0, 0], [0, 0.6, 0.8]], np.float32))
    by_hand = [[0.5 + 0.8 * 2, 1 + 4], [0, 0]]  # 0.5 - 0.8 and 1 - 7 are below 0
    found = basis.expression(np.array([[4.0, 2.0], [-7.0, -1.0]], np.float32), np.array([2, 0]))
    np.testing.assert_allclose(found, by_hand, atol=1e-6)


@pytest.mark.parametrize("variance_rescaling", [0.0, 0.5, 1.0])
def test_nothing_is_lost_of_a_teacher_on_components(variance_rescaling):
    levels = GeneDecoder(
        RNG.normal(1, 1, 30).astype(np.float32),
        RNG.uniform(0.5, 9, 30).astype(np.float32),
        RNG.normal(size=(4, 30)).astype(np.float32),
    )
    covariance, scores = np.diag([4.0, 2.0, 1.0, 0.5]).astype(np.float32), RNG.normal(size=(7, 4)).astype(np.float32)
    columns = np.array([3, 29, 0])
    said = levels.expression(scores, columns, covariance=covariance, variance_rescaling=variance_rescaling)
    basis, turn = basis_of_decoder(levels, covariance, variance_rescaling)
    np.testing.assert_allclose(basis.expression((scores @ turn).astype(np.float32), columns), said, atol=1e-4)
    np.testing.assert_allclose(basis.directions @ basis.directions.T, np.eye(4), atol=1e-5)


@pytest.mark.parametrize("step", [1, 7, 40])
def test_the_components_of_predictions_are_those_of_the_obvious_path_whatever_the_blocks(step):
    said = (RNG.normal(size=(25, 6)) @ RNG.normal(size=(6, 40)) + 20).astype(np.float32)
    basis = basis_of_predictions(in_blocks(said, step), 25, 40, rank=4)
    _, _, obvious = np.linalg.svd(said - said.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(np.sum(basis.directions * obvious[:4], axis=1)), 1, atol=1e-4)
    np.testing.assert_allclose(basis.directions @ basis.directions.T, np.eye(4), atol=1e-4)
    np.testing.assert_allclose(basis.level, said.mean(axis=0), rtol=1e-5)
    scores = basis.scores(in_blocks(said, step)(), 25)
    np.testing.assert_allclose(scores, (said - said.mean(axis=0)) @ basis.directions.T, atol=1e-3)


def test_enough_components_give_the_predictions_back():
    said = (RNG.normal(size=(25, 6)) @ RNG.normal(size=(6, 40)) + 20).astype(np.float32)
    basis = basis_of_predictions(in_blocks(said, 9), 25, 40)
    assert len(basis.directions) == 6  # it varies in no more ways
    again = basis.expression(basis.scores(in_blocks(said, 9)(), 25), np.arange(40))
    np.testing.assert_allclose(again, said, atol=1e-2)


def test_an_error_in_the_scores_is_the_error_in_the_expression():
    said = (RNG.normal(size=(25, 6)) @ RNG.normal(size=(6, 40)) + 90).astype(np.float32)
    basis = basis_of_predictions(in_blocks(said, 9), 25, 40)
    one, two = RNG.normal(size=(2, 3, 6)).astype(np.float32)
    apart = basis.expression(one, np.arange(40)) - basis.expression(two, np.arange(40))
    assert (apart**2).sum() == pytest.approx(((one - two) ** 2).sum(), rel=1e-3)


def test_genes_of_which_nothing_was_said_count_as_their_level():
    said = (RNG.normal(size=(25, 3)) @ RNG.normal(size=(3, 10)) + 20).astype(np.float32)
    said[:5, 2] = np.nan
    said[:, 7] = np.nan
    basis = basis_of_predictions(in_blocks(said, 4), 25, 10)
    assert basis.level[2] == pytest.approx(said[5:, 2].mean(), rel=1e-5)
    assert np.isnan(basis.level[7]) and np.isfinite(basis.directions).all()
    found = basis.expression(basis.scores(in_blocks(said, 4)(), 25), np.arange(10))
    assert np.isnan(found[:, 7]).all() and np.isfinite(np.delete(found, 7, axis=1)).all()
