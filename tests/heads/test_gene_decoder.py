"""From scores to genes: level, loadings and deviation against the obvious way, with sections that lack a gene."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from cmrcnet.heads.gene_decoder import GeneDecoder, SectionStatistics, fit_gene_decoder

section_of = np.repeat([0, 1, 2], [7, 9, 6])


@pytest.fixture
def bank():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(22, 2))
    for section in range(3):
        scores[section_of == section] -= scores[section_of == section].mean(axis=0)
    measured = np.array([[True, True, True, False], [True, False, True, False], [True, True, True, False]])
    expression = rng.poisson(1.0, size=(22, 4)) * measured[section_of]
    return expression.astype(np.float32), scores.astype(np.float32), measured


def levels_of(expression, scores, measured, listed) -> GeneDecoder:
    """From each section's own genes: those `listed`, in an order of its own."""
    moments, columns = [], []
    for section in range(3):
        rows = section_of == section
        mine = np.flatnonzero(listed[section])[:: -1 if section == 1 else 1]
        columns.append(mine)
        moments.append(SectionStatistics.of(sparse.csc_matrix(expression[rows][:, mine]), scores[rows]))
    return fit_gene_decoder(moments, columns, measured)


@pytest.mark.parametrize("all_listed", [True, False])
def test_every_number_is_what_the_formula_says(bank, all_listed):
    """A section that measured a gene need not list it: then it is 0 there."""
    expression, scores, measured = bank
    listed = measured.copy()
    if not all_listed:
        listed[2, 0], expression[section_of == 2, 0] = False, 0
    found = levels_of(expression, scores, measured, listed)
    for gene in range(3):
        sees = measured[section_of, gene]
        means = [expression[section_of == s, gene].mean() for s in range(3) if measured[s, gene]]
        around = np.concatenate(
            [
                expression[section_of == s, gene] - expression[section_of == s, gene].mean()
                for s in range(3)
                if measured[s, gene]
            ]
        )
        loadings = np.linalg.lstsq(scores[sees], expression[sees, gene], rcond=None)[0]
        assert found.level[gene] == pytest.approx(np.mean(means), abs=1e-5)
        assert found.deviation[gene] == pytest.approx(np.sqrt((around**2).mean()), abs=1e-5)
        np.testing.assert_allclose(found.loadings[:, gene], loadings, atol=1e-5)
    assert found.level[3] == found.deviation[3] == 0 and (found.loadings[:, 3] == 0).all()


def test_amplitude_trades_error_for_spread_and_leaves_correlation_alone(bank):
    expression, scores, measured = bank
    found = levels_of(expression, scores, measured, measured)
    found.level[:] = 50  # far from the floor at 0
    columns, covariance = np.array([2, 0]), np.cov(scores.T, bias=True)
    plain, half, full = (
        found.expression(scores, columns, covariance=covariance, variance_rescaling=share) for share in (0.0, 0.5, 1.0)
    )
    np.testing.assert_allclose(plain, 50 + scores @ found.loadings[:, columns], atol=1e-4)
    np.testing.assert_allclose(full.std(axis=0), found.deviation[columns], rtol=0.02)
    assert (plain.std(axis=0) < half.std(axis=0)).all() and (half.std(axis=0) < full.std(axis=0)).all()
    for column in range(2):
        assert np.corrcoef(plain[:, column], full[:, column])[0, 1] == pytest.approx(1, abs=1e-5)


def test_expression_is_never_negative(bank):
    expression, scores, measured = bank
    found = levels_of(expression, scores, measured, measured)
    assert (found.expression(100 * scores, np.arange(3), covariance=np.eye(2), variance_rescaling=0.0) >= 0).all()
