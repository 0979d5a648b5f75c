"""The head: exact where its teacher is a line, better than a line where it bends, and the same again."""

from __future__ import annotations

import numpy as np
import torch

from cmrcnet.distill.fit_student import HeadData, fit_student_head
from cmrcnet.models.student import StudentHead


def made_up(bend: float, groups: int = 3, noise: float = 0.0) -> list[HeadData]:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(6, 4))
    found = []
    for group in range(groups):
        x = rng.normal(size=(150, 6)).astype(np.float32)
        z = x @ weights + bend * np.abs(x[:, :4]) + noise * rng.normal(size=(150, 4))
        found.append(HeadData(f"S{group}", x, z.astype(np.float32)))
    return found


def error(head, given) -> float:
    residual = np.concatenate([head.scores(each.features) - each.scores for each in given])
    return float((residual**2).mean() / np.concatenate([each.scores for each in given]).var())


def test_a_line_is_learnt_exactly():
    given = made_up(0.0)
    head, facts = fit_student_head(given, seed=0)
    assert error(head, given) < 1e-4 and facts["validation_variance"] > 0.999


def test_a_bend_is_learnt_as_well():
    given = made_up(2.0)
    head, facts = fit_student_head(given, seed=0)
    line = StudentHead(6, 4, 1)
    line.load_state_dict({**line.state_dict(), "scale": head.scale, "linear.weight": head.linear.weight.detach()}
                         | {"linear.bias": head.linear.bias.detach()})  # fmt: skip
    assert facts["epochs"] > 5 and error(head, given) < 0.5 * error(line, given)


def test_noise_is_not_learnt_by_heart():
    """Where nothing can be told, validation units stop the bend early and shrink the line."""
    rng = np.random.default_rng(1)
    given = [HeadData(f"S{n}", *(rng.normal(size=(60, 6)).astype(np.float32) for _ in range(2))) for n in range(3)]
    head, facts = fit_student_head(given, seed=0)
    assert facts["epochs"] < 10 and np.abs(head.scores(given[0].features)).mean() < 0.3


def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_generator_alone():
    given = made_up(1.0)
    torch.manual_seed(4)
    wanted = torch.rand(3)
    torch.manual_seed(4)
    one, two = fit_student_head(given, seed=0)[0], fit_student_head(given, seed=0)[0]
    assert torch.equal(torch.rand(3), wanted)
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    other = fit_student_head(given, seed=1)[0]
    assert not torch.equal(one.residual[0].weight, other.residual[0].weight)


def test_one_unit_cannot_be_validation():
    head, facts = fit_student_head(made_up(0.0, groups=1), seed=0)
    assert facts["validation_folds"] == 0 and facts["validation_variance"] is None
    assert error(head, made_up(0.0, groups=1)) < 0.05


def test_the_head_is_its_formula():
    torch.manual_seed(0)
    head = StudentHead(3, 2, 5)
    torch.nn.init.normal_(head.residual[2].weight)
    head.scale.fill_(2.0)
    x = torch.randn(4, 3)
    first, second = head.residual[0], head.residual[2]
    inner = x @ first.weight.T + first.bias
    gelu = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    by_hand = 2 * (x @ head.linear.weight.T + head.linear.bias + gelu @ second.weight.T)
    torch.testing.assert_close(head(x), by_hand)


def test_a_new_head_is_its_line():
    head = StudentHead(3, 2, 5)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(head(x), head.linear(x))
    assert head(x).shape == (4, 2)
