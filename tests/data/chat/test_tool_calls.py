"""Calls of tools in every form in which people have them, through every way in which templates write them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from preftune.data import load_demonstrations, load_pairs, tokenize_demonstrations, tokenize_pairs
from preftune.data.chat.tool_calls import rendered, with_short_ids
from preftune.errors import DatasetError
from tests.data.tiny_bpe import make_tokenizer

WANTED = {"name": "tide", "arguments": {"harbour": "Tönning", "day": 3}}
TEXT = json.dumps(WANTED["arguments"], ensure_ascii=False)
SCHEMA = {"name": "tide", "description": "High water.", "parameters": {"type": "object", "properties": {}}}
ASKED = {"role": "user", "content": "High water?"}

FORMS: dict[str, list[dict[str, Any]]] = {
    "objects": [{"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": WANTED}]}],
    "content null": [{"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": WANTED}]}],
    "JSON text": [{"role": "assistant", "tool_calls": [{"function": {"name": "tide", "arguments": TEXT}}]}],
    "bare calls": [{"role": "assistant", "content": "", "tool_calls": [WANTED]}],
    "all of it JSON": [{"role": "assistant", "content": "", "tool_calls": json.dumps([WANTED])}],
    "function_call": [{"role": "assistant", "content": None, "function_call": {"name": "tide", "arguments": TEXT}}],
    "ShareGPT": [{"from": "function_call", "value": json.dumps(WANTED)}],
    "ms-swift": [{"role": "tool_call", "content": json.dumps(WANTED)}],
}
"""One call, by the form in which it comes."""

OBJECTS = (
    "{% for c in m.tool_calls %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>{% endfor %}"
)
WRITERS = {
    "tojson": OBJECTS,
    "whole function": "{% for c in m.tool_calls %}<call>{{ c.function | tojson }}</call>{% endfor %}",
    "one by one": "{% for c in m.tool_calls %}<call>{{ c.function.name }}{% for k, v in c.function.arguments.items() %}"
    " {{ k }}={{ v }}{% endfor %}</call>{% endfor %}",
    "added to text": "{% for c in m.tool_calls %}{{ '<call>' + c.function.name + ' ' + c.function.arguments }}</call>"
    "{% endfor %}",
    "printed": "{% for c in m.tool_calls %}<call>{{ c.function.name }} {{ c.function.arguments }}</call>{% endfor %}",
    "ids of nine": "{% for c in m.tool_calls %}{% if not c.id or c.id | length != 9 %}{{ raise_exception('ids!') }}"
    "{% endif %}{% endfor %}" + OBJECTS,
}
"""What a template does with an assistant's calls."""


def template(writer: str) -> str:
    return (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.tool_calls %}" + writer + "{% else %}{{ m.content }}"
        "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def tokenizer(writer: str) -> Any:
    made = make_tokenizer(eos_token="<|im_end|>", pad_token="<pad>")
    made.chat_template = template(writer)
    return made


def pair_of(turns: list[dict[str, Any]]) -> dict[str, Any]:
    return {"prompt": [ASKED], "chosen": turns, "rejected": [{"role": "assistant", "content": "At noon."}]}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_as_one(form: str) -> None:
    (call,) = load_pairs([pair_of(FORMS[form])])[0].chosen[0]["tool_calls"]  # type: ignore[index]
    assert {**call, "id": None} == {"id": None, "type": "function", "function": WANTED}
    turns = load_demonstrations([{"messages": [ASKED, *FORMS[form]]}])[0].completion
    assert turns[1]["tool_calls"][0]["function"] == WANTED  # type: ignore[index]
    assert (turns[1]["role"], turns[1]["content"]) == ("assistant", "")  # type: ignore[index]


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("form", ["objects", "JSON text", "ShareGPT"])
def test_every_template_writes_the_arguments_once(writer: str, form: str) -> None:
    tok = tokenizer(WRITERS[writer])
    groups, report = tokenize_pairs(load_pairs([pair_of(FORMS[form])]), tok)
    trained = tok.decode(groups[0].completions[0])
    expected = {
        "one by one": "<call>tide harbour=Tönning day=3</call>",
        "whole function": f"<call>{json.dumps(WANTED, ensure_ascii=False)}</call>",
    }.get(writer, f"<call>tide {TEXT}</call>")
    assert trained == f"{expected}<|im_end|>\n"
    assert not report.dropped
    demonstrations = load_demonstrations([{"messages": [ASKED, *FORMS[form]]}])
    groups, _ = tokenize_demonstrations(demonstrations, tok)
    assert tok.decode(groups[0].completions[0]) == trained


def test_a_template_without_tools_drops_the_row_with_its_reason() -> None:
    tok = tokenizer("{{ m.content }}")
    rows = [pair_of(FORMS["objects"]), pair_of([{"role": "assistant", "content": "At ten."}])]
    groups, report = tokenize_pairs(load_pairs(rows), tok)
    assert len(groups) == 1
    assert report.dropped["calls_not_written"].rows == [0]
    assert any("does not write the tool calls: not in the text: tide" in note for note in report.notes)
    messages = [{"messages": [ASKED, *row["chosen"]]} for row in rows]
    groups, demonstrated = tokenize_demonstrations(load_demonstrations(messages), tok)
    assert demonstrated.dropped["calls_not_written"].rows == [0]


def test_calls_in_a_row_are_one_turn_and_answers_are_the_tools() -> None:
    turns = [
        {"from": "human", "value": "Tides?"},
        {"from": "function_call", "value": json.dumps(WANTED)},
        {"from": "function_call", "value": json.dumps([{"name": "moon", "arguments": {}}])},
        {"from": "observation", "value": "14:10"},
    ]
    answers = {"chosen": {"from": "gpt", "value": "Ten."}, "rejected": {"from": "gpt", "value": "?"}}
    prompt: Any = load_pairs([{"conversations": turns, **answers}])[0].prompt
    assert [turn["role"] for turn in prompt] == ["user", "assistant", "tool"]
    assert [call["function"]["name"] for call in prompt[1]["tool_calls"]] == ["tide", "moon"]


def test_answers_of_tools_in_older_forms() -> None:
    called = {"role": "assistant", "function_call": WANTED}
    legacy = [ASKED, called, {"role": "function", "name": "tide", "content": "14:10"}]
    prompt: Any = load_pairs([{**pair_of(FORMS["objects"]), "prompt": legacy}])[0].prompt
    assert [turn["role"] for turn in prompt] == ["user", "assistant", "tool"]
    answered = [ASKED, called, {"role": "tool", "content": {"time": "14:10"}}]
    prompt = load_pairs([{**pair_of(FORMS["objects"]), "prompt": answered}])[0].prompt
    assert prompt[2]["content"] == '{"time": "14:10"}'


def test_tools_without_their_function_get_it() -> None:
    for tools in ([SCHEMA], json.dumps([SCHEMA]), [{"type": "function", **SCHEMA}], [{"function": SCHEMA}]):
        (tool,) = load_pairs([{**pair_of(FORMS["objects"]), "tools": tools}])[0].tools  # type: ignore[misc]
        assert tool["function"]["description"] == "High water."
        assert "description" not in tool


@pytest.mark.parametrize("call", ["no JSON", {"arguments": {}}, 3, [3]])
def test_what_is_no_call_names_its_row(call: Any) -> None:
    with pytest.raises(DatasetError, match=r"row 0, column 'chosen': turn 0 \(assistant\) calls a tool with"):
        load_pairs([pair_of([{"role": "assistant", "function_call": call}])])


def test_convert_writes_calls_that_read_back(tmp_path: Path) -> None:
    from preftune.data.conversion.convert import Input, convert_pairs

    for ending in ("jsonl", "parquet"):
        out = tmp_path / f"out.{ending}"
        source = load_pairs([pair_of(FORMS[form]) for form in FORMS])
        convert_pairs([Input("x", source)], out)
        again = load_pairs(out)
        assert [pair.chosen for pair in again] == [pair.chosen for pair in source]


def test_short_ids_keep_calls_and_answers_together() -> None:
    call = {"type": "function", "function": WANTED}
    turns = [
        {"role": "assistant", "content": "", "tool_calls": [{"id": "call_of_the_first_tool", **call}, call]},
        {"role": "tool", "tool_call_id": "call_of_the_first_tool", "content": "1"},
        {"role": "tool", "content": "2"},
    ]
    before = copy.deepcopy(turns)
    made = with_short_ids(turns)
    assert turns == before
    ids = [one["id"] for one in made[0]["tool_calls"]]
    assert [len(name) for name in ids] == [9, 9]
    assert [turn["tool_call_id"] for turn in made[1:]] == ids


def test_the_template_s_own_words_are_kept_where_it_refuses_for_another_reason() -> None:
    tok = tokenizer("{{ raise_exception('one call at a time') }}")
    with pytest.raises(Exception, match="one call at a time"):
        rendered(tok, load_pairs([pair_of(FORMS["objects"])])[0].chosen)
