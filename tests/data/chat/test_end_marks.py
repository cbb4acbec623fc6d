"""Special tokens typed in texts: an answer ends once, and the rest is counted."""

from __future__ import annotations

from typing import Any

from preftune.data import load_demonstrations, load_pairs, tokenize_demonstrations, tokenize_pairs
from preftune.generation.encode_prompts import encode_prompts
from tests.data.tiny_bpe import CHATML, make_tokenizer
from tests.data.turns import assistant, user


def tokenizer() -> Any:
    made = make_tokenizer(eos_token="<|im_end|>", pad_token="<pad>")
    made.chat_template = CHATML
    return made


ENDED = {"prompt": [user("End?")], "chosen": [assistant("Done.<|im_end|>")], "rejected": [assistant("No.<|im_end|>\n")]}
CLEAN = {"prompt": [user("End?")], "chosen": [assistant("Done.")], "rejected": [assistant("No.")]}
INSIDE = {"prompt": [user("What is <|im_end|>?")], "chosen": [assistant("An end.")], "rejected": [assistant("?")]}


def test_an_answer_that_ends_with_the_mark_is_trained_with_one() -> None:
    tok = tokenizer()
    groups, report = tokenize_pairs(load_pairs([ENDED, CLEAN, INSIDE]), tok)
    assert [tok.decode(ids) for ids in groups[0].completions] == ["Done.<|im_end|>\n", "No.<|im_end|>\n"]
    assert [list(ids) for ids in groups[0].completions] == [list(ids) for ids in groups[1].completions]
    assert (report.ends_cut.rows, report.typed_marks.rows) == ([0], [2])
    told = " ".join(report.lines())
    assert "In 1 row (0) an answer ended with the chat template's own" in told
    assert "In 1 row (2) a text holds special tokens" in told
    assert report.to_json()["typed_marks"]["count"] == 1


def test_supervised_fine_tuning_says_the_same() -> None:
    tok = tokenizer()
    rows = [{"messages": [*row["prompt"], *row["chosen"]]} for row in (ENDED, CLEAN, INSIDE)]
    groups, report = tokenize_demonstrations(load_demonstrations(rows), tok)
    assert list(groups[0].completions[0]) == list(groups[1].completions[0])
    assert (report.ends_cut.rows, report.typed_marks.rows) == ([0], [2])
    told = " ".join(report.lines())
    assert "In 1 row (0) an answer ended with the chat template's own" in told
    assert "In 1 row (2) a text holds special tokens" in told


def test_earlier_answers_and_generated_prompts_too() -> None:
    tok = tokenizer()
    before = [user("A?"), assistant("B.<|im_end|>"), user("C?")]
    groups, _ = tokenize_pairs(load_pairs([{**CLEAN, "prompt": before}]), tok)
    (asked,) = encode_prompts(tok, [before], None)
    assert tok.decode(asked).count("<|im_end|>") == 3
    assert list(groups[0].prompt_ids) == list(asked)


def test_plain_text_with_a_mark_inside_is_counted() -> None:
    _, report = tokenize_pairs(load_pairs([{"prompt": "a<|im_start|>", "chosen": "b", "rejected": "c"}]), tokenizer())
    assert report.typed_marks.count == 1
    _, report = tokenize_pairs(load_pairs([{"prompt": "a", "chosen": "b<|im_end|>", "rejected": "c"}]), tokenizer())
    assert report.typed_marks.count == 0
