"""Advantages, whitening and reward scaling against closed forms and plain float64 loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from preftune.losses.advantages import Moments, explained_variance, gae, masked_mean, normalise, whiten


def padded(*lengths: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, values and mask in float64; what stands beyond an answer is rubbish on purpose."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    rewards, values = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return rewards, values, torch.arange(shape[1]) < torch.tensor(lengths)[:, None]


def by_hand(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """A_t as the sum over everything that comes after, not as a recursion."""
    after = [*values[1:], 0.0]
    deltas = [r + gamma * b - a for r, a, b in zip(rewards, values, after, strict=True)]
    return [sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[t:])) for t in range(len(rewards))]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_gae_is_the_discounted_sum_of_the_errors(gamma: float, lam: float) -> None:
    rewards, values, mask = padded(5, 1, 3)
    found = gae(rewards, values, mask, gamma, lam)
    for row, length in enumerate((5, 1, 3)):
        expected = by_hand(rewards[row, :length].tolist(), values[row, :length].tolist(), gamma, lam)
        assert found.advantages_BT[row, :length].tolist() == pytest.approx(expected, abs=1e-12)
        assert not found.advantages_BT[row, length:].any()
        assert not found.returns_BT[row, length:].any()
    together = (found.advantages_BT + values)[mask]
    assert torch.equal(found.returns_BT[mask], together)


def test_lambda_1_returns_what_came_and_lambda_0_looks_one_step_ahead() -> None:
    rewards, values, mask = padded(4)
    assert gae(rewards, values, mask, 1.0, 1.0).returns_BT[0].tolist() == pytest.approx(
        rewards[0].flip(0).cumsum(0).flip(0).tolist()
    )
    after = torch.cat([values[0, 1:], values.new_zeros(1)])
    assert gae(rewards, values, mask, 1.0, 0.0).advantages_BT[0].tolist() == pytest.approx(
        (rewards[0] + after - values[0]).tolist()
    )


@settings(deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 99))
def test_padding_and_neighbours_do_not_matter(lengths: list[int], seed: int) -> None:
    rewards, values, mask = padded(*lengths, seed=seed)
    together = gae(rewards, values, mask, 0.9, 0.8).advantages_BT
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        alone = gae(rewards[one, :length], values[one, :length], mask[one, :length], 0.9, 0.8).advantages_BT
        torch.testing.assert_close(together[one, :length], alone, rtol=0, atol=1e-12)


def test_whitened_tokens_have_mean_0_and_variance_1() -> None:
    values, _, mask = padded(5, 2, 7)
    white = whiten(values, mask)
    tokens = values[mask]
    torch.testing.assert_close(white[mask], (tokens - tokens.mean()) / tokens.std(), rtol=1e-7, atol=1e-7)
    assert not white[~mask].any()
    kept = whiten(values, mask, shift_mean=False)
    assert float(masked_mean(kept, mask)) == pytest.approx(float(tokens.mean()), abs=1e-12)
    assert float(kept[mask].std()) == pytest.approx(1.0, abs=1e-7)


@pytest.mark.parametrize("tokens", [1, 3])
def test_whitening_what_does_not_vary_gives_zeros(tokens: int) -> None:
    white = whiten(torch.full((1, tokens), 3.0), torch.ones(1, tokens, dtype=torch.bool))
    assert white.tolist() == [[0.0] * tokens]


def test_explained_variance() -> None:
    returns, noise, mask = padded(6, 4)
    assert float(explained_variance(returns, returns, mask)) == pytest.approx(1.0)
    assert float(explained_variance(returns + 3, returns, mask)) == pytest.approx(1.0), "a constant error varies not"
    assert float(explained_variance(torch.zeros_like(returns), returns, mask)) == pytest.approx(0.0)
    assert float(explained_variance(-returns, returns, mask)) == pytest.approx(-3.0)
    tokens, error = returns[mask], (returns - noise)[mask]
    by_hand = 1 - float(error.var(unbiased=False) / tokens.var(unbiased=False))
    assert float(explained_variance(noise, returns, mask)) == pytest.approx(by_hand)
    assert float(explained_variance(noise, torch.ones_like(returns), mask)) == 0.0


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(-100, 100), max_size=6), min_size=1, max_size=6))
def test_running_moments_are_those_of_all_scores_at_once(parts: list[list[float]]) -> None:
    moments = Moments()
    for part in parts:
        moments = moments.with_more(torch.tensor(part, dtype=torch.float64))
    everything = torch.tensor([score for part in parts for score in part], dtype=torch.float64)
    assert moments.seen == everything.numel()
    if everything.numel():
        assert moments.mean == pytest.approx(float(everything.mean()), abs=1e-9)
        assert moments.squares == pytest.approx(float((everything - everything.mean()).square().sum()), abs=1e-6)


def test_normalised_scores_are_in_deviations_from_the_mean() -> None:
    scores = torch.tensor([1.0, 2.0, 3.0, 6.0])
    moments = Moments().with_more(scores)
    expected = (scores - 3.0) / scores.std()
    torch.testing.assert_close(normalise(scores, moments), expected)
    torch.testing.assert_close(normalise(scores, moments, shift_mean=False), scores / scores.std())
    assert Moments().with_more(torch.tensor([4.0])).deviation == 1.0, "one score says nothing about the scale"
    assert Moments().with_more(torch.tensor([4.0, 4.0])).deviation == 1.0
    assert math.isclose(moments.deviation, float(scores.std()), rel_tol=1e-6)
