"""The charts of runs as PNG files, drawn by vl-convert without a browser, in the light colours of the page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from preftune.report.reading.run_files import Run
from preftune.report.run import charts
from preftune.report.run.curves import PANELS, lines_of, marks_of
from preftune.report.run.headline import length, win_rate
from preftune.storage.untrusted_json import drawable

_WIDTH = 640
_SCALE = 2
_COLOUR = re.compile(r"--([\w-]+):\s*(#[0-9a-fA-F]{3,8})")
_USED = re.compile(r"var\(--([\w-]+)\)")
_LAYOUT = {"top": {"anchor": "start", "direction": "vertical", "margin": 4}}
_FONT = "Liberation Sans, DejaVu Sans, Helvetica, Arial, sans-serif"


def pictures(runs: Sequence[Run]) -> Iterator[tuple[str, bytes]]:
    """Name and PNG of every chart that there is something to draw for: win-rate, alarms, loss, margin, ..."""
    import vl_convert

    for name, title, specification in _specifications(runs):
        drawn = {**_plain(drawable(specification), _colours()), "width": _WIDTH, "title": title}
        yield name, vl_convert.vegalite_to_png(vl_spec=drawn, scale=_SCALE, config=_config(_colours()))


def _specifications(runs: Sequence[Run]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    rates = {run.name: rate for run in runs if (rate := win_rate(run)) is not None}
    if rates:
        beside = {run.before for run in runs if run.name in rates}
        against = "the model before training" if beside == {"before"} else "the baseline"
        yield "win-rate", f"Win rate against {against}", charts.rates(rates)
    lines, marks, names = lines_of(runs), marks_of(runs), [run.name for run in runs]
    last = max(length(run) for run in runs)
    if marks:
        yield "alarms", "Alarms of the guard", charts.timeline(marks, runs=names, last=last)
    for panel in PANELS:
        if panel.name in lines:
            chart = charts.curve(panel, lines[panel.name], marks, runs=names, last=last)
            yield panel.name, panel.title, chart


def _colours() -> dict[str, str]:
    """The light colours of the page's style sheets: name -> value."""
    found: dict[str, str] = {}
    for sheet in ("page.css", "run.css"):
        text = resources.files("preftune.report").joinpath(sheet).read_text(encoding="utf-8")
        for name, value in _COLOUR.findall(text):
            found.setdefault(name, value)  # the light ones stand first
    return found


def _plain(value: Any, colours: Mapping[str, str]) -> Any:
    """A specification with the page's variables replaced by their colours."""
    if isinstance(value, dict):
        return {key: _plain(inner, colours) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner, colours) for inner in value]
    if isinstance(value, str):
        return _USED.sub(lambda found: colours.get(found[1], "#000000"), value)
    return value


def _config(colours: Mapping[str, str]) -> dict[str, Any]:
    text = colours["muted"]
    return {
        "background": "#ffffff",
        "padding": 16,
        "font": _FONT,
        "view": {"stroke": None},
        "title": {"anchor": "start", "color": colours["ink"], "fontSize": 15, "offset": 12},
        "axis": {
            "labelColor": text,
            "titleColor": text,
            "titleFontWeight": "normal",
            "gridColor": colours["line"],
            "domain": False,
            "ticks": False,
            "labelPadding": 6,
        },
        "axisX": {"grid": False},
        "legend": {"labelColor": text, "title": None, "orient": "top", "symbolType": "stroke", "layout": _LAYOUT},
        "rule": {"color": colours["ink"]},
    }
