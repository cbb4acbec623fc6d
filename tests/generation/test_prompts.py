from __future__ import annotations

import json
from pathlib import Path

import pytest

from preftune.errors import DatasetError
from preftune.generation.prompts import load_prompts

USER = [{"role": "user", "content": "Hi?"}]


def _file(folder: Path, rows: list, name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Hi?", "chosen": "a", "rejected": "b"}, "Hi?"),
        ({"prompt": USER, "chosen": [{"role": "assistant", "content": "a"}], "rejected": "b"}, USER),
        ({"chosen": "\n\nHuman: Hi?\n\nAssistant: a", "rejected": "\n\nHuman: Hi?\n\nAssistant: b"}, USER),
        ({"input": {"messages": USER}, "preferred_output": USER, "non_preferred_output": USER}, USER),
        ({"prompt": "Hi?", "responses": ["a", "b", "c"], "scores": [1, 2, 3]}, "Hi?"),
        ({"prompt": "Hi?"}, "Hi?"),
        ({"prompt": USER}, USER),
        ({"messages": [*USER, {"role": "assistant", "content": "a"}]}, USER),
        ({"messages": USER}, USER),
        ({"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "a"}]}, USER),
        ({"prompt": "Hi?", "completion": "a", "label": True}, "Hi?"),
        ({"messages": [*USER, {"role": "assistant", "content": "a"}], "label": False}, USER),
        ({"instruction": "Say", "input": "Hi?", "output": "a"}, "Say\n\nHi?"),
        ({"prompt": "Hi?", "system": "Be short."}, [{"role": "system", "content": "Be short."}, *USER]),
    ],
)
def test_prompts_of_every_shape(tmp_path: Path, row: dict, prompt: object) -> None:
    found = load_prompts(_file(tmp_path, [row]))
    assert [p.prompt for p in found.prompts] == [prompt]


def test_lines_of_text(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbfHi?\r\n\r\nWhy\xc3\xa9?\nHi?\r\n")
    found = load_prompts(path)
    assert [p.prompt for p in found.prompts] == ["Hi?", "Why\u00e9?"]
    assert found.repeated == 1
    assert [p.prompt for p in load_prompts(path, as_chat=True, limit=1).prompts] == [USER]
    with pytest.raises(DatasetError, match="plain lines, which have no columns"):
        load_prompts(path, keep=["x"])
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DatasetError, match="not text in UTF-8"):
        load_prompts(path)


def test_a_prompt_is_asked_once_and_keeps_its_id(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "prompt": "Hi?", "fact": "x"},
        {"id": "b", "prompt": "Hi?", "fact": "y"},
        {"id": "a", "prompt": "Ho?", "fact": "z"},
    ]
    found = load_prompts(_file(tmp_path, rows), keep=["fact"])
    assert [(p.id == "a", p.kept) for p in found.prompts] == [(True, {"fact": "x"}), (False, {"fact": "z"})]
    assert found.repeated == 1
    assert len({p.id for p in found.prompts}) == 2


def test_kept_columns_of_pairs_come_from_the_raw_row(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}?", "chosen": "a", "rejected": "b", "fact": i} for i in range(3)]
    found = load_prompts(_file(tmp_path, rows), keep=["fact"], as_chat=True)
    assert [p.kept["fact"] for p in found.prompts] == [0, 1, 2]
    assert found.prompts[0].prompt == [{"role": "user", "content": "0?"}]


def test_what_the_template_is_given_belongs_to_the_prompt(tmp_path: Path) -> None:
    rows = [{"prompt": USER, "chat_template_kwargs": {"enable_thinking": value}} for value in (True, False)]
    first, second = load_prompts(_file(tmp_path, rows)).prompts
    assert first.key != second.key
    assert first.carried == {"chat_template_kwargs": {"enable_thinking": True}}


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        ([{"question": "Hi?"}], {}, "no column of prompts .*--columns prompt=question"),
        ([{"question": "Hi?"}], {"columns": {"prompt": "qestion"}}, "Did you mean 'question'"),
        ([{"prompt": "Hi?"}, {"prompt": None}], {}, "row 1 has no prompt"),
        ([{"prompt": "Hi?"}, {"prompt": " "}], {}, "row 1 has an empty prompt"),
        ([{"messages": [{"role": "assistant", "content": "a"}]}], {}, "row 0 has an empty prompt"),
        ([{"prompt": 3.5}], {}, "row 0, column 'prompt': 3.5 is a float"),
        ([{"prompt": "Hi?"}], {"keep": ["fact"]}, "--keep fact: .* no such column"),
        ([{"prompt": "Hi?"}], {"format": "opnai"}, "Did you mean 'openai'"),
    ],
)
def test_errors_name_the_place_and_the_fix(tmp_path: Path, rows: list, options: dict, says: str) -> None:
    with pytest.raises(DatasetError, match=says):
        load_prompts(_file(tmp_path, rows), **options)


def test_another_name_for_the_prompt(tmp_path: Path) -> None:
    name = _file(tmp_path, [{"question": "Hi?"}])
    assert load_prompts(name, columns={"prompt": "question"}).prompts[0].prompt == "Hi?"


def test_the_answer_of_several_turns_is_the_one_to_the_prompt(tmp_path: Path) -> None:
    """Not the answer to what the user asks afterwards; of calls of tools, what is said in the end."""

    def said(text: str) -> dict:
        return {"role": "assistant", "content": text}

    several = [said("first"), {"role": "user", "content": "And then?"}, said("second")]
    tools = [said("looking it up"), {"role": "tool", "content": "42"}, said("It is 42.")]
    for chosen, answer in ((several, "first"), (tools, "It is 42.")):
        row = {"prompt": USER, "chosen": chosen, "rejected": [said("no")]}
        assert load_prompts(_file(tmp_path, [row])).prompts[0].chosen == answer


@pytest.mark.parametrize(
    ("extra", "options", "told"),
    [
        ({"input": "Bonjour tout le monde."}, {}, "'input'"),
        ({"input": "Bonjour tout le monde.", "chosen": "Hello.", "rejected": "No."}, {}, "'input'"),
        ({"system": "Be brief.", "question": "What is meant by it?"}, {}, "'question'"),
        ({"input": "Bonjour tout le monde."}, {"columns": {"prompt": "prompt+input"}}, ""),
        ({"input": "Bonjour tout le monde."}, {"keep": ["input"]}, ""),
        ({"input": "", "response": "A long answer.", "category": "two words"}, {}, ""),
        ({"messages": [{"role": "user", "content": "Translate this"}]}, {}, ""),
    ],
)
def test_a_column_that_belongs_to_the_prompt_and_is_not_asked_is_named(
    tmp_path: Path, extra: dict, options: dict, told: str
) -> None:
    found = load_prompts(_file(tmp_path, [{"prompt": "Translate this", **extra}]), **options)
    assert bool(found.notes) == bool(told)
    if told:
        assert f"Not used: {told}." in found.notes[0]


def test_the_row_after_the_limit_is_no_repetition(tmp_path: Path) -> None:
    rows = [{"prompt": text} for text in ("a?", "b?", "a?", "c?", "d?")]
    assert load_prompts(_file(tmp_path, rows), limit=2).repeated == 1
    assert load_prompts(_file(tmp_path, rows[3:]), limit=1).repeated == 0


def test_a_prompt_whose_row_gives_no_pair_is_counted(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}?", "completions": ["yes", "no"], "scores": [5, 5 if i == 2 else 1]} for i in range(4)]
    found = load_prompts(_file(tmp_path, rows))
    assert [prompt.prompt for prompt in found.prompts] == ["0?", "1?", "3?"]
    assert any("only prompts of rows that give a pair are asked" in note for note in found.notes)
    assert any("(rows 2): two answers have the same rating" in note for note in found.notes)
