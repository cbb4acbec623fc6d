"""The inner parts without a trainer: gradients against the plain path, invariances, and a bandit that is solved."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor

from models_zoo import random_model
from preftune.logps import make_engine, naive_logps, pack
from preftune.logps.states import trunk_of
from preftune.losses.advantages import Moments
from preftune.models.roles import Scalar, separate_value, value_adapter
from preftune.training.ppo.experience import Experience, Shaping, make_experience, mini_batches
from preftune.training.ppo.update import Clips, backward_part
from preftune.types import TokenizedGroup
from tiny import tiny_model

from .ppo_runs import lora

GROUPS = [
    TokenizedGroup([5, 6, 7], ([8, 9, 2],), (), id="a"),
    TokenizedGroup([4, 3], ([11],), (), id="b"),
    TokenizedGroup([5, 6, 7], ([10, 12, 13, 2],), (), id="c"),
]


def experience(dtype: torch.dtype = torch.float32) -> list[Experience]:
    """Made-up numbers near what a tiny model says, so that some tokens are clipped and some are not."""
    generator = torch.Generator().manual_seed(7)

    def draw(group: TokenizedGroup, scale: float, shift: float = 0.0) -> Tensor:
        return shift + scale * torch.randn(len(group.completions[0]), generator=generator, dtype=dtype)

    return [Experience(g, draw(g, 0.3, -5.5), draw(g, 0.3), draw(g, 1.0), draw(g, 1.0)) for g in GROUPS]


def one_base(dtype: torch.dtype = torch.float32) -> tuple[Any, Any, Scalar]:
    torch.manual_seed(0)
    model = get_peft_model(tiny_model(dtype=dtype), lora(task_type="CAUSAL_LM"))
    value = value_adapter(model, packed=True)
    generator = torch.Generator().manual_seed(1)
    for parameter in [p for p in model.parameters() if p.requires_grad] + [value.head.weight]:
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return model, make_engine(model, "packed"), value


def update(
    model: Any, engine: Any, value: Scalar, learnt: list[Experience], **clips: Any
) -> tuple[Any, dict[str, Any], Any]:
    groups = [one.group for one in learnt]
    return backward_part(
        model,
        engine,
        value,
        pack(groups),
        learnt,
        step_tokens=sum(len(g.completions[0]) for g in groups),
        clips=Clips(**clips),
        backward=lambda loss: loss.backward(),
        autocast=nullcontext,
    )


def gradients(model: Any, value: Scalar) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {**found, "head": value.head.weight.grad.clone()}


def test_loss_and_gradients_are_those_of_the_formulas_on_the_plain_path() -> None:
    """Float64, one sequence at a time, losses written out; the trunk's norms are float32 in transformers."""
    model, engine, value = one_base(torch.float64)
    learnt = experience(torch.float64)
    found = update(model, engine, value, learnt, cliprange=0.2, cliprange_value=0.2, vf_coef=0.5)
    ours = gradients(model, value)
    model.zero_grad(set_to_none=True)
    value.head.zero_grad(set_to_none=True)

    tokens = 8
    policy_loss = torch.zeros((), dtype=torch.float64)
    for one in learnt:
        for logp, old, advantage in zip(naive_logps(model, pack([one.group])), one.logps, one.advantages, strict=True):
            ratio = (logp - old).exp()
            policy_loss = policy_loss - torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage) / tokens
    policy_loss.backward()
    value_loss = torch.zeros((), dtype=torch.float64)
    with value.acting():
        for one in learnt:
            prompt, (answer,) = one.group.prompt_ids, one.group.completions
            states = trunk_of(model)(input_ids=torch.tensor([[*prompt, *answer]]))[0][0, len(prompt) - 1 : -1]
            said = value.head(states)[:, 0]
            near = torch.minimum(torch.maximum(said, one.values - 0.2), one.values + 0.2)
            worse = torch.maximum((said - one.returns) ** 2, (near - one.returns) ** 2)
            value_loss = value_loss + 0.5 * 0.5 * worse.sum() / tokens
        value_loss.backward()

    assert float(found[0]) == pytest.approx(float((policy_loss + value_loss).detach()), rel=1e-6)
    assert float(found[1]["policy/clipfrac_avg"]) > 0, "the case must clip"
    theirs = gradients(model, value)
    assert theirs.keys() == ours.keys()
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-5, atol=1e-7, msg=name)


def test_parts_add_up_to_the_step() -> None:
    whole = one_base()
    learnt = experience()
    all_at_once = update(*whole, learnt)
    split = one_base()
    losses = [
        backward_part(
            *split,
            pack([one.group]),
            [one],
            step_tokens=8,
            clips=Clips(),
            backward=lambda loss: loss.backward(),
            autocast=nullcontext,
        )[0]
        for one in learnt
    ]
    assert float(sum(losses)) == pytest.approx(float(all_at_once[0]), abs=1e-6)
    theirs = gradients(split[0], split[2])
    for name, expected in gradients(whole[0], whole[2]).items():
        torch.testing.assert_close(theirs[name], expected, rtol=1e-4, atol=1e-6)


def test_zero_advantage_gives_a_zero_policy_gradient() -> None:
    model, engine, value = one_base()
    learnt = [Experience(o.group, o.logps, o.values, torch.zeros_like(o.advantages), o.returns) for o in experience()]
    update(model, engine, value, learnt)
    found = gradients(model, value)
    policys = {name: grad for name, grad in found.items() if ".default." in name}
    assert policys
    assert not any(grad.any() for grad in policys.values())
    assert any(grad.any() for name, grad in found.items() if name not in policys), "the value still learns"


def test_activation_checkpointing_changes_nothing() -> None:
    """The layers are computed again in the backward pass, and must be with the adapter they were computed with."""
    plain, again = one_base(), one_base()
    again[0].enable_input_require_grads()
    again[0].gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    again[0].train()
    for model, engine, value in (plain, again):
        update(model, engine, value, experience())
    theirs = gradients(again[0], again[2])
    for name, expected in gradients(plain[0], plain[2]).items():
        torch.testing.assert_close(theirs[name], expected, rtol=1e-5, atol=1e-7)


def test_experience_of_a_round() -> None:
    """Two answers worked out by hand: gamma 1, lambda 1, so an advantage is what still comes less the value."""
    made = make_experience(
        GROUPS[:2],
        logps=[torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-1.0])],
        reference=[torch.tensor([-1.5, -2.0, -2.0]), torch.tensor([-2.0])],
        values=[torch.tensor([0.5, 0.0, 1.0]), torch.tensor([0.25])],
        scores=[2.0, -1.0],
        finished=[True, False],
        shaping=Shaping(kl_coef=0.5, lam=1.0, whiten_advantages=False, missing_eos_penalty=1.0),
        moments=Moments(),
    )
    first, second = made.experience
    # rewards: -0.5 * (0.5, 0, -1) + score at the end; the second has no end and loses a point
    assert first.returns.tolist() == pytest.approx([2.25, 2.5, 2.5])
    assert first.advantages.tolist() == pytest.approx([1.75, 2.5, 1.5])
    assert second.returns.tolist() == pytest.approx([-0.5 * 1.0 - 1.0 - 1.0])
    assert made.kl == pytest.approx((-0.5 + 1.0) / 2)
    assert made.figures["objective/rlhf_reward"] == pytest.approx((2.0 + 0.25 - 2.0 - 0.5) / 2)
    assert made.figures["objective/non_score_reward"] == pytest.approx(-0.5 * 0.25)
    assert made.figures["objective/entropy"] == pytest.approx(3.5)
    assert made.moments.seen == 2


def test_scores_are_normalised_then_clipped_then_punished() -> None:
    made = make_experience(
        GROUPS[:2],
        logps=[torch.zeros(3), torch.zeros(1)],
        reference=[torch.zeros(3), torch.zeros(1)],
        values=[torch.zeros(3), torch.zeros(1)],
        scores=[100.0, 0.0],
        finished=[False, True],
        shaping=Shaping(
            kl_coef=0.1,
            lam=1.0,
            whiten_advantages=False,
            normalize_rewards=True,
            reward_clip=0.5,
            missing_eos_penalty=2.0,
        ),
        moments=Moments(),
    )
    assert made.experience[0].returns.tolist() == pytest.approx([-1.5] * 3), "50 above the mean, clipped to 0.5, less 2"
    assert made.experience[1].returns.tolist() == pytest.approx([-0.5])
    assert made.figures["objective/rlhf_reward"] == pytest.approx(-1.0)


def test_every_answer_comes_once_per_epoch() -> None:
    learnt = experience()
    steps = mini_batches(learnt, epochs=3, parts=2, generator=torch.Generator().manual_seed(0))
    assert [len(step) for step in steps] == [2, 1] * 3
    for epoch in range(3):
        assert sorted(one.group.id for step in steps[2 * epoch : 2 * epoch + 2] for one in step) == ["a", "b", "c"]
    assert len(mini_batches(learnt[:1], epochs=2, parts=4, generator=torch.Generator())) == 2


@pytest.mark.sample(0)
@pytest.mark.parametrize("seed", [0, 5])
def test_a_two_armed_bandit_is_solved(seed: int) -> None:
    """A language of two tokens, one of which pays 1 with probability 0.8, the other with 0.2. Everything is trained."""
    model = random_model("llama", vocab_size=2, pad_token_id=0, bos_token_id=None, eos_token_id=None)
    engine = make_engine(model, "packed")
    value = separate_value(copy.deepcopy(trunk_of(model)), packed=True)
    parameters = [*model.parameters(), *value.trunk.parameters(), *value.head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    generator = torch.Generator().manual_seed(seed)
    moments = Moments()

    def chance_of_the_better_arm() -> float:
        with torch.no_grad():
            return float(model(input_ids=torch.tensor([[0, 1]])).logits[0, -1].softmax(-1)[0])

    start = chance_of_the_better_arm()
    for _ in range(40):
        arms = (torch.rand(64, generator=generator) > chance_of_the_better_arm()).long().tolist()
        paid = [float(torch.rand((), generator=generator) < (0.2 if arm else 0.8)) for arm in arms]
        groups = [TokenizedGroup([0, 1], ([arm],), (), id=str(i)) for i, arm in enumerate(arms)]
        batch = pack(groups)
        with torch.no_grad():
            logps, values = engine(model, batch).token_logps_T, value.of_tokens(batch)
        made = make_experience(
            groups,
            logps=list(logps[:, None]),
            reference=list(logps[:, None]),  # no penalty: the best arm is all there is
            values=list(values[:, None]),
            scores=paid,
            finished=[True] * len(arms),
            shaping=Shaping(kl_coef=0.0),
            moments=moments,
        )
        for step in mini_batches(made.experience, epochs=2, parts=2, generator=generator):
            optimizer.zero_grad()
            update(model, engine, value, step, vf_coef=0.5)
            optimizer.step()
    assert start < 0.2, "it begins on the wrong side"
    assert chance_of_the_better_arm() > 0.95
