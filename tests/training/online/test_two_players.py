"""XPO and Nash-MD on tiny models: who answers, losses and gradients beside naive computations, and what is learnt."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from preftune.errors import ConfigError
from preftune.logps import naive_logps, pack
from preftune.training.online import NashMDConfig, NashMDTrainer, XPOConfig, XPOTrainer
from preftune.training.online.fresh import FreshStep
from preftune.types import Preference, TokenizedGroup
from tests.training.online.test_online_dpo import SETTINGS, by_letters, letters
from tests.training.ppo.ppo_runs import PROMPTS, logged, lora
from tiny import tiny_model, tiny_tokenizer

KINDS = {"xpo": (XPOTrainer, XPOConfig), "nash-md": (NashMDTrainer, NashMDConfig)}


def made(kind: str, folder: Path, *, judge: Any = letters, far: bool = False, **options: Any) -> Any:
    """A trainer.

    Args:
        far: the adapter has moved the policy away from the reference.
    """
    trainer, config = KINDS[kind]
    given = {name: options.pop(name) for name in ("ref_model", "reward_funcs", "peft_config") if name in options}
    args = config(output_dir=str(folder), **{**SETTINGS, **options})
    torch.manual_seed(0)
    run = trainer(
        tiny_model(), args, PROMPTS, judge=judge, processing_class=tiny_tokenizer(), **{"peft_config": lora(), **given}
    )
    if far:
        with torch.no_grad():
            for name, weight in run.model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return run


def base_of(run: Any) -> Any:
    """The model that training began with, made anew."""
    torch.manual_seed(0)
    return tiny_model().eval()


def of_base(run: Any, numbers: list[int], *, first: int) -> list[tuple[int, ...]]:
    prompts = [run.prompts.prompts[i] for i in numbers]
    answers = run.sampler(base_of(run), prompts, [run.prompts.token_ids[i] for i in numbers], first=first)
    return [answer.response_ids for answer in answers]


@pytest.mark.parametrize("reference", ["adapter", "copy", "explicit"])
def test_xpo_compares_an_answer_of_the_policy_with_one_of_the_reference(reference: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"adapter": {}, "copy": {"peft_config": None}, "explicit": {"ref_model": tiny_model()}}[
        reference
    ]
    run = made("xpo", tmp_path, far=True, **given)
    if reference == "copy":
        with torch.no_grad():
            run.model.get_output_embeddings().weight.mul_(-3)
    own, other, *_ = answers = run.sample([2, 2, 5, 5])
    assert [a.prompt.id for a in answers] == [run.prompts.prompts[i].id for i in (2, 2, 5, 5)]
    assert [a.number for a in answers] == [0, 2, 1, 3]
    assert [answers[1].response_ids, answers[3].response_ids] == of_base(run, [2, 5], first=2)
    plain = run.sampler(run.model, [own.prompt] * 2, [own.prompt_ids] * 2, first=0)
    assert own.response_ids == plain[0].response_ids
    assert other.response_ids != plain[1].response_ids
    assert list(run.own_answers(answers)) == [answers[0], answers[2]]


def test_nash_md_plays_against_the_mixture_at_its_ends(tmp_path: Path) -> None:
    """With weight 1 the opponent is the reference, with weight 0 the policy."""
    run = made("nash-md", tmp_path, far=True, mixture_coef=1.0)
    answers = run.sample([2, 2, 5, 5])
    assert [answers[1].response_ids, answers[3].response_ids] == of_base(run, [2, 5], first=2)
    run.args.mixture_coef = [0.0]
    own = run.answers(run.sampler, run.model, [2, 5], first=2)
    assert [one.response_ids for one in run.opponent([2, 5], first=2)] == [one.response_ids for one in own]


@pytest.mark.parametrize("kind", KINDS)
def test_a_reference_of_its_own_answers_without_dropout(kind: str, tmp_path: Path) -> None:
    reference = tiny_model(seed=5, attention_dropout=0.9).train()
    options: dict[str, Any] = {"mixture_coef": 1.0} if kind == "nash-md" else {}
    run = made(kind, tmp_path, ref_model=reference, **options)
    run.model.train()
    prompts = [run.prompts.prompts[i] for i in (2, 5)]
    ids = [run.prompts.token_ids[i] for i in (2, 5)]
    expected = run.sampler(tiny_model(seed=5).eval(), prompts, ids, first=2)
    found = run.opponent([2, 5], first=2)
    assert [one.response_ids for one in found] == [one.response_ids for one in expected]


GROUPS = [
    TokenizedGroup([1, 20], ([30, 31, 32, 33, 2], [40, 2]), (Preference(0, 1),)),  # the policy's answer won
    TokenizedGroup([1, 21], ([50, 2], [60, 61, 62]), (Preference(1, 0),)),  # the reference's
]


def sums(run: Any, groups: list[TokenizedGroup], *, reference: bool = False) -> Tensor:
    """log p of every completion, float64, by the naive path."""
    batch = pack(groups)
    if reference:
        with torch.no_grad(), run.model.disable_adapter():
            logps = naive_logps(run.model.eval(), batch)
    else:
        logps = naive_logps(run.model.eval(), batch)
    lengths = [len(one) for group in groups for one in group.completions]
    return torch.stack([part.double().sum() for part in logps.split(lengths)])


def gradient(run: Any, loss: Tensor) -> dict[str, Tensor]:
    weights = {name: weight for name, weight in run.model.named_parameters() if weight.requires_grad}
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))


def same_gradient(run: Any, groups: list[TokenizedGroup], expected: Tensor) -> Any:
    wanted = gradient(run, expected)
    run.model.zero_grad()
    loss, figures, weight = run.compute_part(pack(groups), FreshStep(groups, last=True))
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-4)
    for name, parameter in run.model.named_parameters():
        if parameter.requires_grad:
            scale = max(1.0, float(wanted[name].abs().max()))
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-3, atol=1e-5 * scale)
    return {name: float(value) / float(weight) for name, value in figures.items()}


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_the_loss_of_xpo(loss_type: str, tmp_path: Path) -> None:
    run = made("xpo", tmp_path, far=True, alpha=0.02, loss_type=loss_type)
    policy, reference = sums(run, GROUPS), sums(run, GROUPS, reference=True)
    ratio = policy - reference
    margins = torch.stack([ratio[0] - ratio[1], ratio[3] - ratio[2]])
    dpo = torch.nn.functional.softplus(-0.1 * margins)
    if loss_type == "ipo":  # a mean per token of an answer
        ratio = ratio / torch.tensor([5.0, 2.0, 2.0, 3.0])
        dpo = (torch.stack([ratio[0] - ratio[1], ratio[3] - ratio[2]]) - 1 / (2 * 0.1)) ** 2
    explored = 0.02 * torch.stack([policy[1], policy[3]])  # the reference's answers, whoever won
    figures = same_gradient(run, GROUPS, (dpo + explored).mean())
    assert figures["loss/xpo"] == pytest.approx(float(explored.detach().mean()), rel=1e-4)
    assert figures["loss/dpo"] == pytest.approx(float(dpo.detach().mean()), rel=1e-4)
    assert figures["judge/win_rate"] == 0.5


def test_the_loss_of_nash_md(tmp_path: Path) -> None:
    run = made("nash-md", tmp_path, far=True, beta=0.3)
    groups = [
        TokenizedGroup(g.prompt_ids, g.completions[:1], (), scores=(p,))
        for g, p in zip(GROUPS, (0.5, -0.2), strict=True)
    ]
    policy, reference = sums(run, groups), sums(run, groups, reference=True)
    advantage = torch.tensor([0.5, -0.2]).double() - 0.3 * (policy - reference).detach()
    figures = same_gradient(run, groups, -(advantage * policy).mean())
    assert figures["objective/kl"] == pytest.approx(float((policy - reference).detach().mean()), rel=1e-4)


def test_the_gradient_of_nash_md_is_that_of_its_objective_and_trl_s_is_another() -> None:
    """All answers of two tokens out of two, enumerated: the mean of the estimates is the gradient of
    P(y > y') - 1/2 - beta KL. TRL's, which takes the KL of each token for that token's own fault, leaves out what the
    first token does to the KL of the second.
    """
    torch.manual_seed(0)
    policy = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)  # at the start, after 0, after 1
    reference, beta = torch.randn(3, 2, dtype=torch.float64), 0.7
    wins = {(0, 0): 0.1, (0, 1): 0.9, (1, 0): 0.4, (1, 1): 0.6}

    def tokens(logits: Tensor, answer: tuple[int, int]) -> Tensor:
        logps = logits.log_softmax(-1)
        return torch.stack([logps[0, answer[0]], logps[1 + answer[0], answer[1]]])

    objective, ours, theirs = (torch.zeros((), dtype=torch.float64) for _ in range(3))
    for answer in product((0, 1), repeat=2):
        logp, known = tokens(policy, answer), tokens(reference, answer)
        p, ratio = logp.sum().exp(), (logp - known).detach()
        objective = objective + p * (wins[answer] - 0.5 - beta * (logp - known).sum())
        ours = ours + p.detach() * (wins[answer] - 0.5 - beta * ratio.sum()) * logp.sum()
        theirs = theirs + p.detach() * ((wins[answer] - 0.5) * logp.sum() - beta * (ratio * logp).sum())
    exact, own, trl = (torch.autograd.grad(loss, policy, retain_graph=True)[0] for loss in (objective, ours, theirs))
    torch.testing.assert_close(own, exact)
    assert float((trl - exact)[0].abs().max()) > 0.01  # at the first token
    torch.testing.assert_close(trl[1:], exact[1:])


@pytest.mark.parametrize(("scores", "expected"), [((1.5, 0.5), 0.7310585786), ((-1.0, -1.0), 0.5)])
def test_of_scores_the_probability_is_bradley_terry_s(scores: Any, expected: float, tmp_path: Path) -> None:
    given = iter(scores)
    run = made("nash-md", tmp_path, judge=lambda prompt, answer, row: next(given))
    ((answers, rated),) = run.rated(run.sample([0, 0]))
    assert run._winning(answers, rated) == pytest.approx(expected)


def test_of_a_judge_the_probability_is_what_it_says(tmp_path: Path) -> None:
    run = made("nash-md", tmp_path, judge=by_letters)
    for answers, rated in run.rated(run.sample([0, 0, 1, 1, 2, 2])):
        verdict = by_letters("", answers[0].text, answers[1].text, {})
        assert run._winning(answers, rated) == {"a": 1.0, "tie": 0.5, "b": 0.0}[verdict]


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_the_same_to_the_bit(kind: str, tmp_path: Path) -> None:
    options = {"judge": by_letters, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "guard": "warn"}
    straight = made(kind, tmp_path, **options)
    straight.train()
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    again = made(kind, tmp_path, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    mine, theirs = dict(again.model.named_parameters()), dict(straight.model.named_parameters())
    assert all(torch.equal(mine[name], theirs[name]) for name in mine if "lora_" in name)
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == len(lines)
    facts = json.loads((tmp_path / "run.json").read_text())
    assert (facts["method"], facts["outcome"]) == (kind, "finished")


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_step_begins_where_policy_and_reference_are_one(kind: str, tmp_path: Path) -> None:
    made(kind, tmp_path).train()
    first, *_ = logged(tmp_path)
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    if kind == "xpo":
        assert first["loss/dpo"] == pytest.approx(0.6931, abs=1e-4)


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", KINDS)
def test_a_preference_is_learnt(kind: str, tmp_path: Path) -> None:
    run = made(
        kind, tmp_path, peft_config=None, max_steps=25, per_device_train_batch_size=16, max_new_tokens=8,
        learning_rate=1e-3, generation_batch_size=32, judge=lambda prompt, answer, row: 3 * letters("", answer, row),
    )  # fmt: skip
    run.train()
    scores = [line["objective/scores"] for line in logged(tmp_path)]
    assert sum(scores[-3:]) > 1.4 * sum(scores[:3])


def test_values_by_epoch(tmp_path: Path) -> None:
    assert made("nash-md", tmp_path / "one", beta=[0.3]).args.beta == 0.3
    run = made("xpo", tmp_path, alpha=[0.3, 0.1], per_device_train_batch_size=len(PROMPTS), max_steps=3)
    run.train()
    assert [line["alpha"] for line in logged(tmp_path)][:3] == pytest.approx([0.3, 0.1, 0.1])


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("xpo", {"num_generations": 3}, "num_generations=3 must be 2"),
        ("xpo", {"alpha": -1}, r"alpha=\[-1\] must be 0 or above"),
        ("xpo", {"loss_type": "simpo"}, "loss_type=simpo has no reference"),
        ("nash-md", {"mixture_coef": [0.5, 1.5]}, "at most 1"),
        ("nash-md", {"mixture_coef": []}, "a number, or one for each pass"),
        ("nash-md", {"beta": 0}, "beta=0 must be a finite number above 0"),
        ("xpo", {"beta": [0.1, 0.05]}, "must be one number"),
        ("nash-md", {"use_vllm": True}, "use_vllm=True is not honoured"),
        ("nash-md", {"reward_weights": [1.0]}, "reward_weights need reward_funcs"),
    ],
)
def test_impossible_options_are_named(kind: str, options: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        made(kind, tmp_path, **options)


def test_settings_far_from_what_people_use_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="preftune")
    made("nash-md", tmp_path / "a", beta=20.0, learning_rate=2e-5)
    assert "beta=20 is outside 0.005..1, the usual range of nash-md" in caplog.text
    made("xpo", tmp_path / "b", loss_type="ipo", beta=1e-5, learning_rate=1e-8)
    assert "the usual range of IPO: the policy may drift far from the reference" in caplog.text
    assert "learning_rate=1e-08 is low for an adapter" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_reward_functions_as_trl_takes_them(kind: str, tmp_path: Path) -> None:
    def reward(prompts: Any, completions: Any, completion_ids: Any, **_: Any) -> list[float]:
        return [float(len(ids)) + len(text) for ids, text in zip(completion_ids, completions, strict=True)]

    run = made(kind, tmp_path, judge=None, reward_funcs=[reward, reward], reward_weights=[0.5, 0.25], max_steps=1)
    answers = run.sample([0, 0])
    ((_, rated),) = run.rated(answers)
    assert rated.scores == [0.75 * (len(one.response_ids) + len(one.text)) for one in answers]
    run.train()


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_without_a_verdict_are_counted(kind: str, tmp_path: Path) -> None:
    def reward(prompts: Any, completions: Any, **_: Any) -> list[float | None]:
        return [len(text) + n / 10 if n < 2 else None for n, text in enumerate(completions)]

    run = made(kind, tmp_path, judge=None, reward_funcs=reward, max_steps=1)
    run.train()
    pairs = SETTINGS["per_device_train_batch_size"]
    assert run.state.log_history[0]["judge/prompts_without_pair"] == pytest.approx(1 - 1 / pairs)
