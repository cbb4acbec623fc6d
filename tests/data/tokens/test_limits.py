"""Limits on prompts and answers: what is cut, what is dropped, and what is reported."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preftune.errors import ConfigError, DatasetError

from .test_pairs import STANDARD, Tok, run, texts


def word_row(prompt: int, chosen: int, rejected: int) -> dict[str, str]:
    """A row of that many tokens (a digit each), before bos and eos."""
    return {
        "prompt": "".join(str(i % 10) for i in range(prompt)),
        "chosen": "".join(str(i % 10) for i in range(chosen)),
        "rejected": "".join(str((i + 5) % 10) for i in range(rejected)),
    }


def test_truncation_keeps_the_end_of_the_prompt_and_the_start_of_the_answer(plain: Tok) -> None:
    rows = [word_row(8, 3, 6), word_row(2, 3, 3)]
    groups, report = run(rows, plain, max_length=9, max_prompt_length=5)
    assert texts(groups[0], plain) == ("<s>4567", "012</s>", "5678")
    assert texts(groups[1], plain) == ("<s>01", "012</s>", "567</s>")
    assert {part: tally.rows for part, tally in report.truncated.items()} == {"prompt": [0], "rejected": [0]}
    assert (report.longest, report.longest_prompt) == (16, 9)
    lines = "\n".join(report.lines())
    assert "Cut the beginning of the prompt in 1 row (0). max_prompt_length=9 would keep them whole." in lines
    assert "Cut the end of rejected in 1 row (0); no end-of-sequence token is trained there. max_length=16" in lines


def test_truncation_without_a_prompt_limit_keeps_the_start(plain: Tok) -> None:
    rows = [word_row(4, 3, 6), word_row(9, 1, 2), word_row(8, 1, 2)]
    groups, report = run(rows, plain, max_length=9)
    assert texts(groups[0], plain) == ("<s>0123", "012</s>", "5678")
    assert {reason: tally.rows for reason, tally in report.dropped.items()} == {"prompt_too_long": [1, 2]}


def test_rows_that_truncation_makes_identical_are_dropped(plain: Tok) -> None:
    row = {"prompt": "0", "chosen": "0123", "rejected": "0129"}
    groups, report = run([row, word_row(1, 2, 2)], plain, max_length=5)
    assert len(groups) == 1
    assert report.dropped["identical_after_truncation"].rows == [0]
    assert not report.truncated


def test_policy_drop(plain: Tok) -> None:
    rows = [word_row(1, 1, 1), word_row(1, 1, 9), word_row(5, 1, 1), word_row(9, 1, 1)]
    groups, report = run(rows, plain, max_length=8, max_prompt_length=4, truncation="drop")
    assert len(groups) == 1
    assert {reason: tally.rows for reason, tally in report.dropped.items()} == {
        "too_long": [1],
        "prompt_too_long": [2, 3],
    }


def test_policy_error_names_rows_the_longest_and_the_fix(plain: Tok) -> None:
    rows = [word_row(1, 1, 1), word_row(1, 1, 9), word_row(5, 1, 1)]
    with pytest.raises(DatasetError) as caught:
        run(rows, plain, max_length=8, truncation="error")
    message = str(caught.value)
    assert "1 of 3 rows longer than max_length=8 (row 1: 12 tokens; the longest has 12" in message
    assert 'Set max_length=12 to keep them whole, or truncation="truncate" to cut them' in message
    with pytest.raises(DatasetError, match=r"max_prompt_length=4 .row 2: 8 tokens.*Set max_prompt_length=6 to keep"):
        run(rows, plain, max_prompt_length=4, truncation="error")
    groups, _ = run(rows, plain, max_length=12, max_prompt_length=6, truncation="error")
    assert len(groups) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 1}, "max_length is 1"),
        ({"max_length": 8.5}, "max_length is 8.5"),
        ({"max_length": True}, "max_length is True"),
        ({"max_prompt_length": 0}, "max_prompt_length is 0"),
        ({"max_length": 8, "max_prompt_length": 8}, "max_prompt_length=8 leaves no room"),
        ({"truncation": "cut"}, "truncation is 'cut'; it can be 'error', 'drop', 'truncate'"),
        ({"num_proc": 0}, "num_proc is 0"),
    ],
)
def test_impossible_limits(plain: Tok, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run([STANDARD], plain, **options)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 12)] * 3), min_size=1, max_size=4),
    st.integers(4, 14),
    st.none() | st.integers(2, 13),
    st.sampled_from(["drop", "truncate"]),
)
def test_limits_hold_and_every_row_is_accounted_for(
    plain: Tok, sizes: list[tuple[int, int, int]], longest: int, longest_prompt: int | None, policy: Any
) -> None:
    if longest_prompt is not None and longest_prompt >= longest:
        longest_prompt = None
    rows = [word_row(1, 1, 1), *(word_row(*size) for size in sizes)]
    limits = {"max_length": longest, "max_prompt_length": longest_prompt, "truncation": policy}
    groups, report = run(rows, plain, **limits)
    assert report.rows_out + report.rows_dropped == report.rows_in == len(rows)
    for group in groups:
        assert group.prompt_ids
        assert group.completions[0] != group.completions[1]
        assert longest_prompt is None or len(group.prompt_ids) <= longest_prompt
        assert all(0 < len(c) <= longest - len(group.prompt_ids) for c in group.completions)
