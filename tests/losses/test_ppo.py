"""PPO's numbers: values by hand, float64 gradients, and what must hold for any numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from preftune.losses.ppo import (
    AdaptiveKL,
    adapted_coefficient,
    kl_k1,
    kl_k3,
    policy_loss,
    token_rewards,
    value_loss,
    with_eos_penalty,
)


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def draws(seed: int, *, count: int = 12) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, generator=generator, dtype=torch.float64) for _ in range(3)]


def test_both_estimators_mean_the_kl_of_two_distributions() -> None:
    """Summed over all outcomes with their probabilities they are KL(p || q) exactly; k3 never falls below 0."""
    p, q = double(0.5, 0.3, 0.2), double(0.2, 0.2, 0.6)
    exact = float((p * (p / q).log()).sum())
    for estimator in (kl_k1, kl_k3):
        assert float((p * estimator(p.log(), q.log())).sum()) == pytest.approx(exact, abs=1e-12)
    assert (kl_k3(p.log(), q.log()) >= 0).all()
    assert (kl_k1(p.log(), q.log()) < 0).any()
    assert kl_k3(double(-1.0), double(-3.0)).tolist() == pytest.approx([math.exp(-2.0) - 1 + 2.0])


@settings(deadline=None)
@given(st.floats(-20, 0), st.floats(-20, 0))
def test_k3_is_never_negative_and_zero_only_at_home(policy: float, reference: float) -> None:
    found = float(kl_k3(double(policy), double(reference)))
    assert found >= 0
    assert float(kl_k3(double(policy), double(policy))) == 0.0


def test_policy_loss_by_hand() -> None:
    """Ratios 1.5, 1.5, 0.5, 0.5 with either sign of advantage, clipped at 1.2 and 0.8."""
    ratio = double(1.5, 1.5, 0.5, 0.5)
    found = policy_loss(ratio.log(), torch.zeros(4, dtype=torch.float64), double(2, -2, 2, -2), cliprange=0.2)
    assert found.loss_T.tolist() == pytest.approx([-2.4, 3.0, -1.0, 1.6])
    assert found.clipped_T.tolist() == [True, False, False, True]
    assert found.ratio_T.tolist() == pytest.approx(ratio.tolist())
    assert found.moved_T.tolist() == pytest.approx([0.5 * math.log(r) ** 2 for r in ratio.tolist()])


def test_the_gradient_is_the_policy_gradient_until_it_is_clipped() -> None:
    logps = double(-1.0, -1.0, -1.0).requires_grad_()
    old = double(-1.0, -1.0 - math.log(1.5), -1.0 + math.log(2.0))
    policy_loss(logps, old, double(3.0, 3.0, 3.0), cliprange=0.2).loss_T.sum().backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == pytest.approx([-3.0, 0.0, -1.5]), "at the start -A; beyond the clip none"


def test_zero_advantage_gives_a_zero_policy_gradient() -> None:
    new, old, _ = draws(1)
    new.requires_grad_()
    policy_loss(new, old, torch.zeros_like(old), cliprange=0.2).loss_T.sum().backward()
    assert new.grad is not None
    assert not new.grad.any()


@pytest.mark.parametrize("seed", range(3))
def test_gradients_in_float64(seed: int) -> None:
    new, old, advantages = draws(seed)
    new.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: policy_loss(x, old, advantages, cliprange=0.3).loss_T, new)
    assert torch.autograd.gradcheck(lambda x: value_loss(x, old, advantages, cliprange=0.4).loss_T, new)
    assert torch.autograd.gradcheck(lambda x: value_loss(x, old, advantages, cliprange=None).loss_T, new)


@settings(deadline=None)
@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(-3, 3))
def test_the_clipped_policy_loss_is_the_pessimistic_one(new: float, old: float, advantage: float) -> None:
    found = policy_loss(double(new), double(old), double(advantage), cliprange=0.2)
    free = -advantage * math.exp(new - old)
    assert float(found.loss_T) >= free - 1e-12
    if not bool(found.clipped_T):
        assert float(found.loss_T) == pytest.approx(free)


def test_value_loss_by_hand() -> None:
    """Moved 1 up from 0 with clip 0.2: the clipped error counts where it is the larger one."""
    found = value_loss(double(1.0, 1.0), double(0.0, 0.0), double(2.0, 0.0), cliprange=0.2)
    assert found.loss_T.tolist() == pytest.approx([0.5 * 1.8**2, 0.5])
    assert found.clipped_T.tolist() == [True, False]
    plain = value_loss(double(1.0), double(0.0), double(2.0), cliprange=None)
    assert plain.loss_T.tolist() == [0.5]
    assert plain.clipped_T.tolist() == [False]


def test_rewards_are_the_penalty_everywhere_and_the_score_at_the_end() -> None:
    kl = torch.tensor([[1.0, -2.0, 9.0], [3.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    found = token_rewards(kl, torch.tensor([10.0, -1.0]), mask, coefficient=0.5)
    assert found.tolist() == [[-0.5, 11.0, 0.0], [-2.5, 0.0, 0.0]]


def test_an_answer_without_end_loses_points() -> None:
    scores = with_eos_penalty(torch.tensor([1.0, 2.0]), torch.tensor([True, False]), 0.5)
    assert scores.tolist() == [1.0, 1.5]


def test_the_coefficient_follows_its_target() -> None:
    """At most a fifth of the answers' share of the horizon at a time; up when too far, down when too near."""
    assert adapted_coefficient(0.2, kl=6.6, target=6, answers=100, horizon=1000) == pytest.approx(0.2 * 1.01)
    assert adapted_coefficient(0.2, kl=60, target=6, answers=100, horizon=1000) == pytest.approx(0.2 * 1.02)
    assert adapted_coefficient(0.2, kl=-3, target=6, answers=100, horizon=1000) == pytest.approx(0.2 * 0.98)
    assert adapted_coefficient(0.2, kl=6, target=6, answers=100, horizon=1000) == 0.2
    fixed = AdaptiveKL(0.05)
    fixed.update(100.0, 64)
    assert fixed.coefficient == 0.05
    moving = AdaptiveKL(1.0, target=1.0, horizon=10.0)
    for _ in range(200):  # a world in which the coefficient decides the distance
        moving.update(3.0 / moving.coefficient, 10)
    assert moving.coefficient == pytest.approx(3.0, rel=1e-3)
