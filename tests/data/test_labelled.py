"""Answers with labels, from rows of one answer and from pairs, to groups."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preftune.data import load_demonstrations, load_labelled, load_pairs, mix_labelled, tokenize_labelled
from preftune.errors import DatasetError
from preftune.types import Label
from tiny import chat_rows, rows, tiny_tokenizer

KTO = [
    {"prompt": "2+2?", "completion": "4", "label": True, "weight": 2.0},
    {"prompt": "2+3?", "completion": "7", "label": False, "weight": 1.0},
]
TURNS = [
    {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}], "kto_tag": True},
    {"messages": [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "7"}], "kto_tag": False},
]


def read(data: Any, **options: Any) -> list[tuple[Any, Any, Label]]:
    return [(one.prompt, one.completion, one.labels[0]) for one in load_labelled(data, **options)]


def test_rows_with_a_label():
    assert read(KTO) == [("2+2?", "4", Label(True, 2.0)), ("2+3?", "7", Label(False, 1.0))]
    renamed = [{"question": row["prompt"], "said": row["completion"], "ok": int(bool(row["label"]))} for row in KTO]
    columns = {"prompt": "question", "completion": "said", "label": "ok"}
    assert [label.desirable for *_, label in read(renamed, columns=columns)] == [True, False]


def test_conversations_end_with_the_answer():
    (prompt, completion, label), _ = read(TURNS)
    assert prompt == [{"role": "user", "content": "2+2?"}]
    assert (completion, label) == ([{"role": "assistant", "content": "4"}], Label(True))


def test_pairs_are_a_good_and_a_bad_answer_each():
    pairs = load_pairs([{**row, "weight": 0.5} for row in chat_rows(3)])
    found = load_labelled(pairs)
    assert len(found) == 6
    assert [one.labels[0] for one in found] == [Label(True, 0.5), Label(False, 0.5)] * 3
    assert [one.completion for one in found][:2] == [pairs[0].chosen, pairs[0].rejected]
    assert [one.row for one in found] == [0, 0, 1, 1, 2, 2]
    assert any("each pair (3 in all) counts as a good and a bad answer" in note for note in found.notes)


def test_paired_and_unpaired_data_mix():
    mixture = mix_labelled([load_labelled(KTO), load_labelled(rows(4))], [None, None])
    assert len(mixture) == 10
    assert [one.labels[0].desirable for one in mixture][:4] == [True, False, True, False]


def test_a_list_of_names_is_a_mixture(tmp_path: Path):
    files = {name: tmp_path / f"{name}.jsonl" for name in ("labels", "pairs")}
    for file, data in zip(files.values(), (KTO, rows(2)), strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in data), encoding="utf-8")
    expected = [*read(KTO), *read(rows(2))]
    assert read([str(file) for file in files.values()]) == expected
    assert len(load_labelled([(str(files["labels"]), 0.5), (str(files["pairs"]), 0.5)])) == 4


def test_rated_answers_that_give_no_pair_are_counted_in_the_notes():
    rated = [{"prompt": f"{i}?", "completions": ["yes", "no"], "scores": [5, 5 if i == 2 else 1]} for i in range(4)]
    data = load_labelled(rated)
    both = mix_labelled([data, load_labelled([*KTO, {"prompt": "?", "completion": "x", "label": None}])], [None, None])
    for answers, lines in ((data, 1), (both, 2)):
        _, report = tokenize_labelled(answers, tiny_tokenizer(chat=False))
        assert sum("(rows 2): two answers have the same rating" in line for line in report.lines()) == 1
        assert len([line for line in report.lines() if "left out" in line or "Dropped" in line]) == lines


def test_what_has_no_label_is_refused_or_counted():
    with pytest.raises(DatasetError, match="no column that says whether an answer is good"):
        load_labelled([{"prompt": "a", "completion": "b"}] * 2)
    data = load_labelled([*KTO, {"prompt": "?", "completion": "x", "label": None, "weight": 1.0}])
    assert data.left["no_label"].rows == [2]
    groups, report = tokenize_labelled(data, tiny_tokenizer(chat=False))
    assert (report.rows_in, report.rows_out) == (3, 2)
    assert "neither good nor bad" in " ".join(report.lines())
    assert groups.labels == (1, 1)


def test_groups_keep_labels_and_weights():
    groups, _ = tokenize_labelled(load_labelled(KTO), tiny_tokenizer(chat=False))
    first = groups[0]
    assert (first.labels, first.pairs, len(first.completions)) == ((Label(True, 2.0),), (), 1)
    assert (first["label"], first["completion_ids"]) == (True, list(first.completions[0]))
    assert first.keys() == ("prompt_ids", "completion_ids", "label")
    swapped = [{**row, "label": not row["label"]} for row in KTO]
    other, _ = tokenize_labelled(load_labelled(swapped), tiny_tokenizer(chat=False))
    assert groups.fingerprint != other.fingerprint
    assert groups.select([1])[0].labels == (Label(False, 1.0),)


def test_texts_become_turns():
    data = load_labelled(KTO).as_chat()
    assert data[0].prompt == [{"role": "user", "content": "2+2?"}]
    assert data[0].completion == [{"role": "assistant", "content": "4"}]


@pytest.mark.parametrize("row", [{"prompt": "2+2?"}, {"question": "2+2?"}, {"prompt": "2+2?", "label": True}])
def test_prompts_alone_need_answers(row):
    says = "holds prompts without answers .*--columns completion=YOURS label=YOURS, or .*preftune sample, then preftune"
    with pytest.raises(DatasetError, match=says):
        load_labelled([row, row])
    with pytest.raises(DatasetError, match=r"holds prompts without answers .*completion=YOURS, or .*preftune sample"):
        load_demonstrations([row, row])


def test_other_columns_are_asked_for_by_the_names_of_labelled_answers():
    with pytest.raises(DatasetError, match=r"no answers with labels .*prompt=YOURS completion=YOURS label=YOURS"):
        load_labelled([{"text_a": "x", "text_b": "y"}])
