"""Every loss of pairs: values computed by hand, a float64 gradcheck, and what must hold whatever the numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from preftune.errors import ConfigError
from preftune.losses import LOSSES, Objective, Pairs, get_loss, listwise, moments
from preftune.losses import pairwise as p
from preftune.losses import reference_free as free
from preftune.types import Sides

POLICY, REFERENCE = (-10.0, -30.0), (-14.0, -29.0)  # log-ratios: chosen +4, rejected -1; difference 5
LENGTHS = (2.0, 5.0)  # log-probabilities per token: -5 and -6
OPTIONS = {
    "label_smoothing": 0.1, "f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 0.5, "discopop_tau": 0.05,
    "rdpo_alpha": 0.1, "dpop_lambda": 2.0, "rpo_distance": "backward_kl", "simpo_gamma": 0.5, "alphapo_alpha": 0.25,
    "slic_delta": 1.0, "tokens_per_pair": 4.0, "bco_running_mean": True,
    "delta": 0.2, "step_beta": 0.25, "gap_mean": 0.1, "gap_std": 1.5,
    "alpha_dpo_alpha": 0.0,  # its standardised difference has no gradient, which a gradcheck would see: test_moments.py
    "tpo_l_gamma": 0.5, "gold_tokens_per_pair": 4.0, "lipo_labels": "wins", "nca_tau": 1e-4,
}  # fmt: skip


def sides(chosen, rejected, lengths=LENGTHS) -> Sides:
    def column(value) -> Tensor:
        return value if isinstance(value, Tensor) else torch.tensor([value], dtype=torch.float64)

    return Sides(column(chosen), column(rejected), column(lengths[0]), column(lengths[1]))


def pairs(policy=POLICY, reference=REFERENCE, margin=0.0, lengths=LENGTHS) -> Pairs:
    known = None if reference is None else sides(*reference, lengths)
    return Pairs(sides(*policy, lengths), known, torch.as_tensor([margin], dtype=torch.float64))


def options_of(name: str) -> dict[str, object]:
    loss = LOSSES[name]
    return {key: OPTIONS[key] for key in loss.options} | ({"beta": 0.3} if loss.has_beta else {})


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def odds(mean: float) -> float:
    return mean - math.log(1 - math.exp(mean))


def f(alpha: float, ratio: float) -> float:
    """f' of the alpha divergence at u = e^ratio, as f-DPO has it after TRL's change of alpha."""
    return (math.exp((alpha - 1) * ratio) - 1) / (alpha - 1)


B = {"beta": 0.1}
BY_HAND = [
    (p.sigmoid, B, {}, softplus(-0.5)),
    (p.sigmoid, B, {"margin": 0.2}, softplus(-0.3)),
    (p.sigmoid, {**B, "label_smoothing": 0.1}, {}, 0.9 * softplus(-0.5) + 0.1 * softplus(0.5)),
    (p.sigmoid, {**B, "f_divergence_type": "forward_kl", "f_alpha_divergence_coef": 0.5}, {},
     softplus(-0.1 * (-math.exp(-4) + math.exp(1)))),
    (p.sigmoid, {**B, "f_divergence_type": "js_divergence", "f_alpha_divergence_coef": 0.5}, {},
     softplus(-0.1 * (math.log(s(4)) - math.log(s(-1))))),
    (p.sigmoid, {**B, "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3}, {},
     softplus(-0.1 * (f(0.3, 4) - f(0.3, -1)))),
    (p.sigmoid, {**B, "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.0}, {}, softplus(-0.5)),
    (p.robust, B, {}, softplus(-0.5)),
    (p.robust, {**B, "label_smoothing": 0.2}, {}, (0.8 * softplus(-0.5) - 0.2 * softplus(0.5)) / 0.6),
    (p.hinge, B, {}, 0.5),
    (p.hinge, {"beta": 0.3}, {}, 0.0),
    (p.hinge, B, {"margin": 0.25}, 0.75),
    (p.ipo, B, {}, (4 / 2 - (-1 / 5) - 5) ** 2),
    (p.ipo, B, {"margin": 0.1}, (2.2 - 6) ** 2),
    (p.ipo_sum, B, {}, 0.0),
    (p.ipo_sum, {"beta": 0.25}, {}, 9.0),
    (p.sigmoid_norm, {"beta": 5.0}, {}, softplus(-11.0)),
    (p.sigmoid_norm, {"beta": 1.0}, {"margin": 0.2}, softplus(-2.0)),
    (p.exo_pair, {**B, "label_smoothing": 0.1}, {},
     s(0.5) * math.log(s(0.5) / 0.9) + s(-0.5) * math.log(s(-0.5) / 0.1)),
    (p.nca_pair, B, {}, softplus(-0.4) + 0.5 * softplus(0.4) + 0.5 * softplus(-0.1)),
    (p.bco_pair, {**B, "bco_running_mean": False, "delta": 0.3}, {}, softplus(-0.4) + softplus(-0.1)),
    (p.bco_pair, {**B, "bco_running_mean": True, "delta": 0.3}, {}, softplus(-0.1) + softplus(-0.4)),
    (p.sppo_hard, {"beta": 0.25}, {}, (4 - 2) ** 2 + (-1 + 2) ** 2),
    (p.apo_zero, B, {}, 1 - s(0.4) + s(-0.1)),
    (p.apo_down, B, {}, s(0.4) + 1 - s(0.5)),
    (p.discopop, {**B, "discopop_tau": 0.5}, {}, (1 - s(1.0)) * softplus(-0.5) + s(1.0) * math.exp(-0.5)),
    (p.aot, B, {"margin": 0.1 * (13 - 15)}, softplus(-0.1 * (20 - 13))),
    (p.aot_unpaired, B, {}, softplus(-0.5)),
    (moments.beta_dpo, {**B, "step_beta": 0.3}, {"margin": 0.2}, softplus(-(0.3 * 5 - 0.2))),
    (moments.beta_dpo, {**B, "step_beta": None}, {}, softplus(-0.5)),
    # per token: log-ratios 2 and -0.2, so z = (2.2 - 0.2) / 0.5; log-probabilities -5 and -6
    (moments.alpha_dpo,
     {"beta": 2.0, "simpo_gamma": 0.5, "alpha_dpo_alpha": 0.1, "gap_mean": 0.2, "gap_std": 0.5}, {"margin": 0.3},
     softplus(-(2 * (1 - 0.1 * 4) - 0.5 - 0.3))),
    (p.rdpo, {**B, "rdpo_alpha": 0.2}, {}, softplus(-(0.5 + 0.2 * (2 - 5)))),
    (p.dpop, {**B, "dpop_lambda": 50.0}, {}, softplus(-0.5)),
    (p.dpop, {**B, "dpop_lambda": 3.0}, {"policy": (-16.0, -30.0)}, softplus(-0.1 * (-1 - 3 * 2))),
    (p.cal_dpo, {"beta": 0.25}, {}, softplus(-5.0) + 5.0),
    (p.reward_aware, {**B, "rpo_distance": "squared"}, {"margin": 0.2}, 0.3**2),
    (p.reward_aware, B, {"margin": 0.2},
     s(0.2) * math.log(s(0.2) / s(0.5)) + s(-0.2) * math.log(s(-0.2) / s(-0.5))),
    (p.reward_aware, {**B, "rpo_distance": "forward_kl"}, {"margin": 0.2},
     s(0.5) * math.log(s(0.5) / s(0.2)) + s(-0.5) * math.log(s(-0.5) / s(-0.2))),
    (listwise.plackett_luce, B, {}, softplus(-0.5)),
    (listwise.lipo, B, {}, (1 / math.log(2) - 1 / math.log(3)) * softplus(-0.5)),
    (listwise.info_nca, B, {}, softplus(-0.5)),
    (listwise.nca, B, {}, softplus(-0.4) + 0.5 * softplus(0.4) + 0.5 * softplus(-0.1)),
    (free.simpo, {"beta": 2.0, "simpo_gamma": 0.5}, {"reference": None}, softplus(-(2 * (-5 + 6) - 0.5))),
    (free.simpo, {"beta": 2.0, "simpo_gamma": 0.5}, {"reference": None, "margin": 0.3}, softplus(-1.2)),
    (free.alphapo, {"beta": 2.0, "simpo_gamma": 0.5, "alphapo_alpha": 0.25}, {"reference": None},
     softplus(-(2 * ((1 - math.exp(1.25)) / 0.25 - (1 - math.exp(1.5)) / 0.25) - 0.5))),
    (free.alphapo, {"beta": 2.0, "simpo_gamma": 0.5, "alphapo_alpha": 0.0}, {"reference": None}, softplus(-1.5)),
    (free.cpo, B, {"reference": None}, softplus(-2.0)),
    (free.odds_ratio, {"beta": 0.1}, {"reference": None}, 0.1 * softplus(-(odds(-5.0) - odds(-6.0)))),
    (free.tpo, B, {"reference": None}, softplus(-2.0)),
    (free.tpo_l, {"beta": 2.0, "tpo_l_gamma": 0.7}, {"reference": None}, softplus(-(2 * (-5 + 6) - 0.7))),
    (free.simper, {}, {"reference": None}, math.exp(-6) - math.exp(-5)),
    (free.slic, {"slic_delta": 1.0}, {"reference": None}, 0.0),
    (free.slic, {"slic_delta": 25.0}, {"reference": None, "margin": 1.0}, 6.0),
]  # fmt: skip


@pytest.mark.parametrize(("loss", "options", "shape", "expected"), BY_HAND)
def test_value_by_hand(loss, options, shape, expected):
    assert loss(pairs(**shape), **options).item() == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_every_loss_has_a_value_by_hand():
    tried = {loss for loss, *_ in BY_HAND}
    assert {loss.name for loss in LOSSES.values() if loss.function not in tried} == {"sft", "gold"}


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"])
def test_gradient(name, divergence):
    loss, options = LOSSES[name], options_of(name)
    if "f_divergence_type" in options:
        options["f_divergence_type"] = divergence
    generator = torch.Generator().manual_seed(0)
    chosen, rejected, ref_chosen, ref_rejected = -torch.rand(4, 6, generator=generator, dtype=torch.float64).mul(3)
    lengths = tuple(torch.randint(1, 9, (2, 6), generator=generator).double())
    margin = torch.rand(6, generator=generator, dtype=torch.float64)

    def total(c: Tensor, r: Tensor) -> Tensor:
        known = Sides(ref_chosen, ref_rejected, *lengths) if loss.reference else None
        return loss.function(Pairs(Sides(c, r, *lengths), known, margin, gold_N=c + r), **options)

    assert torch.autograd.gradcheck(total, (chosen.requires_grad_(), rejected.requires_grad_()))


AT_THE_START = {
    "sigmoid": math.log(2), "robust": math.log(2), "hinge": 1.0, "ipo": 25.0, "ipo_sum": 25.0,
    "sigmoid_norm": math.log(2), "nca_pair": 2 * math.log(2), "sppo_hard": 50.0, "apo_zero": 1.0, "apo_down": 1.0,
    "discopop": 0.5 * math.log(2) + 0.5, "dpop": math.log(2), "cal_dpo": math.log(2) + 50.0, "reward_aware": 0.0,
    "bco_pair": softplus(0.2) + softplus(-0.2), "aot": math.log(2), "aot_unpaired": math.log(2),
    "exo_pair": 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), "rdpo": softplus(0.3),
    "plackett_luce": math.log(2), "lipo": (1 / math.log(2) - 1 / math.log(3)) * math.log(2), "info_nca": math.log(2),
    "nca": 2 * math.log(2), "beta_dpo": math.log(2), "alpha_dpo": softplus(-(0.1 * 1 - 0.5)),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(name for name, loss in LOSSES.items() if loss.reference))
def test_value_while_policy_and_reference_are_one(name):
    smoothed = {"label_smoothing": 0.0} if "label_smoothing" in LOSSES[name].options and name != "exo_pair" else {}
    value = LOSSES[name].function(pairs(reference=POLICY), **{**options_of(name), "beta": 0.1, **smoothed})
    assert value.item() == pytest.approx(AT_THE_START[name], rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("name", sorted(name for name, loss in LOSSES.items() if "f_divergence_type" in loss.options))
@pytest.mark.parametrize("divergence", ["forward_kl", "js_divergence", "alpha_divergence"])
def test_an_unchanged_policy_has_reward_0_under_every_divergence(name, divergence):
    """Lengths differ: a constant of the divergence would stay in losses per token."""
    options = {**options_of(name), "beta": 0.1}
    plain = LOSSES[name].function(pairs(reference=POLICY), **options)
    value = LOSSES[name].function(pairs(reference=POLICY), **{**options, "f_divergence_type": divergence})
    assert value.item() == pytest.approx(plain.item(), rel=1e-12)


def test_the_likelihood_term_counts_all_tokens_whatever_the_sides_weigh():
    """LD-DPO weighs tokens of the longer answer in the preference; the likelihood is that of the whole answer."""
    w, m = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    found = objective("sigmoid", "sft")(
        sides(*POLICY), sides(*REFERENCE), weight_N=w, margin_N=m, whole_N=w * -16.0, tokens_per_pair=4.0
    )
    assert found.loss_N.item() == pytest.approx(softplus(-0.5) + 16 / 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_extreme_scores_are_finite(name, dtype):
    """A certain token (log-probability 0), a hopeless one, and the largest that a long answer has."""
    loss = LOSSES[name]
    values = torch.tensor([0.0, -1e-9, -1e-3, -30.0, -4000.0], dtype=dtype)
    chosen, rejected = (part.flatten().clone() for part in torch.meshgrid(values, values, indexing="ij"))
    chosen.requires_grad_()
    rejected.requires_grad_()
    length = torch.full_like(chosen, 3.0)
    for divergence in ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"):
        options = options_of(name)
        if "f_divergence_type" in options:
            options["f_divergence_type"] = divergence
        known = Sides(chosen.detach().flip(0), rejected.detach().flip(0), length, length) if loss.reference else None
        found = loss.function(
            Pairs(Sides(chosen, rejected, length, length), known, torch.full_like(length, 0.1), gold_N=rejected),
            **options,
        )
        assert found.isfinite().all()
        for gradient in torch.autograd.grad(found.sum(), (chosen, rejected), allow_unused=True):
            assert gradient is None or gradient.isfinite().all()


def test_aot_pairs_differences_by_rank():
    policy = torch.tensor([3.0, -1.0, 8.0], dtype=torch.float64)
    reference = torch.tensor([2.0, 5.0, 1.0], dtype=torch.float64)
    found = p.aot_margins(policy, reference, beta=0.5)
    assert found.tolist() == [0.5 * (2 - 2), 0.5 * (1 - 5), 0.5 * (5 - 1)]
    assert p.aot_margins(policy[:1], reference[:1], beta=0.5).item() == 0  # a single pair is DPO's


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_aot_unpaired_is_the_loss_of_sorted_answers_with_its_gradient(smoothing):
    generator = torch.Generator().manual_seed(2)
    chosen, rejected = torch.randn(2, 7, generator=generator, dtype=torch.float64).mul(3).requires_grad_()
    zero = torch.zeros(7, dtype=torch.float64)
    one = Sides(zero, zero, zero + 1, zero + 1)

    def made(chosen: Tensor, rejected: Tensor) -> Pairs:
        return Pairs(Sides(chosen, rejected, zero + 1, zero + 1), one, zero)

    margins = p.aot_unpaired_margins(made(chosen, rejected), beta=0.5)
    found = p.aot_unpaired(
        made(chosen, rejected)._replace(margin_N=margins[0], rejected_margin_N=margins[1]),
        beta=0.5,
        label_smoothing=smoothing,
    ).sum()
    expected = p.smoothed(0.5 * (chosen.sort().values - rejected.sort().values), smoothing).sum()
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    gradients = [torch.autograd.grad(value, (chosen, rejected)) for value in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@given(gap=st.floats(-50, 50), beta=st.floats(0.01, 1), smoothing=st.floats(0, 0.4))
def test_swapping_the_sides_changes_the_loss_by_the_log_odds_of_the_label(gap, beta, smoothing):
    one = p.sigmoid(pairs((gap, 0.0), (0.0, 0.0)), beta=beta, label_smoothing=smoothing)
    two = p.sigmoid(pairs((0.0, gap), (0.0, 0.0)), beta=beta, label_smoothing=smoothing)
    # the two losses differ by log s(z) - log s(-z) = z
    assert (two - one).item() == pytest.approx((1 - 2 * smoothing) * beta * gap, rel=1e-9, abs=1e-9)


def objective(*names: str, weights=None, beta=0.1, **options) -> Objective:
    values = {**OPTIONS, "label_smoothing": 0.0, "cpo_alpha": 1.0, "tpo_alpha": 1.0, "slic_lambda": 0.1, **options}
    return Objective.of(names, weights, beta, values)


def weighed(found: Objective, *, weight=1.0, reference=REFERENCE, margin=0.0, tokens_per_pair=2.0):
    w, m = (torch.tensor([v], dtype=torch.float64) for v in (weight, margin))
    known = None if reference is None else sides(*reference)
    return found(sides(*POLICY), known, weight_N=w, margin_N=m, tokens_per_pair=tokens_per_pair)


def test_an_objective_weighs_pairs_and_gives_rewards():
    found = weighed(objective("sigmoid"), weight=3.0)
    assert found.loss_N.item() == pytest.approx(3 * softplus(-0.5))
    assert (found.chosen_reward_N.item(), found.rejected_reward_N.item()) == (pytest.approx(0.4), pytest.approx(-0.1))
    free_ones = weighed(objective("simpo", beta=2.0), reference=None)
    assert (free_ones.chosen_reward_N.item(), free_ones.rejected_reward_N.item()) == (-10.0, -12.0)


def test_several_losses_are_a_weighted_sum():
    """MPO: 0.8 DPO, 0.2 APO here for BCO, and the likelihood, a mean over the chosen tokens of the step."""
    found = weighed(objective("sigmoid", "apo_zero", "sft", weights=[0.8, 0.2, 1.0]), tokens_per_pair=4.0)
    assert found.loss_N.item() == pytest.approx(0.8 * softplus(-0.5) + 0.2 * (1 - s(0.4) + s(-0.1)) + 10 / 4)


def test_tpo_imitates_the_gold_answer_and_not_the_chosen_one():
    w, m = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    known = {"weight_N": w, "margin_N": m, "gold_N": w * -7.0, "gold_tokens_per_pair": 2.0, "tokens_per_pair": 1.0}
    found = objective("tpo", beta=0.1, tpo_alpha=0.5)(sides(*POLICY), None, **known)
    assert found.loss_N.item() == pytest.approx(softplus(-2.0) + 0.5 * 7 / 2)
    assert not objective("tpo", tpo_alpha=0.0).needs_gold


def test_methods_bring_their_likelihood_term():
    cpo, orpo = weighed(objective("cpo", cpo_alpha=0.5), reference=None), weighed(objective("orpo"), reference=None)
    assert cpo.loss_N.item() == pytest.approx(softplus(-2.0) + 0.5 * 10 / 2)
    assert orpo.loss_N.item() == pytest.approx(0.1 * softplus(-(odds(-5.0) - odds(-6.0))) + 10 / 2)
    assert weighed(objective("slic"), reference=None).loss_N.item() == pytest.approx(0.1 * 10 / 2)
    assert not objective("cpo", cpo_alpha=0.0).terms[1:]


@pytest.mark.parametrize(
    ("name", "words"),
    [("sigmod", "Did you mean 'sigmoid'"), ("aot_unpair", "Did you mean 'aot_unpaired'"), ("zzz", "Use one of")],
)
def test_an_unknown_loss_names_what_there_is(name, words):
    with pytest.raises(ConfigError, match=words):
        get_loss(name)
