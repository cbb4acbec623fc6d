"""Names of TRL that preftune does not have: their import says what to use instead, as docs/from-trl.md does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import preftune
from preftune.from_trl import INSTEAD

PAGE = (Path(__file__).parent.parent / "docs" / "from-trl.md").read_text(encoding="utf-8")


def test_the_page_has_the_same_names_and_sentences() -> None:
    section = PAGE.split("## Names that preftune does not have")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    assert {name: instead for names, instead in rows for name in re.findall(r"`(\w+)`", names)} == INSTEAD


@pytest.mark.parametrize("name", INSTEAD)
def test_an_import_says_what_to_use_instead(name: str) -> None:
    assert name not in preftune.__all__
    with pytest.raises(ImportError) as found:
        exec(f"from preftune import {name}")
    assert str(found.value).startswith(f"preftune has no {name}. {INSTEAD[name]}")
    for instead in re.findall(r"`(\w+(?:Trainer|Config)|load_model)\b", INSTEAD[name]):
        assert instead in preftune.__all__


def test_any_other_name_is_an_attribute_error() -> None:
    assert not hasattr(preftune, "Trainer")
    with pytest.raises(ImportError, match="cannot import name 'Trainer'"):
        exec("from preftune import Trainer")
