"""Formulas of the published baselines, each against its words."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cmrcnet.evaluation.methods.baseline_training import Schedule, SpotInputs
from cmrcnet.evaluation.methods.baselines import hest_penalty, sparse_ridge
from cmrcnet.evaluation.methods.controls import in_frame, nearest
from cmrcnet.evaluation.methods.frozen_features import WIDTH, colour_statistics
from cmrcnet.evaluation.methods.regression_baselines import DeepSet, ThreeScales, masked_mean
from cmrcnet.evaluation.methods.retrieval_baselines import all_by_similarity, averaged, steps_of, top_k
from cmrcnet.slides.section import Spots

similarities = st.lists(st.lists(st.floats(-1, 1, width=32), min_size=5, max_size=5), min_size=1, max_size=4).map(
    lambda rows: np.array(rows, np.float64)
)


def view_of(seed: int, spots: int = 12, dim: int = 6) -> SpotInputs:
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.normal(size=(spots, dim)).astype(np.float32))
    return SpotInputs(features, rng.uniform(-300, 300, (spots, 2)), np.repeat(["a", "b"], spots // 2))


@settings(max_examples=40, deadline=None)
@given(similarities)
@pytest.mark.parametrize(
    "weigh", [partial(top_k, k=3), partial(top_k, k=9), partial(top_k, k=2, temperature=0.1), all_by_similarity]
)
def test_weights_are_shares(weigh, similarity):
    weights = weigh(similarity)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    assert (weights >= 0).all()


def test_lokis_weights_are_similarities_over_their_sum_and_nothing_below_zero():
    np.testing.assert_allclose(all_by_similarity(np.array([[0.6, 0.2, -0.5]])), [[0.75, 0.25, 0]])
    np.testing.assert_allclose(all_by_similarity(np.array([[-0.6, -0.2]])), [[0.5, 0.5]])


def test_the_top_k_by_hand():
    similarity = np.array([[0.1, 0.9, 0.8, -1.0]])
    np.testing.assert_allclose(top_k(similarity, 2), [[0, 0.5, 0.5, 0]])
    first, second = np.exp(0.9 / 0.1), np.exp(0.8 / 0.1)
    np.testing.assert_allclose(
        top_k(similarity, 2, 0.1), [[0, first / (first + second), second / (first + second), 0]], rtol=1e-6
    )


def test_the_average_is_over_cosines_and_the_same_for_sparse_and_dense():
    rng = np.random.default_rng(0)
    queries, bank, expression = rng.normal(size=(300, 4)), rng.normal(size=(7, 4)), rng.poisson(1.0, (7, 5)) * 1.0
    said = averaged(queries, bank, sparse.csr_matrix(expression), partial(top_k, k=1))
    cosine = (queries / np.linalg.norm(queries, axis=1)[:, None]) @ (bank / np.linalg.norm(bank, axis=1)[:, None]).T
    np.testing.assert_allclose(said, expression[cosine.argmax(axis=1)], atol=1e-6)
    np.testing.assert_allclose(averaged(queries, bank, expression, partial(top_k, k=1)), said, atol=1e-6)


def test_a_deep_set_does_not_feel_the_order_of_the_neighbours_but_feels_who_they_are():
    torch.manual_seed(0)
    net, view = DeepSet(6, torch.zeros(3)).eval(), view_of(1)
    ids, present = view.neighbours
    assert present[:, 0].any()
    turned, rows = view_of(1), torch.arange(12)
    turned.__dict__["neighbours"] = ids.flip(1), present.flip(1)
    torch.testing.assert_close(net.hidden(view, rows), net.hidden(turned, rows))
    alone = view_of(1)
    alone.__dict__["neighbours"] = ids, torch.zeros_like(present)
    assert not torch.allclose(net.hidden(view, rows), net.hidden(alone, rows))


def test_the_masked_mean_by_hand():
    values = torch.tensor([[[1.0], [3.0], [50.0]], [[4.0], [5.0], [6.0]]])
    present = torch.tensor([[True, True, False], [False, False, False]])
    torch.testing.assert_close(masked_mean(values, present), torch.tensor([[2.0], [0.0]]))


def test_triplex_sees_the_whole_of_its_section_and_nothing_of_another():
    torch.manual_seed(0)
    net, view = ThreeScales(6, torch.zeros(3)).eval(), view_of(2)
    with torch.no_grad():
        before = net.hidden(view, torch.arange(6))
        other = SpotInputs(view.features.clone(), view.location_um, view.section_of)
        other.features[6:] += 1  # section b
        torch.testing.assert_close(net.hidden(other, torch.arange(6)), before)
        other.features[5] += 1  # section a
        assert (net.hidden(other, torch.arange(6)) - before)[:5].abs().min(dim=1).values.max() > 0
        torch.testing.assert_close(net.hidden(view, torch.tensor([4, 1])), before[[4, 1]])


def test_the_loss_of_triplex_by_hand():
    torch.manual_seed(0)
    net, view, rows = ThreeScales(6, torch.zeros(3)).eval(), view_of(3), torch.arange(12)
    wanted = torch.rand(12, 3)
    fused, branches = net._fused(view, rows)
    said = net.head(fused)
    total = ((said - wanted) ** 2).mean()
    for head, branch in zip(net.branch_heads, branches, strict=True):
        total = total + 0.5 * ((head(branch) - wanted) ** 2).mean() + 0.5 * ((head(branch) - said) ** 2).mean()
    torch.testing.assert_close(net.loss(view, rows, wanted), total)


def test_the_output_layer_is_ridge_on_a_standardised_hidden_layer():
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    hidden, new = rng.normal(2, 3, (30, 5)), rng.normal(2, 3, (4, 5))
    expression = rng.poisson(1.0, (30, 7)).astype(np.float64)
    scaler = StandardScaler().fit(hidden)
    expected = Ridge(alpha=10.0).fit(scaler.transform(hidden), expression).predict(scaler.transform(new))
    layer = sparse_ridge(hidden, sparse.csr_matrix(expression), 10.0, standardise=True)
    np.testing.assert_allclose(layer.predict(new), expected, atol=1e-6)
    plain = Ridge(alpha=10.0).fit(hidden, expression).predict(new)
    np.testing.assert_allclose(sparse_ridge(hidden, sparse.csr_matrix(expression), 10.0).predict(new), plain, atol=1e-6)


def test_the_penalty_of_hest_bench():
    assert hest_penalty(256, 50) == 100 / 12800 == 0.0078125


def test_colour_statistics_by_hand():
    patch = np.zeros((1, 2, 2, 3), np.uint8)
    patch[0, :, :, 0] = [[0, 255], [0, 255]]
    patch[0, :, :, 1] = 16
    found = colour_statistics(patch)[0]
    assert len(found) == WIDTH == 54
    np.testing.assert_allclose(found[:6], [0.5, 16 / 255, 0, 0.5, 0, 0], atol=1e-6)
    red, green, blue = found[6:].reshape(3, 16)
    np.testing.assert_allclose(red[[0, 15]], [0.5, 0.5])
    assert green[1] == blue[0] == 1 and found[6:].sum() == pytest.approx(3)


def test_the_shared_frame_forgets_place_and_size():
    spots = Spots(("a", "b", "c"), np.array([[0.0, 0], [2, 0], [1, 3]]), 100.0)
    moved = Spots(("a", "b", "c"), spots.centre_px * 7 + [100, -5], 100.0)
    np.testing.assert_allclose(in_frame(spots), in_frame(moved))
    assert (in_frame(spots) ** 2).sum(axis=1).mean() == pytest.approx(1)
    one = Spots(("a",), np.array([[5.0, 5]]), 100.0)
    np.testing.assert_array_equal(in_frame(one), [[0, 0]])


def test_nearest_by_place_by_hand():
    bank = np.array([[0.0, 0], [1, 0], [5, 0]])
    np.testing.assert_allclose(nearest(bank, np.array([[0.4, 0], [9, 0]]), 2).toarray(), [[0.5, 0.5, 0], [0, 0.5, 0.5]])
    assert nearest(bank, bank, 1).toarray().tolist() == np.eye(3).tolist()


def test_learned_places_are_100_um_apart_and_end():
    np.testing.assert_array_equal(
        steps_of(np.array([[0.0, 49.0], [151.0, -1e6], [1e6, -100.0]])), [[64, 64], [66, 0], [127, 63]]
    )


def test_batches_hold_every_row_once():
    rows, rng = np.arange(3, 303), np.random.default_rng(0)
    batches = Schedule(batch_size=128).batches(rows, np.array([]), rng)
    assert [len(b) for b in batches] == [150, 150]
    assert sorted(np.concatenate(batches)) == rows.tolist()
    section = np.repeat(["a", "b", "c"], 101)
    parts = Schedule(batch_size=None).batches(rows, section, rng)
    assert sorted(len(p) for p in parts) == [98, 101, 101]
    assert all(len(set(section[p])) == 1 for p in parts)
