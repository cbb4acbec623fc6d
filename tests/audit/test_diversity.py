"""Groups of prompts by their words: planted topics are found, and what is not among the prompts is said."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.audit.made_up import clean_chats, clean_rows, run
from tiny import chat_rows

TOPICS = {
    "bread": "yeast flour dough oven crust knead bake loaf sourdough rise".split(),
    "sailing": "mast rudder keel anchor harbour jib tiller wind sheet hull".split(),
    "tax": "income deduction invoice receipt audit refund filing declaration levy bracket".split(),
}


def topical(counts: dict[str, int], seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    prompts = [
        f"{' '.join(draw.sample(TOPICS[topic], 8))} {number}"
        for topic, count in counts.items()
        for number in range(count)
    ]
    draw.shuffle(prompts)
    return [{"prompt": text, "chosen": f"a {number}", "rejected": f"b {number}"} for number, text in enumerate(prompts)]


def test_planted_topics_are_the_groups() -> None:
    figures = run(topical({"bread": 60, "sailing": 30, "tax": 10})).figures["diversity"]
    assert figures["groups"] == 3
    assert figures["largest"] == 0.6
    assert figures["as_many_as"] == pytest.approx(2.5, abs=0.1)  # exp of the entropy of 60, 30 and 10%
    named = [set(group["words"]) for group in figures["of_groups"]]
    assert [words <= set(TOPICS[topic]) for words, topic in zip(named, TOPICS, strict=True)] == [True] * 3
    assert "fall into 3 groups, as many as 2.5 of one size; the largest (" in figures["sentences"][0]
    assert "Not among the prompts: conversations of several turns, system prompts" in figures["sentences"][1]
    assert "No column names topics" in figures["sentences"][2]


def test_one_topic_is_called_narrow_and_several_are_not() -> None:
    findings = {finding.name: finding for finding in run(topical({"bread": 60, "sailing": 30, "tax": 10})).findings}
    assert findings["narrow_prompts"].count == 60
    assert "60%" in findings["narrow_prompts"].detail
    even = run(topical({"bread": 40, "sailing": 40, "tax": 40})).findings
    assert "narrow_prompts" not in {finding.name for finding in even}


def test_the_order_of_the_rows_plays_no_part() -> None:
    rows = topical({"bread": 40, "sailing": 30, "tax": 20})
    assert run(rows).figures["diversity"] == run(rows[::-1]).figures["diversity"]


def test_groups_that_tie_are_the_same_in_each_run() -> None:
    """Words that are all equally frequent give equal singular values, between which rounding would decide."""
    rows = chat_rows(1000)
    for place, row in enumerate(rows):
        row["prompt"][-1]["content"] += f" {place % 250}"
    assert len({str(run(rows).figures["diversity"]) for _ in range(5)}) == 1


def test_what_is_there_is_not_missing() -> None:
    rows = clean_chats(60, system="Answer in English.")
    rows[0]["prompt"] += [{"role": "assistant", "content": "So."}, {"role": "user", "content": "def f(x): " * 210}]
    figures = run([{**row, "topic": "a"} for row in rows]).figures["diversity"]
    assert "several turns" not in figures["sentences"][-1]
    assert figures["missing"][:1] == ["tools"]
    assert not any("No column names topics" in sentence for sentence in figures["sentences"])


def test_few_prompts_and_prompts_without_words_in_common_are_no_groups() -> None:
    assert run(clean_rows(20)).figures["diversity"]["sentences"] == []
    apart = [{"prompt": f"word{chr(97 + i % 26) * (i + 3)}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(60)]
    assert "groups" in run(apart).figures["diversity"]


def test_thousands_of_prompts_are_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preftune.audit.checks.diversity._MOST", 100)
    figures = run(topical({"bread": 300, "sailing": 300})).figures["diversity"]
    assert (figures["looked_at"], figures["groups"]) == (100, 2)
    assert "100 of them fall into 2 groups" in figures["sentences"][0]
