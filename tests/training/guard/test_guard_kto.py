"""The guard of KTO: it reads the policy's answers, changes nothing that is trained, and acts as with DPO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.trainers.one_of_two_kto_ranks import answers, history, made

from .guard_runs import lines, looks

RUN = {"max_steps": 4, "reference_cache": False}


@pytest.mark.sample(1)
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("loss", ["kto", "bco"])
def test_losses_and_weights_are_those_of_a_run_without_a_guard(
    loss: str, lora: bool, paid: Any, tmp_path: Path
) -> None:
    runs = [made(tmp_path / mode, guard=mode, lora=lora, loss_type=loss, **RUN) for mode in ("warn", "off")]
    assert history(runs[0]) == history(runs[1])
    weights = [{n: p for n, p in run.model.named_parameters() if p.requires_grad} for run in runs]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    folder = tmp_path / "warn/preftune"
    assert [look["step"] for look in looks(folder)] == [1, 2, 3, 4]
    assert looks(folder)[-1]["guard/kl_per_token"] != 0
    assert len(lines(folder, "samples.jsonl")) == 4 * 3
    assert not any("guard/train_margin" in line for line in lines(folder, "metrics.jsonl"))
    assert json.loads((folder / "run.json").read_text())["guard"]["on"]


def test_answers_that_degenerate_stop_the_run_and_bring_the_weights_back(paid: Any, tmp_path: Path) -> None:
    run = made(tmp_path, guard="rollback", loss_type="bco", learning_rate=3.0, beta=0.01, **{**RUN, "max_steps": 12})
    before = {n: p.detach().clone() for n, p in run.model.named_parameters() if p.requires_grad}
    run.train()
    folder = tmp_path / "preftune"
    alarms = lines(folder, "guard.jsonl")
    assert alarms
    assert run.state.global_step < 12
    assert alarms[0]["name"] in ("far-from-reference", "repetition", "answers-alike")
    now = {n: p for n, p in run.model.named_parameters() if p.requires_grad}
    if run.guard.rolled_back_to == 0:
        assert all(torch.equal(weight, before[name]) for name, weight in now.items())
    assert run.guard.rolled_back_to is not None


def test_prompts_are_those_of_held_out_rows_and_of_pairs_too(paid: Any, tmp_path: Path) -> None:
    run = made(tmp_path, guard="warn", **RUN)
    run.train()
    prompts = {line["prompt"] for line in lines(tmp_path / "preftune", "samples.jsonl")}
    assert prompts <= {row["prompt"] for row in answers(48)}


def test_a_resumed_run_keeps_its_looks(paid: Any, tmp_path: Path) -> None:
    options = {**RUN, "guard": "warn", "save_strategy": "steps", "save_steps": 2}
    made(tmp_path, **options).train()
    folder = tmp_path / "preftune"
    before = [line | {"time": 0} for line in lines(folder, "samples.jsonl")]
    made(tmp_path, **options).train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    assert [line | {"time": 0} for line in lines(folder, "samples.jsonl")] == before
