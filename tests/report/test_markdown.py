"""The report for a pull request: nothing that a model wrote becomes markup, a mention or a link there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from preftune.report.markdown import inert, markdown_report
from preftune.report.reading.run_files import read_run
from tests.report.made_up_run import write_run


def without_blocks(text: str) -> str:
    """The text outside of fenced blocks, as CommonMark ends them."""
    kept, fence = [], ""
    for line in text.split("\n"):
        found = re.fullmatch(r"(`{3,})(\w*)", line)
        if fence:
            fence = "" if found and len(found[1]) >= len(fence) and not found[2] else fence
        elif found:
            fence = found[1]
        else:
            kept.append(line)
    assert not fence
    return "\n".join(kept)


def test_verdict_numbers_alarms_answers_and_settings(tmp_path: Path) -> None:
    text = markdown_report([read_run(write_run(tmp_path / "a-run"))])
    assert text.startswith("### Better: it wins 65.0% of comparisons\n")
    for words in (
        "95% interval 56.0% to 74.0%. 12 wins, 6 ties, 6 losses against a-model.",
        "| tokens per answer | 42 | 21 |",
        "| win rate at equal length |  | 60.0% |",
        "**Next**",
        "- Keep it: preftune merge.",
        "repetition, step 50: 22% of the words are repeated.",
        "<details><summary>Before and after: 5 of 24 prompts</summary>",
        "| beta | 0.1 |",
        "preftune dpo --model a/model",
    ):
        assert words in text, words
    assert text.count("<details>") == text.count("</details>") == 3


def test_an_earlier_evaluation_is_decided_by_the_rules(tmp_path: Path) -> None:
    """Its summary says "better" and holds no rules; at equal length it lost."""
    folder = write_run(tmp_path / "a-run")
    path = folder / "eval" / "summary.json"
    figures = json.loads(path.read_text())
    assert (figures["verdict"], "rules" in figures) == ("better", False)
    figures["length_controlled"] |= {"win_rate": 0.4, "ci_low": 0.32, "ci_high": 0.48}
    path.write_text(json.dumps(figures))
    text = markdown_report([read_run(folder)])
    assert text.startswith("### Shorter, not better: it wins 65.0% of comparisons\n")
    assert "- equal length: fails. At equal length it would win only 40.0%" in text
    assert "- no cheat: not measured. The evaluation is one of an earlier version." in text


def test_a_hostile_model_cannot_write_markup_mentions_or_links(tmp_path: Path) -> None:
    text = markdown_report([read_run(write_run(tmp_path / "a-run", hostile=True))])
    outside = re.sub(r"</?(details|summary)>", "", without_blocks(text))
    assert "<" not in outside
    assert "@everyone" not in outside
    assert not re.search(r"(https?:|www\.|\]\()", outside)
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert text.encode()


@pytest.mark.parametrize(
    "attack",
    [
        "<b>x</b>", "@someone", "#12", "GH-12", "[a](b)", "![a](b)", "`a`", "*a* _a_ ~a~", "a | b", "https://x.example",
        "www.x.example", "a\n# b", "a\n\n- b", "1. a", "- a", "+ a", "= a", "> a", "&lt;", "$x$", "\\", "x@y.example",
    ],
)  # fmt: skip
def test_inert(attack: str) -> None:
    shown = inert(attack)
    assert "\n" not in shown
    assert not re.search(r"[<>\[\]`*_~|!$\\@]", shown)
    assert not re.search(r"^(\d+[.)]|[-+=])(\s|$)", shown)
    assert not re.search(r"https?:|www\.|GH-\d|#\d(?!\d*;)", shown)


def test_plain_words_stay_plain() -> None:
    assert (
        inert("Halve the learning rate (now 0.003): 55% or more.")
        == "Halve the learning rate (now 0.003): 55% or more."
    )
    assert inert("مرحبا 語") == "مرحبا 語"


def test_several_runs_are_one_table(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, rate=rate) for name, rate in (("one", 0.65), ("two", 0.3))]
    text = markdown_report([read_run(folder) for folder in folders])
    assert "| one | better | 65.0% | 56.0% to 74.0% | 2.50 | 90.0% | 1 |" in text
    assert "| two | worse | 30.0% | 21.0% to 39.0% |" in text
    assert "| beta | 0.1 | 0.1 |" in text


def test_a_fence_is_longer_than_any_inside(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rows=5)
    lines = (folder / "eval/generations.jsonl").read_text().replace("Short answer", "``````` Short")
    (folder / "eval/generations.jsonl").write_text(lines)
    assert "````````text\n``````` Short" in markdown_report([read_run(folder)])
