"""Two columns with names of labels: all rows are read from the one by which the format was recognised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from preftune.data import load_pairs
from preftune.data.pairs.stream import stream_of
from preftune.errors import DatasetError
from preftune.judges.people.labels import load_labels


def sides(rows: list[dict[str, Any]], **options: Any) -> set[tuple[str, str]]:
    return {(str(pair.chosen), str(pair.rejected)) for pair in load_pairs(rows, **options)}


def two_outputs(count: int = 10, **labels: Any) -> list[dict[str, Any]]:
    """The second output is the better one."""
    return [
        {"prompt": f"p{at}", "response_a": "BAD", "response_b": "GOOD"}
        | {name: value(at) if callable(value) else value for name, value in labels.items()}
        for at in range(count)
    ]


@pytest.mark.parametrize("label", [lambda at: 1 + at % 5, "math"])
def test_a_label_of_something_else_decides_nothing(label: Any) -> None:
    rows = two_outputs(label=label, preference="b")
    found = load_pairs(rows)
    assert [(pair.chosen, pair.rejected) for pair in found] == [("GOOD", "BAD")] * 10
    streamed = stream_of(lambda: rows, rows, name="rows", columns=None, format=None, margin_from_scores=None)
    assert [(pair.chosen, pair.rejected) for pair in streamed] == [("GOOD", "BAD")] * 10


def test_votes_are_no_thumbs_where_another_column_has_them() -> None:
    """Counts of 1 were read as thumbs up."""
    rows = [
        {"prompt": f"p{at}", "response": answer, "vote": votes, "rating": rating}
        for at in range(6)
        for answer, votes, rating in (("GOOD", at, 1), ("BAD", 1, -1))
    ]
    assert sides(rows) == {("GOOD", "BAD")}
    assert len(load_pairs(rows)) == 6


def test_answers_in_no_order_are_not_read_as_ranked() -> None:
    rows = [{"prompt": "p", "ranked_responses": ["GOOD", "BAD"], "responses": ["BAD", "GOOD"]}] * 3
    rows += [{"prompt": "p", "ranked_responses": None, "responses": ["BAD", "GOOD"]}] * 3
    found = load_pairs(rows)
    assert [(pair.chosen, pair.rejected) for pair in found] == [("GOOD", "BAD")] * 3
    assert {reason: count.count for reason, count in found.left.items()} == {"one_completion": 3}


@pytest.mark.parametrize("others", [["tie"], [""], ["", "tie", None], ["both"]])
def test_a_tie_or_a_blank_does_not_say_what_0_means(others: list[Any]) -> None:
    labels = ["1"] * 120 + others + ["0"] * 20
    rows = two_outputs(len(labels), winner=lambda at: labels[at])
    with pytest.raises(DatasetError, match="only 0 and 1"):
        load_pairs(rows)
    assert sides(rows, format="labelled-outputs") == {("BAD", "GOOD")}


def test_judgements_of_people_are_checked_like_pairs(tmp_path: Path) -> None:
    labels = ["1"] * 120 + ["0"] * 20
    file = tmp_path / "rows.jsonl"
    Dataset.from_list(two_outputs(140, winner=lambda at: labels[at])).to_json(file)
    with pytest.raises(DatasetError, match="only 0 and 1"):
        load_labels(file)


def test_winners_of_an_arena_are_checked_too() -> None:
    turns = [{"role": "user", "content": "q"}]
    rows = [
        {
            "conversation_a": [*turns, {"role": "assistant", "content": "A"}],
            "conversation_b": [*turns, {"role": "assistant", "content": "B"}],
            "winner": winner,
        }
        for winner in ("0", "1", "tie")
    ]
    with pytest.raises(DatasetError, match="--format arena"):
        load_pairs(rows)
    assert len(load_pairs(rows, format="arena")) == 1
