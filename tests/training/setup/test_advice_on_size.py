"""How many pairs are few, enough for one domain, or recommended: the same bounds as in the audit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from preftune.audit.checks.size import DOMAIN, GENERAL
from preftune.training.setup.advice import advise


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (DOMAIN - 1, "999 pairs are few: about 1,000"),
        (DOMAIN, "1,000 pairs are enough for one domain; 10,000 or more are recommended"),
        (GENERAL - 1, "9,999 pairs are enough for one domain"),
        (GENERAL, None),
    ],
)
def test_the_number_of_pairs(pairs: int, words: str | None) -> None:
    config: Any = SimpleNamespace(beta=0.1, loss="sigmoid", learning_rate=1e-5)
    said = advise(config, pairs=pairs, has_chat_template=True, full=False, epochs=1)
    assert [line for line in said if " pairs are " in line] == [line for line in said if words and words in line]
    assert bool(words) == any(" pairs are " in line for line in said)
