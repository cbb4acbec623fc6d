from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preftune.errors import DatasetError, RequestError
from preftune.evaluation.suites import run_suite
from preftune.evaluation.suites.arena_hard import read_label
from tests.evaluation.suites.scripted import ScriptedJudge, Speaker, contest, last

V2 = [
    {"uid": f"u{i}", "category": "hard_prompt", "subcategory": ("coding", "math")[i % 2], "prompt": f"Task {i}"}
    for i in range(4)
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answer(side: str, prompt: Any) -> str:
    return f"{side} on {last(prompt)}"


# per task: the label with the baseline as A, and with the aligned model as A
LABELS = {0: ("B>>A", "A>B"), 1: ("A>B", "B>A"), 2: ("A=B", "A=B"), 3: ("B>A", "B>>A")}


def judge(text: str) -> str:
    task = next(i for i in LABELS if f"Task {i}" in text)
    aligned_first = text.index("aligned on") < text.index("base on")
    return f"My own answer is this. So: [[{LABELS[task][aligned_first]}]]"


def test_a_score_with_strong_verdicts_three_times(tmp_path: Path) -> None:
    data = write(tmp_path / "question.jsonl", V2)
    endpoint = ScriptedJudge(judge)
    result = run_suite("arena-hard", contest(tmp_path, generate=Speaker(answer), endpoint=endpoint), data=data)
    # task 0: 1 1 1 (B>>A) and 1 (A>B); task 1: 0, 0; task 2: 0.5, 0.5; task 3: 1 and, B>>A with aligned as A, 0 0 0
    points = [1, 1, 1, 1, 0, 0, 0.5, 0.5, 1, 0, 0, 0]
    assert result.headline.aligned == pytest.approx(sum(points) / len(points))
    assert result.headline.ci_low < result.headline.difference < result.headline.ci_high
    assert result.figures["labels"]["base_first"] == {"A>>B": 0, "A>B": 1, "A=B": 1, "B>A": 1, "B>>A": 1}
    assert len(endpoint.asked) == 8
    coding = next(one for one in result.breakdown if one.name == "score, coding")
    assert coding.aligned == pytest.approx((4 + 1) / 6)
    assert any("not GPT-4" in note for note in result.notes)


def test_version_0_1_and_plain_turns(tmp_path: Path) -> None:
    old = [{"question_id": f"q{i}", "cluster": "c", "turns": [{"content": f"Task {i}"}]} for i in range(2)]
    plain = [{"question_id": "q2", "turns": ["Task 2"]}]
    for number, rows in enumerate((old, plain)):
        one = contest(tmp_path / str(number), generate=Speaker(answer), endpoint=ScriptedJudge(judge))
        result = run_suite("arena-hard", one, data=write(tmp_path / f"{number}.jsonl", rows))
        assert result.headline.n == len(rows)


def test_an_unreadable_reply_leaves_the_prompt_out_and_equal_answers_cost_nothing(tmp_path: Path) -> None:
    data = write(tmp_path / "question.jsonl", V2)
    endpoint = ScriptedJudge(lambda text: "no idea" if "Task 3" in text else judge(text))

    def alike(side: str, prompt: Any) -> str:
        return "the same" if last(prompt) == "Task 2" else answer(side, prompt)

    result = run_suite("arena-hard", contest(tmp_path, generate=Speaker(alike), endpoint=endpoint), data=data)
    points = [1, 1, 1, 1, 0, 0, 0.5, 0.5]
    assert result.headline.aligned == pytest.approx(sum(points) / len(points))
    assert result.figures["unread"] == 1
    assert not any("the same" in messages[1]["content"] for messages in endpoint.asked)


def test_killed_while_judging(tmp_path: Path) -> None:
    data = write(tmp_path / "question.jsonl", V2)
    stopped = contest(tmp_path, generate=Speaker(answer), endpoint=ScriptedJudge(judge, stop_after=3))
    with pytest.raises(KeyboardInterrupt):
        run_suite("arena-hard", stopped, data=data)
    speaker, endpoint = Speaker(answer), ScriptedJudge(judge)
    run_suite("arena-hard", contest(tmp_path, generate=speaker, endpoint=endpoint), data=data)
    assert (speaker.asked, len(endpoint.asked)) == ([], 5)


def test_a_plain_judge_has_three_labels(tmp_path: Path) -> None:
    data = write(tmp_path / "question.jsonl", V2)

    def prefers_aligned(prompt: Any, answer_a: str, answer_b: str, row: Any) -> str:
        return "ab"["aligned" in answer_b]

    result = run_suite("arena-hard", contest(tmp_path, generate=Speaker(answer), judge=prefers_aligned), data=data)
    assert result.headline.aligned == 1.0
    assert result.headline.verdict == "no difference shown"  # of five questions
    assert any("not by how much" in note for note in result.notes)


def test_what_cannot_be_done(tmp_path: Path) -> None:
    data = write(tmp_path / "question.jsonl", V2)
    with pytest.raises(RequestError, match="Name one with --judge"):
        run_suite("arena-hard", contest(tmp_path, generate=Speaker(answer)), data=data)
    mute = contest(tmp_path, generate=Speaker(answer), endpoint=ScriptedJudge(lambda text: "hm"))
    with pytest.raises(RequestError, match="none ends with one of the five labels"):
        run_suite("arena-hard", mute, data=data)
    other = write(tmp_path / "other.jsonl", [{"text": "?"}])
    with pytest.raises(DatasetError, match="has no 'prompt' or 'turns'"):
        run_suite("arena-hard", mute, data=other)


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("[[A>>B]]", "A>>B"),
        ("so [[B > A]]", "B>A"),
        ("[[B=A]]", "A=B"),
        ("[[A<<B]]", "B>>A"),
        ("[[A>B]] and again [[A>B]]", "A>B"),
        ("[[A>B]] or [[B>A]]", None),
        ("[[A>A]]", None),
        ("A>B", None),
    ],
)
def test_labels(reply: str, label: str | None) -> None:
    assert read_label(reply) == label
