"""beta-DPO and alpha-DPO: the gradient, the running moments, beta of a step and the pairs that are kept."""

from __future__ import annotations

import math

import pytest
import torch

from preftune.losses import RunningMoments, moments
from preftune.losses import reference_free as free
from tests.losses.test_pairwise import pairs, sides, softplus


def test_moments_are_those_of_the_first_step_and_then_follow():
    found = RunningMoments()
    assert (found.mean, found.std) == (0.0, math.inf)
    found.add(torch.tensor([1.0, 3.0]))
    assert (found.mean, found.std) == (pytest.approx(2.0), pytest.approx(2**0.5))
    found.add(torch.tensor([6.0]))  # one pair has no deviation
    assert found.mean == pytest.approx((0.9 * 2 + 6) / 1.9)
    assert found.std == pytest.approx(2**0.5)
    found.add(torch.zeros(0))
    assert found.mean == pytest.approx((0.9 * 2 + 6) / 1.9)


def test_beta_of_a_step():
    gap = torch.tensor([1.0, 2.0, 6.0])
    assert moments.dynamic_beta(gap, beta=0.1, beta_dpo_alpha=0.6, mean=2.0) == pytest.approx(0.1 * 1.6)
    assert moments.dynamic_beta(gap, beta=0.1, beta_dpo_alpha=0.6, mean=50.0) == 1e-3
    assert moments.dynamic_beta(gap, beta=0.1, beta_dpo_alpha=0.0, mean=50.0) == 0.1


def test_pairs_are_kept_with_the_probabilities_of_a_normal_density():
    """One of two is kept: with odds of exp(-1/2 (1^2 - 3^2))."""
    known = RunningMoments(mean_sum=1.0, mean_weight=1.0, std_sum=2.0, std_weight=1.0)
    gap = torch.tensor([3.0, 7.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(4000, 2, generator=generator, dtype=torch.float64)
    first = [bool(moments.kept_pairs(gap, draw, known, share=0.5)[0]) for draw in draws]
    expected = 1 / (1 + math.exp(-4))
    assert sum(first) / 4000 == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 4000) ** 0.5)


@pytest.mark.parametrize(("share", "count"), [(0.0, 5), (0.2, 4), (0.5, 2), (0.99, 1)])
def test_how_many_pairs_are_kept(share, count):
    """An outlier of thousands of deviations is no reason for an error, nor is a step without any deviation."""
    gap = torch.tensor([0.0, 0.0, 1e5, 0.0, 0.0], dtype=torch.float64)
    draw = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    for known in (RunningMoments(), RunningMoments(0.0, 1.0, 0.0, 1.0)):
        assert int(moments.kept_pairs(gap, draw, known, share=share).sum()) == count
    twice = torch.cat([gap, gap]), torch.cat([draw, draw + 0.01])
    assert int(moments.kept_pairs(*twice, RunningMoments(), share=0.8).sum()) == 2, "10 * (1 - 0.8) rounds below 2"


def test_alpha_dpo_has_no_gradient_through_its_margin():
    """It is that of SimPO with the margin as a constant."""
    chosen, rejected = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (-10.0, -30.0))
    made = pairs()._replace(policy=sides(chosen, rejected))
    options = {"beta": 2.0, "simpo_gamma": 0.5}
    found = moments.alpha_dpo(made, **options, alpha_dpo_alpha=0.1, gap_mean=0.2, gap_std=0.5)
    constant = {**options, "simpo_gamma": 0.5 + 2 * 0.1 * 4}
    expected = free.simpo(made._replace(reference=None), **constant)
    assert found.item() == pytest.approx(expected.item()) == softplus(-(2 * 0.6 - 0.5))
    for one, other in zip(*(torch.autograd.grad(v, (chosen, rejected)) for v in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


def test_alpha_dpo_without_alpha_is_simpo_and_one_pair_has_no_deviation():
    options = {"beta": 2.0, "simpo_gamma": 0.5}
    plain = free.simpo(pairs(reference=None), **options).item()
    for alpha, std in ((0.0, 1.0), (0.2, math.inf)):
        found = moments.alpha_dpo(pairs(), **options, alpha_dpo_alpha=alpha, gap_mean=0.0, gap_std=std)
        assert found.item() == pytest.approx(plain, rel=1e-12)
