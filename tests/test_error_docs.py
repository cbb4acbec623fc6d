"""docs/errors.md is current: every message that it quotes is one of preftune's.

The source is read, not run. A "site" is a place that makes one of the exceptions of errors.py; its text is what the
message says literally, with holes for what is filled in at run time. The first cell of every table row in the document
quotes a message, with "…" for the holes.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import preftune
from preftune import errors
from preftune.data.tokens.reasons import REASONS
from preftune.training.config.refused import REFUSED

SOURCE = Path(preftune.__file__).parent
DOCUMENT = Path(__file__).parent.parent / "docs" / "errors.md"
HOLE = "\0"

CLASSES = {
    name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.PreftuneError)
}
NEAR_THE_START = 45
"""Letters that may stand before what a row quotes: a message is known by how it begins."""

SHORTEST = 9
"""Letters that a row must quote."""


class Site(NamedTuple):
    """A place that makes an exception, and the literal parts of its message."""

    module: str
    line: int
    text: str
    """With "…" for every hole."""

    def __str__(self) -> str:
        return f"{self.module}:{self.line} {self.text!r}"


class Template:
    """Literal text of the expressions of one module; names and small functions of the module are looked through."""

    def __init__(self, tree: ast.Module) -> None:
        self.functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}

    def of(self, node: ast.expr, within: ast.FunctionDef | None, seen: frozenset[str] = frozenset()) -> str:
        match node:
            case ast.Constant(value=str(text)):
                return text
            case ast.JoinedStr(values=parts):
                return "".join(self.of(part, within, seen) for part in parts)
            case ast.FormattedValue(value=inner) | ast.Await(value=inner):
                return HOLE + self.of(inner, within, seen) + HOLE
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self.of(left, within, seen) + self.of(right, within, seen)
            case ast.IfExp(body=body, orelse=other):
                return HOLE + self.of(body, within, seen) + HOLE + self.of(other, within, seen) + HOLE
            case ast.Name(id=name) if within is not None and name not in seen:
                return HOLE + HOLE.join(self.of(v, within, seen | {name}) for v in assigned(name, within)) + HOLE
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(value=ast.Name(id="self"), attr=name)):
                function = self.functions.get(name)
                if function is None or name in seen:
                    return HOLE
                returned = [n.value for n in ast.walk(function) if isinstance(n, ast.Return) and n.value is not None]
                return HOLE + HOLE.join(self.of(value, function, seen | {name}) for value in returned) + HOLE
        return HOLE


def assigned(name: str, function: ast.FunctionDef) -> Iterator[ast.expr]:
    for node in ast.walk(function):
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=target)], value=value)
                | ast.AugAssign(target=ast.Name(id=target), value=value)
            ) if target == name:
                yield value


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        yield path.relative_to(SOURCE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def calls(tree: ast.AST, function: ast.FunctionDef | None = None) -> Iterator[tuple[ast.Call, ast.FunctionDef | None]]:
    """Every call with the function that it stands in."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call):
            yield node, function
        yield from calls(node, node if isinstance(node, ast.FunctionDef) else function)


def sites_of(module: str, tree: ast.Module) -> Iterator[Site]:
    template = Template(tree)
    for call, function in calls(tree):
        match call:
            case ast.Call(func=ast.Name(id=name), args=[message, *_]) if name in CLASSES:
                pass
            case ast.Call(func=ast.Attribute(value=ast.Name(id="where"), attr="error"), args=[_, message, _]):
                pass  # data/messages.Where: column, problem, cure
            case _:
                continue
        text = re.sub(f"{HOLE}+", "…", template.of(message, function))
        yield Site(module, call.lineno, text)


def quoted(document: str) -> list[str]:
    """What the table rows of the document quote, in their order."""
    return [cells[0].strip("`") for cells in rows(document)]


def rows(document: str) -> list[list[str]]:
    lines = [line for line in document.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def fits(quote: str, text: str) -> bool:
    """Whether a message with holes may read as quoted: the parts in their order, the first near the start."""
    at = 0
    for part in (part.strip() for part in quote.split("…")):
        found = text.find(part, at)
        if found < 0:
            return False
        if part and at == 0 and letters(text[:found]) > NEAR_THE_START:
            return False
        at = found + len(part)
    return True


def letters(text: str) -> int:
    return sum(character.isalpha() for character in text)


@pytest.fixture(scope="module")
def document() -> str:
    return DOCUMENT.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def sites() -> list[Site]:
    return [site for module, tree in modules() for site in sites_of(module, tree)]


def test_every_row_quotes_a_message(sites: list[Site], document: str) -> None:
    """Of an exception, or of something else that is said: advice, warnings, reasons for dropped rows."""
    said = {site.text for site in sites} | {wrong for wrong, _ in REASONS.values()} | set(spoken())
    unknown = [quote for quote in quoted(document) if not any(fits(quote, text) for text in said)]
    assert not unknown, "no message reads like this any more:\n" + "\n".join(unknown)


def test_every_row_is_whole(document: str) -> None:
    for cells in rows(document):
        assert len(cells) == 3, cells
        assert all(cells), cells
        assert re.fullmatch("`[^`]+`", cells[0]), cells
        assert letters(cells[0]) >= SHORTEST, cells


def test_every_reason_for_dropping_a_row_is_there(document: str) -> None:
    quotes = quoted(document)
    assert [wrong for wrong, _ in REASONS.values() if not any(fits(quote, wrong) for quote in quotes)] == []


def test_every_refused_option_is_there_once(document: str) -> None:
    named = [field for quote, fields, _ in rows(document) if "not honoured: …" in quote for field in fields.split(", ")]
    assert sorted(field.strip("`") for field in named) == sorted(REFUSED)


def spoken() -> Iterator[str]:
    """Literal texts that are logged or collected to be said."""
    for _, tree in modules():
        template = Template(tree)
        for call, function in calls(tree):
            if isinstance(call.func, ast.Attribute) and call.func.attr in ("append", "warning") and call.args:
                yield re.sub(f"{HOLE}+", "…", re.sub("%[sd]", HOLE, template.of(call.args[0], function)))
