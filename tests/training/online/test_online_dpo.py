"""Online DPO on tiny models: judged pairs of the policy's own answers, steps on them, and what is learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune.errors import ConfigError
from preftune.logps import naive_logps, pack
from preftune.training.online import OnlineDPOConfig, OnlineDPOTrainer
from preftune.training.online.fresh import FreshStep
from preftune.types import Preference, TokenizedGroup
from tests.training.ppo.ppo_runs import PROMPTS, logged, lora
from tiny import tiny_model, tiny_tokenizer

SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "max_steps": 3,
    "max_new_tokens": 6,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "seed": 3,
}


def config(folder: Path, **options: Any) -> OnlineDPOConfig:
    return OnlineDPOConfig(output_dir=str(folder), **{**SETTINGS, **options})


def letters(prompt: Any, answer: str, row: Any) -> float:
    return sum(letter.isascii() and letter.islower() for letter in answer) / 8


def first_is_better(prompt: Any, answer_a: str, answer_b: str, row: Any) -> str:
    """A judge that likes a place, not an answer."""
    return "a"


def by_letters(prompt: Any, answer_a: str, answer_b: str, row: Any) -> str:
    """A judge that compares, and contradicts nobody."""
    a, b = sum(map(ord, answer_a)) % 97, sum(map(ord, answer_b)) % 97
    return "tie" if a == b else "a" if a > b else "b"


def trainer(folder: Path, *, judge: Any = letters, **options: Any) -> OnlineDPOTrainer:
    peft_config = options.pop("peft_config", lora())
    torch.manual_seed(0)
    return OnlineDPOTrainer(
        tiny_model(),
        config(folder, **options),
        PROMPTS,
        judge=judge,
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
    )


def test_weights_that_were_unfrozen_after_the_trainer_was_made_are_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.model.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"1 parameter was unfrozen after .*embed_tokens"):
        run.train()


def test_the_first_step_begins_at_ln_2(tmp_path: Path) -> None:
    trainer(tmp_path, num_generations=3, which_pairs="all").train()
    first, *_, last = logged(tmp_path)
    assert first["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert last["episode"] == 3 * 4 * 3
    facts = json.loads((tmp_path / "run.json").read_text())
    assert (facts["method"], facts["outcome"]) == ("online-dpo", "finished")


def test_options_of_the_loss_are_those_of_dpo(tmp_path: Path) -> None:
    """LD-DPO and the mean of the likelihood term: the loss of a step of fresh answers is the one of `DPOTrainer`."""
    run = trainer(tmp_path, ld_alpha=0.5, ld_policy_only=True, rpo_alpha=1.0, sft_mean="completions")
    groups = [
        TokenizedGroup([1, 20], ([30, 31, 32, 33, 2], [40, 2]), (Preference(0, 1),)),
        TokenizedGroup([1, 21], ([50, 2], [60, 61, 62]), (Preference(0, 1),)),
    ]
    batch = pack(groups)
    with torch.no_grad():
        scored = naive_logps(run.model.eval(), batch).double()
    long, _, other, cut = scored.split([5, 2, 2, 3])
    # policy = reference: what is left of the log-ratios is half of the tail, which the policy alone weighs less
    logits = 0.1 * torch.stack([-0.5 * long[2:].sum(), 0.5 * cut[2:].sum()])
    expected = torch.nn.functional.softplus(-logits) - torch.stack([long.mean(), other.mean()])
    loss, *_ = run.compute_part(batch, FreshStep(groups, last=True))
    assert float(loss) == pytest.approx(float(expected.mean()), rel=1e-5)


def test_a_loss_of_ratings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the pairs of a judge are not rated"):
        config(tmp_path, loss_type="reward_aware")


def test_steps_are_made_of_the_judged_pairs(tmp_path: Path) -> None:
    run = trainer(tmp_path, num_generations=3)
    run.train()
    draws = run.prompts.drawn(0, 4, seed=3)
    asked = [draw for draw in draws for _ in range(3)]
    rollouts = run.sampler(
        run.model, [run.prompts.prompts[i] for i in asked], [run.prompts.token_ids[i] for i in asked], first=0
    )
    (groups,) = run.make_steps(rollouts, 0) or [[]]
    scores = {one.response_ids: letters("", one.text, {}) for one in rollouts}
    for group in groups:
        (pair,) = group.pairs
        of_prompt = [scores[one.response_ids] for one in rollouts if one.prompt_ids == group.prompt_ids]
        assert scores[group.completions[pair.chosen]] == max(of_prompt)
        assert scores[group.completions[pair.rejected]] == min(of_prompt)
        assert max(of_prompt) > min(of_prompt)


def test_a_judge_that_likes_a_place_prefers_nothing(tmp_path: Path) -> None:
    """It is asked in both orders, contradicts itself, and no pair is left."""
    from preftune.errors import RequestError

    with pytest.raises(RequestError, match="none of the answers"):
        trainer(tmp_path, judge=first_is_better).train()


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    options = {"judge": by_letters, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    straight = trainer(tmp_path / "a", **options)
    straight.train()
    again = trainer(tmp_path / "a", **options)
    again.train(resume_from_checkpoint=str(tmp_path / "a/checkpoint-2"))
    mine, theirs = dict(again.model.named_parameters()), dict(straight.model.named_parameters())
    assert all(torch.equal(mine[name], theirs[name]) for name in mine if "lora_" in name)


def test_samples_of_a_resumed_run_are_those_of_one_that_was_never_interrupted(tmp_path: Path) -> None:
    options = {"judge": by_letters, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "guard": "warn"}
    trainer(tmp_path, **options).train()
    before = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    trainer(tmp_path, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    after = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [line | {"time": 0} for line in after] == [line | {"time": 0} for line in before]


class Version:
    """A scorer with a content address, as models have one."""

    def __init__(self, cache_key: str) -> None:
        self.cache_key = cache_key

    def __call__(self, prompt: Any, answer: str, row: Any) -> float:
        return letters(prompt, answer, row)


def test_a_run_is_not_resumed_under_another_judge_of_the_same_name(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 2}
    trainer(tmp_path, judge=Version("one"), max_steps=2, **options).train()
    with pytest.raises(ConfigError, match="the reward"):
        trainer(tmp_path, judge=Version("two"), max_steps=4, **options).train(resume_from_checkpoint=True)
    trainer(tmp_path, judge=Version("one"), max_steps=4, **options).train(resume_from_checkpoint=True)


def test_a_judge_by_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = config(tmp_path, judge="longer")
    made = OnlineDPOTrainer(tiny_model(), settings, PROMPTS, processing_class=tiny_tokenizer(), peft_config=lora())
    assert made.rated_by == "longer wins"


def test_a_preference_is_learnt(tmp_path: Path) -> None:
    run = trainer(
        tmp_path, peft_config=None, max_steps=25, per_device_train_batch_size=8, num_generations=4, max_new_tokens=8,
        learning_rate=1e-3, generation_batch_size=32,
    )  # fmt: skip
    run.train()
    scores = [line["objective/scores"] for line in logged(tmp_path)]
    assert sum(scores[-3:]) > 1.7 * sum(scores[:3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_generations": 1}, "at least 2"),
        ({"which_pairs": "some"}, "best-worst, all, adjacent"),
        ({"judge": "longer", "reward_model": ["x"]}, "Give one of them"),
        ({"eval_strategy": "steps"}, "not honoured where answers"),
        ({"max_length": 2048}, "max_prompt_length and max_new_tokens"),
        ({"group_by_prompt": True}, "always form one group"),
    ],
)
def test_impossible_options_are_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, **options)
    with pytest.raises(ConfigError, match="a judge or a reward must decide"):
        trainer(tmp_path, judge=None)
