"""`preftune eval --anytime`: the same evaluation with more and more prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import write_rows
from tests.cli.commands.test_eval import duel, read
from tests.generation.chat_server import ChatServer, serving


def echo(body: dict[str, Any]) -> str:
    """Answers of the same length, of which the judge takes the aligned model's."""
    if body["model"] != "judge":
        return f"{body['model'][0]}: some words on that"
    asked = body["messages"][-1]["content"]
    return json.dumps({"better": "A" if asked.index("b: some") < asked.index("w: some") else "B"})


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving(echo) as chat:
        chat.models = ["wordy", "brief", "judge"]
        yield chat


def test_prompts_are_added_until_the_verdict_holds_however_often_one_looks(preftune, server, tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "q.jsonl", [{"prompt": f"What is {n} and {n * n}?"} for n in range(40)])
    words = duel(server, prompts, tmp_path / "out", "--anytime", "--limit")
    few = preftune(*words, 8)
    assert few.code == 0, few.err
    before = read(tmp_path / "out")
    assert before["ci_low"] > 0.5
    assert before["anytime"]["ci_low"] <= 0.5
    assert "rule repeated looks: fails." in few.out
    more = preftune(*words, 40)
    after = read(tmp_path / "out")
    assert after["anytime"]["prompts"] == 40
    assert before["anytime"]["ci_low"] <= after["anytime"]["ci_low"]
    assert after["ci_low"] > after["anytime"]["ci_low"] > 0.5
    assert "rule repeated looks: holds." in more.out
    ordinary = preftune(*words[:-2])
    assert read(tmp_path / "out")["anytime"] is None
    assert "repeated looks" not in ordinary.out
    suite = preftune("eval", "--model", server.spec("brief"), "--suite", "xstest", "--anytime", "-o", "x")
    assert (suite.code, "--anytime has no effect" in suite.message) == (2, True)
