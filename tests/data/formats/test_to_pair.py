"""Shapes of a row: all that mean the same become the same pair; all that mean nothing are told where and why."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data import load_demonstrations, load_pairs
from preftune.data.chat.messages import read_transcript, split_words
from preftune.data.formats.to_pair import to_pair
from preftune.errors import DatasetError
from preftune.types import PreferencePair


def pair(**values: Any) -> PreferencePair:
    return to_pair(values, name="data.jsonl", row=7)


def fails(**values: Any) -> str:
    with pytest.raises(DatasetError) as caught:
        pair(**{"prompt": "p", "chosen": "c", "rejected": "r", **values})
    assert str(caught.value).startswith("data.jsonl row 7, column ")
    return str(caught.value)


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def sides(p: PreferencePair) -> tuple[Any, Any, Any]:
    return p.prompt, p.chosen, p.rejected


def test_standard_stays_standard() -> None:
    assert sides(pair(prompt="a ", chosen=" b", rejected="c")) == ("a ", " b", "c")


def test_the_seed_document() -> None:
    p = pair(
        prompt="Summarize this article in two sentences.",
        chosen=[assistant("The article covers the impact...")],
        rejected=[assistant("Sure! I'd be happy to help summarize...")],
    )
    assert p.prompt == [user("Summarize this article in two sentences.")]
    assert p.chosen == [assistant("The article covers the impact...")]
    assert p.rejected == [assistant("Sure! I'd be happy to help summarize...")]


EQUIVALENT: list[dict[str, Any]] = [
    {"prompt": [user("Q")], "chosen": [assistant("A")], "rejected": [assistant("B")]},
    {"prompt": [user("Q")], "chosen": assistant("A"), "rejected": assistant("B")},
    {"prompt": user("Q"), "chosen": "A", "rejected": "B"},
    {"prompt": [user("Q")], "chosen": "A", "rejected": [assistant("B")]},
    {"prompt": "Q", "chosen": [assistant("A")], "rejected": assistant("B")},
    {"prompt": "Q", "chosen": [user("Q"), assistant("A")], "rejected": [user("Q"), assistant("B")]},
    {"prompt": "Q", "chosen": [user("Q"), assistant("A")], "rejected": [assistant("B")]},
    {"prompt": [user("Q")], "chosen": [user("Q"), assistant("A")], "rejected": [user("Q"), assistant("B")]},
    {"chosen": [user("Q"), assistant("A")], "rejected": [user("Q"), assistant("B")]},
    {"prompt": [], "chosen": [user("Q"), assistant("A")], "rejected": [user("Q"), assistant("B")]},
    {"prompt": "", "chosen": [user("Q"), assistant("A")], "rejected": [user("Q"), assistant("B")]},
    {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
    {"prompt": "\n\nHuman: Q\n\nAssistant:", "chosen": " A", "rejected": " B"},
    {"prompt": "Human: Q\n\nAssistant:", "chosen": "A", "rejected": "B"},
    {"prompt": "\n\nHuman: Q", "chosen": "\n\nAssistant: A", "rejected": "\n\nAssistant: B"},
    {
        "prompt": "\n\nHuman: Q\n\nAssistant:",
        "chosen": "\n\nHuman: Q\n\nAssistant: A",
        "rejected": "\n\nHuman: Q\n\nAssistant: B",
    },
    {
        "prompt": json.dumps([user("Q")]),
        "chosen": json.dumps([assistant("A")]),
        "rejected": json.dumps(assistant("B")),
    },
    {"prompt": {"from": "human", "value": "Q"}, "chosen": {"from": "gpt", "value": "A"}, "rejected": "B"},
    {
        "prompt": [{"role": "user", "content": [{"type": "text", "text": "Q"}]}],
        "chosen": [{**assistant("A"), "tool_calls": None}],
        "rejected": [{**assistant("B"), "name": None}],
    },
]


@pytest.mark.parametrize("values", EQUIVALENT)
def test_equivalent_shapes_give_one_pair(values: dict[str, Any]) -> None:
    assert sides(pair(**values)) == ([user("Q")], [assistant("A")], [assistant("B")])


def test_a_system_turn_inside_the_sides_or_in_its_column() -> None:
    expected = ([system("S"), user("Q")], [assistant("A")], [assistant("B")])
    inside = {"chosen": [system("S"), user("Q"), assistant("A")], "rejected": [system("S"), user("Q"), assistant("B")]}
    assert sides(pair(**inside)) == expected
    assert sides(pair(prompt="Q", **inside)) == expected
    assert sides(pair(prompt=[system("S"), user("Q")], **inside)) == expected
    less = {"chosen": [user("Q"), assistant("A")], "rejected": [user("Q"), assistant("B")]}
    assert sides(pair(prompt=[system("S"), user("Q")], **less)) == expected
    assert sides(pair(prompt="Q", system="S", **less)) == expected
    assert sides(pair(prompt=[system("S"), user("Q")], system="S", chosen="A", rejected="B")) == expected
    standard = to_pair({"prompt": "Q", "chosen": "A", "rejected": "B", "system": "S"}, name="x", row=0, chat=True)
    assert sides(standard) == expected
    assert "begins with another system turn" in fails(prompt=[system("T"), user("Q")], system="S")


def test_several_turns_part_where_they_differ() -> None:
    head = [user("1"), assistant("2"), user("3")]
    p = pair(chosen=[*head, assistant("4")], rejected=[*head, assistant("5"), user("6"), assistant("7")])
    assert sides(p) == (head, [assistant("4")], [assistant("5"), user("6"), assistant("7")])
    p = pair(prompt="1", chosen=[*head, assistant("4")], rejected=[*head, assistant("5")])
    assert sides(p) == (head, [assistant("4")], [assistant("5")])
    # An explicit prompt is not extended by turns that merely happen to agree.
    p = pair(prompt=[user("1")], chosen=[assistant("2"), user("3")], rejected=[assistant("2"), user("4")])
    assert p.prompt == [user("1")]


def test_something_is_left_on_both_sides() -> None:
    same = [user("Q"), assistant("A")]
    assert sides(pair(chosen=same, rejected=same)) == ([user("Q")], [assistant("A")], [assistant("A")])
    longer = [*same, user("more"), assistant("B")]
    assert sides(pair(chosen=same, rejected=longer)) == ([user("Q")], [assistant("A")], longer[1:])


def test_transcripts_keep_their_turns() -> None:
    head = "\n\nHuman: hi\nthere\n\nAssistant: yes: no\n\nHuman: Human: odd"
    p = pair(chosen=head + "\n\nAssistant: A\n\nB", rejected=head + "\n\nAssistant: ")
    assert p.prompt == [user("hi\nthere"), assistant("yes: no"), user("Human: odd")]
    assert p.chosen == [assistant("A\n\nB")]
    assert p.rejected == [assistant("")]
    assert read_transcript("Human: is a word") is None
    assert read_transcript("Assistant: is a word too") is None


def test_nulls_of_a_table_are_no_keys() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1, "b": None}}}
    p = pair(
        prompt="Q", chosen=[{"role": "assistant", "content": None, "tool_calls": [call]}, assistant("A")], rejected="B"
    )
    assert p.chosen[0] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}],
    }


def test_optional_columns() -> None:
    p = pair(
        prompt="a",
        chosen="b",
        rejected="c",
        weight="2",
        margin=0,
        agreement=True,
        id=12,
        chat_template_kwargs='{"enable_thinking": false}',
        tools=[{"type": "function", "function": None}],
    )
    assert (p.weight, p.margin, p.agreement, p.id, p.row) == (2.0, 0.0, 1.0, "12", 7)
    assert p.chat_template_kwargs == {"enable_thinking": False}
    assert p.tools == [{"type": "function"}]
    p = pair(prompt="a", chosen="b", rejected="c", weight="", agreement="", id="", chat_template_kwargs="", tools="[]")
    assert (p.weight, p.agreement, p.id, p.chat_template_kwargs, p.tools) == (1.0, None, None, {}, None)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"weight": -1}, "'weight': -1 is not a number from 0 to 1e+09"),
        ({"weight": float("nan")}, "'weight': nan is not a number"),
        ({"weight": "heavy"}, "'weight': 'heavy' is not a number"),
        ({"margin": float("inf")}, "'margin': inf is not a number"),
        ({"agreement": 1.5}, "'agreement': 1.5 is not a number from 0 to 1"),
        ({"chosen": 5}, "'chosen': 5 is an int, neither text nor a list of messages"),
        ({"chosen": ["yes"]}, "'chosen': a list of texts ('yes'), which are several answers"),
        ({"chosen": [{"content": "a"}]}, "turn 0 has no 'role' (found: 'content')"),
        ({"chosen": [{"role": "assistant"}]}, "turn 0 (assistant) has no 'content'"),
        ({"chosen": [{"role": "bot", "content": "a"}]}, "unknown role 'bot'. Write 'assistant' instead."),
        ({"chosen": [{"role": "wizard", "content": "a"}]}, "unknown role 'wizard'. Known are assistant,"),
        ({"chosen": [{"role": "assistant", "content": 5}]}, "the content of turn 0 is 5, an int"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "part of type 'image'"),
        ({"chosen": "[{'role': 'assistant', 'content': 'a'}]"}, "written as Python's repr"),
        ({"chat_template_kwargs": "{"}, "is not valid JSON"),
        ({"chat_template_kwargs": "[1]"}, "is not an object"),
        ({"chat_template_kwargs": {"tokenize": False}}, "'tokenize' is set by preftune itself"),
        ({"tools": {"a": 1}}, "'tools': {'a': 1} is not a list"),
        ({"system": 3, "prompt": [user("a")]}, "'system': 3 is not text"),
    ],
)
def test_wrong_values_name_row_column_value_and_fix(values: dict[str, Any], expected: str) -> None:
    message = fails(**values)
    assert expected in message
    assert message.endswith((".", ")."))


def test_a_mixed_row_without_a_prompt_cannot_be_read() -> None:
    with pytest.raises(DatasetError, match="'rejected': text, while 'chosen' is a list of messages"):
        pair(chosen=[user("Q"), assistant("A")], rejected="B")


def test_the_words_of_an_implicit_prompt() -> None:
    assert split_words("yes it is", "yes it was") == ("yes it", " is", " was")
    assert split_words("yes it is", "yes it isn't") == ("yes it", " is", " isn't")
    assert split_words("yes it is", "yes it is not") == ("yes it", " is", " is not")
    assert split_words("Q?\nyes", "Q?\nno") == ("Q?\n", "yes", "no")
    assert split_words("same", "same") == ("", "same", "same")
    assert split_words("", "a") == ("", "", "a")


WORDS = st.text(st.sampled_from("ab \n.é字"), max_size=12)


@settings(deadline=None)
@given(WORDS, WORDS, WORDS)
def test_implicit_strings_never_split_a_word(head: str, left: str, right: str) -> None:
    prompt, chosen, rejected = split_words(head + left, head + right)
    assert prompt + chosen == head + left
    assert prompt + rejected == head + right
    for side in (chosen, rejected):
        assert not prompt or not side or prompt[-1].isspace() or side[0].isspace()
    assert bool(chosen.strip()) == bool((head + left).strip())


CONTENT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1).filter(
    lambda s: s.strip() == s and not s.startswith(("[", "{", "Human", "Assistant")) and "\n\n" not in s
)


@settings(deadline=None)
@given(CONTENT, CONTENT, CONTENT, st.lists(st.tuples(CONTENT, CONTENT), max_size=2), st.booleans())
def test_flattened_conversations_read_back_as_the_same_pair(
    question: str, good: str, bad: str, history: list[tuple[str, str]], with_system: bool
) -> None:
    prompt = [turn for q, a in history for turn in (user(q), assistant(a))] + [user(question)]
    if with_system:
        prompt.insert(0, system("S"))
    explicit = pair(prompt=prompt, chosen=[assistant(good)], rejected=[assistant(bad)])
    chosen, rejected = [*prompt, assistant(good)], [*prompt, assistant(bad)]
    shapes: list[dict[str, Any]] = [
        {"chosen": chosen, "rejected": rejected},
        {"prompt": prompt, "chosen": chosen, "rejected": rejected},
        {"prompt": prompt, "chosen": assistant(good), "rejected": assistant(bad)},
        {"prompt": question, "chosen": chosen, "rejected": rejected},
    ]
    if not with_system:
        names = {"user": "Human", "assistant": "Assistant"}
        flat = ["".join(f"\n\n{names[t['role']]}: {t['content']}" for t in turns) for turns in (chosen, rejected)]
        shapes.append({"chosen": flat[0], "rejected": flat[1]})
    for shape in shapes:
        assert pair(**shape) == explicit


@settings(deadline=None)
@given(st.sampled_from(EQUIVALENT))
def test_swapping_the_sides_swaps_the_result(values: dict[str, Any]) -> None:
    swapped = pair(**{**values, "chosen": values["rejected"], "rejected": values["chosen"]})
    there = pair(**values)
    assert (swapped.prompt, swapped.chosen, swapped.rejected) == (there.prompt, there.rejected, there.chosen)


_CS = ("a1", "c3")
"""Answers with their scores."""


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "responses": ["a", "b", "c"], "scores": [1, 2, 3]},
        {"prompt": "q", "ranked_responses": ["c", "b", "a"]},
        {"instruction": "q", "completions": [{"response": c, "overall_score": s, "annotations": {}} for c, s in _CS]},
        {"prompt": "q", "chosen": "c", "rejected": "a"},
    ],
    ids=["scored", "ranked", "ultrafeedback", "trl"],
)  # fmt: skip
@pytest.mark.parametrize("streaming", [False, True])
def test_the_agreement_of_a_row_holds_for_each_of_its_pairs(row, streaming):
    found = list(load_pairs([{**row, "agreement": 0.8}, {**row, "agreement": None}], streaming=streaming))
    half = len(found) // 2
    assert [pair.agreement for pair in found] == [0.8] * half + [None] * half
    assert half in (1, 3)


@pytest.mark.parametrize("agreement", [[0.5, 0.6, 0.7], "most", 2])
def test_an_agreement_that_is_no_share_is_refused(agreement):
    row = {"prompt": "q", "responses": ["a", "b", "c"], "scores": [1, 2, 3], "agreement": agreement}
    with pytest.raises(DatasetError, match=r"column 'agreement': .* is not a number from 0 to 1"):
        list(load_pairs([row]))
    assert len(load_pairs([row], columns={"agreement": None})) == 3


@pytest.mark.parametrize("column", ["margin", "weight"])
def test_numbers_that_float32_cannot_square_are_refused(column):
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert getattr(load_pairs([{**row, column: 1e9}])[0], column) == 1e9
    with pytest.raises(DatasetError, match=rf"'{column}': 1e\+308 is not a number from 0 to 1e\+09"):
        load_pairs([{**row, column: 1e308}])


@pytest.mark.parametrize("whole", [False, True])
def test_a_conversation_that_ends_with_the_better_answer_is_no_prompt(whole: bool) -> None:
    """The answer was in the prompt and was trained after itself."""
    before = [user("q")] if whole else []
    sides = {name: [*before, assistant(name)] for name in ("chosen", "rejected")}
    message = fails(prompt=[user("q"), assistant("chosen ")], **sides)
    assert "column 'prompt': the conversation ends with the answer 'chosen', which 'chosen' holds too" in message
    assert "Remove the last turn of the conversation." in message
    begun = pair(prompt=[user("q"), assistant("The")], chosen=" a", rejected=" b")
    assert begun.prompt == [user("q"), assistant("The")]
    for said in ("Yes", ""):  # a worse answer may repeat what was said, and nothing is no answer
        repeats = pair(prompt=[user("q"), assistant(said)], chosen="Go on", rejected=said)
        assert repeats.prompt == [user("q"), assistant(said)]


def test_a_demonstration_whose_prompt_ends_with_its_answer_is_refused() -> None:
    rows = [{"prompt": [user("q"), assistant("a")], "completion": "a"}] * 2
    with pytest.raises(DatasetError, match="ends with the answer 'a', which 'completion' holds too"):
        list(load_demonstrations(rows))


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_whose_conversation_ends_with_the_answer_are_refused(streaming: bool) -> None:
    rows = [{"messages": [user("q"), assistant("good")], "chosen": "good", "rejected": "bad"}] * 3
    with pytest.raises(DatasetError, match="row 0, column 'prompt': the conversation ends with"):
        list(load_pairs(rows, streaming=streaming))
