"""docs/evaluation.md: its commands run, and it explains every figure, alarm and suite that there is."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from preftune.cli.main import main
from preftune.evaluation.suites import SUITES
from preftune.evaluation.two_models.advice import _FAILING, next_steps
from preftune.evaluation.two_models.degeneration import KINDS
from preftune.statistics.intervals import BAR, WinRate, power, prompts_for, verdict
from preftune.statistics.verdict_rules import FACTS_MARGIN, FORGETTING_BUDGET, RATE_MARGIN
from preftune.training.guard.rules import RULES
from tests.generation.chat_server import serving, shorter_wins
from tiny import chat_rows, save_tiny

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
RULE = """
def no_copy(prompt, answer_a, answer_b, row):
    return "tie" if len(answer_a) == len(answer_b) else "a" if len(answer_a) > len(answer_b) else "b"
"""


def commands() -> list[str]:
    return [re.sub(r"\s{2,}.*", "", line) for line in re.findall(r"^    (preftune .*)$", PAGE, re.M)]


def first_cells(heading: str) -> list[str]:
    """The names in the first column of the table under a heading."""
    (section,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    return re.findall(r"^\| `([\w-]+)` \|", section, re.M)


def test_the_commands_run_one_after_the_other(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for name, rows in (("train", chat_rows(8)), ("held_out", chat_rows(4, start=8)), ("human", chat_rows(6))):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    Path("my_rules.py").write_text(RULE, encoding="utf-8")
    model = save_tiny(tmp_path / "model", hidden_size=64)
    said = [shlex.split(line)[1] for line in commands()]
    assert said == ["dpo", "eval", "eval", "judge-check", "report", "dpo", *["judge-check"] * 3]
    with serving(shorter_wins) as server:
        for line in commands():
            words = line.replace("openai:JUDGE@BASE_URL", server.spec()).replace(" MODEL ", f" {model} ")
            more = ["--max_new_tokens", "4"] if " eval " in words else []
            more = ["--eval_max_new_tokens", "4"] if " --eval_judge " in words else more
            assert main([*shlex.split(words)[1:], *more]) == 0, (line, capsys.readouterr().err)
    assert json.loads(Path("runs/dpo/eval/summary.json").read_text(encoding="utf-8"))["n"] == 4
    assert json.loads(Path("runs/dpo/eval/held-out/summary.json").read_text(encoding="utf-8"))["suite"] == "held-out"
    assert json.loads(Path("runs/judged/run.json").read_text(encoding="utf-8"))["eval_judge"]["prompts"] == {"eval": 4}
    assert json.loads(Path("judge.json").read_text(encoding="utf-8"))["n"] == 6
    assert Path("runs/dpo/report.html").is_file()


def test_every_alarm_and_every_suite_is_there() -> None:
    assert first_cells("The guard's alarms") == list(RULES)
    assert first_cells("Suites") == list(SUITES)


@pytest.mark.parametrize("name", [kind.name for kind in KINDS])
def test_every_figure_of_the_answers_is_there(name: str) -> None:
    assert f"`{name}`" in PAGE


def test_every_figure_has_two_sentences_and_what_to_do() -> None:
    figures = re.findall(r"^\*\*([^*]+)\*\* \((.*?)\)\. (.*?)(?=\n\n)", PAGE, re.M | re.S)
    assert len(figures) > 20
    for name, _, text in figures:
        says, do, advice = " ".join(text.split()).partition("*To do:*")
        assert do, name
        assert advice.strip(), name
        assert len(re.findall(r"[.;](?=\s|$)", says)) >= 1, name


def test_the_verdicts_are_those_of_the_code() -> None:
    def named(rate: float, low: float, high: float) -> str:
        return verdict(WinRate(rate, low, high, 100, 0, 0, 0, 100, 0.5)).name

    names = {named(0.6, 0.52, 0.7), named(0.53, 0.51, 0.55), named(0.4, 0.3, 0.45), named(0.5, 0.4, 0.6)}
    said = set(re.findall(r"^\| \*\*(.+?)\*\* \|", PAGE, re.M))
    assert said == names | {"shorter / longer, not better", "preferred, but ...", "cheat"}
    failing = {
        "shorter, not better",
        "longer, not better",
        *(name for name in _FAILING if name.startswith("preferred")),
    }
    assert all(f"**{name}**" in PAGE for name in failing)
    assert f"at most {100 * FACTS_MARGIN:g} points" in PAGE
    assert f"at most {FORGETTING_BUDGET:g} points" in PAGE
    assert f"at most {RATE_MARGIN:.0%} of the answers" in PAGE
    assert f"in {power(0.55, 64):.0%} of evaluations; {prompts_for(0.55)} prompts" in PAGE
    assert f"{BAR:.0%} or more" in PAGE


def test_the_page_and_the_advice_agree() -> None:
    """The same numbers, and beta the same way round."""
    worse = WinRate(0.4, 0.3, 0.45, 100, 0, 0, 0, 100, 0.5)
    small = WinRate(0.53, 0.51, 0.55, 900, 0, 0, 0, 900, 0.5)
    advice = " ".join(next_steps(worse, worse=["repeats"]) + next_steps(small))
    for words in ("0.2 to 0.5", "one epoch", "5e-7 to 5e-6", "down to 0.05"):
        assert words in advice
        assert words in " ".join(PAGE.split())
    assert "A **higher** beta keeps the model **closer**" in PAGE
    assert "keeps the model closer" in advice


def test_every_way_to_look_better_names_tests_that_exist() -> None:
    (table,) = re.findall(r"^### Fifteen ways .*?\n(.*?)(?=^##)", PAGE, re.M | re.S)
    rows = re.findall(r"^\| (?!way |---)(.+?) \| (.+) \| (.+) \|$", table, re.M)
    assert len({way for way, _, _ in rows}) == len(rows) == 15
    for way, _, tests in rows:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", tests)
        assert named, way
        assert tests == ", ".join(f"`{file}::{test}`" for file, test in named), way
