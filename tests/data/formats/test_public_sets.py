"""Public preference sets in their real columns, with invented contents: every question reaches the prompt.

The columns are those of the dataset cards. A set that is not here is another set's twin (the same columns).
"""

from __future__ import annotations

import pytest

from preftune.data import FORMATS, load_demonstrations, load_pairs
from preftune.errors import DatasetError

from .public_sets import BAD, CHAT, GOOD, QUESTION, SETS, SYSTEM, WHOLE_BAD, WHOLE_GOOD, assistant, system, user


@pytest.mark.parametrize("name", SETS)
def test_every_question_reaches_the_prompt(name: str) -> None:
    known = SETS[name]
    pairs = load_pairs([known.row, *known.more])
    pair = pairs[0]
    assert (pair.prompt, pair.chosen, pair.rejected) == known.pair
    strengths = pairs.strengths()
    assert known.strength == (None if strengths is None else strengths[0])
    assert pairs.unused == known.unused
    told = [note for note in pairs.notes if note.startswith("Not used: ")]
    assert len(told) == bool(known.unused)
    assert all(repr(column) in told[0] for column in known.unused)
    if pairs.format is None or FORMATS[pairs.format].table is None:
        streamed = list(load_pairs([known.row, *known.more], streaming=True))
        assert (streamed[0].prompt, streamed[0].chosen, streamed[0].rejected) == known.pair


@pytest.mark.parametrize("name", ["Intel/orca_dpo_pairs", "argilla/ultrafeedback-binarized-preferences"])
def test_supervised_fine_tuning_reads_the_same_question(name: str) -> None:
    known = SETS[name]
    row = load_demonstrations([known.row])[0]
    assert (row.prompt, row.completion) == known.pair[:2]


def test_a_system_turn_alone_is_no_prompt() -> None:
    """A question in a column of an unknown name: reading stops, and names the column."""
    rows = [{"system": SYSTEM, "frage": QUESTION, "chosen": [assistant(GOOD)], "rejected": [assistant(BAD)]}]
    with pytest.raises(DatasetError) as caught:
        load_pairs(rows)
    message = str(caught.value)
    assert "no prompt holds a turn of the user; not used: 'frage'" in message
    assert "--columns prompt=<prompt column>" in message
    rows = [{**rows[0], "aufgabe_input": QUESTION, "user": QUESTION}]
    with pytest.raises(DatasetError, match="--columns prompt=user"):
        load_pairs(rows)
    pairs = load_pairs(rows, columns={"prompt": "frage"})
    assert pairs[0].prompt == [system(SYSTEM), user(QUESTION)]


def test_the_system_prompt_of_openorca() -> None:
    data = load_demonstrations([{"id": "1", "system_prompt": SYSTEM, "question": QUESTION, "response": GOOD}])
    assert data[0].prompt == [system(SYSTEM), user(QUESTION)]
    assert data[0].completion == [assistant(GOOD)]


def test_columns_that_supervised_fine_tuning_leaves_unread_are_named() -> None:
    rows = [{"prompt": QUESTION, "context": "Lima lies in Peru.", "completion": GOOD, "lang": "en"}]
    notes = load_demonstrations(rows).notes
    assert [note for note in notes if note.startswith("Not used: 'context'.")]


def test_a_prompt_that_differs_by_white_space_is_there_once() -> None:
    for prompt in (f"{QUESTION} ", f"\n{QUESTION}"):
        pair = load_pairs([{"prompt": prompt, "chosen": WHOLE_GOOD, "rejected": WHOLE_BAD}])[0]
        assert (pair.prompt, pair.chosen, pair.rejected) == CHAT


def test_a_prompt_that_is_another_question_names_its_row() -> None:
    good = {"prompt": QUESTION, "chosen": WHOLE_GOOD, "rejected": WHOLE_BAD}
    rows = [good, {**good, "prompt": "Which river runs through Quito?"}]
    with pytest.raises(DatasetError, match="row 1, column 'prompt': it ends with the question 'Which river runs thr"):
        load_pairs(rows)
    assert load_pairs(rows, columns={"prompt": None})[1].prompt == [user(QUESTION)]
