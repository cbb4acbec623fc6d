"""Jinja2 templates with autoescape: text from data is text on the page, never markup."""

from __future__ import annotations

import functools
import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

_UNSEEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_FENCE = re.compile(r"^```[\w+.#-]*[ \t]*\n(.*?)(?:^```[ \t]*(?:\n|\Z)|\Z)", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]{1,120})`")
_VALUE = r"(?: (?:[A-Z]+\b|\d+(?:\.\d+)?(?:e-?\d+)?\b|drop\b|\w+=\w+(?:\+\w+)?))*"
_COMMAND = re.compile(rf"(?<![\w-])(?:preftune [a-z]+(?: --[\w-]+{_VALUE})*|--[\w-]+(?:=(?!\w))?{_VALUE})")
"""A command or a flag with its values, as advice names them."""
_UNBROKEN = 30
"""Characters of a command that fit on one line of a phone."""


def markup(name: str, *values: object) -> Markup:
    """What a macro makes of values: it escapes text and leaves markup as it is.

    Args:
        name: of the template (without ".html") and of the macro in it: "run.alarms".
    """
    template, macro = name.split(".")
    made: Markup = getattr(_environment().get_template(f"{template}.html").module, macro)(*values)
    return made


def render(template: str, **context: Any) -> str:
    """A whole template."""
    return _environment().get_template(template).render(context)


def visible(value: Any) -> Any:
    """Text with control characters and halves of surrogate pairs as pictures; markup and other values unchanged."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return _UNSEEN.sub(lambda found: chr(0x2400 + min(ord(found[0]), 0x21)), value)


def with_code(text: str) -> Markup:
    """Text with what is between fences or backticks set as code; a fence without an end stays open."""
    parts = []
    for number, part in enumerate(_FENCE.split(text)):
        if number % 2:
            parts.append(Markup("<pre><code>{}</code></pre>").format(visible(part.removesuffix("\n"))))
        else:
            parts.append(Markup(_INLINE.sub(r"<code>\1</code>", str(escape(visible(part))))))
    return Markup("").join(parts)


def with_commands(text: str) -> Markup:
    """Text with its commands and flags set as code."""
    return Markup(_COMMAND.sub(_code, str(escape(visible(text)))))


def _code(found: re.Match[str]) -> str:
    short = ' class="short"' if len(found[0]) <= _UNBROKEN else ""
    return f"<code{short}>{found[0]}</code>"


def few_percent(share: float) -> str:
    """A share of 1 in words: all, 12.3%, under 0.1%."""
    if share >= 0.9995:
        return "all"
    return f"{share:.1%}" if share >= 0.001 else "under 0.1%"


@functools.cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("preftune.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        code=with_code,
        commands=with_commands,
        few_percent=few_percent,
        percent="{:.1%}".format,
        thousands="{:,}".format,
    )
    return made
