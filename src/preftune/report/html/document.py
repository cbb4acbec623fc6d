"""The skeleton of every page: one HTML file without network, light and dark, with charts that fit their width.

By its content security policy a page forbids every script but its own, and all network.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from markupsafe import Markup

from preftune.report.html.templates import markup, render
from preftune.storage.untrusted_json import drawable

_EXPORTS = "window.vegaEmbed = vegaEmbed;"


@dataclass(slots=True)
class Page:
    """What a page needs besides its body: charts, style sheets and scripts, which sections add."""

    title: str
    charts: dict[str, dict[str, Any]] = field(default_factory=dict)
    styles: list[str] = field(default_factory=list)
    """Style sheets of this package besides page.css."""
    scripts: list[str] = field(default_factory=list)
    """Scripts of this package besides the charts'."""
    share: float = 1.0
    """Of the usual answers and points: less where a page would be too large."""

    def chart(self, name: str, specification: Mapping[str, Any], *, label: str) -> Markup:
        """The place of a chart.

        Args:
            name: letters, digits and dashes; unique on the page.
            specification: Vega-Lite as JSON (see `vega_lite`).
            label: what the chart shows, for those who cannot see it.
        """
        self.charts[name] = drawable(specification)
        height = int(specification["height"]) if "height" in specification else None
        return markup("components.chart", name, label, height)

    def render(self, body: Markup) -> str:
        """The whole file."""
        scripts = [_library(), _resource("charts.js")] if self.charts else []
        scripts += [_resource(name) for name in self.scripts]
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
        if scripts:
            policy += "; script-src " + " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
        return render(
            "page.html",
            title=self.title,
            policy=policy,
            style="\n".join(_resource(name) for name in ("page.css", *self.styles)),
            body=body,
            charts=_inert_json(json.dumps(self.charts, ensure_ascii=False, separators=(",", ":"))),
            scripts=scripts,
        )


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
