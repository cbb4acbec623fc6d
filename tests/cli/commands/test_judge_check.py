"""`preftune judge-check` as a user meets it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.generation.chat_server import serving, shorter_wins

PAIRS = [
    {"prompt": f"Question {n}?", "chosen": f"A good answer to {n}.", "rejected": f"Bad {n}" + " word" * (n % 7)}
    for n in range(30)
]
RULE = """
def polite(prompt, answer_a, answer_b, row):
    return "a" if "good" in answer_a else "b"

def length(prompt, answer, row):
    return len(answer)

def confused(prompt, answer_a, answer_b, row):
    return "a"
"""


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    Path("rules_of_judge_check.py").write_text(RULE, encoding="utf-8")
    Path("labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS), encoding="utf-8")
    return "labels.jsonl"


def test_a_rule_against_people(preftune, data: str) -> None:
    done = preftune("judge-check", data, "--judge", "rule:rules_of_judge_check:polite", "-o", "out/judge.json")
    assert done.code == 0, done.err
    assert done.out.startswith("The judge 'polite' agrees with people in 100.0% of 30 comparisons (95% interval ")
    assert "contradicts itself when swapped: 0.0%" in done.out
    kept = json.loads(Path("out/judge.json").read_text(encoding="utf-8"))
    assert kept["agreement"]["value"] == 1
    assert kept["contradicted"]["n"] == 30
    assert kept["disagreements"] == []
    assert kept["sentences"][0] in done.out


def test_a_scorer_and_a_judge_that_goes_by_the_place(preftune, data: str) -> None:
    scored = preftune("judge-check", data, "--judge", "rule:rules_of_judge_check:length", "-o", "judge.json")
    assert scored.code == 0, scored.err
    assert "contradicts itself" not in scored.out  # symmetric: asked once
    kept = json.loads(Path("judge.json").read_text(encoding="utf-8"))
    assert kept["disagreements"][0]["judge"] != kept["disagreements"][0]["people"]
    confused = preftune("judge-check", data, "--judge", "rule:rules_of_judge_check:confused")
    assert "agrees with people in 50.0%" in confused.out
    assert "Position bias: it contradicts itself in 100% of the comparisons" in confused.out


def test_some_of_the_judgements(preftune, data: str) -> None:
    done = preftune("judge-check", data, "--judge", "longer", "--limit", 10, "--confidence", 0.9)
    assert "10 of 30 judgements, drawn at random (seed 0)" in done.err
    assert "of 10 comparisons (90% interval" in done.out


def test_labels_with_ties(preftune, data: str) -> None:
    rows = [
        {"prompt": "p", "answer_a": "one two three", "answer_b": "one", "label": said} for said in ("a", "tie", "b")
    ]
    Path("ties.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = preftune("judge-check", "ties.jsonl", "--judge", "longer")
    assert "people say tie: 33.3%" in done.out
    assert "agrees with people in 50.0% of 3 comparisons" in done.out


@pytest.mark.parametrize(
    ("prompt", "columns", "message"),
    [
        (5, [], "row 0: a judgement needs a prompt and two answers as text"),
        ({"x": 1}, [], "row 0: a judgement needs a prompt"),
        ("p", ["answer_a=one"], "has no column 'one' (found: 'prompt', 'answer_a', 'answer_b', 'label')"),
    ],
)
def test_labels_that_are_none(preftune, data: str, prompt: object, columns: list[str], message: str) -> None:
    row = {"prompt": prompt, "answer_a": "one two three", "answer_b": "one", "label": "a"}
    Path("odd.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    options = ["--columns", *columns] if columns else []
    done = preftune("judge-check", "odd.jsonl", "--judge", "longer", *options)
    assert done.code == 2
    assert message in done.message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["labels.jsonl", "--judge", "longr"], "There is no judge 'longr'. Did you mean 'longer'?"),
        (["label.jsonl", "--judge", "longer"], "Did you mean 'labels.jsonl'?"),
        (["labels.jsonl"], "--judge"),
        (["labels.jsonl", "--judge", "longer", "--max_calls", "5"], "--max_calls has no effect unless"),
        (["labels.jsonl", "--judge", "longer", "--limit", "0"], "--limit 0: give at least 1."),
        (["labels.jsonl", "--judge", "longer", "--confidence", "95"], "--confidence 95 is not between 0 and 1."),
        (["labels.jsonl", "--judge", "longer", "-o", "."], "-o . is a folder. Name a file in it"),
        (["labels.jsonl", "--judge", "longer", "--limt", "3"], "Did you mean --limit?"),
    ],
)
def test_wrong_requests(preftune, data: str, words: list[str], message: str) -> None:
    done = preftune("judge-check", *words)
    assert done.code == 2
    assert message in done.message
    assert done.out == ""


def test_an_endpoint_is_asked_once_in_both_orders(preftune, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(shorter_wins) as server:
        words = ["judge-check", data, "--judge", server.spec()]
        some = preftune(*words, "--limit", 10)
        assert some.code == 0, some.err
        assert "about to make 20 calls" in some.err
        assert len(server.asked) == 20
        everything = preftune(*words)
        assert "20 verdicts are known from earlier runs and cost nothing" in everything.err
        assert len(server.asked) == 60  # both orders of 30, nothing twice
        again = preftune(*words)
        assert len(server.asked) == 60
        assert again.out == everything.out
        capped = preftune(*words, "--criteria", "Politeness.", "--max_calls", 5)
        assert capped.code == 2
        assert len(server.asked) == 60


@pytest.mark.parametrize("width", [100, 50])
def test_a_table_where_there_is_room(preftune, data: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    done = preftune("judge-check", data, "--judge", "longer")
    assert done.code == 0, done.err
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.out)
    assert max(map(len, plain.splitlines())) <= width
    assert ("95% interval   of" in plain) == (width == 100)
