"""Vega-Lite specifications as JSON: the grammar's own names, and what all charts of a page have in common.

Grammar: https://vega.github.io/vega-lite/docs/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Specification = dict[str, Any]

_TYPES = {"Q": "quantitative", "N": "nominal"}


def field(shorthand: str, **options: Any) -> dict[str, Any]:
    """A field with its type, as in `step:Q` (quantitative) or `line:N` (nominal). None removes a
    title or a legend.
    """
    name, _, kind = shorthand.partition(":")
    return {"field": name, "type": _TYPES[kind], **options}


def mark(
    kind: str, encoding: Mapping[str, Any], values: Sequence[Mapping[str, Any]] | None = None, **options: Any
) -> Specification:
    """A chart of one mark (`line`, `point`, `rule`, `bar`, `area`, `text`), or a layer.

    Args:
        encoding: channel -> field, or a list of fields for a tooltip.
        values: the rows that are drawn; default: those of the chart of which this is a layer.
        options: properties of the mark.
    """
    data = {} if values is None else {"data": {"values": list(values)}}
    return {**data, "mark": {"type": kind, **options}, "encoding": dict(encoding)}


def layered(layers: Sequence[Specification], values: Sequence[Mapping[str, Any]] | None = None) -> Specification:
    """Layers that share their axes.

    Args:
        values: the rows of those layers that have none of their own.
    """
    data = {} if values is None else {"data": {"values": list(values)}}
    return {**data, "layer": list(layers)}


def finished(chart: Specification, *, height: int = 210) -> Specification:
    """A chart as wide as its place on the page, in the page's colours."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container",
        "height": height,
        "autosize": {"type": "fit", "contains": "padding"},
        **chart,
    }
