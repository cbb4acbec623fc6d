"""Docstrings, comments and messages are in plain technical English: a few words of the old dialect stay out of them."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src/preftune"
INSTEAD = {
    r"told": "reported, distinguished",
    r"mends?|mended": "fixes",
    r"cures?": "fix",
    r"nobody|somebody|whoever": "name who or what is meant",
    r"beside": "next to, besides, in addition to",
    r"begun(?!`|:)": "started",
    r"so many": "this many, a number of",
    r"is there (?:already|twice)": "exists already, is given twice",
    r"go(?:es)? on from": "continues from",
    r"is no (?:\w+ )?(?:number|text|value)": "is not a number",
    r"as (?:it|they) stands?": "unchanged",
    r"an own|of its own accord": "its own",
    r"looked at": "examined, read, checked",
    r"(?<!there )(?:is|are) none": "is not one, without one",
}
"""Word -> what to write."""

BANNED = re.compile(rf"\b(?:{'|'.join(INSTEAD)})\b(?! of\b)")
_FIELD = re.compile(r"\{(?:[^{}]|\{[^{}]*\})*\}")


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of the comments and strings of a file, without the fields of f-strings."""
    with tokenize.open(path) as file:
        tokens = list(tokenize.generate_tokens(io.StringIO(file.read()).readline))
    for token in tokens:
        name = tokenize.tok_name[token.type]
        if name in ("COMMENT", "STRING", "FSTRING_MIDDLE"):
            for offset, line in enumerate(token.string.split("\n")):
                if " " in line:  # a key or a name alone is no prose
                    yield token.start[0] + offset, _FIELD.sub("", line)


@pytest.mark.parametrize("package", sorted(path for path in SOURCE.iterdir() if path.suffix in ("", ".py")), ids=str)
def test_prose_is_plain_english(package: Path) -> None:
    if package.name == "__pycache__":
        pytest.skip("not source")
    files = package.rglob("*.py") if package.is_dir() else [package]
    found = [
        f"{path.relative_to(SOURCE)}:{line}: {match[0]!r} in {text.strip()!r}"
        for path in files
        for line, text in prose(path)
        if (match := BANNED.search(text))
    ]
    assert not found, "write as CONTRIBUTING.md asks (INSTEAD has the words):\n" + "\n".join(found)


@pytest.mark.parametrize(
    "page", sorted({*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")}), ids=lambda page: page.name
)
def test_pages_are_plain_english(page: Path) -> None:
    if page.name in ("CHANGELOG.md", "notes.md"):
        pytest.skip("a record of what was, kept as it was written")
    lines = re.sub(r"`[^`]*`", "", page.read_text(encoding="utf-8")).splitlines()
    found = [f"{number}: {match[0]!r}" for number, line in enumerate(lines, 1) if (match := BANNED.search(line))]
    assert not found, f"{page.name} (lines without code):\n" + "\n".join(found)
