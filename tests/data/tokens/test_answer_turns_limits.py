"""Pairs over several turns at their limits: cut, empty, read by several processes, and any conversation there is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.turns import PARTED, TEMPLATES, Tok, assistant, run, turn, user


def test_a_cut_clips_the_spans(chat: Tok) -> None:
    whole, _ = run([PARTED], chat)
    prompt = len(whole[0].prompt_ids)
    (_, first), (second, _) = whole[0].spans(0)
    groups, report = run([PARTED], chat, max_length=prompt + second + 1)
    assert groups[0].spans(0) == ((0, first), (second, second + 1))
    assert groups[0].completions[0] == whole[0].completions[0][: second + 1]
    assert report.truncated["chosen"].rows == [0]
    groups, _ = run([PARTED], chat, max_length=prompt + second)
    assert groups[0].spans(0) == ((0, first),)


def test_a_side_that_keeps_no_answer_is_dropped(chat: Tok) -> None:
    row = {
        "chosen": [user("Why?"), assistant("x"), user("more"), assistant("two")],
        "rejected": [user("Why?"), assistant("x"), user("less and less and less"), assistant("two")],
    }
    whole, _ = run([row], chat)
    longest = len(whole[0].prompt_ids) + whole[0].spans(1)[0][0]
    _, report = run([row, PARTED], chat, max_length=longest)
    assert report.dropped["no_answer_left"].rows == [0]
    assert "Dropped 1 row (0): truncation cuts off all text of the assistant on a side. Raise max_length." in (
        report.lines()
    )
    assert len(run([row], chat, max_length=longest + 1)[0]) == 1


def test_sides_whose_scored_tokens_truncation_makes_the_same_are_dropped(chat: Tok) -> None:
    """What differs behind the last scored token bears on nothing."""
    row = {
        "prompt": [user("Why?")],
        "chosen": [assistant("one two"), user("more"), assistant("two")],
        "rejected": [assistant("one two"), turn("tool", "less"), assistant("three")],
    }
    row["chosen"][0]["name"] = "differs for the turn, not for the template"
    whole, _ = run([row], chat)
    end = whole[0].spans(0)[0][1]
    assert whole[0].spans(1)[0] == (0, end)
    _, report = run([row, PARTED], chat, max_length=len(whole[0].prompt_ids) + end + 3)
    assert report.dropped["identical_after_truncation"].rows == [0]


def test_an_answer_of_nothing_is_empty_whatever_the_user_says(chat: Tok) -> None:
    row = {**PARTED, "chosen": [assistant(""), user("more"), assistant("")]}
    _, report = run([row, PARTED], chat)
    assert report.dropped["empty_completion"].rows == [0]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_several_processes_find_the_same_turns(chat: Tok) -> None:
    rows = [PARTED, {**PARTED, "rejected": [assistant("no")]}] * 2
    alone, alone_report = run(rows, chat)
    many, many_report = run(rows, chat, num_proc=2)
    assert list(alone) == list(many)
    assert alone_report == many_report


WORDS = st.sampled_from(["one", "Why?", "assistant", "user\n", " yes ", "<think>", "", "\n\nHuman:", "capital", "ital"])
TURNS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(turns=TURNS, other=TURNS, name=st.sampled_from(sorted(TEMPLATES)))
def test_any_conversation_scores_its_answers_or_is_dropped(
    chat: Tok, turns: list[tuple[str, str]], other: list[tuple[str, str]], name: str
) -> None:
    """As many spans as answers, each with one end mark and the answer's words; the rest is the others' turns."""
    chat.chat_template = TEMPLATES[name][0]

    def side(first: str, parts: list[tuple[str, str]]) -> list[dict[str, Any]]:
        return [assistant(first), *(m for question, answer in parts for m in (user(question), assistant(answer)))]

    row = {"prompt": [user("Why?")], "chosen": side("good", turns), "rejected": side("bad", other)}
    groups, _ = run([row], chat)
    for index, key in enumerate(("chosen", "rejected")):
        answers = [m["content"] for m in row[key] if m["role"] == "assistant"]
        ids, spans = groups[0].completions[index], groups[0].spans(index)
        assert len(spans) == len(answers)
        for (begin, end), answer in zip(spans, answers, strict=True):
            assert list(ids[begin:end]).count(chat.eos_token_id) == 1
            # an answer that begins like the prompt's think block is trained from where they part, as single ones are
            assert answer.strip().removeprefix("<think>") in chat.decode(ids[begin:end])
        context = [token for at, token in enumerate(ids) if not any(b <= at < e for b, e in spans)]
        assert context.count(chat.eos_token_id) == len(answers) - 1
