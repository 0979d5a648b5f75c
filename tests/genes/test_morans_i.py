"""Moran's I against the double sum, against scanpy, and at the patterns whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from scanpy.metrics import morans_i as scanpy_morans_i
from scipy import sparse

from cmrcnet.errors import ShapeMismatch
from cmrcnet.genes import spatial_stats as module
from cmrcnet.genes.spatial_stats import morans_i, spot_graph

SQUARE = np.stack(np.meshgrid(np.arange(6), np.arange(5)), -1).reshape(-1, 2).astype(float)
HEXAGONAL = np.array([[c + 0.5 * (r % 2), r * 0.75**0.5] for r in range(6) for c in range(5)])


def by_hand(values: np.ndarray, centres: np.ndarray, reach: float = 1.5) -> float:
    """The double sum, spot by spot; centres in pitches."""
    spots = len(values)
    near = [[j for j in range(spots) if j != i and np.hypot(*(centres[i] - centres[j])) <= reach] for i in range(spots)]
    z = values - values.mean()
    top = sum(z[i] * z[j] / len(near[i]) for i in range(spots) for j in near[i])
    return spots / sum(bool(each) for each in near) * top / (z**2).sum()


@pytest.mark.parametrize("centres", [SQUARE, HEXAGONAL, np.vstack([SQUARE, [[40.0, 40.0]]])])
def test_it_is_the_double_sum_and_what_scanpy_says(centres):
    values = np.random.default_rng(1).gamma(1.0, 2.0, (len(centres), 4))
    graph = spot_graph(centres * 173.2)
    found = morans_i(sparse.csr_matrix(values), graph)
    np.testing.assert_allclose(found, [by_hand(column, centres) for column in values.T])
    np.testing.assert_allclose(found, scanpy_morans_i(graph, values.T.copy()))


def test_a_chessboard_of_rows_and_a_slope_and_chance():
    stripes, slope = (SQUARE[:, 1] % 2), SQUARE[:, 0]
    four = spot_graph(SQUARE, reach_pitches=1.1)
    chess = (SQUARE.sum(axis=1)) % 2
    i = morans_i(np.column_stack([chess, slope, stripes]), four)
    assert i[0] == pytest.approx(-1.0) and i[1] > 0.6
    shuffled = np.random.default_rng(0).permuted(np.tile(slope, (400, 1)), axis=1).T
    assert morans_i(shuffled, four).mean() == pytest.approx(-1 / (len(SQUARE) - 1), abs=0.02)


def test_a_constant_gene_and_a_graph_without_edges_are_undefined():
    values = np.column_stack([np.full(len(SQUARE), 3.0), SQUARE[:, 0], np.full(len(SQUARE), np.nan)])
    assert np.isnan(morans_i(values, spot_graph(SQUARE))).tolist() == [True, False, True]
    assert np.isnan(morans_i(values[:1], spot_graph(SQUARE[:1]))).all()


def test_blocks_of_genes_change_nothing(monkeypatch):
    values = np.random.default_rng(2).random((len(SQUARE), 11))
    whole = morans_i(values, spot_graph(SQUARE))
    monkeypatch.setattr(module, "_VALUES_AT_A_TIME", 70)
    np.testing.assert_allclose(morans_i(values, spot_graph(SQUARE)), whole, rtol=1e-12)


def test_a_graph_of_other_spots_is_refused():
    with pytest.raises(ShapeMismatch, match="The graph has shape"):
        morans_i(np.ones((3, 2)), spot_graph(SQUARE))


@pytest.mark.parametrize(("centres", "inner"), [(SQUARE, 8), (HEXAGONAL, 6)])
def test_neighbours_are_eight_on_a_square_and_six_on_a_hexagonal_lattice(centres, inner):
    graph = spot_graph(centres * 0.37)
    assert np.diff(graph.indptr).max() == inner
    np.testing.assert_allclose(graph.sum(axis=1), 1.0)


def test_jitter_drops_no_diagonal():
    shaken = SQUARE + np.random.default_rng(3).uniform(-0.1, 0.1, SQUARE.shape)
    assert (spot_graph(shaken) != spot_graph(SQUARE)).nnz == 0


def test_spots_too_far_from_all_others_have_no_neighbour():
    graph = spot_graph(np.vstack([SQUARE, [[40.0, 40.0]]]))
    assert np.diff(graph.indptr)[-1] == 0 and graph[:, -1].nnz == 0
