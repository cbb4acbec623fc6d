"""`preftune dpo --seeds` and `preftune eval` of what it leaves: one held-out split, one cache, intervals over seeds."""

from __future__ import annotations

import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from preftune.cli.main import main
from preftune.storage.jsonl import read_lines, write_lines
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
    assert "Judged against the reference, the trained model wins" in printed
    found = json.loads((out / "seeds.json").read_text())
    assert found["seeds"] == [0, 1]
    losses = found["figures"]["eval_loss"]
    ends = [_evaluations(out / f"seed-{seed}")[-1]["eval_loss"] for seed in (0, 1)]
    assert losses["per_seed"] == pytest.approx(ends)
    assert losses["mean"] == pytest.approx(sum(ends) / 2)
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
    printed = capsys.readouterr()
    assert "over 2 seeds (95% interval over prompts and seeds" in printed.out
    assert "the verdict is 'undecided' over all seeds, and --fail_under is better" in printed.err
    alone = [json.loads((out / f"seed-{seed}" / "eval" / "summary.json").read_text())["win_rate"] for seed in (0, 1)]
    summary = json.loads((out / "eval" / "summary_over_seeds.json").read_text())
    assert [summary["per_seed"][seed]["win_rate"] for seed in ("0", "1")] == alone
    assert summary["win_rate"]["win_rate"] == pytest.approx(sum(alone) / 2)
    assert summary["win_rate"]["n"] == 6
    assert set(summary["verdicts"]) == {"0", "1"}
    assert main([*judged[:3], "--suite", "hhh"]) == 2
    assert f"Name one: --model {out / 'seed-0'}" in capsys.readouterr().err
    (out / "seed-1").rename(out / "elsewhere")
    assert main(judged) == 2
    assert "names seed 1, and there is no folder" in capsys.readouterr().err


def _evaluations(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_lines(run / "metrics.jsonl") if "eval_loss" in line]


def test_every_held_out_set_is_summarised(tmp_path: Path) -> None:
    """Each set has a line of its own; the figures are those of the last step."""
    for seed in (0, 1):
        (tmp_path / f"seed-{seed}").mkdir()
        lines: list[dict[str, Any]] = [
            {"step": step, f"eval_{name}_loss": loss + seed + step, f"eval_{name}_runtime": 1.0}
            for step in (2, 4)
            for name, loss in (("help", 0.5), ("harm", 0.25))
        ]
        write_lines(tmp_path / f"seed-{seed}" / "metrics.jsonl", lines)
    sentences = seeds.record(tmp_path, (0, 1))
    figures = json.loads((tmp_path / "seeds.json").read_text())["figures"]
    assert {name: one["per_seed"] for name, one in figures.items()} == {
        "eval_help_loss": [4.5, 5.5],
        "eval_harm_loss": [4.25, 5.25],
    }
    assert [sentence.partition(":")[0] for sentence in sentences] == [
        "eval_help_loss over 2 seeds",
        "eval_harm_loss over 2 seeds",
    ]


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


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_RANK"])
def test_a_variable_of_torchrun_that_is_no_number_is_named(preftune, monkeypatch, name: str) -> None:
    monkeypatch.setenv(name, "x")
    result = preftune("dpo", "--model", "m", "--data", "d")
    assert result.code == 2
    assert f"The environment variable {name} is 'x', not a whole number. Unset it" in result.message
