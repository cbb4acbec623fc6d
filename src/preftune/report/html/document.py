"""The skeleton of every page: one HTML file without network, light and dark, with charts that fit their width.

Whatever comes from data goes through `escaped` or `text_block`: it is shown as text, never read as markup. By its
content security policy the page also forbids every script but its own, and all network.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from preftune.report.reading.untrusted_json import drawable

_UNSEEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_EXPORTS = "window.vegaEmbed = vegaEmbed;"
_FIRST = 280
_FENCE = re.compile(r"^```[\w+.#-]*[ \t]*\n(.*?)(?:^```[ \t]*(?:\n|\Z)|\Z)", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]{1,120})`")
"""Characters of a text that are shown before "show more"."""


@dataclass(slots=True)
class Page:
    """A page that is put together piece by piece. `body` holds markup; everything else in it was escaped."""

    title: str
    body: list[str] = field(default_factory=list)
    charts: dict[str, dict[str, Any]] = field(default_factory=dict)
    styles: list[str] = field(default_factory=list)
    """Style sheets of this package besides page.css."""
    scripts: list[str] = field(default_factory=list)
    """Scripts of this package besides the charts'."""
    share: float = 1.0
    """Of the usual answers and points: less where a page would be too large."""

    def add(self, *markup: str) -> None:
        self.body.extend(markup)

    def chart(self, name: str, specification: Mapping[str, Any], *, label: str) -> str:
        """The place of a chart.

        Args:
            name: letters, digits and dashes; unique on the page.
            specification: Vega-Lite, as Altair's `to_dict` gives it.
            label: what the chart shows, for those who cannot see it.
        """
        self.charts[name] = drawable(specification)
        # The height is known, so that nothing jumps when the chart is drawn.
        height = f' style="min-height:{int(specification["height"])}px"' if "height" in specification else ""
        return f'<div class="chart" id="chart-{escaped(name)}" role="img" aria-label="{escaped(label)}"{height}></div>'

    def render(self) -> str:
        """The whole file."""
        style = "\n".join(_resource(name) for name in ("page.css", *self.styles))
        scripts = [_library(), _resource("charts.js")] if self.charts else []
        scripts += [_resource(name) for name in self.scripts]
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
        if scripts:
            policy += "; script-src " + " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
        specifications = json.dumps(self.charts, ensure_ascii=False, separators=(",", ":"))
        return "\n".join(
            [
                "<!doctype html>",
                '<html lang="en">',
                "<head>",
                '<meta charset="utf-8">',
                f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                '<meta name="color-scheme" content="light dark">',
                f"<title>{escaped(self.title)}</title>",
                f"<style>{style}</style>",
                "</head>",
                "<body>",
                *self.body,
                f'<script type="application/json" id="charts">{_inert_json(specifications)}</script>',
                *(f"<script>{script}</script>" for script in scripts),
                "</body>",
                "</html>",
                "",
            ]
        )


def escaped(text: object) -> str:
    """Text as markup that shows it; control characters and halves of pairs as pictures."""
    return html.escape(_UNSEEN.sub(lambda found: chr(0x2400 + min(ord(found[0]), 0x21)), str(text)))


def text_block(text: str, *, characters: int | None = None, rest: str = "in the data") -> str:
    """A text of the data, inert, in its own direction; a long one is cut, with the rest behind "show more".

    Args:
        characters: how long it was before it was quoted, if it was cut there.
        rest: where the rest of it is then.
    """
    total = len(text) if characters is None else max(characters, len(text))
    cut = (
        f'<span class="cut">… {total - len(text):,} more characters {escaped(rest)}</span>' if total > len(text) else ""
    )
    if not text.strip():
        return '<p class="text nothing">(empty)</p>' if not text else '<p class="text nothing">(white space only)</p>'
    if len(text) <= _FIRST:
        return f'<div class="text" dir="auto">{with_code(text)}{cut}</div>'
    return (
        f'<details class="more"><summary><span class="text" dir="auto">{escaped(text[:_FIRST])}…</span>'
        f'<span class="cue"></span></summary><div class="text" dir="auto">{with_code(text)}{cut}</div></details>'
    )


def with_code(text: str) -> str:
    """Escaped text with what stands between fences or backticks set as code; a fence without an end stays open."""
    parts = []
    for number, part in enumerate(_FENCE.split(text)):
        if number % 2:
            parts.append(f"<pre><code>{escaped(part.removesuffix(chr(10)))}</code></pre>")
        else:
            parts.append(_INLINE.sub(lambda found: f"<code>{found[1]}</code>", escaped(part)))
    return "".join(parts)


def table(header: Iterable[str], rows: Iterable[Iterable[object]], *, wraps: bool = False) -> str:
    """A table whose first column is text and whose others are numbers. Cells are escaped.

    Args:
        wraps: cells with words may have several lines.
    """
    head = "".join(f'<th scope="col">{escaped(cell)}</th>' for cell in header)
    body = "".join(
        "<tr>"
        + "".join(
            f'<th scope="row">{escaped(cell)}</th>' if place == 0 else f"<td>{escaped(cell)}</td>"
            for place, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    kind = "wide wraps" if wraps else "wide"
    return f'<div class="{kind}" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


@functools.cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, which `vl-convert-python` carries with it."""
    import vl_convert

    return str(vl_convert.javascript_bundle(_EXPORTS)).replace("</script", "<\\/script")


@functools.cache
def _resource(name: str) -> str:
    return resources.files("preftune.report").joinpath(name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _inert_json(text: str) -> str:
    """JSON that no HTML parser can mistake for markup."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
