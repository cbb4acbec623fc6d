"""Token ids: the boundary, the end of an answer, the limits, and the account of every row."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from preftune.data import DIALOGUE_TEMPLATE, GroupDataset, TokenizeReport, load_pairs, tokenize_pairs
from preftune.errors import DatasetError
from preftune.types import Preference, TokenizedGroup
from tests.data.tiny_bpe import THINKING, make_tokenizer

Tok = PreTrainedTokenizerFast


def run(rows: Any, tokenizer: Tok, **kwargs: Any) -> tuple[GroupDataset, TokenizeReport]:
    kwargs.setdefault("max_length", None)
    return tokenize_pairs(load_pairs(rows), tokenizer, **kwargs)


def texts(group: TokenizedGroup, tokenizer: Tok) -> tuple[str, str, str]:
    prompt, chosen, rejected = (tokenizer.decode(ids) for ids in (group.prompt_ids, *group.completions))
    return prompt, chosen, rejected


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


STANDARD = {"prompt": "What is the capital of France?", "chosen": " It is Paris.", "rejected": " It is not Lyon."}
CHAT = {"prompt": "What is the capital of France?", "chosen": assistant("Paris."), "rejected": assistant("Lyon.")}


# --- the boundary and the end ---------------------------------------------------------------------------------------


def test_a_conversation_is_split_after_the_generation_prompt(chat: Tok) -> None:
    groups, report = run([CHAT], chat)
    assert texts(groups[0], chat) == (
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
        "Paris.<|im_end|>\n",
        "Lyon.<|im_end|>\n",
    )
    assert groups[0].pairs == (Preference(0, 1, 1.0, 0.0),)
    assert report.notes == []
    assert not report.moved_boundary.count


def test_text_gets_one_end_of_sequence(plain: Tok) -> None:
    row = {**STANDARD, "rejected": " It is not Lyon.</s></s>"}
    groups, _ = run([row], plain)
    assert texts(groups[0], plain) == ("<s>What is the capital of France?", " It is Paris.</s>", " It is not Lyon.</s>")
    for completion in groups[0].completions:
        assert completion.count(plain.eos_token_id) == 1


def test_a_tokenizer_that_appends_eos_by_itself() -> None:
    tokenizer = make_tokenizer(bos=True, appends_eos=True, bos_token="<s>", eos_token="</s>")
    groups, report = run([{**STANDARD, "chosen": " It is Paris.</s>"}], tokenizer)
    assert texts(groups[0], tokenizer) == (
        "<s>What is the capital of France?",
        " It is Paris.</s>",
        " It is not Lyon.</s>",
    )
    assert not report.moved_boundary.count


def test_pad_bos_and_eos_may_be_one_token(chat: Tok) -> None:
    one = make_tokenizer(bos_token="</s>", eos_token="</s>", pad_token="</s>")
    groups, _ = run([STANDARD, {**STANDARD, "prompt": ""}], one)
    assert [completion[-1] for group in groups for completion in group.completions] == [one.eos_token_id] * 4
    assert groups[1].prompt_ids == [one.eos_token_id]
    assert chat.pad_token_id == chat.eos_token_id
    groups, _ = run([CHAT], chat)
    assert all(chat.eos_token_id in completion for completion in groups[0].completions)


def test_a_token_across_the_boundary_moves_the_boundary(bare: Tok) -> None:
    row = {"prompt": "What is the cap", "chosen": "ital", "rejected": "s"}
    groups, report = run([row], bare)
    full = bare("What is the capital</s>")["input_ids"]
    assert [*groups[0].prompt_ids, *groups[0].completions[0]] == full
    assert texts(groups[0], bare)[0] == "What is the"
    assert (report.moved_boundary.count, report.moved_boundary.rows) == (1, [0])
    assert "the prompt is tokenised differently once an answer follows" in "\n".join(report.lines())


def test_a_template_that_changes_the_prompt_is_counted(chat: Tok) -> None:
    chat.chat_template = THINKING
    groups, report = run([CHAT, {**CHAT, "chat_template_kwargs": {"enable_thinking": True}}], chat)
    assert texts(groups[0], chat) == texts(groups[1], chat)
    assert texts(groups[0], chat)[0].endswith("<|im_start|>assistant\n")
    assert report.moved_boundary.rows == [0]


def test_template_arguments_and_tools_reach_the_template(chat: Tok) -> None:
    template = "{{ mood }}{{ tools | length if tools else 0 }}" + str(chat.chat_template)
    row = {**CHAT, "chat_template_kwargs": {"mood": "good"}, "tools": [{"type": "function"}]}
    groups, _ = run([row, CHAT], chat, chat_template=template)
    assert texts(groups[0], chat)[0].startswith("good1<|im_start|>")
    assert texts(groups[1], chat)[0].startswith("0<|im_start|>")


def test_an_end_of_turn_mark_other_than_eos_is_enough() -> None:
    tokenizer = make_tokenizer(eos_token="</s>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
    groups, report = run([CHAT], tokenizer)
    assert texts(groups[0], tokenizer)[1] == "assistant: Paris.<|im_end|>"
    assert not report.eos_added.count


def test_a_template_without_any_end_gets_eos() -> None:
    tokenizer = make_tokenizer(eos_token="</s>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    )
    groups, report = run([CHAT], tokenizer)
    assert texts(groups[0], tokenizer)[1] == "<|im_start|>assistant: Paris.\n</s>"
    assert report.eos_added.count == 1
    assert "Appended the end-of-sequence token in 1 row (0)" in "\n".join(report.lines())


def test_a_tokenizer_without_eos_is_reported() -> None:
    _, report = run([STANDARD], make_tokenizer(bos_token="<s>"))
    assert "has no eos token" in report.notes[0]


def test_an_answer_that_continues_the_prompt(chat: Tok) -> None:
    row = {"prompt": [user("Why?"), assistant("Because")], "chosen": " yeast makes gas.", "rejected": " it was."}
    row |= {"chosen": [assistant(str(row["chosen"]))], "rejected": [assistant(str(row["rejected"]))]}
    groups, report = run([row], chat)
    prompt, chosen, rejected = texts(groups[0], chat)
    assert prompt.endswith("<|im_start|>assistant\nBecause")
    assert (chosen, rejected) == (" yeast makes gas.<|im_end|>\n", " it was.<|im_end|>\n")
    assert report.continued.rows == [0]


def test_completions_that_begin_with_the_user(chat: Tok) -> None:
    head = [user("q"), assistant("a")]
    row = {"chosen": [*head, user("more"), assistant("b")], "rejected": [*head, user("less"), assistant("c")]}
    groups, report = run([row], chat)
    assert texts(groups[0], chat)[0].endswith("a<|im_end|>\n<|im_start|>user\n")
    assert texts(groups[0], chat)[1] == "more<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
    assert report.several_turns.rows == [0]
    assert not report.moved_boundary.count


def test_an_empty_prompt_begins_with_bos_or_eos(bare: Tok) -> None:
    row = {"prompt": "", "chosen": "yes", "rejected": "no"}
    bos_only_by_name = make_tokenizer(bos_token="<s>", eos_token="</s>")
    groups, _ = run([row], bos_only_by_name)
    assert groups[0].prompt_ids == [bos_only_by_name.bos_token_id]
    groups, _ = run([row], bare)
    assert groups[0].prompt_ids == [bare.eos_token_id]
    with pytest.raises(DatasetError, match="neither bos nor eos"):
        run([row], make_tokenizer())


# --- chat templates ---------------------------------------------------------------------------------------------------


def test_conversations_need_a_chat_template(plain: Tok) -> None:
    with pytest.raises(DatasetError, match=r"no chat template, but row 0 is a conversation.*DIALOGUE_TEMPLATE"):
        run([CHAT], plain)
    groups, report = run([CHAT], plain, chat_template=DIALOGUE_TEMPLATE)
    assert texts(groups[0], plain) == (
        "\n\nHuman: What is the capital of France?\n\nAssistant:",
        " Paris.</s>",
        " Lyon.</s>",
    )
    assert not report.moved_boundary.count


def test_text_with_a_chat_tokenizer_is_reported(chat: Tok) -> None:
    _, report = run([STANDARD, CHAT], chat)
    assert report.notes == [
        "1 row is plain text and tokenised without a template, although the tokenizer has a chat template. For a chat "
        "model give prompts as messages, or load_pairs(...).as_chat() (--as_chat)."
    ]


def test_a_template_that_refuses_a_row_drops_it_with_its_words(chat: Tok) -> None:
    chat.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role here') }}{% endif %}"
        + str(chat.chat_template)
    )
    rows = [CHAT, {**CHAT, "prompt": [{"role": "system", "content": "S"}, user("Q")]}]
    groups, report = run(rows, chat)
    assert len(groups) == 1
    assert report.dropped["template_refused"].rows == [1]
    assert any("no system role here" in note for note in report.notes)
    with pytest.raises(DatasetError, match=r"Nothing is left to train on.*no system role here"):
        run(rows[1:], chat)


# --- rows that cannot train -------------------------------------------------------------------------------------------


def test_rows_that_cannot_train_are_counted_by_reason(chat: Tok) -> None:
    rows = [
        CHAT,
        {**STANDARD, "chosen": " "},
        {**STANDARD, "rejected": "<|im_end|>"},
        {**CHAT, "chosen": [assistant("")]},
        {**STANDARD, "chosen": STANDARD["rejected"]},
        {**CHAT, "chosen": CHAT["rejected"]},
        {**CHAT, "chosen": [user("Paris?")]},
        {"prompt": "", "chosen": [assistant("a")], "rejected": [assistant("b")]},
        STANDARD,
        {**CHAT, "chosen": []},
        {**CHAT, "rejected": []},
    ]
    groups, report = run(rows, chat)
    assert [group.id for group in groups] == ["0", "8"]
    assert {reason: tally.rows for reason, tally in report.dropped.items()} == {
        "empty_completion": [1, 2, 3, 9, 10],
        "identical": [4, 5],
        "no_answer": [6],
        "no_shared_prompt": [7],
    }
    assert (report.rows_in, report.rows_out, report.rows_dropped) == (11, 2, 9)
    lines = report.lines()
    assert lines[0].startswith("the dataset: 2 of 11 rows kept")
    assert (
        "Dropped 5 rows (1, 2, 3, 9, 10): chosen or rejected is empty. Remove such rows, or fill in the empty side."
        in lines
    )
    assert json.loads(json.dumps(report.to_json()))["dropped"]["identical"] == {"count": 2, "rows": [4, 5]}


def test_nothing_left_is_an_error_with_the_reasons(chat: Tok) -> None:
    with pytest.raises(
        DatasetError, match=r"Nothing is left to train on.*Dropped 1 row \(0\): chosen and rejected are the"
    ):
        run([{**STANDARD, "chosen": STANDARD["rejected"]}], chat)


# --- limits -----------------------------------------------------------------------------------------------------------


# --- the account and the store ----------------------------------------------------------------------------------------


def test_weights_margins_and_ids_are_carried(plain: Tok) -> None:
    rows = [{**STANDARD, "weight": 0.5, "margin": 2.0, "id": "first"}, STANDARD]
    groups, report = run(rows, plain)
    assert groups[0].pairs == (Preference(0, 1, 0.5, 2.0),)
    assert [group.id for group in groups] == ["first", "1"]
    assert report.total_tokens == groups.total_tokens == sum(group.tokens for group in groups)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_several_processes_give_the_same(chat: Tok) -> None:
    rows = [{**CHAT, "weight": 1.0 + i} for i in range(5)] + [{**STANDARD, "chosen": ""}]
    alone, alone_report = run(rows, chat)
    many, many_report = run(rows, chat, num_proc=2)
    assert list(alone) == list(many)
    assert alone.fingerprint == many.fingerprint
    assert alone_report == many_report


def test_a_selection_is_tokenised_under_its_own_row_numbers(plain: Tok) -> None:
    pairs = load_pairs([STANDARD, STANDARD, {**STANDARD, "chosen": ""}]).select([2, 1])
    groups, report = tokenize_pairs(pairs, plain)
    assert groups[0].id == "1"
    assert report.dropped["empty_completion"].rows == [2]


def test_many_rows_of_a_reason_are_counted_and_a_few_named(plain: Tok) -> None:
    rows = [STANDARD] + [{**STANDARD, "chosen": ""}] * 1200
    _, report = run(rows, plain)
    assert "Dropped 1,200 rows (1, 2, 3, 4, 5, ...): chosen or rejected is empty" in report.lines()[1]


def test_the_room_that_every_answer_has_is_reported_and_kept(chat: Tok) -> None:
    rows = [
        {
            "prompt": [user("a b c d " * count)],
            "chosen": [assistant("e f g h " * 40)],
            "rejected": [assistant("i " * 90)],
        }
        for count in (1, 5, 40)
    ]
    groups, report = run(rows, chat, max_length=64, max_prompt_length=24)
    assert "Every answer has room for at least 40 tokens (max_length=64 less max_prompt_length=24)." in report.notes
    assert all(len(group.prompt_ids) <= 24 for group in groups)
    assert all(len(ids) == 64 - len(group.prompt_ids) >= 40 for group in groups for ids in group.completions)
    _, report = run(rows[:1], chat, max_length=64)
    assert not any("has room" in note for note in report.notes)


LEAVES_OUT = (
    "{% for m in messages if m['role'] != 'system' %}{{ '<|im_start|>' + m['role'] + '\n' "
    "+ m['content'].split('</think>')[-1]|trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As DeepSeek's R1 distillations have it: no thought of any turn, the last one's neither."""


def test_what_the_template_does_not_write_is_said(chat: Tok) -> None:
    thought = "<think>\nParis, surely.\n</think>\n\nParis."
    asked = user("What is the capital of France?")
    rows = [
        CHAT,
        {**CHAT, "prompt": [{"role": "system", "content": "Be short."}, asked]},
        {**CHAT, "chosen": [assistant(thought)]},
        {**CHAT, "chosen": [{**assistant("Paris."), "reasoning_content": "Paris, surely."}]},
        {**CHAT, "prompt": [asked, assistant(thought), user("Sure?")]},
        {**CHAT, "chosen": [assistant("  Paris. \n")]},
    ]
    _, report = run(rows, chat)
    assert {part: tally.rows for part, tally in report.unwritten.items()} == {"the reasoning of an answer": [3]}
    chat.chat_template = LEAVES_OUT
    _, report = run(rows, chat)
    assert {part: tally.rows for part, tally in report.unwritten.items()} == {
        "the system prompt": [1],
        "a part of an answer": [2],
        "the reasoning of an answer": [3],
    }
    assert any(
        "does not write the system prompt, and the model is trained without it" in line for line in report.lines()
    )
