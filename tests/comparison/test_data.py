"""The three parts share no prompt, whatever the data look like."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preftune.comparison.data import Parts, split, write_parts
from preftune.data import as_lists, load_pairs, tokenize_pairs
from preftune.errors import DatasetError
from preftune.generation.prompts import load_prompts, prompt_key
from tests.cli.command import write_rows
from tiny import chat_rows, rows, tiny_tokenizer


def parts_of(path: str, **options) -> Parts:
    asked = {"tune": None, "test": None, "separate": None, "seed": 0, **options}
    return split(load_pairs(path), load_prompts(path, keep_if_there=("topic", "key_fact")), **asked)


@pytest.fixture
def file(tmp_path) -> str:
    made = [{**row, "topic": f"t{number % 3}", "key_fact": row["chosen"]} for number, row in enumerate(rows(40))]
    return write_rows(tmp_path / "pairs.jsonl", [*made, *made[:10]])  # ten prompts have two pairs


def test_no_prompt_is_in_two_parts_and_every_pair_is_somewhere(file):
    parts = parts_of(file)
    trained = {pair.prompt for pair in parts.train}
    tune, test = ({row["prompt"] for row in part} for part in (parts.tune, parts.test))
    assert not trained & tune
    assert not trained & test
    assert not tune & test
    assert len(trained | tune | test) == 40
    assert (len(tune), len(test)) == (4, 8)
    assert len(parts.train) + len(parts.held_out) == 50
    assert {pair.prompt for pair in parts.held_out} == tune | test


def test_the_draw_follows_from_the_seed_alone(file):
    one, again, other = parts_of(file), parts_of(file), parts_of(file, seed=1)
    assert [row["id"] for row in one.test] == [row["id"] for row in again.test]
    assert {row["id"] for row in one.test} != {row["id"] for row in other.test}


def test_prompts_of_their_own_source_are_judged_and_not_trained_on(file, tmp_path):
    own = load_prompts(write_rows(tmp_path / "test.jsonl", [{"prompt": "new?"}, {"prompt": rows(1)[0]["prompt"]}]))
    parts = parts_of(file, separate=own)
    assert [row["prompt"] for row in parts.test] == ["new?", rows(1)[0]["prompt"]]
    assert rows(1)[0]["prompt"] not in {pair.prompt for pair in parts.train}


def test_test_prompts_of_another_shape_are_refused_and_as_chat_fixes_it(tmp_path):
    """As text, the same question would have another key, and be trained on and judged."""
    pairs = write_rows(tmp_path / "pairs.jsonl", chat_rows(30))
    asked = chat_rows(1)[0]["prompt"][-1]["content"]
    plain = write_rows(tmp_path / "test.jsonl", [{"prompt": asked}, {"prompt": "new?"}])
    with pytest.raises(DatasetError, match=r"plain text, and .* of chat messages: .* Give --as_chat"):
        parts_of(pairs, separate=load_prompts(plain))
    parts = split(
        load_pairs(pairs).as_chat(),
        load_prompts(pairs, as_chat=True),
        tune=None,
        test=None,
        separate=load_prompts(plain, as_chat=True),
        seed=0,
    )
    assert asked not in {pair.prompt[-1]["content"] for pair in parts.train}
    assert len(parts.train) == 26


def test_rows_carry_what_a_judge_reads(file):
    row = parts_of(file).test[0]
    assert row["key_fact"]
    assert row["category"] == row["topic"]


def test_too_few_prompts_are_refused_with_their_numbers(tmp_path):
    path = write_rows(tmp_path / "few.jsonl", rows(6))
    with pytest.raises(DatasetError, match=r"6 distinct prompts; .* but each part needs 2"):
        parts_of(path)
    parts = parts_of(path, tune=2, test=2)
    assert len(parts.train) == 2


def test_what_is_written_is_read_as_the_same_pairs(tmp_path):
    path = write_rows(tmp_path / "pairs.jsonl", [{**row, "margin": 0.5} for row in chat_rows(30)])
    parts = parts_of(path)
    train, held_out = write_parts(parts, tmp_path / "data")
    again = load_pairs(str(train))
    assert [prompt_key(pair) for pair in again] == [prompt_key(pair) for pair in parts.train]
    assert [(pair.chosen, pair.rejected, pair.margin) for pair in again] == [
        (pair.chosen, pair.rejected, pair.margin) for pair in parts.train
    ]
    assert held_out is not None
    assert len(load_pairs(str(held_out))) == len(parts.held_out)
    assert len(Path(tmp_path / "data/test.jsonl").read_text().splitlines()) == len(parts.test)
    assert json.loads(Path(tmp_path / "data/tune.jsonl").read_text().splitlines()[0])["id"] == parts.tune[0]["id"]


def test_rated_answers_are_written_with_their_ratings_so_that_lists_stay_lists(tmp_path):
    scores = [3, 1, 2]
    made = [{"prompt": row["prompt"], "responses": [row["chosen"], "b", "c"], "scores": scores} for row in rows(40)]
    train, _ = write_parts(parts_of(write_rows(tmp_path / "scored.jsonl", made)), tmp_path / "data")
    first = json.loads(train.read_text().splitlines()[0])
    assert first["score_chosen"] > first["score_rejected"]
    groups, _ = tokenize_pairs(load_pairs(train).rated(), tiny_tokenizer())
    lists, _ = as_lists(groups)
    assert {len(group.completions) for group in lists} == {3}


def test_other_ratings_of_the_same_pairs_are_other_data(tmp_path):
    """Losses of lists train on the ratings, so a training on others must not be taken for theirs."""

    def fingerprint(best: int) -> str:
        made = [{"prompt": row["prompt"], "responses": ["a", "b"], "scores": [best, 1]} for row in rows(40)]
        return parts_of(write_rows(tmp_path / f"{best}.jsonl", made)).fingerprint

    assert fingerprint(3) != fingerprint(5)
