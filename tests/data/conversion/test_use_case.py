"""Filters to a use case: by topic, keyword, language and a rule of the user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preftune.cli.main import main
from preftune.data import load_pairs

ROWS: list[dict[str, Any]] = [
    {"prompt": "How do I pay the invoice for my new flat?", "topic": "Billing", "lang": "x"},
    {"prompt": "When does the next train leave for the coast?", "topic": "travel", "lang": "y"},
    {"prompt": "Wie kann ich die Rechnung für das Haus und den Garten bezahlen?", "topic": "billing", "lang": "z"},
    {"prompt": "The invoicing of a train is not an invoice-free thing, is it?", "topic": None, "lang": "x"},
]
for _row in ROWS:
    german = "Rechnung" in _row["prompt"]
    _row["chosen"] = (
        "Das ist nicht so schwer, wenn man es mit der Bank macht." if german else "You can do that at the bank."
    )
    _row["rejected"] = "Nein." if german else "No."


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    (tmp_path / "rules.py").write_text(
        "def coast(row):\n    return 'coast' in row['text']['prompt'] and row['lang'] == 'y'\n"
        "def number(row):\n    return 1\n"
        "def broken(row):\n    return row['nothing']\n"
        "constant = 3\n"
        "async def waits(row):\n    return True\n",
        encoding="utf-8",
    )
    return path


def kept(source: Path, *words: str) -> list[int]:
    out = source.with_name("out.jsonl")
    assert main(["convert", str(source), *words, "-o", str(out), "--overwrite"]) == 0
    prompts = [row["prompt"] for row in ROWS]
    return [prompts.index(pair.prompt) for pair in load_pairs(out)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        (["--topic", "billing"], [0, 2]),
        (["--topic", "Travel", "BILLING"], [0, 1, 2]),
        (["--keyword", "invoice"], [0, 3]),
        (["--keyword", "next train", "rechnung"], [1, 2]),
        (["--language", "de"], [2]),
        (["--language", "en", "de"], [0, 1, 2, 3]),
        (["--topic", "billing", "--language", "en"], [0]),
        (["--keyword", "invoice", "--streaming"], [0, 3]),
    ],
)
def test_what_is_kept(source: Path, words: list[str], rows: list[int]) -> None:
    assert kept(source, *words) == rows


def test_a_rule_sees_the_row_and_its_texts(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept(source, "--rule", f"{source.with_name('rules.py')}:coast") == [1]
    monkeypatch.chdir(source.parent)
    assert kept(source, "--rule", "rules:coast") == [1]
    manifest = json.loads(source.with_name("out.jsonl.manifest.json").read_text(encoding="utf-8"))
    assert manifest["filters"] == {"rule": "rules:coast"}
    assert manifest["dropped"] == [{"reason": "rule", "what": "--rule returned False", "count": 3, "rows": [0, 2, 3]}]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--topic", "biling"], "No pair has the topic 'biling' (found: 'Billing', 'travel', 'billing', 'None')."),
        (["--topic", "biling"], "Did you mean 'billing'?"),
        (["--language", "english"], "--language english is not known. Known are"),
        (["--rule", "FILE:number"], "returns 1. Return True to keep the row, or False."),
        (["--rule", "FILE:broken"], "row 0: --rule"),
        (["--rule", "FILE:broken"], "fails (KeyError: 'nothing'). Correct the rule."),
        (["--rule", "FILE:constant"], "constant is not a function (it is int)"),
        (["--rule", "FILE:nothing"], "has no 'nothing' (it has: "),
        (["--rule", "FILE:waits"], "waits is an async function"),
        (["--rule", "FILE"], "write MODULE:FUNCTION or FILE.py:FUNCTION"),
        (["--rule", "no_such_module:f"], "no Python module 'no_such_module' can be imported"),
        (["--rule", "nofile.py:f"], "there is no file nofile.py"),
        (["--topic", "billing", "--streaming"], "is streamed, and --topic and --rule read its own columns"),
        (["--keyword", "unheard"], "Nothing is left to write (4: none of the --keyword words is in the prompt)"),
    ],
)
def test_what_cannot_be_asked(source: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word.replace("FILE", str(source.with_name("rules.py"))) for word in words]
    assert main(["convert", str(source), *words, "-o", str(source.with_name("out.jsonl"))]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_data_without_topics_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n', encoding="utf-8")
    assert main(["convert", str(path), "--topic", "x", "-o", str(tmp_path / "b.jsonl")]) == 2
    assert "has no column of topics (known are topic, category" in capsys.readouterr().err
