"""`preftune label`: from samples to pairs that train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preftune.data import load_pairs
from preftune.judges.cache import VerdictCache
from tests.cli.endpoints import kill_when
from tests.evaluation.labelling.test_label import CHAT, write_samples
from tests.generation.chat_server import serving, shorter_wins
from tests.judges.test_reward_model import saved

ANSWERS = {"x": ["well, one", "one", "one or two"], "y": ["who knows", "two"]}


@pytest.fixture
def server():
    with serving(shorter_wins) as chat:
        yield chat


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    return write_samples(tmp_path / "samples.jsonl", ANSWERS, prompt=CHAT)


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pair_rules.py").write_text(
        "def brevity(prompt, answer, row):\n    return -len(answer)\n\n"
        "def brief(prompt, a, b, row):\n    return 'a' if len(a) < len(b) else 'b'\n\n"
        "def odd(prompt):\n    return 1\n"
    )
    monkeypatch.chdir(tmp_path)


def test_a_rule_and_the_pairs_train(preftune, rules, samples: Path, tmp_path: Path, tiny_model: str) -> None:
    out = tmp_path / "pairs.jsonl"
    result = preftune("label", samples, "--judge", "rule:pair_rules:brevity", "-o", out, "--pairs", "all")
    assert result.code == 0, result.err
    assert "4 pairs from 2 prompts with 5 completions." in result.out
    manifest = json.loads((tmp_path / "pairs.jsonl.manifest.json").read_text())
    assert manifest["settings"]["judge"] == "rule:pair_rules:brevity"
    assert f"preftune dpo --model MODEL --data {out}" in result.out
    assert load_pairs(out).strengths().min() > 0
    options = ["--output_dir", tmp_path / "run", "--max_steps", 1, "--per_device_train_batch_size", 2, "--use_cpu"]
    trained = preftune("dpo", "--model", tiny_model, "--data", out, *options)
    assert trained.code == 0, trained.err


def test_a_rule_that_compares(preftune, rules, samples: Path, tmp_path: Path) -> None:
    out = tmp_path / "pairs.jsonl"
    result = preftune("label", samples, "--judge", "rule:pair_rules:brief", "-o", out, "--margin_from_scores", 0.5)
    assert result.code == 0, result.err
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["chosen"][0]["content"] for row in rows] == ["one", "two"]
    assert [row["margin"] for row in rows] == [1.0, 0.5]


def test_a_reward_model(preftune, samples: Path, tmp_path: Path) -> None:
    model = saved(tmp_path / "rm")
    out = tmp_path / "pairs.jsonl"
    result = preftune("label", samples, "--judge", f"reward:{model}", "-o", out, "--batch_size", 2)
    assert result.code == 0, result.err
    assert "2 pairs from 2 prompts" in result.out
    before = out.read_bytes()
    assert preftune("label", samples, "--judge", f"reward:{model}", "-o", out).code == 0
    assert out.read_bytes() == before


def test_an_endpoint_is_estimated_asked_and_remembered(preftune, server, samples: Path, tmp_path: Path) -> None:
    words = ["label", samples, "--judge", server.spec(), "-o", tmp_path / "p.jsonl", "--price_in", 1, "--price_out", 2]
    first = preftune(*words)
    assert first.code == 0, first.err
    assert "about to make 8 calls" in first.err
    assert "used 8 calls, 80 input and 32 output tokens, 0.00 at the prices given" in first.err
    assert len(server.asked) == 8
    second = preftune(*words)
    assert "8 verdicts are known from earlier runs and cost nothing" in second.err
    assert "about to make" not in second.err
    assert len(server.asked) == 8
    assert second.out == first.out


def test_killed_and_resumed_no_verdict_is_asked_twice(preftune, server, tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "s.jsonl", {str(i): ["a", "aa", "aaa"] for i in range(4)})
    words = ["label", str(samples), "--judge", server.spec(), "-o", str(tmp_path / "p.jsonl"), "--concurrency", "3"]
    server.pause = 0.05
    kill_when(lambda: len(server.answered) >= 9, words, server)
    cache = VerdictCache()
    known = len(cache)
    cache.close()
    assert 0 < known < 24
    server.asked.clear()
    result = preftune(*words)
    assert result.code == 0, result.err
    assert f"preftune: {known} verdict" in result.err
    assert len(server.asked) == 24 - known
    assert "4 pairs from 4 prompts" in result.out


def test_no_pair_is_a_failure_that_says_why(preftune, tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "s.jsonl", {"x": ["same", "same"]})
    result = preftune("label", samples, "--judge", "shorter", "-o", tmp_path / "p.jsonl")
    assert result.code == 1
    assert "repeat another one" in result.out
    assert "There is no pair" in result.message


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--judge", "shortest"], "There is no judge 'shortest'. Did you mean 'shorter'? Give openai:"),
        (["--judge", "rule:pair_rules:odd"], "takes 1 argument."),
        (["--judge", "rule:no_such_rules:f"], "no Python module 'no_such_rules'"),
        (["--judge", "shorter", "--min_gap", "-1"], "--min_gap -1.0"),
        (["--judge", "shorter", "--margin_from_scores", "0"], "--margin_from_scores 0.0"),
        (["--judge", "shorter", "--max_calls", "3"], "--max_calls has no effect unless --judge is openai:"),
        (["--judge", "shorter", "--criteria", "x"], "--criteria has no effect"),
        (["--judge", "shorter", "--dtype", "auto"], "--judge_dtype has no effect unless --judge is reward:MODEL"),
        (["--judge", "openai:m@http://u:p@h/v1"], "must not contain a user"),
        (["--judge", "shorter", "--pairs", "some"], "is not one of its values"),
        (["--judge", "shorter", "--min-gpa", "1"], "Did you mean --min-gap"),
    ],
)
def test_wrong_requests(preftune, rules, samples: Path, tmp_path: Path, words: list[str], says: str) -> None:
    result = preftune("label", samples, "-o", tmp_path / "p.jsonl", *words)
    assert result.code == 2
    assert says in result.message
    assert not (tmp_path / "p.jsonl").exists()


def test_caps_and_missing_files(preftune, server, samples: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.jsonl"
    capped = preftune("label", samples, "--judge", server.spec(), "-o", out, "--max_calls", 7)
    assert (capped.code, server.asked) == (2, [])
    assert "takes 8 calls" in capped.message
    missing = preftune("label", tmp_path / "no.jsonl", "--judge", "shorter", "-o", out)
    assert missing.code == 2
    assert "There is no file" in missing.message
