"""The reward model's loss: by hand, in gradients, and in what must hold for any numbers."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from preftune.losses.reward import bradley_terry


def loss(chosen, rejected, weight=1.0, margin=0.0, center=None) -> float:
    values = (torch.tensor([value], dtype=torch.float64) for value in (chosen, rejected, weight, margin))
    chosen_N, rejected_N, weight_N, margin_N = values
    output = bradley_terry(
        chosen_N, rejected_N, weight_N=weight_N, margin_N=margin_N, center_rewards_coefficient=center
    )
    return float(output.loss_N)


def test_by_hand():
    assert math.isclose(loss(1.0, 1.0), math.log(2))
    assert math.isclose(loss(2.0, 0.5), math.log1p(math.exp(-1.5)))
    assert math.isclose(loss(2.0, 0.5, margin=1.0), math.log1p(math.exp(-0.5)))
    assert math.isclose(loss(2.0, 0.5, weight=3.0), 3 * math.log1p(math.exp(-1.5)))
    assert math.isclose(loss(2.0, 0.5, center=0.01), math.log1p(math.exp(-1.5)) + 0.01 * 2.5**2)


def test_gradients():
    sides = [torch.tensor([0.3, -2.0, 4.0], dtype=torch.float64, requires_grad=True) for _ in range(2)]
    weight_N = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    margin_N = torch.tensor([0.0, 1.0, 0.2], dtype=torch.float64)

    def function(chosen_N, rejected_N):
        return bradley_terry(
            chosen_N, rejected_N, weight_N=weight_N, margin_N=margin_N, center_rewards_coefficient=0.1
        ).loss_N

    assert torch.autograd.gradcheck(function, sides)


@given(st.floats(-50, 50), st.floats(-50, 50), st.floats(-20, 20))
def test_only_the_difference_counts_until_it_is_centred(chosen, rejected, shift):
    assert math.isclose(loss(chosen, rejected), loss(chosen + shift, rejected + shift), rel_tol=1e-9, abs_tol=1e-9)
    assert loss(chosen, rejected, center=0.1) >= loss(chosen, rejected)


def test_rewards_have_no_gradient():
    chosen_N = torch.ones(2, requires_grad=True)
    ones_N = torch.ones(2)
    output = bradley_terry(chosen_N, ones_N, weight_N=ones_N, margin_N=0 * ones_N)
    assert output.loss_N.requires_grad
    assert not output.chosen_reward_N.requires_grad
