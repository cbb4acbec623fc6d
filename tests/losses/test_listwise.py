"""Losses of lists: values by hand, gradients, two completions as pairs, order, ties, padding, extreme rewards."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from preftune.losses import LOSSES, Lists, Pairs, listwise
from preftune.losses import pairwise as p
from preftune.types import Sides
from tests.losses.test_pairwise import OPTIONS, pairs, s, softplus

NAMES = sorted(name for name, loss in LOSSES.items() if loss.lists)
RATIOS, SCORES = (4.0, -1.0, 2.0), (3.0, 1.0, 2.0)


def listed(ratios, scores=SCORES, there=None) -> Pairs:
    """One list, or several in rows."""
    ratio = ratios if isinstance(ratios, Tensor) else torch.tensor([ratios], dtype=torch.float64)
    score = scores if isinstance(scores, Tensor) else torch.tensor([scores], dtype=ratio.dtype)
    there = torch.ones_like(ratio, dtype=torch.bool) if there is None else there
    best, worst = (score.masked_fill(~there, end * math.inf).max(1).indices for end in (-1, 1))
    zero = ratio.new_zeros(len(ratio))
    sides = Sides(ratio.gather(1, best[:, None])[:, 0], ratio.gather(1, worst[:, None])[:, 0], zero + 2, zero + 5)
    known = Sides(zero, zero, zero + 2, zero + 5)
    return Pairs(sides, known, zero, lists=(ratio, score, there))


def options_of(name: str) -> dict[str, object]:
    return {key: OPTIONS[key] for key in LOSSES[name].options} | {"beta": 0.5}


def discount(one: int, other: int) -> float:
    return abs(1 / math.log(1 + one) - 1 / math.log(1 + other))


R = [0.5 * ratio for ratio in RATIOS]  # 2, -0.5 and 1: ranked as the scores
SOFT = [math.exp(score / 0.5) / sum(math.exp(other / 0.5) for other in SCORES) for score in SCORES]
TOTAL = sum(map(math.exp, R))
BY_HAND = [
    (listwise.plackett_luce, {}, RATIOS, -2 + math.log(TOTAL) - 1 + math.log(math.exp(1) + math.exp(-0.5))),
    # labels 1, 0, 1/2; ranks 1, 3, 2
    (listwise.lipo, {}, RATIOS,
     1 * discount(1, 3) * softplus(-2.5) + (2 - 2**0.5) * discount(1, 2) * softplus(-1)
     + (2**0.5 - 1) * discount(2, 3) * softplus(-1.5)),
    # the rewards exchanged: ranks 3, 1, 2
    (listwise.lipo, {}, (-1.0, 4.0, 2.0),
     1 * discount(1, 3) * softplus(2.5) + (2 - 2**0.5) * discount(3, 2) * softplus(1.5)
     + (2**0.5 - 1) * discount(2, 1) * softplus(1)),
    (listwise.lipo, {"lipo_labels": "scores"}, RATIOS,
     6 * discount(1, 3) * softplus(-2.5) + 4 * discount(1, 2) * softplus(-1) + 2 * discount(2, 3) * softplus(-1.5)),
    (listwise.info_nca, {"nca_tau": 0.5}, RATIOS,
     -sum(label * (r - math.log(TOTAL)) for label, r in zip(SOFT, R, strict=True))),
    (listwise.info_nca, {"nca_tau": 1e-4}, RATIOS, -(2 - math.log(TOTAL))),
    (listwise.nca, {"nca_tau": 0.5}, RATIOS,
     sum(-label * math.log(s(r)) - math.log(s(-r)) / 3 for label, r in zip(SOFT, R, strict=True))),
]  # fmt: skip


@pytest.mark.parametrize(("loss", "options", "ratios", "expected"), BY_HAND)
def test_value_by_hand(loss, options, ratios, expected):
    assert loss(listed(ratios), beta=0.5, **options).item() == pytest.approx(expected, rel=1e-12)


def test_every_loss_of_lists_has_a_value_by_hand():
    assert {LOSSES[name].function for name in NAMES} == {loss for loss, *_ in BY_HAND}


@pytest.mark.parametrize("name", NAMES)
def test_gradient(name):
    generator = torch.Generator().manual_seed(0)
    ratio = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    there = torch.tensor([[True] * 4, [True] * 4, [True, True, False, False]])
    score = torch.tensor([[4.0, 1, 2, 3], [2, 2, 1, 1], [1, 2, 0, 0]], dtype=torch.float64)
    options = options_of(name) | ({"nca_tau": 0.7} if "nca_tau" in LOSSES[name].options else {})

    def total(ratio: Tensor) -> Tensor:
        return LOSSES[name].function(listed(ratio, score, there), **options)

    assert torch.autograd.gradcheck(total, (ratio.requires_grad_(),))


def test_plackett_luce_of_two_is_dpo_to_the_bit():
    generator = torch.Generator().manual_seed(1)
    sides = [Sides(*torch.randn(4, 50, generator=generator).mul(20)) for _ in range(2)]
    two = Pairs(sides[0], sides[1], torch.zeros(50))
    assert torch.equal(listwise.plackett_luce(two, beta=0.1), p.sigmoid(two, beta=0.1))


def test_two_with_a_small_tau_are_dpo_and_nca_pair():
    options = {"beta": 0.1, "nca_tau": 1e-4}
    assert listwise.info_nca(pairs(), **options).item() == pytest.approx(softplus(-0.5), rel=1e-12)
    assert listwise.nca(pairs(), **options).item() == pytest.approx(p.nca_pair(pairs(), beta=0.1).item(), rel=1e-12)


def test_lipo_of_two_is_dpo_times_a_constant():
    factor = discount(1, 2)
    assert listwise.lipo(pairs(), beta=0.1).item() == pytest.approx(factor * softplus(-0.5), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_within_a_list_plays_no_part(name):
    found = [
        LOSSES[name]
        .function(listed([RATIOS[i] for i in order], tuple(SCORES[i] for i in order)), **options_of(name))
        .item()
        for order in itertools.permutations(range(3))
    ]
    assert found == pytest.approx([found[0]] * 6, rel=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_a_list_does_not_feel_its_neighbours_length(name):
    options = options_of(name)
    alone = LOSSES[name].function(listed(RATIOS[:2], SCORES[:2]), **options).item()
    ratio = torch.tensor([[*RATIOS, -3.0], [*RATIOS[:2], 0.0, 0.0]], dtype=torch.float64)
    score = torch.tensor([[*SCORES, 0.5], [*SCORES[:2], 0.0, 0.0]], dtype=torch.float64)
    there = torch.tensor([[True] * 4, [True, True, False, False]])
    assert LOSSES[name].function(listed(ratio, score, there), **options)[1].item() == pytest.approx(alone, rel=1e-14)


def test_completions_of_one_score_have_no_preference_among_them():
    """Both beat the third; which of them is the better one is not asked."""
    tied = (2.0, 2.0, 1.0)
    against = [math.log(math.exp(r) + math.exp(R[1])) - r for r in (R[0], R[2])]
    found = listwise.plackett_luce(listed((4.0, 2.0, -1.0), tied), beta=0.5)
    assert found.item() == pytest.approx(sum(against), rel=1e-12)
    grad = torch.autograd.functional.jacobian(
        lambda r: listwise.lipo(listed(r, torch.tensor([tied], dtype=r.dtype)), beta=0.5).sum(),
        torch.tensor([[0.0, 0.0, 0.0]], dtype=torch.float64),
    )
    assert grad[0, 2] > 0 > grad[0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_extreme_rewards_are_finite(name, dtype):
    values = (0.0, 1e-9, -30.0, 4000.0, -4000.0, 1e5)
    ratio = torch.tensor(list(itertools.product(values, repeat=3)), dtype=dtype, requires_grad=True)
    score = torch.tensor([[9.0, 9.0, -2.0]], dtype=dtype).expand_as(ratio)
    found = LOSSES[name].function(listed(ratio, score), **options_of(name))
    assert found.isfinite().all()
    (gradient,) = torch.autograd.grad(found.sum(), ratio)
    assert gradient.isfinite().all()


def test_the_accuracy_is_that_of_all_ordered_pairs():
    lists = Lists.of(listed((4.0, 4.0, 5.0), (2.0, 1.0, 1.0)))
    assert lists.right_N().item() == 0  # a tie of rewards is wrong, and the two of one score do not count
    assert Lists.of(listed((4.0, 3.0, 5.0), (3.0, 2.0, 1.0))).right_N().item() == pytest.approx(1 / 3)
