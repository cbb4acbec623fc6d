"""`preftune sweep` from its command line to its page; trainings are made up where only the study matters."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from preftune.cli.main import main
from preftune.errors import RequestError
from preftune.sweep import objective
from preftune.sweep.objective import Intermediate
from preftune.sweep.plan import read_plan
from preftune.sweep.run import Sweep
from preftune.training import stages
from preftune.training.stages import Stage, run_command
from tests.cli.command import write_rows
from tiny import chat_rows

RECIPE = {"model_name_or_path": "sft", "dataset_name": "pairs.jsonl", "eval_fraction": 0.1}
FIELDS = ("eval_strategy", "save_strategy", "report_to", "guard", "seed")


class MadeUp:
    """Trainings whose metric is a function of their recipe."""

    def __init__(self, value: Any) -> None:
        self.recipes: list[dict[str, Any]] = []
        self._value = value

    def __call__(self, stage: Stage, watch: Any) -> int:
        recipe = yaml.safe_load((stage.folder / "recipe.yaml").read_text())
        self.recipes.append(recipe)
        (stage.folder / "log.txt").write_text("preftune: what went wrong\n")
        values = self._value(recipe)
        if values is None:
            return 1
        for step, value in enumerate(values, start=1):
            with (stage.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, "eval_rewards/accuracies": value}) + "\n")
            if watch is not None and watch():
                return 130
        facts = {"steps": len(values), "model": {"name": "sft"}}
        (stage.folder / "run.json").write_text(json.dumps(facts))
        return 0


def swept(folder: Path, patch: pytest.MonkeyPatch, value: Any, block: Any, **options: Any) -> tuple[Any, MadeUp]:
    plan = read_plan({**RECIPE, "sweep": block}, name="r.yaml")
    made = MadeUp(value)
    patch.setattr(stages, "_run", made)
    said: list[str] = []
    folder.mkdir(exist_ok=True)
    sweep = Sweep(plan, folder, fields=FIELDS, say=said.append, **options)
    return sweep.result(sweep.run()), made


def test_a_grid_is_tried_whole_and_the_best_recipe_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = {"search": {"beta": [0.1, 0.2], "num_train_epochs": {"low": 1, "high": 3}}, "sampler": "grid"}
    result, made = swept(tmp_path / "s", monkeypatch, lambda r: [r["beta"] + r["num_train_epochs"] / 10], block)
    tried = {(recipe["beta"], recipe["num_train_epochs"]) for recipe in made.recipes}
    assert tried == {(beta, epochs) for beta in (0.1, 0.2) for epochs in (1, 2, 3)}
    assert len(made.recipes) == 6
    assert result["best"]["settings"] == {"beta": 0.2, "num_train_epochs": 3}
    best = yaml.safe_load((tmp_path / "s/best.yaml").read_text())
    assert best == {**RECIPE, "beta": 0.2, "num_train_epochs": 3, "seed": 42}  # with the user's guard and checkpoints
    assert made.recipes[0]["guard"] == "off"
    page = (tmp_path / "s/report.html").read_text()
    assert "num_train_epochs" in page
    assert "looks better than it is" in page
    assert json.loads((tmp_path / "s/sweep.json").read_text())["planned"] == 20


def test_a_bad_trial_is_stopped_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = {"search": {"beta": {"low": 0.1, "high": 0.9}}, "sampler": "random", "trials": 12}
    result, _ = swept(tmp_path / "s", monkeypatch, lambda r: [r["beta"] * step for step in (1, 2, 3)], block)
    states = [trial["state"] for trial in result["trials"]]
    assert states[:4] == ["complete"] * 4
    assert "pruned" in states
    pruned = [trial for trial in result["trials"] if trial["state"] == "pruned"]
    assert all(len(trial["intermediate"]) < 3 for trial in pruned)
    assert result["best"]["value"] == max(t["value"] for t in result["trials"] if t["state"] == "complete")
    assert len(states) == 12
    assert sum(result["importance"].values()) == pytest.approx(1.0)


def test_seeds_are_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = {"search": {"beta": [0.1, 0.5]}, "sampler": "grid", "seeds": [0, 1, 2], "pruner": "none"}
    result, made = swept(tmp_path / "s", monkeypatch, lambda r: [r["beta"] + r["seed"] / 10], block)
    assert sorted((r["beta"], r["seed"]) for r in made.recipes) == [(b, s) for b in (0.1, 0.5) for s in (0, 1, 2)]
    assert result["best"]["value"] == pytest.approx(0.6)
    assert result["best"]["by_seed"] == pytest.approx([0.5, 0.6, 0.7])
    assert (tmp_path / "s/trials/000-seed2/recipe.yaml").is_file()


@pytest.mark.parametrize("killed", [False, True])
def test_it_goes_on_after_a_stop_with_the_trial_that_was_cut_off(
    killed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = {"search": {"beta": {"low": 0.1, "high": 0.9}}, "trials": 4}
    began: list[float] = []

    def cut(recipe: dict[str, Any]) -> list[float]:
        began.append(recipe["beta"])
        if len(began) == 3:
            raise KeyboardInterrupt
        return [recipe["beta"]]

    with pytest.raises(KeyboardInterrupt):
        swept(tmp_path / "s", monkeypatch, cut, block)
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 's/study.db'}")
    assert study.trials[-1].state.name == "FAIL"
    if killed:  # nobody was there to write how the trial ended
        with sqlite3.connect(tmp_path / "s/study.db") as database:
            database.execute("UPDATE trials SET state = 'RUNNING' WHERE state = 'FAIL'")
    result, made = swept(tmp_path / "s", monkeypatch, lambda r: [r["beta"]], block)
    assert made.recipes[0]["beta"] == pytest.approx(began[2])
    assert len([trial for trial in result["trials"] if trial["state"] == "complete"]) == 4
    assert len({recipe["beta"] for recipe in made.recipes} | {*began}) == 4
    assert len(result["trials"]) == 4
    again, made = swept(tmp_path / "s", monkeypatch, lambda r: [r["beta"]], block)
    assert not made.recipes
    assert again["best"] == result["best"]


def test_another_recipe_in_the_same_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block: dict[str, Any] = {"search": {"beta": [0.1, 0.5]}, "trials": 1}
    swept(tmp_path / "s", monkeypatch, lambda r: [0.5], block)
    with pytest.raises(RequestError, match="a study s of another recipe"):
        swept(tmp_path / "s", monkeypatch, lambda r: [0.5], {**block, "search": {"beta": [0.1, 0.7]}})
    more, _ = swept(tmp_path / "s", monkeypatch, lambda r: [0.5], {**block, "trials": 2})
    assert len(more["trials"]) == 2


def test_failures_are_named_and_end_a_sweep_that_only_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = {"search": {"beta": {"low": 0.1, "high": 0.9}}, "sampler": "random", "trials": 6}
    with pytest.raises(RequestError, match=r"3 of 3 trials failed\. The last: what went wrong \(log: .*log\.txt\)"):
        swept(tmp_path / "all", monkeypatch, lambda r: None, block)
    result, _ = swept(tmp_path / "some", monkeypatch, lambda r: None if r["beta"] > 0.6 else [r["beta"]], block)
    states = [trial["state"] for trial in result["trials"]]
    assert states.count("complete") + states.count("pruned") == 6
    assert "fail" in states
    with pytest.raises(RequestError, match="is not among the metrics"):
        swept(tmp_path / "name", monkeypatch, lambda r: [0.5], {**block, "objective": "eval_margins"})


@pytest.mark.parametrize("adapter", [True, False])
def test_the_win_rate_is_that_of_an_evaluation(adapter: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def evaluated(words: list[str], log: Path) -> int:
        asked.append(words)
        folder = Path(words[words.index("-o") + 1])
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps({"win_rate": 0.25 + 0.1 * len(asked)}))
        return 0

    def train(recipe: dict[str, Any]) -> list[float]:
        if adapter:
            (Path(recipe["output_dir"]) / "adapter_config.json").write_text("{}")
        return [0.5]

    monkeypatch.setattr(objective, "run_command", evaluated)
    block = {"search": {"beta": [0.1, 0.5]}, "sampler": "grid", "objective": "win_rate", "judge": "longer", "limit": 8}
    result, _ = swept(tmp_path / "s", monkeypatch, train, block)
    assert [trial["value"] for trial in result["trials"]] == pytest.approx([0.35, 0.45])
    assert asked[0][:5] == ["eval", "--model", str(tmp_path / "s/trials/000"), "--judge", "longer"]
    assert asked[0][-2:] == (["--seed", "42"] if adapter else ["--baseline", "sft"])
    assert "--prompts" not in asked[0]


def test_two_processes_share_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    block = {"search": {"beta": {"low": 0.1, "high": 0.9}}, "trials": 3}
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    first, _ = swept(tmp_path / "one/s", monkeypatch, lambda r: [r["beta"]], block, storage=storage)
    second, made = swept(tmp_path / "two/s", monkeypatch, lambda r: [r["beta"]], block, storage=storage)
    assert not made.recipes
    assert second["best"]["value"] == first["best"]["value"]


def test_intermediate_values_are_asked_for_once(tmp_path: Path) -> None:
    file, asked = tmp_path / "metrics.jsonl", []
    watch = Intermediate(file, "eval_loss", lambda value, step: bool(asked.append((value, step))) or value > 2)
    assert not watch()
    file.write_text('{"step": 1, "eval_loss": 1.5}\n{"step": 1, "loss": 3}\n')
    assert not watch()
    assert not watch()
    file.write_text(file.read_text() + '{"step": 2, "eval_loss": 2.5}\n')
    assert watch()
    assert asked == [(1.5, 1), (2.5, 2)]


def test_a_process_is_stopped_as_by_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\ntrap 'echo stopped; exit 130' INT TERM\necho begun\nwhile :; do sleep 0.1; done\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    assert run_command(["dpo"], tmp_path / "log.txt", watch=lambda: True) == 130
    assert (tmp_path / "log.txt").read_text().split() == ["begun", "stopped"]


def test_from_the_command_line(preftune: Any, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def here(stage: Stage, watch: Any) -> int:
        code = main([stage.command, "--config", str(stage.folder / "recipe.yaml"), "--no_report"])
        (stage.folder / "log.txt").write_text("")
        return code

    monkeypatch.setattr(stages, "_run", here)
    monkeypatch.chdir(tmp_path)
    recipe = {
        **RECIPE, "model_name_or_path": tiny_model, "dataset_name": write_rows(tmp_path / "p.jsonl", chat_rows(12)),
        "eval_fraction": 0.25, "use_peft": True, "use_cpu": True, "num_train_epochs": 1, "learning_rate": "1e-2",
        "per_device_train_batch_size": 4,
    }  # fmt: skip
    block = {"search": {"beta": [0.1, 0.5]}, "sampler": "grid"}
    Path("r.yaml").write_text(yaml.safe_dump({**recipe, "sweep": block}))
    result = preftune("sweep", "r.yaml", "-o", "out")
    assert result.code == 0, result.err
    assert "Best: trial" in result.out + result.err
    found = json.loads(Path("out/sweep.json").read_text())
    assert found["reference_scores"]["computed"] == 24  # the rows' completions once, for all trials
    assert found["reference_scores"]["from_cache"] >= 24
    Path("r.yaml").write_text(yaml.safe_dump({**recipe, "sweep": {"search": {"betta": [0.1, 0.5]}}}))
    wrong = preftune("sweep", "r.yaml", "-o", "out2")
    assert wrong.code == 2
    assert "r.yaml: sweep: search: there is no field 'betta'. Did you mean 'beta'?" in wrong.message
    assert "its ranges are for preftune sweep" in preftune("dpo", "--config", "r.yaml").message
    Path("r.yaml").write_text(yaml.safe_dump({"sweep": block, **recipe, "bteta": 1}))
    assert "The recipe r.yaml, line" in preftune("sweep", "r.yaml", "-o", "out2").message
    Path("r.yaml").write_text(yaml.safe_dump({**recipe, "sweep": {"search": {"beta": [0.1, -1.0]}}}))
    assert "-1.0" in preftune("sweep", "r.yaml", "-o", "out2").message
    Path("r.yaml").write_text(yaml.safe_dump({**recipe, "sweep": {"command": "eval", "search": {"beta": [0.1, 1.0]}}}))
    judged = {"search": {"beta": [0.1, 1.0]}, "objective": "win_rate", "judge": "longre"}
    Path("r.yaml").write_text(yaml.safe_dump({**recipe, "sweep": judged}))
    assert "longre" in preftune("sweep", "r.yaml", "-o", "out2").message
    Path("r.yaml").write_text(yaml.safe_dump({**recipe, "sweep": {"command": "eval", "search": {"beta": [0.1, 1.0]}}}))
    assert "eval: it does not train" in preftune("sweep", "r.yaml", "-o", "out2").message
