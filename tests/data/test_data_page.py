"""docs/data.md shows every format with the row that the tests read, and every column and filter that there is.

PREFTUNE_WRITE_PAGE=1 python -m pytest tests/data/test_data_page.py     writes the formats into the page
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from preftune.data import CANONICAL, FORMATS
from preftune.data.conversion.filters import Filters

from .formats.test_adapters import FILES, FIRST

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
BEGIN, END = "from the files that\npreftune's own tests read.\n", "\nRows without a pair (a tie"
LONGEST = 700


def shown(value: Any, indent: str = "") -> str:
    """JSON as one reads it: on one line where it fits, else an entry per line."""
    line = json.dumps(value, ensure_ascii=False)
    if len(indent) + len(line) <= 110 or not isinstance(value, dict | list) or not value:
        return line
    inner = indent + "  "
    if isinstance(value, dict):
        entries = [f"{json.dumps(key)}: {shown(item, inner)}" for key, item in value.items()]
    else:
        entries = [shown(item, inner) for item in value]
    brackets = "{}" if isinstance(value, dict) else "[]"
    return brackets[0] + "\n" + ",\n".join(inner + entry for entry in entries) + "\n" + indent + brackets[1]


def row_of(file: str) -> str:
    return shown(json.loads((FILES / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()[0]))


def section(format: str) -> str:
    """One format: what the data hold, and a row of each file that is read in this format."""
    files = [file for file, (name, _, _) in FIRST.items() if name == format] or {
        "alpaca": ["alpaca"],
        "safe-rlhf-safer": ["safe-rlhf"],
    }[format]
    rows = "\n\n".join(f"```json\n{row_of(file)}\n```" for file in files)
    return f"### `{format}`\n\nThe data hold {FORMATS[format].holds}.\n\n{rows}\n"


def written() -> str:
    return "\n" + "\n".join(section(format) for format in FORMATS)


def test_the_page_shows_the_rows_that_are_tested() -> None:
    page = PAGE.read_text(encoding="utf-8")
    head, rest = page.split(BEGIN)
    _, tail = rest.split(END)
    whole = head + BEGIN + written() + END + tail
    if os.environ.get("PREFTUNE_WRITE_PAGE"):
        PAGE.write_text(whole, encoding="utf-8")
        page = whole
    assert page == whole


def test_every_row_on_the_page_is_json_of_a_tested_file() -> None:
    tested = [json.loads(path.read_text(encoding="utf-8").splitlines()[0]) for path in FILES.iterdir()]
    found = [json.loads(block) for block in re.findall(r"```json\n(.*?)\n```", PAGE.read_text(encoding="utf-8"), re.S)]
    assert len(found) >= len(FORMATS)
    assert all(row in tested for row in found)


def test_every_column_and_filter_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [column for column in CANONICAL if f"`{column}`" not in page] == []
    flags = {"sources": "source", "topics": "topic", "keywords": "keyword", "languages": "language"}
    names = [flags.get(entry.name, entry.name).replace("_", "-") for entry in fields(Filters)]
    assert [name for name in names if f"--{name}" not in page] == []
