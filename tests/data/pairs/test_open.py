"""Datasets as lazy sequences of pairs."""

from __future__ import annotations

import pickle
import re
from typing import Any

import datasets
import numpy as np
import pytest

import preftune
from preftune.data import load_pairs, read_pairs
from preftune.errors import DatasetError

ROWS: list[dict[str, Any]] = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b", "extra": i} for i in range(10)]


def test_a_sequence() -> None:
    pairs = preftune.load_pairs(ROWS)
    assert len(pairs) == 10
    assert pairs[3].prompt == "q3"
    assert pairs[-1].prompt == pairs[np.int64(9)].prompt == "q9"
    assert [pair.row for pair in pairs] == list(range(10))
    assert [pair.prompt for pair in pairs[2:8:3]] == ["q2", "q5"]
    assert pairs.rows.column_names == ["prompt", "chosen", "rejected", "extra"]
    assert [len(batch) for batch in pairs.batches(4)] == [4, 4, 2]
    with pytest.raises(IndexError):
        pairs[10]


def test_a_selection_keeps_the_numbers_of_its_rows() -> None:
    pairs = load_pairs(ROWS).select([7, 3]).select([1, 0])
    assert [(pair.row, pair.prompt) for pair in pairs] == [(3, "q3"), (7, "q7")]
    assert pairs[1].row == 7
    assert list(pickle.loads(pickle.dumps(pairs))) == list(pairs)


def test_a_dataset_with_another_output_format() -> None:
    rows = datasets.Dataset.from_list([{**row, "weight": 2.0} for row in ROWS]).with_format("numpy")
    assert load_pairs(rows)[0] == load_pairs(rows.with_format(None))[0]


def test_rows_of_different_shapes_in_one_file() -> None:
    chat = [{"role": "assistant", "content": "a"}]
    pairs = load_pairs([*ROWS[:2], {"prompt": "q", "chosen": chat, "rejected": [{**chat[0], "content": "b"}]}])
    assert pairs[0].chosen == "a"
    assert pairs[2].chosen == chat
    assert pairs[2].prompt == [{"role": "user", "content": "q"}]


def test_messages_with_differing_keys() -> None:
    rows = [
        {"prompt": "q", "chosen": [{"role": "assistant", "content": "a", "thinking": "t"}], "rejected": "b"},
        {"prompt": "q", "chosen": [{"role": "assistant", "content": "a", "name": {"x": 1}}], "rejected": "b"},
    ]
    pairs = load_pairs(rows)
    assert [pair.chosen for pair in pairs] == [row["chosen"] for row in rows]


def test_hh_transcripts_straight_from_a_dataset() -> None:
    head = "\n\nHuman: Why does bread rise?\n\nAssistant: What do you think?\n\nHuman: Heat?\n\nAssistant: "
    rows = datasets.Dataset.from_dict({"chosen": [head + "Yeast."] * 3, "rejected": [head + "I do not know."] * 3})
    pairs = load_pairs(rows)
    assert [turn["role"] for turn in pairs[0].prompt] == ["user", "assistant", "user"]
    assert pairs[0].chosen == [{"role": "assistant", "content": "Yeast."}]
    assert "There is no column 'prompt'" in pairs.notes[0]
    assert "Explicit prompts are recommended: preftune convert writes them out." in pairs.notes[0]


def test_implicit_text_is_reported() -> None:
    pairs = load_pairs([{"chosen": "yes it is", "rejected": "yes it was"}, {"chosen": "a", "rejected": "b"}])
    assert pairs[0].prompt == "yes it"
    assert "the words with which both chosen and rejected begin" in pairs.notes[0]
    assert "1 of the first 2 rows have no common beginning" in pairs.notes[0]
    assert "Explicit prompts are recommended" in pairs.notes[0]
    assert not any(
        "recommended" in note for note in load_pairs([{"prompt": "a", "chosen": "b", "rejected": "c"}]).notes
    )


def test_a_prompt_repeated_in_the_answers_is_reported() -> None:
    pairs = load_pairs([{"prompt": "Q:", "chosen": "Q: a", "rejected": "Q: b"}])
    assert "In 1 of the first 1 row chosen and rejected both begin with the text of the prompt" in pairs.notes[0]


def test_a_system_column_makes_conversations_of_every_row() -> None:
    rows = [{**ROWS[0], "system": "S"}, {**ROWS[1], "system": ""}]
    pairs = load_pairs(rows)
    assert pairs.notes[0].startswith("The column 'system' is read as each conversation's system prompt")
    assert [turn["role"] for turn in pairs[0].prompt] == ["system", "user"]
    assert pairs[1].prompt == [{"role": "user", "content": "q1"}]


def test_text_without_a_prompt_among_rows_with_one() -> None:
    with pytest.raises(DatasetError, match="row 1, column 'prompt': missing or null"):
        load_pairs([ROWS[0], {"chosen": "yes it is", "rejected": "yes it was"}])
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    pairs = load_pairs([ROWS[0], {"chosen": turns, "rejected": [turns[0], {**turns[1], "content": "b"}]}])
    assert pairs[1].prompt == turns[:1]


def test_text_as_conversations() -> None:
    pairs = load_pairs(ROWS).select([4]).as_chat()
    assert pairs[0].prompt == [{"role": "user", "content": "q4"}]
    assert pairs[0].chosen == [{"role": "assistant", "content": "a"}]
    assert pairs[0].row == 4


def test_reading_pairs_twice() -> None:
    pairs = load_pairs(ROWS)
    assert read_pairs(pairs) is pairs
    with pytest.raises(DatasetError, match="already open"):
        read_pairs(pairs, columns={"chosen": "rejected"})


def test_later_rows_are_checked_on_demand() -> None:
    rows = ROWS * 101 + [{**ROWS[0], "weight": -1.0}]
    pairs = read_pairs(rows, name="pairs.jsonl")
    with pytest.raises(DatasetError, match=r"pairs\.jsonl row 1010, column 'weight'"):
        list(pairs)
    with pytest.raises(DatasetError, match="row 0, column 'weight'"):
        read_pairs(rows[-1:])


def test_an_empty_dataset() -> None:
    with pytest.raises(DatasetError, match="has no rows"):
        load_pairs(datasets.Dataset.from_dict({"prompt": [], "chosen": [], "rejected": []}))


def test_columns_of_pictures_are_named_as_unread() -> None:
    row = {"prompt": "What is it?", "chosen": "A cat.", "rejected": "A dog."}
    for column in ("image", "images"):
        (note,) = load_pairs([{**row, column: ["x.png"]}]).notes
        assert note.startswith(f"Not used: {column!r}. preftune trains on text only")
    assert load_pairs([{**row, "images": []}]).notes == ()


def test_shapes_that_are_nearly_pairs_are_reported_for_what_they_are() -> None:
    def turns(question: str, answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    by_columns = {name: {"0": f"{name} a", "1": f"{name} b"} for name in ("prompt", "chosen", "rejected")}
    told = {
        "this row holds a whole table, written column by column ('0', '1')": [by_columns],
        "chosen and rejected begin with different turns": [{"chosen": turns("a?", "x"), "rejected": turns("b?", "y")}],
        "single answers with a score": [{"prompt": "a?", "response": "x", "score": 1}],
        "may hold the rank of each answer or the order": [
            {"prompt": "a?", "responses": ["x", "y", "z"], "ranking": [2, 3, 1]}
        ],
    }
    for words, rows in told.items():
        with pytest.raises(DatasetError, match=re.escape(words)):
            list(load_pairs(rows))


def test_a_part_without_notes_gets_none_with_its_gold_answers() -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "reference": "d", "comment": "a remark that is long enough"}
    pairs = load_pairs([row] * 4)
    (noted,) = [note for note in pairs.notes if "comment" in note]
    whole, half = pairs.with_gold(), pairs[2:]
    half.notes = ()
    assert [note for note in whole.notes if "comment" in note] == [noted.replace(", 'reference'", "")]
    assert half.with_gold().notes == ()
