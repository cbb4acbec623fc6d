"""A completion's key: what is scored after which tokens."""

from __future__ import annotations

from preftune.reference.fingerprint import completion_keys
from tests.reference.keys import completion_key


def test_the_boundary_between_prompt_and_completion_is_part_of_the_key():
    keys = {completion_key([1, 2], [3]), completion_key([1], [2, 3]), completion_key([1, 2, 3], [])}
    assert len(keys) == 3


def test_the_key_depends_on_every_token_and_on_nothing_else():
    import numpy as np

    key = completion_key([1, 2], [3, 4])
    assert completion_key((1, 2), np.array([3, 4], np.int64)) == key
    others = [([0, 2], [3, 4]), ([1, 2], [3, 5]), ([2, 1], [3, 4]), ([1, 2], [3, 4, 0]), ([1, 2], [3, 4 + 2**16])]
    assert len({completion_key(*other) for other in others} | {key}) == len(others) + 1


def test_the_key_depends_on_what_is_scored_and_of_ordinary_completions_is_what_it_always_was():
    """The bytes are those of the first release: caches that people have stay valid."""
    written = "ac6e28a5d1a9f0915bbb57e24e8675e0", "53bf1005a195144ad7cb9fceef58fa79"
    assert [key.hex() for key in completion_keys([1, 2], [[3, 4, 5], [7]])] == list(written)
    assert [key.hex() for key in completion_keys([1, 2], [[3, 4, 5], [7]], ((), ()))] == list(written)
    spans = [(), ((0, 1),), ((1, 3),), ((0, 1), (2, 3)), ((2, 3),)]
    keys = {completion_key([1, 2], [3, 4, 5], span) for span in spans}
    assert len(keys) == len(spans)
    ordinary, part = completion_keys([1, 2], [[3, 4, 5], [3, 4, 5]], ((), ((1, 3),)))
    assert (ordinary.hex(), part) == (written[0], completion_key([1, 2], [3, 4, 5], ((1, 3),)))
    # spans are not mistaken for tokens, wherever a completion ends
    assert completion_key([1], [2, 3, 0, 1, 2], ()) != completion_key([1], [2, 3], ((0, 1),))
    assert completion_key([1], [2, 0, 1], ((0, 1),)) != completion_key([1], [2], ((0, 1), (0, 1)))
