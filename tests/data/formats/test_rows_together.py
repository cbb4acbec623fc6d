"""What depends on more than one row: columns that only later rows fill, and answers of several rows to one prompt."""

from __future__ import annotations

from typing import Any

import pytest

from preftune.data import load_pairs
from preftune.errors import DatasetError

from .test_adapters import assistant, sides, user


def late(first: dict[str, Any], last: dict[str, Any]) -> list[dict[str, Any]]:
    """More rows of the first kind than are looked at to recognise a format, then some of the last kind."""
    return [first] * 150 + [last] * 50


def test_what_only_later_rows_have_is_read() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    asked = {"messages": [user("?")], "tools": None}
    row = {"preferred_output": [assistant("Yes.")], "non_preferred_output": [assistant("No.")]}
    pairs = load_pairs(late({"input": asked, **row}, {"input": {**asked, "tools": tools}, **row}))
    assert pairs.format == "openai"
    assert [bool(pairs[place].tools) for place in (0, 150, 199)] == [False, True, True]
    alpaca = {"instruction": "And?", "input": "", "chosen": "a", "rejected": "b"}
    pairs = load_pairs(late({**alpaca, "history": []}, {**alpaca, "history": [["Hi", "Yes."]]}))
    assert [len(pairs[place].prompt) for place in (0, 150, 199)] == [1, 3, 3]
    rated = {"prompt": "?", "chosen": "a", "rejected": "b"}
    pairs = load_pairs(late({**rated, "strength": None}, {**rated, "strength": 2.0}), margin_from_scores=1.0)
    assert [pairs[place].margin for place in (0, 199)] == [0.0, 2.0]


@pytest.mark.parametrize("before", ["system", "chat_template_kwargs"])
def test_answers_to_other_system_prompts_are_no_pair(before: str) -> None:
    said = ("Be kind.", "Be rude.") if before == "system" else ({"enable_thinking": True}, {"enable_thinking": False})
    kto = [
        {"prompt": "q", "completion": answer, "label": good, before: value}
        for value, answer, good in zip(said, ("yes", "no"), (True, False), strict=True)
    ]
    helpful = [
        {"prompt": "q", "response": answer, "helpfulness": number, before: value}
        for value, answer, number in zip(said, ("yes", "no"), (4, 0), strict=True)
    ]
    for rows in (kto, helpful):
        with pytest.raises(DatasetError):
            load_pairs(rows)
        same = load_pairs([{**row, before: said[0]} for row in rows])
        assert ["yes" in str(sides(same)[1]), "no" in str(sides(same)[2])] == [True, True]
        assert len(load_pairs(rows + [{**row, before: said[1]} for row in rows[:1]])) == 1


def test_an_answer_without_a_rank_is_left_out_alone() -> None:
    """A null among ranks in objects left out the whole prompt."""
    answers = [{"answer": text, "rank": rank} for text, rank in (("a", 1), ("b", None), ("c", 2))]
    full = [{"answer": text, "rank": rank} for text, rank in (("d", 2), ("e", 1))]
    pairs = load_pairs([{"prompt": "q", "answers": full}, {"prompt": "p", "answers": answers}])
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("e", "d"), ("a", "c")]
    assert {reason: left.count for reason, left in pairs.left.items()} == {"unrated": 1}
    parallel = {"prompt": "p", "answers": ["a", "b", "c"], "scores": [2.0, None, 1.0]}
    pairs = load_pairs([parallel])
    assert {reason: left.count for reason, left in pairs.left.items()} == {"unrated": 1}


def test_numbers_that_are_no_places_are_answers() -> None:
    rows = [{"prompt": f"{at}+{at}?", "chosen": f"{2 * at}", "rejected": "1", "generations": ["?"]} for at in range(9)]
    assert [pair.chosen for pair in load_pairs(rows)] == [row["chosen"] for row in rows]


@pytest.mark.parametrize("question", [{"prompt": "q"}, {"instruction": "q"}, {"messages": [user("q")]}])
def test_places_in_a_list_are_no_answers(question: dict[str, Any]) -> None:
    """They were trained as the texts "1" and "0"."""
    row = {**question, "responses": ["good", "bad"], "chosen": "0", "rejected": "1"}
    with pytest.raises(DatasetError, match="column 'chosen' holds '0', which is the place of an answer in the list"):
        load_pairs([row])
    assert load_pairs([{**row, "responses": ["1", "0"]}])[0].chosen
