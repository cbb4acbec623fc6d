"""A run ends after so many seconds or tokens, whatever its epochs say, and knows what it has used."""

from __future__ import annotations

import json
from typing import Any

import pytest

from preftune.errors import ConfigError
from preftune.training.record import limits
from tests.training.dpo_runs import config, metrics, trainer
from tests.training.dpo_runs import lora_model as model
from tiny import rows


class Clock:
    """Each look at it takes a quarter of a second."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        self.now += 0.25
        return self.now


def outcome(folder: Any) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text()))


def test_a_run_ends_after_the_step_that_reaches_the_tokens(tmp_path):
    whole = trainer(model(), tmp_path / "whole", max_steps=6)
    whole.train()
    total = outcome(tmp_path / "whole")["spent"]["tokens"]
    made = trainer(model(), tmp_path / "cut", max_steps=6, max_train_tokens=total // 2)
    made.train()
    record = outcome(tmp_path / "cut")
    assert 0 < record["steps"] < 6
    assert record["spent"]["tokens"] >= total // 2
    before = sum(group.tokens for group in list(made.train_dataset)[: 2 * (record["steps"] - 1)])
    assert before < total // 2, "one step earlier it had not been reached"
    assert (record["outcome"], record["ended_by"]) == ("finished", "max_train_tokens")


def test_the_last_step_is_logged_and_saved_though_its_turn_has_not_come(tmp_path):
    made = trainer(
        model(), tmp_path, max_steps=6, max_train_tokens=1, logging_steps=4, save_strategy="steps", save_steps=4
    )
    made.train()
    assert [line["step"] for line in metrics(tmp_path) if "loss" in line] == [1]
    assert (tmp_path / "checkpoint-1").is_dir()


@pytest.mark.parametrize(("strategy", "logged"), [("steps", [4, 6]), ("epoch", [6]), ("no", [])])
def test_the_steps_after_the_last_log_line_are_logged_at_the_end(strategy, logged, tmp_path):
    made = trainer(model(), tmp_path, max_steps=6, logging_steps=4, logging_strategy=strategy, data=rows(64))
    made.train()
    lines = [line for line in metrics(tmp_path) if "loss" in line]
    assert [line["step"] for line in lines] == logged
    assert all("rewards/margins" in line and "mean_token_accuracy" in line for line in lines)


def test_a_run_ends_after_so_many_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "time", Clock())
    made = trainer(model(), tmp_path, max_steps=9, max_seconds=1.0)
    made.train()
    record = outcome(tmp_path)
    assert record["steps"] == 4  # a look at the clock after each step, a quarter of a second each
    assert record["ended_by"] == "max_seconds"


def test_what_a_run_has_used_is_counted_over_its_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "time", Clock())
    options: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer(model(), tmp_path / "whole", **options).train()
    whole = outcome(tmp_path / "whole")["spent"]
    trainer(model(), tmp_path / "half", **{**options, "max_steps": 2}).train()
    again = trainer(model(), tmp_path / "half", **options)
    again.train(resume_from_checkpoint=True)
    assert outcome(tmp_path / "half")["spent"]["tokens"] == whole["tokens"]
    assert outcome(tmp_path / "half")["spent"]["seconds"] >= whole["seconds"]
    assert outcome(tmp_path / "half")["ended_by"] is None


@pytest.mark.parametrize("options", [{"max_seconds": 0}, {"max_seconds": float("nan")}, {"max_train_tokens": 0}])
def test_impossible_limits_are_refused(options, tmp_path):
    with pytest.raises(ConfigError, match="max_"):
        config(tmp_path, **options)


def test_without_a_limit_nothing_ends_early(tmp_path):
    trainer(model(), tmp_path, data=rows(4), max_steps=3).train()
    assert (outcome(tmp_path)["steps"], outcome(tmp_path)["ended_by"]) == (3, None)
