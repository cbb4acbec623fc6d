"""`preftune launch` before Ray starts, and what a process of the training does; tests/workers has the cluster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from preftune.cli import main as command_line
from preftune.cli.recipes import launch
from tests.cli.command import pairs_file, preftune, tiny_model

__all__ = ["pairs_file", "preftune", "tiny_model"]

DPO = ("dpo", "--model", "MODEL", "--data", "DATA")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no training is named"),
        (["--", "eval"], "'eval' does not train"),
        (["--nodes", 2, *DPO], "dpo is not after --. Write it after --, as in: preftune launch -- dpo ..."),
        (["--nodes", 0, "--", "dpo"], "--nodes 0: give 1 or more"),
        (["--cpus_per_process", 0, "--", "dpo"], "--cpus_per_process 0: give 1 or more"),
        (["--gpus_per_node", 1, "--processes_per_node", 2, "--", "dpo"], "--processes_per_node has no effect"),
        (["--", *DPO, "--seeds", 1, 2], "Launch each seed by itself"),
        (["--", *DPO, "--lerning_rate", 1], "--learning_rate"),
        (["--", *DPO, "--resume", "CHECKPOINT"], "each restart would return to CHECKPOINT"),
        (["--", *DPO, "--resume-from-checkpoint", "CHECKPOINT"], "each restart would return to CHECKPOINT"),
        (["--", *DPO, "--resume-from-checkpoint", "none"], "--resume none has no effect"),
        (["--", *DPO, "--resume=none"], "--resume none has no effect"),
        (["--", *DPO, "--config", "RECIPE"], "each restart would return to CHECKPOINT"),
    ],
)
def test_what_cannot_be_launched(preftune, tiny_model, pairs_file, tmp_path, words, message):
    checkpoint, recipe = tmp_path / "run" / "checkpoint-2", tmp_path / "recipe.yaml"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    recipe.write_text(f"resume_from_checkpoint: {checkpoint}\n")
    places = {"MODEL": tiny_model, "DATA": pairs_file, "CHECKPOINT": checkpoint, "RECIPE": recipe}
    found = preftune("launch", *[places.get(word, word) for word in words])
    assert (found.code, message.replace("CHECKPOINT", str(checkpoint)) in found.message) == (2, True), found.err


@pytest.mark.parametrize(
    ("words", "added"),
    [
        ([], ["--resume", "auto"]),
        (["--resume-from-checkpoint", "auto"], []),
        (["--resume"], []),
    ],
)
def test_a_launched_training_resumes(preftune, tiny_model, pairs_file, tmp_path, monkeypatch, words, added):
    checkpoint = tmp_path / "run" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    sent: list[str] = []
    monkeypatch.setattr(launch, "_train", lambda asked, words, output: sent.extend(words))
    command = ["dpo", "--model", tiny_model, "--data", pairs_file, "--output_dir", checkpoint.parent, *words]
    assert preftune("launch", "--", *command).code == 0
    assert sent == [*map(str, command), "--output_dir", str(checkpoint.parent), *added]


def config_of(words: list[str], processes: int = 2) -> dict[str, Any]:
    return {"words": words, "folder": os.getcwd(), "environment": {}, "processes": processes}


def test_a_process_that_refuses_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="There is no model to align"):
        launch.worker(config_of(["dpo", "--data", str(tmp_path / "pairs.jsonl")]))


@pytest.mark.parametrize("code", [1, 2, 130])
def test_an_exit_code_is_a_failure(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(command_line, "main", lambda words: code)
    with pytest.raises(RuntimeError, match=f"preftune dpo ended with exit code {code}"):
        launch.worker(config_of(["dpo"]))


def test_processes_that_are_placed_otherwise_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with pytest.raises(RuntimeError, match="Ray has put 1 process on a machine that was to have 2"):
        launch.worker(config_of(["dpo"]))
