"""GRPO and RLOO on tiny models: the oracle's update, however it is cut up; rewards of every form; what is learnt."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import preftune
from preftune.errors import ConfigError, RequestError
from preftune.training.online.rollout import Rollout
from tests.training.ppo.ppo_runs import PROMPTS, lora
from tiny import tiny_model, tiny_tokenizer

K = 3


def letters(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
    return [sum(c.isascii() and c.islower() for c in text) / 8 for text in completions]


def options_for(folder: Path, **options: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "per_device_train_batch_size": 2 * K, "num_generations": K, "max_steps": 2,
        "max_new_tokens": 6, "learning_rate": 0.5, "lr_scheduler_type": "constant", "logging_steps": 1, "bf16": False,
        "use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "seed": 3, **options,
    }  # fmt: skip


class Written:
    """A sampler of answers that are written down: of several lengths, the third of a prompt cut off."""

    def __init__(self) -> None:
        self.seen: list[Rollout] = []

    def __call__(self, model: Any, prompts: Any, token_ids: Any, *, first: int) -> list[Rollout]:
        made = []
        for place, (prompt, ids) in enumerate(zip(prompts, token_ids, strict=True)):
            number = first + place
            tokens = tuple(10 + (7 * number + 3 * t) % 200 for t in range(2 + number % 4))
            made.append(Rollout(prompt, tuple(ids), tokens, f"answer {number}", number % K != 2, number))
        self.seen += made
        return made


REWARD = {number: float((number * 5) % 7) for number in range(60)}


def by_number(prompts: Any, completions: Sequence[str], **_: Any) -> list[float]:
    return [REWARD[int(text.split()[1])] for text in completions]


def stepped(folder: Path, kind: str = "GRPO", **options: Any) -> tuple[Any, Any, Written]:
    """Two optimiser steps of plain gradient descent, from known weights on known answers."""
    model, sampler = tiny_model(), Written()
    start = copy.deepcopy(model)
    config = getattr(preftune, f"{kind}Config")(
        **options_for(folder, optim="sgd", max_grad_norm=0.0, weight_decay=0.0, **options)
    )
    trainer = getattr(preftune, f"{kind}Trainer")(
        model, by_number, config, PROMPTS, processing_class=tiny_tokenizer(), sampler=sampler
    )
    trainer.train()
    return trainer, start, sampler


def naive(model: Any, one: Rollout) -> torch.Tensor:
    """Log-probabilities of an answer's tokens from plain logits."""
    ids = torch.tensor([[*one.prompt_ids, *one.response_ids]])
    logps = model(ids).logits[0].log_softmax(-1)[len(one.prompt_ids) - 1 : -1]
    return logps.gather(1, torch.tensor(one.response_ids)[:, None])[:, 0]


def oracle(start: Any, rounds: list[list[Rollout]], loss: Any, *, rate: float = 0.5) -> Any:
    """The same steps, written down naively. `loss` gets log-probabilities, old, reference, answers and advantages."""
    model, reference = copy.deepcopy(start), copy.deepcopy(start)
    for step, answers in enumerate(rounds):
        if step == 0 or answers is not rounds[step - 1]:
            old = [naive(model, one).detach() for one in answers]
        ref = [naive(reference, one).detach() for one in answers]
        model.zero_grad()
        loss([naive(model, one) for one in answers], old, ref, answers).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= rate * parameter.grad
    return model


def advantages(answers: Sequence[Rollout], *, scaled: bool = True) -> list[float]:
    rewards = torch.tensor([REWARD[one.number] for one in answers]).view(-1, K)
    found = rewards - rewards.mean(1, keepdim=True)
    return (found / (rewards.std(1, keepdim=True) + 1e-4) if scaled else found).flatten().tolist()


def same(trainer: Any, expected: Any) -> None:
    for (name, one), other in zip(trainer.model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
@pytest.mark.parametrize("again", [False, True])
def test_grpo_is_the_oracle_s(loss_type, again, tmp_path):
    options = {"loss_type": loss_type, "beta": 0.3, "epsilon_high": 0.28, "num_iterations": 2 if again else 1}
    trainer, start, sampler = stepped(tmp_path, **options, scale_rewards="none" if loss_type == "dr_grpo" else "group")
    rounds = [sampler.seen, sampler.seen] if again else [sampler.seen[: 2 * K], sampler.seen[2 * K :]]
    assert len(rounds[0]) == 2 * K

    def loss(logps, old, ref, answers):
        weighed = []
        for now, before, other, advantage in zip(
            logps, old, ref, advantages(answers, scaled=loss_type != "dr_grpo"), strict=True
        ):
            ratio = (now - before).exp()
            kl = (other - now).exp() - (other - now) - 1
            token = -torch.min(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage) + 0.3 * kl * ratio
            weighed.append(token.mean() / len(answers) if loss_type == "grpo" else token.sum())
        total = sum(weighed)
        if loss_type == "dapo":
            return total / sum(map(len, logps))
        return total if loss_type == "grpo" else total / (len(answers) * 6)

    same(trainer, oracle(start, rounds, loss))


@pytest.mark.parametrize("budget", [None, 20])
def test_the_kl_is_that_of_the_answers_as_they_were_sampled(budget, tmp_path):
    """GRPO takes it from its first step, whose policy sampled; RLOO measures it before, for its rewards."""
    options = {"beta": 0.3, "num_iterations": 1, "max_tokens_per_batch": budget, "learning_rate": 0.05}
    seen = {}
    for kind in ("GRPO", "RLOO"):
        trainer, start, sampler = stepped(tmp_path / kind, kind, **options)
        seen[kind] = [line for line in trainer.state.log_history if "objective/kl" in line]
        assert len(seen[kind]) == 2
        assert seen[kind][0]["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    second = sampler.seen[2 * K :]
    trainer, start, _ = stepped(tmp_path / "again", "GRPO", **{**options, "max_steps": 1})
    with torch.no_grad():
        apart = [(naive(trainer.model, one) - naive(start, one)).sum() for one in second]
    assert seen["GRPO"][1]["objective/kl"] == pytest.approx(float(sum(apart)) / len(second), rel=1e-3)
    tokens = sum(len(one.response_ids) for one in second)
    assert seen["GRPO"][1]["kl"] == pytest.approx(float(sum(apart)) / tokens, rel=1e-3)


def test_rloo_is_the_oracle_s(tmp_path):
    trainer, start, sampler = stepped(tmp_path, "RLOO", beta=0.1, num_iterations=2, learning_rate=0.02)

    def loss(logps, old, ref, answers):
        rewards = torch.stack(
            [
                REWARD[one.number] - 0.1 * (before - other).sum()
                for one, before, other in zip(answers, old, ref, strict=True)
            ]
        ).view(-1, K)
        advantage = (rewards - (rewards.sum(1, keepdim=True) - rewards) / (K - 1)).flatten()
        ratio = torch.stack([(now - before).sum().exp() for now, before in zip(logps, old, strict=True)])
        return -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()

    same(trainer, oracle(start, [sampler.seen, sampler.seen], loss, rate=0.02))


@pytest.mark.parametrize("budget", [1, 20])
def test_the_update_does_not_depend_on_the_token_budget(budget, tmp_path):
    """Answers of one prompt share it, or are computed one by one."""
    options = {"beta": 0.3, "num_iterations": 2, "loss_type": "grpo"}
    whole, *_ = stepped(tmp_path / "whole", **options)
    parted, *_ = stepped(tmp_path / "parted", **options, max_tokens_per_batch=budget)
    same(parted, whole.model)


def test_cut_answers_can_be_left_out(tmp_path):
    trainer, start, sampler = stepped(tmp_path, mask_truncated_completions=True)
    rounds = [sampler.seen[: 2 * K], sampler.seen[2 * K :]]

    def loss(logps, old, ref, answers):
        kept = [now for now, one in zip(logps, answers, strict=True) if one.finished]
        wanted = [a for a, one in zip(advantages(answers), answers, strict=True) if one.finished]
        return -sum((now * a).sum() for now, a in zip(kept, wanted, strict=True)) / sum(map(len, kept))

    same(trainer, oracle(start, rounds, loss))


def test_a_step_of_cut_answers_alone_changes_nothing(tmp_path):
    model, start = tiny_model(), tiny_model()
    config = preftune.GRPOConfig(**options_for(tmp_path, mask_truncated_completions=True, max_steps=1, optim="sgd"))
    cut = Written()
    sampler = lambda *args, **options: [replace(one, finished=False) for one in cut(*args, **options)]  # noqa: E731
    trainer = preftune.GRPOTrainer(
        model, by_number, config, PROMPTS, processing_class=tiny_tokenizer(), sampler=sampler
    )
    trainer.train()
    same(trainer, start)


def made(folder: Path, reward: Any = letters, data: Any = PROMPTS, **options: Any) -> Any:
    torch.manual_seed(0)
    settings = options_for(
        folder, learning_rate=2e-2, **{"num_generations": 4, "per_device_train_batch_size": 16, **options}
    )
    return preftune.GRPOTrainer(
        tiny_model(), reward, preftune.GRPOConfig(**settings), data,
        processing_class=tiny_tokenizer(), peft_config=lora(),
    )  # fmt: skip


def test_it_learns_what_is_rewarded(tmp_path):
    trainer = made(tmp_path, max_steps=30, logging_steps=5)
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert rewards[-1] > rewards[0] + 0.1
    names = set(trainer.state.log_history[0])
    assert {
        "objective/scores",
        "reward_std",
        "frac_reward_zero_std",
        "policy/clipfrac_avg",
        "completions/mean_length",
    } <= names
    assert trainer.reference.description == "no reference: the loss has none"


def test_a_resumed_run_is_the_same_to_the_bit(tmp_path):
    whole = made(tmp_path, max_steps=6, save_strategy="steps", save_steps=3, beta=0.1, num_iterations=3)
    whole.train()
    part = made(tmp_path, max_steps=6, save_strategy="steps", save_steps=3, beta=0.1, num_iterations=3)
    part.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for one, other in zip(whole.model.parameters(), part.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_rewards_of_every_form_and_their_weights(tmp_path):
    seen: dict[str, Any] = {}

    def of_batch(completions, answer, **columns):
        seen.update(answer=answer, names=set(columns), completions=completions)
        return [1.0 if n % 2 else None for n, _ in enumerate(completions)]

    def of_one(prompt, answer, row) -> float:
        return 10.0

    data = [{**row, "answer": "yes"} for row in ({"prompt": p} if isinstance(p, str) else dict(p) for p in PROMPTS)]
    trainer = made(tmp_path, [of_batch, of_one], data, reward_weights=[1.0, 0.5], max_steps=1)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["reward"] == pytest.approx(5.5)
    assert (log["rewards/of_batch/mean"], log["rewards/of_one/mean"]) == (1.0, 10.0)
    assert set(seen["answer"]) == {"yes"}


def test_answers_without_a_reward_are_counted(tmp_path):
    def every_second(completions, **columns):
        return [float(len(text)) if n % 2 else None for n, text in enumerate(completions)]

    trainer = made(tmp_path, every_second, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["objective/unscored"] == 0.5


def test_dynamic_sampling_fills_the_step_with_prompts_that_teach(tmp_path):
    calls = []

    def often_equal(completions, **_):
        calls.append(len(completions))
        return [float(n % 2) if n < 4 else 1.0 for n, _ in enumerate(completions)]  # one prompt of four teaches

    trainer = made(tmp_path, often_equal, dynamic_sampling=True, max_steps=1)
    trainer.train()
    assert calls == [16] * 4
    assert len(trainer._step[0].groups) == 4
    assert all(any(group.scores) for group in trainer._step[0].groups)


def test_groups_beyond_the_number_of_a_step_are_counted(tmp_path):
    calls = iter([3, 4, 4])

    def mostly_different(completions, **_):
        return [float(n % 2) if n < taught else 1.0 for taught in [4 * next(calls)] for n, _ in enumerate(completions)]

    trainer = made(tmp_path, mostly_different, dynamic_sampling=True, max_steps=2)
    trainer.train()
    assert json.loads((tmp_path / "run.json").read_text())["surplus_groups"] == 3  # 3 + 4 - 4, then 4 - 4
    shares = [line["objective/surplus"] for line in trainer.state.log_history if "objective/surplus" in line]
    assert sum(shares) / len(shares) == pytest.approx((3 / 7 + 0) / 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"per_device_train_batch_size": 10}, "is not a multiple of num_generations=4"),
        ({"top_p": 0.9}, "top_p=0.9 is not honoured"),
        ({"steps_per_generation": 4}, "use num_iterations"),
        ({"reward_ensemble": "min"}, "Use reward_weights"),
        ({"num_generations": 1}, "num_generations=1 must be at least 2"),
        ({"loss_type": "gspo"}, "loss_type='gspo' is unknown"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"beta": -1.0}, "beta=-1.0"),
        ({"delta": 1.2}, "delta=1.2 must be above"),
    ],
)
def test_impossible_options(options, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        made(tmp_path, **options)


def test_an_evaluation_rates_fresh_answers_to_held_out_prompts(tmp_path):
    """Fixed weights give the same numbers at every evaluation, by the mean over answers, and training goes on as if
    there had been none."""
    held_out = [{"prompt": prompt} for prompt in ("one?", "two?")]
    sets = {"a": held_out, "b": held_out[:1]}
    seen = []

    async def ascii_share(completions: Sequence[str], trainer_state: Any, log_metric: Any, **_: Any) -> list[float]:
        log_metric("answers", len(completions))
        rewards = letters(None, completions)
        seen.append((trainer_state.global_step, rewards))
        return rewards

    def trained(folder: Path, **options: Any) -> Any:
        config = preftune.GRPOConfig(**options_for(tmp_path / folder, **options))
        trainer = preftune.GRPOTrainer(
            tiny_model(), ascii_share, config, PROMPTS, sets, processing_class=tiny_tokenizer()
        )
        trainer.train()
        return trainer

    trainer = trained("evaluated", eval_strategy="steps", eval_steps=1, num_generations_eval=5)
    first, *_, last = [line for line in trainer.state.log_history if "eval_a_reward" in line]
    assert (first["step"], last["step"], first["eval_a_answers"]) == (1, 2, 10)
    of_step = [rewards for step, rewards in seen if len(rewards) == 10 and step == 1]
    assert first["eval_a_reward"] == pytest.approx(sum(of_step[0]) / 10)
    assert first["eval_a_rewards/ascii_share/std"] == pytest.approx(float(torch.tensor(of_step[0]).std()), rel=1e-5)
    again = trainer.evaluate()
    assert (again["eval_a_reward"], again["eval_b_answers"]) == (last["eval_a_reward"], 5)
    assert trainer.evaluate(held_out)["eval_reward"] == last["eval_a_reward"]
    same(trainer, trained("plain").model)


def test_eval_strategy_without_prompts_is_refused(tmp_path):
    config = preftune.GRPOConfig(**options_for(tmp_path, eval_strategy="steps", eval_steps=1))
    with pytest.raises(ConfigError, match="there is no eval_dataset"):
        preftune.GRPOTrainer(tiny_model(), letters, config, PROMPTS, processing_class=tiny_tokenizer())


def test_a_reward_model_in_memory_rates_with_the_tokenizer_it_is_given(tmp_path):
    torch.manual_seed(0)
    judge = tiny_model("llama").model.config
    judge.num_labels, judge.pad_token_id = 1, None
    reward_model = AutoModelForSequenceClassification.from_config(judge)

    def made(**options: Any) -> Any:
        config = preftune.GRPOConfig(**options_for(tmp_path))
        return preftune.GRPOTrainer(
            tiny_model(), args=config, train_dataset=PROMPTS, processing_class=tiny_tokenizer(), **options
        )

    trainer = made(reward_funcs=[reward_model, letters], reward_processing_classes=[tiny_tokenizer(), None])
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["reward"] == pytest.approx(sum(logged[f"rewards/{name}/mean"] for name in trainer.rewards.names))
    for given, said in (
        ({"reward_funcs": reward_model}, "has no tokenizer"),
        ({"reward_funcs": [letters, letters], "reward_processing_classes": tiny_tokenizer()}, "must match"),
        ({"reward_funcs": letters, "reward_processing_classes": tiny_tokenizer()}, "not a model in memory"),
    ):
        with pytest.raises(ConfigError, match=said):
            made(**given)


def test_rounds_without_a_single_reward_end_the_run(tmp_path):
    config = preftune.GRPOConfig(**options_for(tmp_path))
    trainer = preftune.GRPOTrainer(
        tiny_model(), lambda completions, **_: [None] * len(completions), config, PROMPTS,
        processing_class=tiny_tokenizer(), sampler=Written(),
    )  # fmt: skip
    with pytest.raises(RequestError, match="none of the answers of 10 rounds could be trained on"):
        trainer.train()
