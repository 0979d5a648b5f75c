"""The losses against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrcnet.models.losses import contrastive_loss, reconstruction_loss, total_loss

TEMPERATURES = [0.07, 1.0, 5.0]


def mean_loss(*pair, **how):
    return contrastive_loss(*pair, **how).mean()


@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(2)]


def by_hand(image, gene, tau, *, cosine=True, second="softmax"):
    """The formula with loops and math.exp."""
    n = len(image)
    rows = [[list(map(float, row)) for row in side] for side in (image, gene)]
    if cosine:
        rows = [[[x / math.hypot(*row) for x in row] for row in side] for side in rows]
    looks, genes = rows

    def dot(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    def softmax(row):
        e = [math.exp(x - max(row)) for x in row]
        return [x / sum(e) for x in e]

    logits = [[dot(genes[i], looks[j]) / tau for j in range(n)] for i in range(n)]
    first = [
        softmax([(dot(looks[i], looks[j]) + dot(genes[i], genes[j])) / 2 * tau for j in range(n)]) for i in range(n)
    ]
    second = [[first[j][i] for j in range(n)] for i in range(n)] if second == "transpose" else first
    turned = [[logits[j][i] for j in range(n)] for i in range(n)]

    def cost(scores, wanted):
        shares = [softmax(row) for row in scores]
        return -sum(wanted[i][j] * math.log(shares[i][j]) for i in range(n) for j in range(n)) / n

    return (cost(logits, first) + cost(turned, second)) / 2


@pytest.mark.parametrize("second", ["softmax", "transpose"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_it_equals_the_formula_written_out_by_hand(pairs, temperature, similarity, second):
    loss = mean_loss(*pairs, temperature=temperature, similarity=similarity, second_targets=second)
    wanted = by_hand(*pairs, temperature, cosine=similarity == "cosine", second=second)
    assert float(loss) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_identity_targets_are_the_cross_entropy_of_the_true_partner(pairs, temperature):
    image, gene = (torch.nn.functional.normalize(side, dim=1) for side in pairs)
    logits, partner = gene @ image.T / temperature, torch.arange(5)
    cross_entropy = torch.nn.functional.cross_entropy
    wanted = (cross_entropy(logits, partner) + cross_entropy(logits.T, partner)) / 2
    loss = mean_loss(*pairs, temperature=temperature, targets="identity")
    assert float(loss) == pytest.approx(float(wanted), rel=1e-9)


@pytest.mark.parametrize("targets", ["soft", "identity"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_indistinguishable_pairs_cost_the_log_of_the_batch(temperature, targets):
    same = torch.ones(8, 4)
    loss = mean_loss(same, same, temperature=temperature, targets=targets)
    assert float(loss) == pytest.approx(math.log(8), rel=1e-6)


def test_the_temperature_divides_the_logits_and_multiplies_the_targets(pairs):
    """Dot products scaled by tau on one side and by 1 / tau on the other would cancel; they do not."""
    image, gene = pairs
    losses = [float(mean_loss(image, gene, temperature=tau, similarity="dot")) for tau in TEMPERATURES]
    assert len({round(loss, 3) for loss in losses}) == 3
    cold = mean_loss(image * 0.07**0.5, gene * 0.07**0.5, temperature=1.0, similarity="dot")
    assert float(cold) != pytest.approx(losses[0], rel=0.05)


def test_cosine_knows_no_length_and_dot_does(pairs):
    image, gene = pairs
    longer = (image * 3, gene * torch.arange(1.0, 6.0, dtype=torch.float64)[:, None])
    assert float(mean_loss(*longer, temperature=0.5)) == pytest.approx(
        float(mean_loss(*pairs, temperature=0.5)), rel=1e-9
    )
    dots = [float(mean_loss(*each, temperature=0.5, similarity="dot")) for each in (longer, pairs)]
    assert dots[0] != pytest.approx(dots[1], rel=0.01)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), batch=st.integers(1, 7), tau=st.floats(0.05, 5), soft=st.booleans())
def test_order_and_sides_do_not_matter_and_it_is_never_negative(seed, batch, tau, soft):
    generator = torch.Generator().manual_seed(seed)
    image, gene = (torch.randn(batch, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    settings = {"temperature": tau, "targets": "soft" if soft else "identity"}
    loss = float(mean_loss(image, gene, **settings))
    order = torch.randperm(batch, generator=generator)
    assert float(mean_loss(image[order], gene[order], **settings)) == pytest.approx(loss, rel=1e-9, abs=1e-12)
    assert float(mean_loss(gene, image, **settings)) == pytest.approx(loss, rel=1e-9, abs=1e-12)
    assert loss >= 0


LEFT = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
RIGHT = torch.tensor([[3.0, 0.0], [0.0, 2.0]])


def test_mse_by_hand():
    assert float(reconstruction_loss(LEFT, RIGHT)) == pytest.approx((0 + 16 + 1 + 4) / 4)


def test_cosine_by_hand_and_it_knows_no_length():
    wanted = ((1 - 9 / (5 * 3)) + (1 - 0)) / 2
    assert float(reconstruction_loss(LEFT, RIGHT, kind="cosine")) == pytest.approx(wanted)
    assert float(reconstruction_loss(LEFT * 7, RIGHT, kind="cosine")) == pytest.approx(wanted)


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_a_perfect_reconstruction_costs_nothing(kind):
    assert float(reconstruction_loss(LEFT, LEFT.clone(), kind=kind)) == pytest.approx(0, abs=1e-6)


def test_the_total_is_the_sum_of_logs_and_one_log_without_a_reconstruction():
    pairs = torch.tensor([1.0, 3.0])
    assert float(total_loss(pairs, torch.tensor(0.5))) == pytest.approx(math.log(3) + math.log(1.5))
    assert float(total_loss(pairs, None)) == pytest.approx(math.log(3))
    released = total_loss(pairs, torch.tensor(0.5), logarithm_of="sample")
    assert float(released) == pytest.approx((math.log(2) + math.log(4)) / 2 + math.log(1.5))
