"""Demonstrations of every shape: what is read, what of it is trained, what is dropped, cut and counted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from preftune.data import DemonstrationDataset, load_demonstrations, load_pairs, tokenize_demonstrations
from preftune.data.demonstrations.mixture import mix_demonstrations
from preftune.data.tokens.cache import tokenize_or_recall
from preftune.errors import ConfigError, DatasetError
from tests.data.tiny_bpe import CHATML, make_tokenizer
from tests.data.turns import TEMPLATES, assistant, shown, user
from tiny import tiny_tokenizer

ROW = {"messages": [user("Why?"), assistant("So."), user("And?"), assistant("Thus.")]}


def tokenizer(template: str | None = CHATML, **special: Any):
    made = make_tokenizer(eos_token="<|im_end|>", bos_token="<s>", pad_token="<pad>", **special)
    made.chat_template = template
    return made


def one(row: Any, **options: Any) -> list[str]:
    """The prompt and the completion of a row, its trained tokens in brackets."""
    tok = options.pop("tokenizer", None) or tokenizer()
    load = {key: options.pop(key) for key in ("columns", "format") if key in options}
    groups, _ = tokenize_demonstrations(load_demonstrations([row], **load), tok, **options)
    assert len(groups) == 1
    assert groups.pairs == 0
    return shown(groups[0], tok)


# --- shapes ---

SHAPES = {
    "messages": {"messages": [user("Why?"), assistant("So.")]},
    "messages as JSON": {"messages": json.dumps([user("Why?"), assistant("So.")])},
    "sharegpt": {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
    "prompt and completion as messages": {"prompt": [user("Why?")], "completion": [assistant("So.")]},
    "text prompt, message completion": {"prompt": "Why?", "completion": [assistant("So.")]},
    "alpaca": {"instruction": "Why?", "input": "", "output": "So."},
    "dolly": {"instruction": "Why?", "context": "", "response": "So.", "category": "qa"},
    "llama-factory with history": {"instruction": "Why?", "input": "", "output": "So.", "system": "", "history": []},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_conversation_gives_the_same_tokens(shape):
    assert one(SHAPES[shape]) == [
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        "⟦So.<|im_end|>\n⟧",
    ]


def test_an_input_follows_its_instruction_and_a_history_and_a_system_prompt_come_first():
    row = {
        "instruction": "Why?",
        "input": "red",
        "output": "So.",
        "system": "Be good.",
        "history": [["One?", "Two."]],
    }
    (prompt, _) = one(row)
    turns = ["system\nBe good.", "user\nOne?", "assistant\nTwo.", "user\nWhy?\n\nred"]
    assert prompt == "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns) + "<|im_start|>assistant\n"


def test_plain_prompts_and_completions_stay_as_they_are():
    assert one({"prompt": "Why does", "completion": " bread rise?"}) == ["Why does", "⟦ bread rise?<|im_end|>⟧"]
    assert one({"question": "Why does", "answer": " bread rise?"}) == ["Why does", "⟦ bread rise?<|im_end|>⟧"]


def test_plain_texts_are_trained_from_their_second_token():
    tok = tokenizer()
    prompt, completion = one({"text": "Why does bread rise?"}, tokenizer=tok)
    assert prompt + completion.strip("⟦⟧") == "Why does bread rise?<|im_end|>"
    assert len(tok(prompt)["input_ids"]) == 1
    with_bos = tokenizer(bos=True)
    assert one({"text": "Why?"}, tokenizer=with_bos) == ["<s>", "⟦Why?<|im_end|>⟧"]


def test_as_chat_makes_conversations_of_plain_rows():
    rows = load_demonstrations([{"prompt": "Why?", "completion": "So."}]).as_chat()
    groups, _ = tokenize_demonstrations(rows, tokenizer())
    assert shown(groups[0], tokenizer()) == one(SHAPES["messages"])


def test_named_columns_win():
    row = {"a": "Why?", "b": "So.", "messages": [user("x"), assistant("y")]}
    assert one(row, columns={"prompt": "a", "completion": "b"}) == ["Why?", "⟦So.<|im_end|>⟧"]
    with pytest.raises(DatasetError, match="no column 'c', which was named as 'prompt'"):
        one(row, columns={"prompt": "c", "completion": "b"})
    with pytest.raises(DatasetError, match=r"'promt' is not a column of demonstrations\. Did you mean 'prompt'"):
        one(row, columns={"promt": "a"})


def test_an_unknown_shape_says_what_to_name():
    with pytest.raises(DatasetError, match=r"holds no demonstrations that preftune knows .found: 'foo'.*--columns"):
        load_demonstrations([{"foo": "x"}])
    with pytest.raises(DatasetError, match="'alpca' is not a format of demonstrations"):
        load_demonstrations([{"text": "x"}], format="alpca")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": 5}, "row 0, column 'text': 5 is an int, neither text nor a list of messages"),
        ({"text": None}, "row 0, column 'text': missing or null"),
        ({"messages": "Hello"}, "row 0, column 'messages': text, not a list of turns"),
        ({"messages": None, "source": "a"}, "row 0, column 'messages': missing or null"),
        ({"messages": 3.5}, "row 0, column 'messages': 3.5 is a float, neither text nor a list of messages"),
        ({"instruction": 5, "output": "So."}, "row 0, column 'prompt': 5 is an int"),
    ],
    ids=str,
)
def test_a_column_of_another_type_is_not_called_unknown(row, said):
    with pytest.raises(DatasetError) as found:
        load_demonstrations([row])
    assert said in str(found.value)
    assert "YOURS" not in str(found.value)


# --- what is trained ---


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_assistants_turns_are_trained_and_nothing_else(name):
    template, _ = TEMPLATES[name]
    tok = tokenizer(template)
    groups, report = tokenize_demonstrations(load_demonstrations([ROW]), tok)
    prompt, completion = shown(groups[0], tok)
    trained = [part.split("⟧")[0] for part in completion.split("⟦")[1:]]
    assert [text.removesuffix("\n").removesuffix("<|im_end|>").strip() for text in trained] in (
        ["So.", "Thus."],
        ["So.", "<think>\n\n</think>\n\nThus."],  # the template writes an empty thought into the last answer
    )
    assert all("Why?" not in text and "And?" not in text for text in trained)
    assert report.turns == 2
    whole = tok.apply_chat_template(ROW["messages"], tokenize=False)
    assert prompt + completion.replace("⟦", "").replace("⟧", "") == whole


def test_everything_can_be_trained():
    prompt, completion = one(ROW, assistant_only_loss=False)
    assert prompt == "<|im_start|>"
    assert completion.startswith("⟦user\nWhy?")
    assert completion.count("⟦") == 1


def test_a_completion_of_several_turns():
    row = {"prompt": [user("Why?")], "completion": [assistant("So."), user("And?"), assistant("Thus.")]}
    middle = "⟧<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n⟦"
    assert one(row)[1] == f"⟦So.<|im_end|>\n{middle}Thus.<|im_end|>\n⟧"
    assert one(row, assistant_only_loss=False)[1] == one(row)[1].replace("⟧<", "<").replace("\n⟦T", "\nT")
    earlier = {"prompt": [user("a"), assistant("b"), user("Why?")], "completion": [assistant("So.")]}
    assert one(earlier)[1] == "⟦So.<|im_end|>\n⟧"
    assert one(earlier, completion_only_loss=False)[1].count("⟦") == 2


def test_a_begun_answer_is_continued():
    row = {"prompt": [user("Why?"), assistant("Because")], "completion": [assistant(" so.")]}
    prompt, completion = one(row)
    assert prompt.endswith("assistant\nBecause")
    assert completion.startswith("⟦ so.")


def test_what_the_data_do_not_have_cannot_be_asked_for():
    with pytest.raises(ConfigError, match=r"completion_only_loss=True, but row 0 is one conversation"):
        one(ROW, completion_only_loss=True)
    with pytest.raises(ConfigError, match=r"completion_only_loss=True, but row 0 is one text"):
        one({"text": "x y"}, completion_only_loss=True)
    with pytest.raises(ConfigError, match=r"assistant_only_loss=True, but row 0 is plain text"):
        one({"prompt": "a", "completion": "b"}, assistant_only_loss=True)


def test_conversations_need_a_chat_template():
    with pytest.raises(DatasetError, match="no chat template, but row 0 is a conversation"):
        one(ROW, tokenizer=tokenizer(None))


# --- counts ---


def test_what_cannot_train_is_dropped_and_counted():
    rows = [
        ROW,
        {"messages": [user("Why?")]},
        {"messages": [assistant("So.")]},
        {"messages": [user("Why?"), assistant(" ")]},
        {"messages": [user("Why?"), assistant("So."), user("Thanks")]},
        {"messages": [assistant("Hi."), user("Why?"), assistant("So.")]},
    ]
    groups, report = tokenize_demonstrations(load_demonstrations(rows), tokenizer())
    assert len(groups) == 3
    assert {reason: tally.rows for reason, tally in report.dropped.items()} == {
        "no_answer": [1],
        "no_question": [2],
        "empty_completion": [3],
    }
    assert (report.trimmed.rows, report.first_turn.rows) == ([4], [5])
    said = " ".join(report.lines())
    assert "3 of 6 rows kept" in said
    assert "Left out the turns after the last answer in 1 row (4)" in said
    assert report.to_json()["dropped"]["no_answer"] == {"count": 1, "rows": [1]}
    assert report.scored_tokens == groups.scored_tokens < report.total_tokens


def test_limits():
    rows = load_demonstrations([ROW, SHAPES["messages"]])
    tok = tokenizer()
    whole, _ = tokenize_demonstrations(rows, tok)
    length, short = whole.lengths.tolist()
    cut, report = tokenize_demonstrations(rows, tok, max_length=length - 4)
    assert cut[0].completions[0] == whole[0].completions[0][:-4]
    assert cut[0].scored[0][-1][1] == len(cut[0].completions[0])
    assert (report.truncated["row"].rows, report.longest) == ([0], length)
    dropped, report = tokenize_demonstrations(rows, tok, max_length=short, truncation="drop")
    assert len(dropped) == 1
    assert report.dropped["too_long"].rows == [0]
    with pytest.raises(DatasetError, match=f"1 of 2 rows longer than max_length={short}.*max_length={length}"):
        tokenize_demonstrations(rows, tok, max_length=short, truncation="error")
    with pytest.raises(DatasetError, match="Nothing is left to train on"):
        tokenize_demonstrations(rows, tok, max_length=len(whole[1].prompt_ids))


def test_bad_answers_are_no_demonstrations():
    rows = [{**SHAPES["messages"], "label": bool(i % 2)} for i in range(4)]
    data = load_demonstrations(rows)
    assert [row.row for row in data] == [1, 3]
    _, report = tokenize_demonstrations(data, tokenizer())
    assert report.rows_in == 4
    assert report.dropped["bad_answer"].rows == [0, 2]


def test_of_preferences_the_unbeaten_answers_are_imitated():
    rows = [
        {"prompt": "Why?", "chosen": "best", "rejected": "good"},
        {"prompt": "Why?", "chosen": "best", "rejected": "bad"},
        {"prompt": "Why?", "chosen": "good", "rejected": "bad"},
        {"prompt": "How?", "chosen": "good", "rejected": "bad"},
    ]
    data = load_demonstrations(rows)
    assert [(row.prompt, row.completion) for row in data] == [("Why?", "best"), ("How?", "good")]
    assert {reason: out.count for reason, out in data.left.items()} == {"repeated": 1, "beaten": 1}
    assert any("holds preferences: their chosen side is imitated (2 answers" in note for note in data.notes)
    assert [row.row for row in load_demonstrations(load_pairs(rows))] == [0, 3]


# --- datasets ---


def test_a_dataset_is_a_sequence():
    data = load_demonstrations([{"text": f"row {i}"} for i in range(5)])
    assert isinstance(data, DemonstrationDataset)
    assert (len(data), data[3].completion, data[-1].completion) == (5, "row 3", "row 4")
    assert [row.completion for row in data[1:3]] == ["row 1", "row 2"]
    assert [row.row for row in data.select([4, 0])] == [4, 0]


def test_a_mixture_keeps_what_its_parts_say():
    parts = [load_demonstrations([ROW] * 3, name="a"), load_demonstrations([{"prompt": "p", "completion": "c"}] * 9)]
    mixed = mix_demonstrations(parts, [0.5, 0.5])
    assert len(mixed) == 6
    groups, _ = tokenize_demonstrations(mixed, tokenizer())
    assert shown(groups[0], tokenizer()) == one(ROW)
    assert shown(groups[3], tokenizer()) == one({"prompt": "p", "completion": "c"})
    assert {row.source for row in mixed} == {"a", "the dataset"}


def test_token_ids_are_kept_on_disk(monkeypatch):
    monkeypatch.setattr("preftune.data.tokens.cache.LEAST_PAIRS", 1)
    data, tok = load_demonstrations([ROW, {**ROW}]), tokenizer()
    first, told, recalled = tokenize_or_recall(data, tok)
    assert not recalled
    again, told_again, recalled = tokenize_or_recall(data, tok)
    assert recalled
    assert again.fingerprint == first.fingerprint
    assert told_again == told
    for options in ({"assistant_only_loss": False}, {"max_length": 30}):
        assert not tokenize_or_recall(data, tok, **options)[2]
    assert not tokenize_or_recall(data.select([0]), tok)[2]


def trained_texts(rows, **options):
    """What each row trains, turn by turn."""
    tokenizer = tiny_tokenizer()
    groups, report = tokenize_demonstrations(load_demonstrations(rows), tokenizer, **options)
    texts = [
        [tokenizer.decode(group.completions[0][begin:end]) for begin, end in group.spans(0)]
        for group in (groups[i] for i in range(len(groups)))
    ]
    return texts, report


def turns(*said, **last):
    made = [{"role": "user" if at % 2 == 0 else "assistant", "content": text} for at, text in enumerate(said)]
    return [*made[:-1], {**made[-1], **last}]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([*turns("a", "no", weight=0), *turns("b", "yes", weight=1)], ["yes<|im_end|>\n"]),
        ([*turns("a", "yes"), *turns("b", "no", weight=0), *turns("c", "end")], ["yes<|im_end|>\n", "end<|im_end|>\n"]),
        ([*turns("a", "yes"), *turns("b", "no", weight=0)], ["yes<|im_end|>\n"]),
        ([*turns("a", "yes"), *turns("b", ""), *turns("c", "end")], ["yes<|im_end|>\n", "end<|im_end|>\n"]),
    ],
)
def test_turns_of_weight_0_and_empty_ones_are_context(messages, expected):
    """OpenAI's format of fine-tuning says by a turn's weight whether it is trained."""
    (texts,), report = trained_texts([{"messages": messages}])
    assert texts == expected
    assert report.context.count == 1
    assert report.turns == len(expected)
    assert any("weight 0, and are only context" in line for line in report.lines())


def test_a_weight_that_is_neither_0_nor_1_is_refused():
    with pytest.raises(DatasetError, match=r"row 0: a turn of the assistant has weight 0.5"):
        trained_texts([{"messages": turns("a", "b", weight=0.5)}])


def test_rows_that_are_left_out_are_named_as_in_the_file():
    """Also where the pairs are a part of the file: row 9 there is the fourth of them."""
    pairs = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": "bad"} for i in range(8)]
    pairs += [{"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "b", "rejected": "c"}]
    data = load_demonstrations(load_pairs(pairs).select([5, 6, 8, 9]))
    assert data.left["beaten"].rows == [9]


def test_what_the_template_does_not_write_is_said():
    turns = [{"role": "user", "content": "2 and 2?"}, {"role": "assistant", "content": "4"}]
    thinks = [turns[0], {**turns[1], "reasoning_content": "Two and two are four."}]
    _, report = tokenize_demonstrations(load_demonstrations([{"messages": turns}, {"messages": thinks}]), tokenizer())
    assert report.unwritten["the reasoning of an answer"].rows == [1]
    assert any("does not write the reasoning of an answer" in line for line in report.lines())
