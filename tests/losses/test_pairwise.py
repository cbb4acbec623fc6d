"""Every loss: a value computed by hand, a float64 gradcheck, and what must hold whatever the numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from preftune.errors import ConfigError
from preftune.losses import LOSSES, get_loss, hinge, ipo, robust, sigmoid
from preftune.types import Sides

POLICY, REFERENCE = (-10.0, -30.0), (-14.0, -29.0)  # log-ratios: chosen +4, rejected -1; difference 5
LENGTHS = (2.0, 5.0)


def sides(chosen, rejected, lengths=LENGTHS) -> Sides:
    def column(value) -> Tensor:
        return value if isinstance(value, Tensor) else torch.tensor([value], dtype=torch.float64)

    return Sides(column(chosen), column(rejected), column(lengths[0]), column(lengths[1]))


def call(loss, *, beta=0.1, weight=1.0, margin=0.0, **options):
    w, m = (torch.tensor([v], dtype=torch.float64) for v in (weight, margin))
    return loss(sides(*POLICY), sides(*REFERENCE), beta=beta, weight_N=w, margin_N=m, **options)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


BY_HAND = [
    (sigmoid, {}, softplus(-0.5)),
    (sigmoid, {"margin": 0.2}, softplus(-0.3)),
    (sigmoid, {"label_smoothing": 0.1}, 0.9 * softplus(-0.5) + 0.1 * softplus(0.5)),
    (sigmoid, {"weight": 3.0}, 3 * softplus(-0.5)),
    (robust, {}, softplus(-0.5)),
    (robust, {"label_smoothing": 0.2}, (0.8 * softplus(-0.5) - 0.2 * softplus(0.5)) / 0.6),
    (hinge, {}, 0.5),
    (hinge, {"beta": 0.3}, 0.0),
    (hinge, {"margin": 0.25}, 0.75),
    (ipo, {}, (4 / 2 - (-1 / 5) - 5) ** 2),
    (ipo, {"margin": 0.1}, (2.2 - 6) ** 2),
]


@pytest.mark.parametrize(("loss", "options", "expected"), BY_HAND)
def test_value_by_hand(loss, options, expected):
    output = call(loss, **options)
    assert output.loss_N.item() == pytest.approx(expected, rel=1e-12)
    beta = options.get("beta", 0.1)
    assert output.chosen_reward_N.item() == pytest.approx(4 * beta)
    assert output.rejected_reward_N.item() == pytest.approx(-beta)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradient(name):
    loss = LOSSES[name]
    generator = torch.Generator().manual_seed(0)
    chosen, rejected, ref_chosen, ref_rejected = torch.randn(4, 6, generator=generator, dtype=torch.float64).mul(3)
    lengths = tuple(torch.randint(1, 9, (2, 6), generator=generator).double())
    weight, margin = torch.rand(2, 6, generator=generator, dtype=torch.float64)
    options = {"label_smoothing": 0.1} if loss.smoothing_limit else {}

    def total(c: Tensor, r: Tensor) -> Tensor:
        reference = sides(ref_chosen, ref_rejected, lengths)
        policy = sides(c, r, lengths)
        return loss.function(policy, reference, beta=0.3, weight_N=weight, margin_N=margin, **options).loss_N

    assert torch.autograd.gradcheck(total, (chosen.requires_grad_(), rejected.requires_grad_()))


AT_THE_START = {"sigmoid": math.log(2), "robust": math.log(2), "hinge": 1.0, "ipo": 25.0}


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_value_while_policy_and_reference_are_one(name):
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    output = LOSSES[name].function(sides(*POLICY), sides(*POLICY), beta=0.1, weight_N=one, margin_N=zero)
    assert output.loss_N.item() == pytest.approx(AT_THE_START[name], rel=1e-12)


@given(gap=st.floats(-50, 50), beta=st.floats(0.01, 1), weight=st.floats(0, 5), smoothing=st.floats(0, 0.4))
def test_swapping_chosen_and_rejected_negates_the_reward_margin(gap, beta, weight, smoothing):
    w, m = torch.tensor([weight], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    one = sigmoid(sides(gap, 0.0), sides(0.0, 0.0), beta=beta, weight_N=w, margin_N=m, label_smoothing=smoothing)
    two = sigmoid(sides(0.0, gap), sides(0.0, 0.0), beta=beta, weight_N=w, margin_N=m, label_smoothing=smoothing)
    margin = (one.chosen_reward_N - one.rejected_reward_N).item()
    assert (two.chosen_reward_N - two.rejected_reward_N).item() == pytest.approx(-margin)
    # the two losses differ by the log-odds of the label: log s(-z) - log s(z) = -z, weighted
    difference = (two.loss_N - one.loss_N).item()
    assert difference == pytest.approx(weight * (1 - 2 * smoothing) * beta * gap, rel=1e-9, abs=1e-9)


def test_a_huge_margin_is_finite():
    output = call(sigmoid, beta=1e4)
    assert output.loss_N.item() == 0.0
    reverse = sigmoid(sides(*REFERENCE), sides(*POLICY), beta=1e4, weight_N=torch.ones(1), margin_N=torch.zeros(1))
    assert reverse.loss_N.item() == pytest.approx(5e4)


@pytest.mark.parametrize(
    ("name", "words"), [("sigmod", "Did you mean 'sigmoid'"), ("aot", "exists in TRL"), ("zzz", "Use one of")]
)
def test_an_unknown_loss_names_what_there_is(name, words):
    with pytest.raises(ConfigError, match=words):
        get_loss(name)
