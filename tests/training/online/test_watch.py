"""The guard of a run on fresh answers: what it sees beside the first round, what it says, and what it does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune import GRPOTrainer, PPOTrainer
from preftune.generation.prompts import Prompt
from preftune.training.guard.alarms import NOTE
from preftune.training.online.rollout import Rollout, TransformersSampler
from preftune.training.online.watch import RoundFigures, figures_of, round_alarms
from tests.training.ppo.ppo_runs import trainer
from tiny import tiny_tokenizer

HEALTHY = RoundFigures(answers=32, repeats=0.0, empty=0.0, finished=0.9, length=20.0, alike=0.1)
LOGS = {"objective/kl_per_token": 0.05, "policy/clipfrac_avg": 0.1, "policy/entropy_avg": 1.5}


def rollout(number: int, text: str, *, finished: bool = True) -> Rollout:
    return Rollout(
        Prompt(str(number), f"q{number}?", str(number)), (5,), tuple(range(len(text))), text, finished, number
    )


def names(now: RoundFigures, **logs: float) -> list[str]:
    return [alarm.name for alarm in round_alarms(HEALTHY, now, {**LOGS, **logs}, LOGS, 7, PPOTrainer)]


def test_a_healthy_round_raises_nothing() -> None:
    assert names(HEALTHY) == []
    assert names(HEALTHY._replace(length=30.0, finished=0.7, alike=0.3, repeats=0.1)) == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("repetition", {"repeats": 0.3}),
        ("empty-answers", {"empty": 0.5}),
        ("answers-alike", {"alike": 0.6}),
        ("missing-end", {"finished": 0.4}),
        ("length", {"length": 45.0}),
        ("length", {"length": 9.0}),
    ],
)
def test_answers_that_go_wrong(name: str, change: dict[str, float]) -> None:
    assert names(HEALTHY._replace(**change)) == [name]


@pytest.mark.parametrize(
    ("name", "figure", "value"),
    [
        ("far-from-reference", "objective/kl_per_token", 0.8),
        ("clipped", "policy/clipfrac_avg", 0.6),
        ("entropy-collapse", "policy/entropy_avg", 0.01),
    ],
)
def test_figures_that_go_wrong(name: str, figure: str, value: float) -> None:
    assert names(HEALTHY, **{figure: value}) == [name]


def test_an_alarm_says_what_was_seen_why_and_what_to_change() -> None:
    (alarm,) = round_alarms(HEALTHY, HEALTHY._replace(repeats=0.5), LOGS, LOGS, 7, PPOTrainer)
    assert alarm.sentence().startswith("50% of the answers are repetitive; at the start 0% were. ")
    assert "kl_coef" in alarm.remedy
    (note,) = round_alarms(HEALTHY, HEALTHY._replace(length=90.0), LOGS, LOGS, 7, GRPOTrainer)
    assert note.level == NOTE
    assert "missing_eos_penalty" in note.remedy


def test_what_is_seen_of_a_round() -> None:
    loop = "the cat and the hat " * 12
    found = figures_of([rollout(0, loop), rollout(1, loop), rollout(2, "A short and sound answer.", finished=False)])
    assert found.repeats == pytest.approx(2 / 3)
    assert found.finished == pytest.approx(2 / 3)
    assert found.alike > 0
    assert figures_of([rollout(0, ""), rollout(1, "x")]).empty == 0.5


@pytest.mark.parametrize("mode", ["warn", "stop", "rollback"])
def test_a_run_that_goes_wrong(tmp_path: Path, mode: str, caplog: pytest.LogCaptureFixture) -> None:
    """A learning rate far too high for the clip: the guard says so, ends the run, or puts the weights back."""
    options = {"learning_rate": 0.5, "num_ppo_epochs": 4, "kl_coef": 0.0, "lr_scheduler_type": "constant"}
    run = trainer(tmp_path, guard=mode, max_steps=48, **options)
    run.train()
    alarms = [json.loads(line) for line in (tmp_path / "guard.jsonl").read_text().splitlines()]
    assert alarms
    assert alarms[0]["action"] in (mode, "warn")
    facts = json.loads((tmp_path / "run.json").read_text())["guard"]
    assert facts["mode"] == mode
    assert set(facts["alarms"]) == {alarm["name"] for alarm in alarms}
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert {"step", "id", "prompt", "policy"} <= set(samples[0])
    assert f"guard, step {alarms[0]['step']}:" in caplog.text
    if mode == "warn":
        assert run.state.global_step == 48
        return
    assert run.state.global_step < 48


class Faltering:
    """The model's own sampling, whose third round repeats itself."""

    def __init__(self) -> None:
        self.own = TransformersSampler(
            tiny_tokenizer(), max_new_tokens=6, temperature=1.0, batch_size=8, seed=3, autocast=None
        )

    def __call__(self, model: Any, prompts: Any, token_ids: Any, *, first: int) -> list[Rollout]:
        found = self.own(model, prompts, token_ids, first=first)
        return [replace(one, text="the cat and the hat " * 12) for one in found] if first == 8 else found


def test_rollback_is_to_weights_that_wrote_a_sound_round(tmp_path: Path) -> None:
    """Rounds are sampled at steps 0, 2 and 4. The third is bad, so the weights of step 4 are, and step 2 is restored;
    a run that goes on from a checkpoint knows as much.
    """
    options = {"guard": "rollback", "max_steps": 12, "sampler": Faltering(), "save_strategy": "steps", "save_steps": 2}
    run = trainer(tmp_path / "run", **options)
    run.train()
    assert run.state.global_step == 6
    shorter = trainer(tmp_path / "shorter", max_steps=2)
    shorter.train()
    resumed = trainer(tmp_path / "run", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))
    expected = dict(shorter.cast.trained.named_parameters())
    for one in (run, resumed):
        assert one.guard is not None
        assert one.guard.rolled_back_to == 2
        assert all(torch.equal(p, expected[name]) for name, p in one.cast.trained.named_parameters())
