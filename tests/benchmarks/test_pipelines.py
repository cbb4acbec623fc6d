"""benchmarks/pipelines.py: its commands are understood, and its figures are those of the files."""

from __future__ import annotations

import json
from pathlib import Path

import pipelines
import pytest

from preftune.cli.train import dpo, ppo, reward, sft
from preftune.cli.train.train_command import read_request


@pytest.fixture
def ran(monkeypatch) -> list[list[str]]:
    """The commands, which are not run."""
    commands: list[list[str]] = []
    monkeypatch.setattr(pipelines, "run", lambda folder, words: commands.append(words))
    monkeypatch.setattr(pipelines, "figures", lambda folder: {})
    monkeypatch.setattr(pipelines, "judgement", lambda folder: {})
    return commands


def test_every_command_is_one_that_preftune_understands(ran, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipelines.write_data(tmp_path)
    pipelines.of_one_seed("MODEL", tmp_path, 3)
    trainings = {"sft": sft, "dpo": dpo, "reward": reward, "ppo": ppo}
    for words in ran:
        if words[0] in trainings:
            request = read_request(trainings[words[0]].METHOD, words[1:])
            assert request.config.seed == 3
            assert request.model.use_peft
    assert [words[0] for words in ran[:5]] == ["sft", "merge", "dpo", "reward", "ppo"]
    evaluations = [words for words in ran if words[0] == "eval"]
    assert len(evaluations) == len(pipelines.JUDGED)
    against = {Path(w[w.index("--model") + 1]).name: Path(w[w.index("--baseline") + 1]).name for w in evaluations[:3]}
    assert against == {"sft-merged": "MODEL", "dpo": "sft-merged", "ppo": "sft-merged"}


def test_no_prompt_that_is_judged_is_trained_on(tmp_path):
    pipelines.write_data(tmp_path)

    def prompts(name):
        return {line["prompt"][0]["content"] for line in map(json.loads, (tmp_path / name).read_text().splitlines())}

    assert len(prompts("train.jsonl")) == 128
    assert not prompts("train.jsonl") & prompts("prompts.jsonl")
    assert prompts("held_out.jsonl") == prompts("prompts.jsonl")


def test_seeds_are_pooled_by_prompt(tmp_path):
    for seed, outcomes in ((0, ["win", "win", "loss"]), (1, ["win", "tie", "loss"])):
        folder = tmp_path / f"seed{seed}/eval-dpo"
        folder.mkdir(parents=True)
        rows = [
            {"id": str(n), "outcome": word, "base_first": word, "aligned_first": word}
            for n, word in enumerate(outcomes)
        ]
        lines = list(map(json.dumps, rows))
        (folder / "verdicts.jsonl").write_text("\n".join(lines))
    found = pipelines.pooled_rate(tmp_path, [0, 1], "dpo")
    assert (found["n"], found["prompts"], found["wins"], found["ties"], found["losses"]) == (6, 3, 3, 1, 2)
    assert found["win_rate"] == pytest.approx(3.5 / 6)


def test_a_stage_that_is_done_is_not_run_again_and_one_that_fails_stops(tmp_path, monkeypatch):
    calls = []

    class Done:
        def __init__(self, code):
            self.returncode = code

    def fake(command, **_):
        calls.append(command)
        return Done(3 if command[-1] == "bad" else 0)

    monkeypatch.setattr(pipelines.subprocess, "run", fake)
    pipelines.run(tmp_path / "one", ["sft", "good"])
    pipelines.run(tmp_path / "one", ["sft", "good"])
    assert len(calls) == 1
    with pytest.raises(SystemExit, match="preftune sft ended with 3"):
        pipelines.run(tmp_path / "two", ["sft", "bad"])
    assert not (tmp_path / "two.done").exists()


def test_figures_of_a_training(tmp_path):
    lines = [
        {"step": 1, "objective/scores": 1.0, "memory/peak_gb": 1.0},
        {"step": 2, "objective/scores": 2.0, "memory/peak_gb": 1.5},
        {"step": 2, "eval_accuracy": 0.9},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "run.json").write_text(json.dumps({"steps": 2, "spent": {"seconds": 9.5}}))
    assert pipelines.figures(tmp_path) == {
        "steps": 2,
        "seconds": 9.5,
        "objective/scores": {"first": 1.0, "last": 2.0},
        "eval_accuracy": {"first": 0.9, "last": 0.9},
        "peak_gb": 1.5,
    }


def test_the_judgement_is_read_from_what_an_evaluation_writes(tmp_path):
    from preftune.evaluation.two_models.run import evaluate_pairwise
    from preftune.judges.rules import KeyFactJudge

    class Said:
        def __init__(self, text):
            self.text, self.tokens, self.finished = text, len(text.split()), True

    rows = [{"id": str(n), "prompt": f"{n}?", "key_fact": ["yes"]} for n in range(8)]
    evaluate_pairwise(
        rows,
        generate=lambda side, prompts, rows: [Said("yes" if side == "aligned" else "no it is not") for _ in prompts],
        judge=KeyFactJudge(),
        output_dir=tmp_path,
        settings={},
    )
    found = pipelines.judgement(tmp_path)
    assert (found["wins"], found["losses"], found["verdict"]) == (8, 0, "better")
    assert found["right"] == {"base": 0.0, "aligned": 1.0}
    assert found["mean_tokens"] == {"base": 4.0, "aligned": 1.0}


def test_the_documents_say_what_was_measured():
    """docs/rlhf.md against benchmarks/results/pipelines.json."""
    root = Path(__file__).parents[2]
    result = json.loads((root / "benchmarks/results/pipelines.json").read_text(encoding="utf-8"))
    said = (root / "docs/rlhf.md").read_text(encoding="utf-8")
    assert set(result["win_rates"]) == set(pipelines.JUDGED)
    for name, rate in result["win_rates"].items():
        told = f"{rate['win_rate']:.1%} ({100 * rate['ci_low']:.1f} to {100 * rate['ci_high']:.1f})"
        assert told in said, (name, told)
        by_seed = [seed["judged"][name]["win_rate"] for seed in result["seeds"].values()]
        assert f"{min(by_seed):.1%} to {max(by_seed):.1%}" in said.replace("\n", " "), (
            name,
            "the spread between seeds",
        )
    for name in ("sft", "dpo", "ppo"):
        judged = [seed["judged"][name] for seed in result["seeds"].values()]
        assert f"{sum(one['right']['aligned'] for one in judged) / len(judged):.1%}" in said
