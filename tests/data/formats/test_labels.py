"""Columns of labels, thumbs, ratings and rankings: what they mean is decided by all rows, not by the first ones."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset

from preftune.data import load_demonstrations, load_labelled, load_pairs
from preftune.data.pairs.stream import open_stream, reader_of
from preftune.data.reading.load import load_rows
from preftune.errors import DatasetError


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def as_csv(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "rows.csv"
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def trained(source: Any, **options: Any) -> Counter[str]:
    return Counter(str(example.completion) for example in load_demonstrations(source, **options))


def left(data: Any) -> dict[str, int]:
    return {reason: count.count for reason, count in data.left.items()}


@pytest.mark.parametrize("names", [("desirable", "undesirable"), ("chosen", "rejected"), ("good", "bad")])
def test_a_class_is_read_by_its_name(names: tuple[str, str], tmp_path: Path) -> None:
    """Its number is its place in the alphabet: 1 was the worse class."""
    table = {"prompt": ["p", "p"], "completion": ["GOOD", "BAD"], "label": list(names)}
    rows = Dataset.from_dict(table).class_encode_column("label")
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    for source in (rows, tmp_path / "rows.parquet", rows.select([1, 0])):
        assert {(e.completion, e.labels[0].desirable) for e in load_labelled(source)} == {
            ("GOOD", True),
            ("BAD", False),
        }
        assert trained(source) == {"GOOD": 1}
        assert [(pair.chosen, pair.rejected) for pair in load_pairs(source)] == [("GOOD", "BAD")]


def test_classes_of_streams_and_missing_ones(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"a": [1, 2, 3], "label": ["b", "a", "b"]}).class_encode_column("label")
    assert next(iter(load_rows(rows.to_iterable_dataset()))) == {"a": 1, "label": "b"}
    for name in ("rows-0.parquet", "rows-1.parquet"):
        (tmp_path / "train").mkdir(exist_ok=True)
        rows.to_parquet(str(tmp_path / "train" / f"train-{name}"))
    for source in (rows.to_iterable_dataset(), tmp_path / "train", tmp_path / "train" / "train-rows-0.parquet"):
        first = next(iter(reader_of(source, split="train")()))
        assert dict(first) == {"a": 1, "label": "b"}
    unknown = Dataset.from_dict({"label": [0, -1, None]}, features=rows.select_columns(["label"]).features)
    assert load_rows(unknown)["label"] == ["a", None, None]
    assert isinstance(load_rows(rows, streaming=True), IterableDataset)


def test_labels_of_a_table_with_missing_ones_are_numbers_with_a_point(tmp_path: Path) -> None:
    """So pandas writes them, and all of them were trained."""
    rows = [{"prompt": f"q{i}", "completion": "ok" if i % 2 else "BAD", "label": float(i % 2)} for i in range(5)]
    file = as_csv(tmp_path, [*rows, {"prompt": "q5", "completion": "unknown", "label": ""}])
    assert trained(file) == {"ok": 2}
    assert left(load_demonstrations(file)) == {"bad_answer": 3, "no_label": 1}
    labelled = load_labelled(file)
    assert Counter(e.labels[0].desirable for e in labelled) == {True: 2, False: 3}


def test_a_missing_thumb_is_no_thumb(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "response": str(i % 3), "feedback": ["down", "", "up"][i % 3]} for i in range(9)]
    for source in (rows, as_csv(tmp_path, rows)):
        assert trained(source) == {"2": 3}
        assert left(load_demonstrations(source)) == {"bad_answer": 3, "no_label": 3}


@pytest.mark.parametrize(("words", "other"), [(("down", "up", "neutral"), "neutral"), (("0", "1", "N/A"), "N/A")])
@pytest.mark.parametrize("column", ["label", "feedback"])
def test_labels_mixed_with_other_words_are_a_question(words: tuple[str, ...], other: str, column: str) -> None:
    """They were trained, all of them, without a word."""
    rows = [{"prompt": f"q{i}", "response": words[i % 3], column: words[i % 3]} for i in range(3)] * 50
    rows.sort(key=lambda row: row["response"] == other)  # the other one comes after the first hundred rows
    for load in (load_demonstrations, load_labelled):
        with pytest.raises(DatasetError, match=rf"The column '{column}' of .* mixed with other values \('{other}'\)"):
            load(rows)
    assert trained(rows, columns={"label": None}) == dict.fromkeys(words, 50)
    assert left(load_demonstrations(rows, columns={"label": column})) == {"bad_answer": 50, "no_label": 50}
    assert left(load_labelled(rows, columns={"label": column})) == {"no_label": 50}


@pytest.mark.parametrize("order", [1, -1])
def test_ratings_are_no_labels_in_any_order(order: int) -> None:
    """Sorted, the first hundred were all 1: only the worst answers were trained."""
    rows = [{"prompt": f"q{i}", "response": str(1 + i // 110), "rating": 1 + i // 110} for i in range(550)]
    assert trained(rows[::order]) == {str(rating): 110 for rating in range(1, 6)}
    with pytest.raises(DatasetError, match="no column that says whether an answer is good"):
        load_labelled(rows[::order])


@pytest.mark.parametrize("typed", [False, True], ids=["json", "struct"])
def test_thumbs_that_only_later_turns_have(typed: bool) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": [user(f"q{i}"), assistant("BAD", feedback="down") if i >= 100 else assistant("ok")]}
        for i in range(140)
    ]
    source = Dataset.from_list(rows) if typed else rows
    with pytest.raises(DatasetError, match="holds thumbs inside its turns"):
        load_demonstrations(source)
    assert len(load_demonstrations(rows[:100])) == 100


@pytest.mark.parametrize("ranking", [["response_2", "response_1"], ["B", "A"], ["2", "1"]])
def test_a_ranking_of_names_is_refused(ranking: list[str]) -> None:
    """The names became the answers."""
    columns = {"response_1": "first one", "response_2": "second one", "A": "x", "B": "y", "1": "x", "2": "y"}
    for row in ({"responses": ["first answer", "second answer"]}, {name: columns[name] for name in ranking}):
        with pytest.raises(DatasetError, match="The column 'ranking' names answers"):
            load_pairs([{"prompt": "p", "ranking": ranking, **row}])
    (pair,) = load_pairs([{"prompt": "p", "ranking": ["good one", "bad one"], "responses": ["bad one", "good one"]}])
    assert (pair.chosen, pair.rejected) == ("good one", "bad one")


def test_a_column_whose_first_rows_are_blank_is_named(tmp_path: Path) -> None:
    rows = [
        {"prompt": [user(f"q{i}")], "chosen": [assistant("c")], "rejected": [assistant("r")], "system_prompt": ""}
        for i in range(200)
    ]
    rows[150]["system_prompt"] = "You are a pirate."
    (note,) = [note for note in load_pairs(rows).notes if "Not used" in note]
    assert "'system_prompt'" in note
    assert "--columns system=system_prompt reads the system prompt" in note
    pair = load_pairs(rows, columns={"system": "system_prompt"})[150]
    assert pair.prompt[0] == {"role": "system", "content": "You are a pirate."}


def test_answers_after_different_histories_are_no_pair() -> None:
    asked = {"instruction": "again", "input": ""}
    rows = [
        {**asked, "output": "GOOD", "history": [["count", "one"]], "kto_tag": True},
        {**asked, "output": "BAD", "history": [["sing", "la"]], "kto_tag": False},
    ]
    with pytest.raises(DatasetError, match="no other answer to the same prompt"):
        load_pairs(rows)
    (pair,) = load_pairs([*rows, {**rows[0], "output": "WORSE", "kto_tag": False}])
    before = [user("count"), assistant("one"), user("again")]
    assert (pair.prompt, pair.chosen, pair.rejected) == (before, [assistant("GOOD")], [assistant("WORSE")])
    assert pair.prompt == next(iter(load_labelled(rows))).prompt
    (ranked,) = load_pairs([{**asked, "output": ["better", "worse"], "history": [["count", "one"]]}])
    assert (ranked.prompt, ranked.chosen) == (before, [assistant("better")])
    assert not any("history" in note for note in (*pair_notes(rows), *load_labelled(rows).notes))


def pair_notes(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(load_pairs([*rows, {**rows[0], "output": "WORSE", "kto_tag": False}]).notes)


def test_ratings_that_contradict_the_preference_are_counted() -> None:
    rows = [
        {"prompt": f"q{i}", "chosen": "c", "rejected": "r", "score_chosen": 3.0, "score_rejected": 5.0 if i else 1.0}
        for i in range(3)
    ]
    (note,) = [note for note in open_stream(rows, margin_from_scores=0.5).notes if "higher rating" in note]
    data = load_pairs(rows, margin_from_scores=0.5)
    assert note in data.notes
    assert [pair.margin for pair in data] == [1.0, 0.0, 0.0]
    assert any("In 2 of the first 3 rows the rejected answer has the higher rating" in note for note in data.notes)
