"""benchmarks/export_cost.py: the table of docs/deploy.md is what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import export_cost

PAGE = Path(__file__).parent.parent.parent / "docs" / "deploy.md"


def test_the_table_of_the_page_is_the_result() -> None:
    forms = json.loads(export_cost.RESULT.read_text(encoding="utf-8"))["forms"]
    assert set(forms) == {*export_cost.FORMS, export_cost.NEAREST, export_cost.SERVED}
    ours = {name: one["verdict"] for name, one in forms.items() if name != export_cost.NEAREST}
    faulty = [name for name, verdict in ours.items() if not verdict.startswith("What is served ")]
    assert faulty in ([], ["`ollama:q4_k_m`, its file in llama.cpp"])  # too coarse for a small update, as the page says
    assert export_cost.table(forms) in PAGE.read_text(encoding="utf-8")


def test_a_row_shows_what_was_measured() -> None:
    one = {"moved": 0.2, "margin": 5.0, "off": 0.1, "served_margin": 4.0, "agreement": 0.75, "pairs": 4, "prompts": 4}
    answers = {"same_answers": 0.5, "identical": 0.25}
    rows = export_cost.table({"b": one | answers, "a": one | answers | {"off": 0.0}, "c": one | answers | {"pairs": 0}})
    assert rows.splitlines()[3:] == [
        "| a | 0.0000 | 4.00 | 1 of 4 | 2 of 4, 1 letter by letter |",
        "| b | 0.1000 | 4.00 | 1 of 4 | 2 of 4, 1 letter by letter |",
        "| c | not shown | | | 2 of 4, 1 letter by letter |",
    ]
