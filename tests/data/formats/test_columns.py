"""Finding columns, renaming them, and the one error with the rename that mends it."""

from __future__ import annotations

from typing import Any

import datasets
import pytest

from preftune.data import load_pairs
from preftune.data.formats.columns import guess_columns, resolve_columns
from preftune.errors import DatasetError


def fails(rows: Any, columns: dict[str, str | None] | None = None, **kwargs: Any) -> str:
    with pytest.raises(DatasetError) as caught:
        load_pairs(rows, columns=columns, **kwargs)
    return str(caught.value)


def test_missing_columns_name_what_was_found_and_the_rename() -> None:
    message = fails([{"prompt": "a", "good": "b", "bad": "c"}])
    assert "the dataset has no columns 'chosen' and 'rejected'" in message
    assert "(found: 'prompt', 'good', 'bad'; first bad row: 0)" in message
    assert "Rename them with --columns chosen=good rejected=bad" in message
    assert "dataset.rename_columns({'good': 'chosen', 'bad': 'rejected'})" in message


def test_the_rename_that_the_message_proposes_works(tmp_path: Any) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"question": "a", "chosen": "b", "worse": "c"}\n')
    message = fails(path)
    assert message.startswith(
        f"{path} has no column 'rejected' (found: 'question', 'chosen', 'worse'; first bad row: 0)"
    )
    assert "Rename it with --columns prompt=question rejected=worse" in message
    pair = load_pairs(path, columns={"prompt": "question", "rejected": "worse"})[0]
    assert (pair.prompt, pair.chosen, pair.rejected) == ("a", "b", "c")


@pytest.mark.parametrize(
    ("found", "guess"),
    [
        (["question", "better", "worse"], {"prompt": "question", "chosen": "better", "rejected": "worse"}),
        (["instruction", "preferred", "dispreferred"], {"prompt": "instruction", "chosen": "preferred"}),
        (["Prompt", "Chosen", "Rejected"], {"prompt": "Prompt", "chosen": "Chosen", "rejected": "Rejected"}),
        (["query", "response_chosen", "response_rejected"], {"chosen": "response_chosen"}),
        (["prompt", "chosen_answer", "rejectd"], {"rejected": "rejectd"}),
        (["instruction", "input", "output"], {"prompt": "instruction+input"}),
        (["x", "y"], {}),
    ],
)
def test_guesses(found: list[str], guess: dict[str, str]) -> None:
    guesses = guess_columns(["prompt", "chosen", "rejected"], dict.fromkeys(found))
    assert {key: guesses.get(key) for key in guess} == guess
    assert guess or not guesses


def test_without_a_guess_the_message_asks_for_names() -> None:
    message = fails([{"x": "a", "y": "b"}])
    assert "Name them with --columns chosen=<chosen column> rejected=<rejected column>." in message


def test_unpaired_data_are_recognised() -> None:
    message = fails([{"prompt": "a", "completion": "b", "label": True}])
    assert "single answers with a label" in message


def test_labels_that_are_no_verdicts_are_not_taken_for_one() -> None:
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "label": "sports"}]
    assert "The rows look like single answers with a label, not like pairs" in fails(rows)


def test_openai_preference_rows_by_the_proposed_columns() -> None:
    row = {
        "input": {"messages": [{"role": "user", "content": "q"}], "tools": []},
        "preferred_output": [{"role": "assistant", "content": "a"}],
        "non_preferred_output": [{"role": "assistant", "content": "b"}],
    }
    message = fails([row], {"prompt": "input.messages"})
    assert "--columns chosen=preferred_output rejected=non_preferred_output" in message
    message = fails([row], {"margin": None}, format="trl")
    assert "--columns prompt=input.messages chosen=preferred_output rejected=non_preferred_output" in message
    assert "rename_columns" not in message
    columns = {"prompt": "input.messages", "chosen": "preferred_output", "rejected": "non_preferred_output"}
    assert load_pairs([row], columns=columns)[0].prompt == [{"role": "user", "content": "q"}]


def test_answers_without_a_prompt_column_are_not_split_at_their_first_words() -> None:
    rows = [{"instruction": "Convert.", "input": "45 km", "chosen": "45 km is 45000 m", "rejected": "45 km is far"}]
    message = fails(rows, format="trl")
    assert "no column 'prompt', and chosen and rejected hold only the answers" in message
    assert "--columns prompt=instruction+input" in message
    assert load_pairs(rows, columns={"prompt": "instruction+input"})[0].prompt == "Convert.\n\n45 km"
    rows[0]["input"] = ""
    assert load_pairs(rows, columns={"prompt": "instruction+input"})[0].prompt == "Convert."


def test_answers_that_share_nothing_need_a_prompt() -> None:
    assert "hold only the answers" in fails([{"chosen": "yes", "rejected": "no"}])
    turn = {"from": "gpt", "value": "hello"}
    rows = [{"conversations": [{"from": "human", "value": "hi"}], "chosen": turn, "rejected": {**turn, "value": "go"}}]
    assert "--columns prompt=conversations" in fails(rows, format="trl")
    pair = load_pairs(rows, columns={"prompt": "conversations"})[0]
    assert pair.prompt == [{"role": "user", "content": "hi"}]
    assert pair.chosen == [{"role": "assistant", "content": "hello"}]


def test_columns_are_validated() -> None:
    rows = [{"prompt": "a", "good": "b", "bad": "c"}]
    assert "'choosen' is not a column that preftune reads. Did you mean 'chosen'?" in fails(rows, {"choosen": "good"})
    message = fails(rows, {"chosen": "goood", "rejected": "bad"})
    assert "no column 'goood', which was named as 'chosen' (found: 'prompt', 'good', 'bad')" in message
    assert "Did you mean 'good'?" in message


def test_a_column_can_be_left_unread() -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c", "margin": -3.0}]
    assert "columns={'margin': None}" in fails(rows)
    assert load_pairs(rows, columns={"margin": None})[0].margin == 0.0
    assert load_pairs(rows, columns={"margin": ""})[0].margin == 0.0


def test_a_mapping_wins_over_a_column_of_the_canonical_name() -> None:
    features = dict.fromkeys(["prompt", "chosen", "rejected", "better"])
    columns = resolve_columns(features, {"chosen": "better"}, name="x")
    assert columns.pick({"prompt": "p", "chosen": "old", "rejected": "r", "better": "new"})["chosen"] == "new"


def test_a_row_without_a_side_is_named(tmp_path: Any) -> None:
    path = tmp_path / "data.jsonl"
    good = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
    path.write_text(good * 3 + '{"prompt": "a", "chosen": "b", "bad": "c"}\n' + good)
    message = fails(path)
    assert f"{path} row 3 has no 'rejected' (1 such row" in message
    assert "this one has: 'prompt', 'chosen', 'bad'" in message
    rows = datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 3)
    rows = datasets.concatenate_datasets([rows, datasets.Dataset.from_dict({"prompt": ["x"]})])
    assert "row 3 has no 'chosen'" in fails(rows)
    assert "row 0 has no 'chosen'" in fails(rows.select([3, 0]))


def test_a_name_that_is_more_than_a_word_is_quoted_and_the_message_stays_one_line() -> None:
    rows = [{"prompt": "p", "chosen 1": "a", "bad": "b"}]
    with pytest.raises(DatasetError, match=r"--columns chosen='chosen 1' rejected=bad ") as caught:
        load_pairs(rows)
    assert "\n" not in str(caught.value)
    with pytest.raises(DatasetError) as caught:
        load_pairs([{"\nprompt": "p", "answers": "a"}])
    assert "\n" not in str(caught.value)
    assert r"prompt=$'\nprompt'" in str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"prompt": "a", "completion": "b"},
        {"question": "a", "answer": "b", "lang": "en"},
        {"text": "a long text"},
    ],
)
def test_demonstrations_are_named_as_such(row):
    with pytest.raises(DatasetError, match=r"The rows look like demonstrations.*preftune sft"):
        load_pairs([row])


def test_answers_of_one_label_say_so():
    rows = [{"prompt": "a", "completion": text, "label": True} for text in "bc"]
    with pytest.raises(DatasetError, match=r"Every 'label' among the first rows says good. No prompt has both"):
        load_pairs(rows)
    rows[1]["label"], rows[1]["prompt"] = False, "z"
    with pytest.raises(DatasetError) as caught:
        load_pairs(rows)
    assert "Every" not in str(caught.value)
    assert "Train on single answers with preftune kto" in str(caught.value)


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_csv_of_spreadsheets_in_any_language(mark, tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text(f'prompt{mark}chosen{mark}rejected\n"a{mark} b"{mark}c{mark}d\n', encoding="utf-8")
    pair = load_pairs(path)[0]
    assert (pair.prompt, pair.chosen, pair.rejected) == (f"a{mark} b", "c", "d")


@pytest.mark.parametrize("answers", ["completions", "responses"])
def test_another_number_of_scores_than_answers_is_named(answers):
    """It was read as no known format: recognised are lists, and their lengths are checked row by row."""
    short = {"prompt": "a", answers: ["x", "y", "z"], "scores": [1, 2]}
    with pytest.raises(DatasetError, match=r"does not have as many scores as answers\. Give one score for each"):
        load_pairs([short, short])
    pairs = load_pairs([{**short, "scores": [1, 2, 3]}, short])
    assert len(pairs) == 3


@pytest.mark.parametrize(
    ("row", "advice"),
    [
        ({"prompt": "Q {}?", "model_a": "gpt-4", "model_b": "x", "winner": "gpt-4"}, "chosen=<chosen column>"),
        (
            {"prompt": "Q {}?", "output_1": "GOOD", "output_2": "BAD"},
            "chosen=<chosen column> rejected=<rejected column>",
        ),
        ({"prompt_id": "id-{}", "text": "Q {}?", "left": "GOOD {}"}, "--columns chosen=<chosen column> rejected="),
        ({"prompt": "Q {}?", "winner": "An answer {}.", "loser": "Another {}."}, "chosen=winner rejected=loser"),
    ],
)
def test_only_columns_of_texts_are_suggested(row: dict[str, str], advice: str) -> None:
    """Labels, ids and names of models were suggested as answers and prompts, by the names of their columns."""
    message = fails([{column: value.format(number) for column, value in row.items()} for number in range(4)])
    assert advice in message
    assert "prompt=" not in message


def test_a_file_without_a_line_of_names_is_recognised(tmp_path: Any) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("What is it?,Good one,Bad one\nWhat else?,Good two,Bad two\n")
    message = fails(path)
    assert "The first line seems to hold data ('What is it?'), not the names of columns" in message
    assert "Write the line prompt,chosen,rejected before it" in message
