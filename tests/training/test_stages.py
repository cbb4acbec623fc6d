"""Trainings are run once, found again, begun anew when anything changes, and say why they failed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preftune.errors import RequestError
from preftune.training import stages
from preftune.training.stages import Stage, run_stage


class Command:
    """Stands in for the process: writes what a training writes."""

    def __init__(self, code: int = 0, log: str = "") -> None:
        self.code, self.log, self.calls = code, log, 0

    def __call__(self, stage: Stage, watch: object = None) -> int:
        self.calls += 1
        facts = {"spent": {"seconds": 7.5, "tokens": 300}, "steps": 4, "episodes": 64}
        (stage.folder / "run.json").write_text(json.dumps(facts))
        lines = [{"step": 1, "memory/peak_gb": 1.5}, {"step": 2, "memory/peak_gb": 2.25}, {"step": 2, "eval_loss": 1.0}]
        (stage.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"st')
        (stage.folder / "log.txt").write_text(self.log)
        return self.code


def stage(folder: Path, **changes: object) -> Stage:
    values = {"command": "dpo", "folder": folder / "t", "recipe": {"beta": "0.1", "seed": 0}, "made_of": "abc"}
    return Stage(**{**values, **changes})  # type: ignore[arg-type]


def test_a_finished_training_is_found_with_all_its_figures(tmp_path, monkeypatch):
    command = Command()
    monkeypatch.setattr(stages, "_run", command)
    first, again = run_stage(stage(tmp_path)), run_stage(stage(tmp_path))
    assert command.calls == 1
    assert (first.again, again.again) == (True, False)
    assert first.spent == again.spent == {"seconds": 7.5, "tokens": 300, "episodes": 64}
    assert (again.finished, again.steps, again.peak_gb) == (True, 4, 2.25)
    assert "beta: '0.1'" in (tmp_path / "t/recipe.yaml").read_text()
    assert f"output_dir: {tmp_path / 't'}" in (tmp_path / "t/recipe.yaml").read_text()


@pytest.mark.parametrize("change", [{"recipe": {"beta": "0.3", "seed": 0}}, {"made_of": "other data"}])
def test_another_recipe_or_other_data_begin_anew(change, tmp_path, monkeypatch):
    command = Command()
    monkeypatch.setattr(stages, "_run", command)
    run_stage(stage(tmp_path))
    (tmp_path / "t/old").touch()
    assert run_stage(stage(tmp_path, **change)).again
    assert command.calls == 2
    assert not (tmp_path / "t/old").exists()


def test_a_training_that_was_cut_off_begins_anew(tmp_path, monkeypatch):
    def cut(asked: Stage, watch: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "_run", cut)
    with pytest.raises(KeyboardInterrupt):
        run_stage(stage(tmp_path))
    command = Command()
    monkeypatch.setattr(stages, "_run", command)
    assert run_stage(stage(tmp_path)).again


def test_a_training_that_failed_is_reported_and_tried_again(tmp_path, monkeypatch):
    log = "step 1\npreftune: the loss is not finite at step 3. Lower the learning rate.\nsome noise\n"
    monkeypatch.setattr(stages, "_run", Command(code=1, log=log))
    found = run_stage(stage(tmp_path))
    assert not found.finished
    assert found.error == "the loss is not finite at step 3. Lower the learning rate."
    command = Command()
    monkeypatch.setattr(stages, "_run", command)
    assert run_stage(stage(tmp_path)).finished


@pytest.mark.sample(0)
def test_a_request_that_the_command_refuses_ends_the_comparison(tmp_path):
    """A real process."""
    asked = stage(tmp_path, recipe={"model_name_or_path": "nowhere", "dataset_name": str(tmp_path / "none.jsonl")})
    with pytest.raises(RequestError, match=r"preftune dpo: .*nowhere"):
        run_stage(asked)
