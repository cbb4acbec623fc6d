"""GRPO and RLOO as functions: values by hand, gradients, what clipping does."""

from __future__ import annotations

import math

import pytest
import torch

from preftune.losses.group_relative import group_advantages, group_loss, leave_one_out
from preftune.losses.surrogates import Clipped

NAN = math.nan
REWARDS = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0], [4.0, NAN, 0.0]], dtype=torch.float64)


def test_advantages_by_hand():
    found = group_advantages(REWARDS, scale="none")
    assert found.tolist() == [[-1, 1, 0], [0, 0, 0], [2, 0, -2]]
    found = group_advantages(REWARDS, scale="group")
    assert found[0].tolist() == pytest.approx([-1 / 1.0001, 1 / 1.0001, 0])
    assert found[1].tolist() == [0, 0, 0]
    assert found[2].tolist() == pytest.approx([2 / (math.sqrt(8) + 1e-4), 0, -2 / (math.sqrt(8) + 1e-4)])
    known = REWARDS[~REWARDS.isnan()]
    found = group_advantages(REWARDS, scale="batch")
    assert found[0].tolist() == pytest.approx([x / (float(known.std()) + 1e-4) for x in (-1, 1, 0)])


def test_leave_one_out_by_hand():
    found = leave_one_out(REWARDS)
    assert found[0].tolist() == pytest.approx([1 - 2.5, 3 - 1.5, 2 - 2])
    assert found[1].tolist() == [0, 0, 0]
    assert found[2].tolist() == [4, 0, -4]
    assert leave_one_out(torch.tensor([[1.0, NAN]])).tolist() == [[0, 0]]


OWNER = torch.tensor([0, 0, 1])


def loss(logps, old, advantage, **options):
    surrogate = Clipped(options.pop("low", 0.2), options.pop("high", 0.3), options.pop("most", None))
    settings = {"reference_T": None, "beta": 0.0, "surrogate": surrogate, "level": "token"}
    return group_loss(
        torch.as_tensor(logps), torch.as_tensor(old), torch.as_tensor(advantage), OWNER, **(settings | options)
    )


def log(*ratios: float) -> torch.Tensor:
    return torch.tensor([math.log(r) for r in ratios], dtype=torch.float64)


def test_values_by_hand():
    zeros, advantage = torch.zeros(3, dtype=torch.float64), torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    found = loss(log(1.1, 1.5, 0.5), zeros, advantage)
    assert found.loss_T.tolist() == pytest.approx([-1.1, -1.3, 0.8])  # held at 1.3 and at 0.8
    assert found.clipped_T.tolist() == [False, True, True]
    found = loss(log(1.5, 0.5, 0.5), zeros, -advantage)
    assert found.loss_T.tolist() == pytest.approx([1.5, 0.8, -0.5])
    assert found.clipped_T.tolist() == [False, True, False]


def test_two_sided_clipping_bounds_what_a_bad_answer_costs():
    """A worse answer that became likelier has no bound otherwise; a better one is clipped already."""
    zeros, advantage = torch.zeros(3, dtype=torch.float64), torch.tensor([-1.0, 1.0, -1.0], dtype=torch.float64)
    ratios = log(9.0, 9.0, 1.5)
    assert loss(ratios, zeros, advantage).loss_T.tolist() == pytest.approx([9.0, -1.3, 1.5])
    assert loss(ratios, zeros, advantage, most=2.0).loss_T.tolist() == pytest.approx([2.0, -1.3, 1.5])


def test_ratios_of_whole_answers():
    zeros, advantage = torch.zeros(3, dtype=torch.float64), torch.full((3,), -1.0, dtype=torch.float64)
    ratios = log(2.0, 0.72, 1.1)
    assert loss(ratios, zeros, advantage, level="sequence").loss_T.tolist() == pytest.approx([1.2, 1.2, 1.1])
    assert loss(ratios, zeros, advantage, level="answer").loss_T.tolist() == pytest.approx([1.44, 1.44, 1.1])


def test_the_kl_by_hand():
    logps, reference = log(0.5, 0.2, 0.3), log(0.25, 0.4, 0.3)
    zero = torch.zeros(3, dtype=torch.float64)
    k3 = [0.5 - math.log(0.5) - 1, 2 - math.log(2) - 1, 0.0]
    found = loss(logps, logps, zero, reference_T=reference, beta=0.1)
    assert found.kl_T.tolist() == pytest.approx(k3)
    assert found.loss_T.tolist() == pytest.approx([0.1 * k for k in k3])
    old = log(0.4, 0.2, 0.3)
    corrected = loss(logps, old, zero, reference_T=reference, beta=0.1).loss_T
    plain = loss(logps, old, zero, reference_T=reference, beta=0.1, corrected_kl=False).loss_T
    assert corrected[0].item() == pytest.approx(1.25 * plain[0].item())


@pytest.mark.parametrize("level", ["token", "sequence", "answer"])
def test_gradient(level):
    logps = log(0.5, 0.2, 0.3).requires_grad_()
    old, reference = log(0.55, 0.19, 0.28), log(0.3, 0.3, 0.3)
    advantage = torch.tensor([1.0, 1.0, -2.0], dtype=torch.float64)

    def total(values):
        return loss(values, old, advantage, reference_T=reference, beta=0.2, level=level).loss_T

    assert torch.autograd.gradcheck(total, (logps,))


def test_at_the_first_step_the_gradient_is_that_of_the_policy_gradient():
    logps = log(0.5, 0.2, 0.3).requires_grad_()
    advantage = torch.tensor([1.0, 1.0, -2.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(loss(logps, logps.detach(), advantage).loss_T.sum(), logps)
    assert gradient.tolist() == pytest.approx((-advantage).tolist())
