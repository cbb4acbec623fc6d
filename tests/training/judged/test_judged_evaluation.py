"""A judge that compares answers at every evaluation: its metrics, and that training is the same with it."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from preftune import KTOConfig, KTOTrainer, SFTConfig, SFTTrainer
from preftune.errors import ConfigError, ModelError, RequestError
from preftune.generation.generate import Completion
from preftune.statistics.length_control import length_controlled
from preftune.storage.jsonl import read_lines
from preftune.training.config.eval_judge import WIN_RATES
from preftune.training.judged import win_rate
from tests.training.dpo_runs import config, logged, lora_model, metrics, strict_json, trainer, untimed
from tiny import rows, tiny_model, tiny_tokenizer

JUDGE = f"rule:{__name__}:more_vowels"


def more_vowels(prompt: Any, a: str, b: str, row: Any) -> str:
    """Draws numbers as well, which must not reach the training."""
    random.random(), np.random.random(), torch.rand(1)  # noqa: NPY002
    counts = [sum(letter in "aeiou" for letter in text) for text in (a, b)]
    return "tie" if counts[0] == counts[1] else "a" if counts[0] > counts[1] else "b"


def likes_nothing(prompt: Any, a: str, b: str, row: Any) -> str:
    raise ValueError("no likes")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))


def run(model: Any, folder: Path, **options: Any) -> Any:
    settings = {
        "data": rows(8),
        "eval_dataset": rows(4, start=40),
        "eval_strategy": "steps",
        "eval_steps": 1,
        "eval_max_new_tokens": 6,
        "dataloader_num_workers": 0,
        "train_sampling_strategy": "random",
        "max_steps": 2,
        **({"eval_judge": JUDGE, "eval_prompts": "3"} if "eval_judge" not in options else {}),
        **options,
    }
    resume = settings.pop("resume", None)
    made = trainer(model, folder, **settings)
    made.train(resume_from_checkpoint=resume)
    return made


def of_the_judge(made: Any) -> list[dict[str, float]]:
    names = [f"eval_{name}" for name in WIN_RATES]
    return [{n: one[n] for n in names if n in one} for one in made.state.log_history if "eval_win_rate" in one]


def test_training_is_the_same_and_the_evaluations_say_more(tmp_path: Path) -> None:
    plain = run(tiny_model(), tmp_path / "plain", eval_judge=None, eval_max_new_tokens=None)
    judged = run(tiny_model(), tmp_path / "judged", eval_on_start=True)
    for one, other in zip(plain.model.parameters(), judged.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert logged(plain, "loss") == logged(judged, "loss")
    first, *later = of_the_judge(judged)
    assert (first["eval_win_rate"], first["eval_win_rate_length_controlled"]) == (0.5, 0.5), "the same answers"
    assert first["eval_answer_tokens"] == first["eval_answer_tokens_reference"]
    assert len(later) == 2
    assert all(one["eval_win_rate_low"] <= one["eval_win_rate"] <= one["eval_win_rate_high"] for one in later)
    assert [line["eval_win_rate"] for line in metrics(tmp_path / "judged") if "eval_win_rate" in line] == [
        one["eval_win_rate"] for one in (first, *later)
    ]
    answers = read_lines(tmp_path / "judged" / "eval_answers.jsonl")
    assert [line["step"] for line in answers] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    last = [line for line in answers if line["step"] == 2]
    assert sum(line["value"] for line in last) / 3 == pytest.approx(later[-1]["eval_win_rate"])
    swapped = [more_vowels("", line["aligned"], line["base"], {}) for line in last]
    assert [{"a": 1.0, "tie": 0.5, "b": 0.0}[one] for one in swapped] == [line["value"] for line in last]
    record = strict_json((tmp_path / "judged" / "run.json").read_text())["eval_judge"]
    assert (record["judge"], record["prompts"], record["evaluations"]) == ("more_vowels", {"eval": 3}, 3)
    assert record["seconds"] > 0 < record["reference_seconds"]


@pytest.mark.parametrize("change", ["repetition_penalty", "suppress_tokens", "eos_token_id", "eos_token"])
def test_the_references_answers_are_those_under_the_settings_of_the_run(change: str, tmp_path: Path) -> None:
    """Answers of an earlier generation config were compared with those of the same model, which won 75% and more."""
    options = {"learning_rate": 0.0, "max_steps": 1, "eval_max_new_tokens": 12}
    run(tiny_model(), tmp_path / "before", **options)
    model, tokenizer = tiny_model(), tiny_tokenizer()
    values = {"repetition_penalty": 3.0, "suppress_tokens": [*range(60, 90)], "eos_token_id": [*range(2, 60)]}
    if change in values:
        setattr(model.generation_config, change, values[change])
    else:
        tokenizer.add_special_tokens({"eos_token": "M"})
    changed = run(model, tmp_path / "changed", processing_class=tokenizer, **options)
    assert of_the_judge(changed)[-1]["eval_win_rate"] == 0.5
    lines = {name: read_lines(tmp_path / name / "eval_answers.jsonl") for name in ("before", "changed")}
    assert all(line["base"] == line["aligned"] for line in lines["changed"])
    assert [line["base"] for line in lines["before"]] != [line["base"] for line in lines["changed"]]


def test_a_resumed_run_measures_the_same(tmp_path: Path) -> None:
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 3e-3}
    whole = run(lora_model(), tmp_path / "whole", **options)
    resumed = run(lora_model(), tmp_path / "whole", **options, resume=str(tmp_path / "whole" / "checkpoint-2"))
    assert of_the_judge(whole) == of_the_judge(resumed)
    keep = [one for one in untimed(metrics(tmp_path / "whole")) if "eval_win_rate" in one]
    assert [one["step"] for one in keep] == [1, 2, 3, 4]
    assert [line["step"] for line in read_lines(tmp_path / "whole" / "eval_answers.jsonl")] == sorted([1, 2, 3, 4] * 3)


def test_the_references_answers_are_generated_once_for_several_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    generate = win_rate.generate

    def counting(model: Any, tokenizer: Any, prompts: Any, **options: Any) -> Any:
        asked.append(len(prompts))
        return generate(model, tokenizer, prompts, **options)

    monkeypatch.setattr(win_rate, "generate", counting)
    run(lora_model(), tmp_path / "one", max_steps=1)
    torch.manual_seed(5)  # another fresh adapter: the same reference
    other = lora_model(init_lora_weights="gaussian")
    run(other, tmp_path / "two", max_steps=1, eval_prompts="4")
    assert asked == [3, 3, 1, 4]
    run(lora_model(trained=True), tmp_path / "three", max_steps=1)
    assert asked[4:] == [3, 3], "another reference"
    assert (tmp_path / "cache" / "answers").is_dir()


def test_it_chooses_the_best_model_and_stops_early(tmp_path: Path) -> None:
    options = {"load_best_model_at_end": True, "metric_for_best_model": "win_rate", "early_stopping_patience": 1}
    options |= {"save_strategy": "steps", "save_steps": 1}
    made = run(lora_model(), tmp_path, learning_rate=0.0, max_steps=6, **options)
    assert (made.state.best_metric, made.state.global_step) == (0.5, 2)
    assert made.args.metric_for_best_model == "eval_win_rate"
    assert made.args.greater_is_better


@pytest.mark.parametrize(("best", "kept"), [("win_rate", None), ("win_rate_length_controlled", 0.125)])
def test_a_rate_at_equal_length_that_is_an_extrapolation_is_left_out_unless_it_chooses_the_best_model(
    best: str, kept: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = length_controlled([1.0, 0.0, 1.0, 0.0], [1.0, -2.0, 3.0, -1.0])
    extrapolated = replace(known, win_rate=None, ci_low=0.125)
    monkeypatch.setattr(win_rate, "at_equal_length", lambda *_: extrapolated)
    made = run(tiny_model(), tmp_path, max_steps=1, metric_for_best_model=best)
    (found,) = of_the_judge(made)
    assert found.get("eval_win_rate_length_controlled") == kept


def test_a_judge_that_fails_does_not_end_a_run_that_can_do_without(tmp_path: Path, caplog: Any) -> None:
    judge = f"rule:{__name__}:likes_nothing"
    made = run(tiny_model(), tmp_path / "goes on", eval_judge=judge)
    assert (made.state.global_step, of_the_judge(made)) == (2, [])
    with pytest.raises(RequestError, match="failed on prompt"):
        run(tiny_model(), tmp_path / "ends", eval_judge=judge, metric_for_best_model="eval_win_rate")


def test_what_a_model_thinks_is_kept_and_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = iter([False, True])

    def thinking(model: Any, tokenizer: Any, prompts: Any, **options: Any) -> list[Completion]:
        thought = "aeiou" if next(policy) else ""
        return [Completion("<think>aeiou</think>b" if thought else "a", 1, True) for _ in prompts]

    monkeypatch.setattr(win_rate, "generate", thinking)
    made = run(tiny_model(), tmp_path, max_steps=1)
    assert [one["eval_win_rate"] for one in of_the_judge(made)] == [0.0], "by vowels, the thought alone would win"
    (line, *_) = read_lines(tmp_path / "eval_answers.jsonl")
    assert (line["aligned"], line["thought"]["aligned"]) == ("b", "aeiou")


def test_a_reward_model_that_is_not_there_is_missed_before_the_policy_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        run(str(tmp_path / "no model either"), tmp_path, eval_judge=f"reward:{tmp_path / 'nowhere'}")


def test_several_held_out_sets_and_prompts_of_a_file(tmp_path: Path) -> None:
    sets = {"in": rows(4, start=40), "out": rows(4, start=60)}
    made = run(tiny_model(), tmp_path / "sets", eval_dataset=sets, max_steps=1, metric_for_best_model="in_win_rate")
    (of_in,) = [one for one in made.state.log_history if "eval_in_win_rate" in one]
    assert any("eval_out_win_rate" in one for one in made.state.log_history)
    assert of_in["eval_in_win_rate_seconds"] >= 0
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{n}?", "key_fact": "a"}) + "\n" for n in range(3)))
    made = run(tiny_model(), tmp_path / "file", eval_judge="key-fact", eval_prompts=str(file), max_steps=1)
    assert len(read_lines(tmp_path / "file" / "eval_answers.jsonl")) == 3
    with pytest.raises(RequestError, match="key_fact"):
        run(tiny_model(), tmp_path / "no key", eval_judge="key-fact")
    with pytest.raises(ConfigError, match="belong to none of them"):
        run(tiny_model(), tmp_path / "both", eval_dataset=sets, eval_prompts=str(file))


def test_streams_are_answered_from_their_held_out_rows(tmp_path: Path) -> None:
    def stream(count: int, start: int) -> Any:
        return Dataset.from_list(rows(count, start=start)).to_iterable_dataset()

    whole = run(tiny_model(), tmp_path / "plain", data=stream(8, 0), eval_judge=None, eval_max_new_tokens=None,
                train_sampling_strategy="random")  # fmt: skip
    made = run(tiny_model(), tmp_path / "judged", data=stream(8, 0), eval_dataset=stream(4, 40))
    assert len(of_the_judge(made)) == 2
    assert logged(made, "loss") == logged(whole, "loss")


@pytest.mark.parametrize("method", ["sft", "kto"])
def test_other_trainers_on_given_data(method: str, tmp_path: Path) -> None:
    kinds: dict[str, Any] = {"sft": (SFTConfig, SFTTrainer), "kto": (KTOConfig, KTOTrainer)}
    settings, kind = kinds[method]
    options = {"eval_strategy": "steps", "eval_steps": 1, "eval_judge": JUDGE, "eval_max_new_tokens": 5, "max_steps": 1}
    plain = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "bf16": False}
    talks = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}."}]}
        for n in range(4)
    ]
    labels = [{"prompt": f"{n}?", "completion": f" {n}.", "label": bool(n % 2)} for n in range(6)]
    data = {"sft": talks, "kto": labels}[method]
    made = kind(
        model=tiny_model(),
        args=settings(output_dir=str(tmp_path), learning_rate=1e-2, **plain, **options),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tiny_tokenizer(),
    )
    made.train()
    assert len(of_the_judge(made)) == 1
    assert len(read_lines(tmp_path / "eval_answers.jsonl")) == len(data)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"eval_strategy": "no"}, "eval_strategy is 'no'. Set eval_strategy='steps'"),
        ({"eval_judge": None, "eval_prompts": "5"}, "eval_prompts=5 has no effect without eval_judge"),
        ({"eval_prompts": "1"}, "give at least 2"),
        ({"eval_max_new_tokens": 0}, "eval_max_new_tokens=0 must be at least 1"),
        ({"fsdp": "full_shard offload"}, "does not generate from weights in main memory"),
        ({"eval_judge": "shortr"}, "Did you mean 'shorter'"),
    ],
)
def test_what_is_refused(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    settings = {"eval_judge": "shorter", "eval_strategy": "steps", "eval_steps": 1, **options}
    with pytest.raises(ConfigError, match=words):
        config(tmp_path, **settings)


def test_methods_without_it_say_why(tmp_path: Path) -> None:
    from preftune import GRPOConfig, OnlineDPOConfig, PPOConfig, RewardConfig

    options = {"output_dir": str(tmp_path), "eval_judge": "shorter", "report_to": "none", "use_cpu": True}
    for kind, more in ((PPOConfig, {}), (OnlineDPOConfig, {"judge": "shorter"})):
        with pytest.raises(ConfigError, match="judged afterwards, with preftune eval"):
            kind(**options, **more)
    with pytest.raises(ConfigError, match="report the reward of answers to held-out prompts"):
        GRPOConfig(**options)
    with pytest.raises(ConfigError, match="a reward model writes no answers"):
        RewardConfig(**options)
