from __future__ import annotations

import pytest

from preftune.cli.train.ended_run import _resumes_newest


@pytest.mark.parametrize(
    ("words", "newest"),
    [
        (["--model", "x"], False),
        (["--resume"], True),
        (["--resume", "--model", "x"], True),
        (["--resume", "auto", "--model", "x"], True),
        (["--resume=auto"], True),
        (["--resume", "runs/dpo/checkpoint-2"], False),
        (["--resume=runs/dpo/checkpoint-2"], False),
    ],
)
def test_the_flag_that_continues_is_not_printed_twice(words, newest):
    assert _resumes_newest(words) == newest
