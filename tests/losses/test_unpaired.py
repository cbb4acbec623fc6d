"""Losses of single answers: values by hand, gradients, extremes."""

from __future__ import annotations

import math

import pytest
import torch

from preftune.losses.unpaired import UNPAIRED, apo_zero_unpaired, bco, kto


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


RATIO, GOOD = torch.tensor([4.0, 4.0, -1.0, -1.0], dtype=torch.float64), torch.tensor([True, False, True, False])


def test_values_by_hand():
    found = kto(RATIO, GOOD, beta=0.1, baseline=2.0).tolist()
    assert found == pytest.approx([1 - s(0.2), 1 - s(-0.2), 1 - s(-0.3), 1 - s(0.3)], rel=1e-12)
    found = apo_zero_unpaired(RATIO, GOOD, beta=0.1, baseline=2.0).tolist()
    assert found == pytest.approx([1 - s(0.4), s(0.4), 1 - s(-0.1), s(-0.1)], rel=1e-12)
    found = bco(RATIO, GOOD, beta=0.1, baseline=2.0).tolist()
    assert found == pytest.approx([-math.log(s(x)) for x in (0.2, -0.2, -0.3, 0.3)], rel=1e-12)


@pytest.mark.parametrize("name", sorted(UNPAIRED))
def test_gradient_and_extremes(name):
    ratio = RATIO.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda r: UNPAIRED[name](r, GOOD, beta=0.3, baseline=0.5), (ratio,))
    far = torch.tensor([-4e4, 4e4, 4e4, -4e4], requires_grad=True)
    found = UNPAIRED[name](far, GOOD, beta=0.3, baseline=0.5)
    expected = [0.3 * 40_000.5, 0.3 * 39_999.5, 0.0, 0.0] if name == "bco" else [1.0, 1.0, 0.0, 0.0]
    assert found.tolist() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(found.sum(), far)
    assert gradient.isfinite().all()
