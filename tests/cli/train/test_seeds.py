"""`preftune dpo --seeds` and `preftune eval` of what it leaves: one held-out split, one cache, intervals over seeds."""

from __future__ import annotations

import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from preftune.cli.main import main
from preftune.statistics.over_seeds import win_rate_over_seeds
from preftune.storage.jsonl import read_lines
from preftune.training import seeds
from tiny import chat_rows, save_tiny


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """Trainings without processes of their own, which take longer to start than to train."""
    commands: list[list[str]] = []

    def run(words: Any, log: Path, **options: Any) -> int:
        commands.append(list(words))
        with open(log, "w") as file, redirect_stdout(file), redirect_stderr(file):
            return main(list(words))

    monkeypatch.setattr(seeds, "run_command", run)
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    return commands


def test_several_seeds_are_trained_and_evaluated(
    in_this_process: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = save_tiny(tmp_path / "model", hidden_size=64), tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in chat_rows(12)))
    out = tmp_path / "out"
    words = ["dpo", "--model", str(model), "--data", str(data), "--output_dir", str(out), "--seeds", "0", "1"]
    words += ["--use_peft", "--max_steps", "2", "--learning_rate", "1e-2", "--eval_strategy", "epoch", "--use_cpu"]
    words += ["--eval_fraction", "0.3", "--eval_judge", "longer", "--eval_max_new_tokens", "4", "--no_report"]
    assert main(words) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "eval_loss over 2 seeds" in printed
    assert "Judged over 2 seeds" in printed
    found = json.loads((out / "seeds.json").read_text())
    assert found["seeds"] == [0, 1]
    losses = found["figures"]["eval_loss"]
    assert losses["mean"] == pytest.approx(sum(losses["per_seed"]) / 2)
    assert losses["per_seed"][0] != losses["per_seed"][1]
    asked = [[line["prompt"] for line in read_lines(out / f"seed-{seed}" / "eval_answers.jsonl")] for seed in (0, 1)]
    assert asked[0] == asked[1], "one held-out split"
    scores = [json.loads((out / f"seed-{seed}" / "run.json").read_text())["reference_scores"] for seed in (0, 1)]
    assert (scores[0]["computed"] > 0, scores[1]["computed"]) == (True, 0), "one cache"
    before = [(out / f"seed-{seed}" / "run.json").read_text() for seed in (0, 1)]
    assert main(words) == 0
    assert [(out / f"seed-{seed}" / "run.json").read_text() for seed in (0, 1)] == before, "not trained again"

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("One?\nTwo?\nThree?\n")
    judged = ["eval", "--model", str(out), "--prompts", str(prompts), "--judge", "longer", "--max_new_tokens", "4"]
    assert main([*judged, "--fail_under", "better"]) == 1
    printed = capsys.readouterr().out
    assert "Over 2 seeds the aligned model wins" in printed
    verdicts = [read_lines(out / f"seed-{seed}" / "eval" / "verdicts.jsonl") for seed in (0, 1)]
    rate = win_rate_over_seeds([[line["value"] for line in of_seed] for of_seed in verdicts])
    summary = json.loads((out / "eval" / "seeds.json").read_text())
    assert summary["win_rate"] == rate.to_dict()
    assert set(summary["verdicts"]) == {"0", "1"}
    assert main([*judged[:3], "--suite", "hhh"]) == 2
    assert f"Name one: --model {out / 'seed-0'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--seeds", "1"], "give at least two different seeds"),
        (["--seeds", "1", "1"], "give at least two different seeds"),
        (["--seeds", "1", "2", "--seed", "3"], "--seed names one seed"),
        (["--seeds", "1", "2", "--resume", "auto"], "the same command continues"),
    ],
)
def test_what_contradicts_it(words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dpo", "--model", "m", "--data", "d", "--output_dir", str(tmp_path / "out"), *words]) == 2
    assert says in capsys.readouterr().err


def test_a_seed_that_fails_is_named(in_this_process: list[list[str]], tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert main(
        ["dpo", "--model", str(tmp_path / "none"), "--data", "d", "--output_dir", str(out), "--seeds", "4", "5"]
    )
    assert "Seed 4 failed" in capsys.readouterr().err
    assert in_this_process[0][-6:] == ["--seed", "4", "--output_dir", str(out / "seed-4"), "--resume", "auto"]
    assert "--split_seed" in in_this_process[0]
