"""Where implementations disagree: preftune's number and the other one. docs/methods.md has the words.

The two sides of the pair: log-ratios +4 and -1 nats on 2 and 5 tokens, log-probabilities -10 and -30.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch

import preftune
from preftune.logps import pack
from preftune.logps.batch import GroupLogps
from preftune.losses import Pairs, listwise
from preftune.losses import pairwise as p
from preftune.losses import reference_free as free
from preftune.training.step.kl_baseline import mismatched
from preftune.training.step.pair_loss import pair_loss
from preftune.types import Preference, Sides, TokenizedGroup
from tests.losses.test_pairwise import f, objective, pairs, s, softplus, weighed


class Disagreement(NamedTuple):
    what: str
    here: float
    """What preftune computes."""
    ours: float
    """The reading that it follows, by hand."""
    other: float
    """The other reading, by hand."""
    there: float | None = None
    """What preftune computes with the option for the other reading."""


def value(loss, *, reference=True, **options) -> float:
    return float(loss(pairs() if reference else pairs(reference=None), **options))


def likelihood(tokens_per_pair) -> float:
    return float(free.likelihood(pairs(reference=None), tokens_per_pair=tokens_per_pair))


FOUND = [
    Disagreement(
        "IPO: per token (its authors to TRL, LLaMA-Factory, HALOs), or summed (OpenRLHF)",
        value(p.ipo, beta=0.25), (4 / 2 + 1 / 5 - 2) ** 2, (5 - 2) ** 2, value(p.ipo_sum, beta=0.25),
    ),
    Disagreement(
        "alpha divergence: exponent alpha - 1 (TRL 1.16), or -alpha (older TRL, ms-swift)",
        value(p.sigmoid, beta=0.1, f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.3),
        softplus(-0.1 * (f(0.3, 4) - f(0.3, -1))),
        softplus(-0.1 * ((math.exp(-0.3 * 4) - 1) / -0.3 - (math.exp(0.3) - 1) / -0.3)),
        value(p.sigmoid, beta=0.1, f_divergence_type="alpha_divergence", f_alpha_divergence_coef=1 - 0.3),
    ),
    Disagreement(
        "cDPO: label_smoothing counts, or TRL 1.16's sigmoid, which ignores it",
        value(p.sigmoid, beta=0.1, label_smoothing=0.1), 0.9 * softplus(-0.5) + 0.1 * softplus(0.5), softplus(-0.5),
        value(p.sigmoid, beta=0.1),
    ),
    Disagreement(
        "BCO: delta is the running mean of the rewards (paper), or 0 (TRL 1.16, Liger)",
        value(p.bco_pair, beta=0.1, bco_running_mean=True, delta=0.2), softplus(-0.2) + softplus(-0.3),
        softplus(-0.4) + softplus(-0.1), value(p.bco_pair, beta=0.1, bco_running_mean=False, delta=0.2),
    ),
    Disagreement(
        "EXO: a smoothing that is given, or targets of (0, -10) as in its authors' code",
        value(p.exo_pair, beta=0.1, label_smoothing=1e-3),
        s(0.5) * math.log(s(0.5) / 0.999) + s(-0.5) * math.log(s(-0.5) / 1e-3),
        s(0.5) * math.log(s(0.5) * (1 + math.exp(-10))) + s(-0.5) * (math.log(s(-0.5) * (1 + math.exp(-10))) + 10),
        value(p.exo_pair, beta=0.1, label_smoothing=math.exp(-10) / (1 + math.exp(-10))),
    ),
    Disagreement(
        "SPPO: the squares (TRL), or half of them (its authors)",
        value(p.sppo_hard, beta=0.25), (4 - 2) ** 2 + (-1 + 2) ** 2, ((4 - 2) ** 2 + (-1 + 2) ** 2) / 2,
    ),
    Disagreement(
        "Cal-DPO: the squares as in the paper, or half of them (its authors' code)",
        value(p.cal_dpo, beta=0.25), softplus(-5) + 5, softplus(-5) + 5 / 2,
    ),
    Disagreement(
        "R-DPO: plus alpha times the lengths, as derived from its reward, or minus (alpha-DPO's repository)",
        value(p.rdpo, beta=0.1, rdpo_alpha=0.2), softplus(-(0.5 + 0.2 * (2 - 5))), softplus(-(0.5 - 0.2 * (2 - 5))),
    ),
    Disagreement(
        "hinge is RSO's, with a reference; SLiC-HF, which TRL's documents name beside it, has none",
        value(p.hinge, beta=0.1), 1 - 0.5, max(0.0, 25 + 10 - 30), value(free.slic, reference=False, slic_delta=25.0),
    ),
    Disagreement(
        "SimPO: gamma on the scale of the reward (TRL), or its authors' gamma_beta_ratio, which beta multiplies",
        value(free.simpo, reference=False, beta=2.0, simpo_gamma=0.5), softplus(-(2 * 1 - 0.5)),
        softplus(-2 * (1 - 0.5)), value(free.simpo, reference=False, beta=2.0, simpo_gamma=2.0 * 0.5),
    ),
    Disagreement(
        "SimPO: the paper's, or with CPO's likelihood term, which TRL's CPOTrainer adds unless cpo_alpha=0",
        float(weighed(objective("simpo", beta=2.0, simpo_gamma=0.5), reference=None).loss_N), softplus(-1.5),
        softplus(-1.5) + 10 / 2,
        float(weighed(objective("simpo", "sft", beta=2.0, simpo_gamma=0.5), reference=None).loss_N),
    ),
    Disagreement(
        "the likelihood term: a mean over the tokens of the step (4 a pair here), or of each answer (LLaMA-Factory)",
        likelihood(4.0), 10 / 4, 10 / 2, likelihood(torch.tensor([2.0], dtype=torch.float64)),
    ),
]  # fmt: skip


@pytest.mark.parametrize("one", FOUND, ids=lambda one: one.what.split(":")[0])
def test_both_numbers(one):
    assert one.here == pytest.approx(one.ours, rel=1e-12)
    assert one.ours != pytest.approx(one.other, rel=1e-6)
    if one.there is not None:
        assert one.there == pytest.approx(one.other, rel=1e-12)


def test_ld_dpo_weighs_policy_and_reference_alike():
    """So the loss of an unchanged policy is ln 2, as in TRL; LLaMA-Factory and ms-swift weigh the policy alone."""
    batch = pack([TokenizedGroup((1, 2), ((3,), (4, 5, 6)), (Preference(0, 1),), id="one")])
    scored = GroupLogps(torch.tensor([-1.0, -2.0, -3.0, -4.0]).double(), batch.owner_T, completions=2)
    for policy_only, expected in ((False, math.log(2)), (True, softplus(0.1 * 0.5 * 7))):
        args = preftune.DPOConfig("unused", ld_alpha=0.5, ld_policy_only=policy_only, use_cpu=True, bf16=False)
        output, _ = pair_loss(args, args.objective(), batch, scored=scored, known=scored, tokens_per_pair=1.0)
        assert output.loss_N.item() == pytest.approx(expected)


def test_answers_of_the_best_score_share_the_label_of_infonca():
    """Its authors' code adds 0.01 to the first answer's score, which at their tau decides everything."""
    r = (0.4, -0.1)
    ratio, there = torch.tensor([[4.0, -1.0]], dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool)

    def loss(*scores: float) -> float:
        made = pairs()._replace(lists=(ratio, torch.tensor([scores], dtype=torch.float64), there))
        return float(listwise.info_nca(made, beta=0.1, nca_tau=1e-4))

    total = math.log(math.exp(r[0]) + math.exp(r[1]))
    assert loss(3.0, 3.0) == pytest.approx(total - sum(r) / 2)
    assert loss(3.01, 3.0) == pytest.approx(total - r[0])


def test_wpo_weighs_at_most_1_as_its_authors_and_trl_does_not():
    """Both answers likelier than what the policy samples on average: the weight of TRL is above 1."""
    likely = torch.tensor([0.3], dtype=torch.float64), torch.tensor([0.2], dtype=torch.float64)
    assert p.wpo_weights(*likely).item() == 1
    assert float((likely[0] + likely[1]).exp()) == pytest.approx(1.6487, abs=1e-4)  # TRL's
    assert p.wpo_weights(likely[0], -likely[1] * 3).item() == pytest.approx(math.exp(-0.3))  # of the product, once


def test_aot_sorts_the_step_and_not_the_micro_batch():
    """TRL sorts what one device has at a time: two pairs twice are another loss than four at once."""
    policy = torch.tensor([3.0, -1.0, 8.0, 0.0], dtype=torch.float64)
    reference = torch.tensor([2.0, 5.0, 1.0, -4.0], dtype=torch.float64)
    step = p.aot_margins(policy, reference, beta=1.0)
    halves = [p.aot_margins(policy[part], reference[part], beta=1.0) for part in (slice(0, 2), slice(2, 4))]
    assert step.tolist() == [2 - 2, -4 - 5, 5 - 1, 1 + 4]
    assert torch.cat(halves).tolist() == [5 - 2, 2 - 5, 1 - 1, -4 + 4]


def test_aot_unpaired_sorts_the_step_and_not_the_micro_batch():
    """TRL sorts what one device has at a time."""
    ratios = torch.tensor([[4.0, 1.0], [1.0, 3.0], [-2.0, 0.0], [0.0, 5.0]], dtype=torch.float64)

    def loss(part: slice) -> float:
        chosen, rejected = ratios[part].unbind(1)
        zero = torch.zeros_like(chosen)
        sides = Sides(chosen, rejected, zero + 1, zero + 1)
        step = Pairs(sides, Sides(zero, zero, zero + 1, zero + 1), zero)
        margins = p.aot_unpaired_margins(step, beta=1.0)
        return float(p.aot_unpaired(step._replace(margin_N=margins[0], rejected_margin_N=margins[1]), beta=1.0).sum())

    assert loss(slice(0, 4)) == pytest.approx(2 * softplus(2) + 2 * softplus(1))
    halves = loss(slice(0, 2)) + loss(slice(2, 4))
    assert halves == pytest.approx(softplus(0) + softplus(-1) + softplus(2) + softplus(5))
    assert halves != pytest.approx(loss(slice(0, 4)), rel=1e-3)


def test_kto_s_baseline_has_no_prompt_with_its_own_answer():
    """TRL before 0.10 and LLaMA-Factory reverse the answers of a batch, which leaves the middle one of three alone."""
    groups = [TokenizedGroup((place,), ((10 + place,),), (), id=str(place)) for place in range(3)]
    answers = [group.completions[0][0] for group in groups]
    assert [one.completions[0][0] for one in mismatched(groups, range(3))] == [12, 10, 11]
    assert answers[::-1] == [12, 11, 10]


def test_orpo_s_odds_are_finite_where_a_probability_rounds_to_1():
    """LLaMA-Factory's `log1p(-exp(p))` is -inf there, and its gradient NaN; TRL and preftune have another form."""
    mean = torch.tensor([-1e-18], dtype=torch.float64, requires_grad=True)
    assert torch.log1p(-mean.exp()).item() == -math.inf
    one = torch.ones(1, dtype=torch.float64)
    known = Sides(mean, torch.tensor([-3.0], dtype=torch.float64), one, one)
    found = free.odds_ratio(Pairs(known, None, 0 * one), beta=0.1)
    log_odds = -math.log(1e-18) + 3 + math.log1p(-math.exp(-3))
    assert found.item() == pytest.approx(0.1 * softplus(-log_odds))
    assert torch.autograd.grad(found.sum(), mean)[0].isfinite().all()
