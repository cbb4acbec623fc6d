"""The verdict in summary.json and in the model card, with general abilities that were measured before or after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preftune.evaluation.two_models.run import evaluate_pairwise
from preftune.evaluation.two_models.verdict_record import HISTORY, abilities_of, decide_again
from preftune.statistics.verdict_rules import decide
from preftune.storage.jsonl import read_lines, write_json
from tests.evaluation.suites.scripted import Said

SETTINGS = {"base": {"fingerprint": "b"}, "aligned": {"fingerprint": "a"}}
CARD = "---\nlibrary_name: peft\ntags:\n- preftune\n- dpo\n---\n\n# demo\n\nText of the card.\n"
WORDS = "alder birch cedar maple rowan willow".split()


def evaluate(run: Path, **facts: Any) -> Any:
    """The aligned model wins all 24 prompts with answers of the same lengths, now longer, now shorter."""

    def generate(side: str, prompts: list[str], rows: list[Any]) -> list[Said]:
        size = {"base": 3, "aligned": 5}
        return [
            Said(f"{side[0]} {prompt} " + " ".join(WORDS[: size[side] - 4 * (n % 2) * (side == "aligned")]), 5)
            for n, prompt in enumerate(prompts)
        ]

    def judge(prompt: str, answer_a: str, answer_b: str, row: Any) -> str:
        return "a" if answer_a.startswith("a") else "b"

    rows = [{"id": str(n), "prompt": f"Question {n}?"} for n in range(24)]
    return evaluate_pairwise(rows, generate=generate, judge=judge, output_dir=run / "eval", settings=SETTINGS, **facts)


def general(folder: Path, difference: float, settings: Any = SETTINGS) -> None:
    compared = {"name": "accuracy, arc", "base": 0.5, "unit": "share", "better": "higher", "difference": difference}
    (folder / "general").mkdir(parents=True, exist_ok=True)
    write_json(folder / "general" / "summary.json", {"settings": settings, "comparisons": [compared]})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text(CARD, encoding="utf-8")
    return tmp_path


def test_the_card_says_what_the_summary_says(run: Path) -> None:
    summary = evaluate(run)
    assert summary.verdict.name == "better"
    card = (run / "README.md").read_text(encoding="utf-8")
    assert card.startswith(CARD.rstrip())
    assert "**better.** The aligned model wins 100.0% of 24 comparisons" in card
    assert "- general abilities: not measured." in card
    evaluate(run)
    assert (run / "README.md").read_text(encoding="utf-8") == card  # replaced, not added
    (run / "README.md").write_text("# A page of somebody else\n", encoding="utf-8")
    evaluate(run)
    assert (run / "README.md").read_text(encoding="utf-8") == "# A page of somebody else\n"


def test_abilities_measured_before(run: Path) -> None:
    general(run / "eval", -0.04)
    found = abilities_of(run / "eval", SETTINGS, None)
    assert evaluate(run, abilities=found).verdict.name == "preferred, but forgetful"
    assert evaluate(run, abilities=abilities_of(run / "eval", SETTINGS, 5.0)).verdict.name == "better"
    general(run / "eval", -0.04, settings={**SETTINGS, "aligned": {"fingerprint": "other"}})
    assert abilities_of(run / "eval", SETTINGS, 5.0) == {"budget": 5.0}


def test_abilities_measured_after(run: Path) -> None:
    evaluate(run)
    general(run / "eval", -0.04)
    before = json.loads((run / "eval" / "summary.json").read_text(encoding="utf-8"))
    assert not any("halve the learning rate" in step for step in before["next_steps"])
    decision = decide_again(run / "eval", SETTINGS, None)
    assert decision is not None
    assert decision.name == "preferred, but forgetful"
    figures = json.loads((run / "eval" / "summary.json").read_text(encoding="utf-8"))
    assert figures["verdict"] == decision.name
    assert decide(figures) == decision
    assert figures["next_steps"][0].startswith("Train less: halve the learning rate")
    history = read_lines(run / "eval" / HISTORY)
    assert [line["verdict"] for line in history] == ["better", "preferred, but forgetful"]
    assert {**history[0], "time": 0, "verdict": ""} == {**history[1], "time": 0, "verdict": ""}
    decide_again(run / "eval", SETTINGS, None)
    assert len(read_lines(run / "eval" / HISTORY)) == 2
    assert "**preferred, but forgetful.**" in (run / "README.md").read_text(encoding="utf-8")
    assert decide_again(run / "eval", {**SETTINGS, "base": {"fingerprint": "x"}}, None) is None
    assert decide_again(run / "elsewhere", SETTINGS, None) is None


def test_the_steps_after_abilities_are_those_of_a_comparison_that_knew_them(run: Path) -> None:
    training = {"method": "dpo", "learning_rate": 1e-5, "beta": 0.1, "epochs": 3.0}
    general(run / "eval", -0.04)
    known = evaluate(run, abilities=abilities_of(run / "eval", SETTINGS, None), training=training).next_steps()
    evaluate(run, training=training)
    decide_again(run / "eval", SETTINGS, None, **training)
    assert json.loads((run / "eval" / "summary.json").read_text(encoding="utf-8"))["next_steps"] == known


def test_other_lengths_of_answers_are_no_other_models(run: Path) -> None:
    """`--max_new_tokens` of the comparison is no setting of the suite."""

    def settings(length: int, **more: Any) -> dict[str, Any]:
        return {
            side: {"identity": side, "generation": {"max_new_tokens": length}, **more} for side in ("base", "aligned")
        }

    evaluate(run)
    figures = json.loads((run / "eval" / "summary.json").read_text(encoding="utf-8"))
    write_json(run / "eval" / "summary.json", {**figures, "settings": settings(96)})
    assert decide_again(run / "eval", settings(256, backend="vllm"), None) is not None
    assert decide_again(run / "eval", settings(96, identity="x"), None) is None


def test_an_earlier_budget_is_kept(run: Path) -> None:
    evaluate(run, abilities=abilities_of(run / "eval", SETTINGS, 5.0))
    assert abilities_of(run / "eval", SETTINGS, None) == {"budget": 5.0}
    assert abilities_of(run / "eval", SETTINGS, 1.0) == {"budget": 1.0}
    assert abilities_of(run / "eval", {**SETTINGS, "base": {"fingerprint": "x"}}, None) == {}
    general(run / "eval", -0.04)
    decision = decide_again(run / "eval", SETTINGS, None)
    assert decision is not None
    assert decision.name == "better"
