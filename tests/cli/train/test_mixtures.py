"""Mixtures of a recipe whose entries name their own columns, for every kind of data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preftune.cli.flags.arguments import DataArguments
from preftune.cli.train.datasets import open_datasets, open_demonstrations, open_labelled
from preftune.errors import ConfigError, DatasetError

GOOD = [{"question": "2+2?", "said": "4", "ok": True}, {"question": "2+3?", "said": "6", "ok": False}]
PLAIN = [{"prompt": "1+1?", "completion": "2", "label": True, "messages": None}]
PAIRS = [{"ask": "3+3?", "better": "6", "worse": "7"}]
NAMED = {"prompt": "question", "completion": "said", "label": "ok"}


@pytest.fixture
def entries(tmp_path: Path) -> Any:
    """Writes rows and makes an entry of them, as JSON."""

    def entry(name: str, rows: list[dict[str, Any]], columns: Any = None, **more: Any) -> str:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return json.dumps({"path": str(path), "columns": columns, **more})

    return entry


def labelled(*datasets: str, **options: Any) -> list[tuple[Any, Any, bool]]:
    train, _ = open_labelled(DataArguments(datasets=list(datasets), **options), evaluate=False, seed=0)
    return [(one.prompt, one.completion, one.labels[0].desirable) for one in train]


def test_answers_with_labels_under_several_names(entries):
    mixture = [
        entries("good", GOOD, NAMED),
        entries("plain", PLAIN, ["prompt", "completion", "label"]),
        entries("pairs", PAIRS, {"prompt": "ask", "chosen": "better", "rejected": "worse"}),
    ]
    assert labelled(*mixture) == [
        ("2+2?", "4", True), ("2+3?", "6", False), ("1+1?", "2", True), ("3+3?", "6", True), ("3+3?", "7", False),
    ]  # fmt: skip
    shares = [
        entries("good", GOOD * 4, NAMED, proportion=0.5),
        entries("plain", PLAIN * 9, ["prompt", "completion", "label"], proportion=0.5),
    ]
    assert len(labelled(*shares)) == 16


def test_an_entry_overrides_the_columns_of_all(entries):
    mixture = [entries("good", GOOD, {"label": "ok"}), entries("renamed", [{**row, "fine": row["ok"]} for row in GOOD])]
    found = labelled(*mixture, columns=["prompt=question", "completion=said", "label=fine"])
    assert found == [("2+2?", "4", True), ("2+3?", "6", False)] * 2


def test_demonstrations_and_pairs(entries):
    data = DataArguments(datasets=[entries("good", GOOD, {"prompt": "question", "completion": "said"})])
    train, _ = open_demonstrations(data, evaluate=False, seed=0)
    assert [one.completion for one in train] == ["4", "6"]
    names = {"prompt": "ask", "chosen": "better", "rejected": "worse"}
    data = DataArguments(datasets=[entries("pairs", PAIRS, names), entries("more", PAIRS, names)])
    train, _ = open_datasets(data, evaluate=False, seed=0)
    assert [(pair.prompt, pair.chosen) for pair in train] == [("3+3?", "6")] * 2


def test_a_column_that_is_not_there_is_named(entries):
    with pytest.raises(DatasetError, match=r"has no column 'label' \(found: 'question', 'said', 'ok'\)"):
        labelled(entries("good", GOOD, ["question", "label"]))
    with pytest.raises(ConfigError, match=r"columns of .*good.jsonl are \[1\]. Write the columns to read"):
        labelled(entries("good", GOOD, [1]))
