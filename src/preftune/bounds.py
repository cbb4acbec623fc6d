"""Limits on input, so that a broken or hostile file gives a message and does not fill the memory.

Each limit has a default that ordinary data do not reach. PREFTUNE_LIMITS raises them:
`PREFTUNE_LIMITS=line=4GB,field=1GB`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache

from preftune.errors import ConfigError

VARIABLE = "PREFTUNE_LIMITS"

_GB = 2**30
DEFAULTS: Mapping[str, float] = {
    "line": 1 * _GB,
    "field": _GB / 4,
    "template_seconds": 20.0,
    "template_memory": 2 * _GB,
    "config": _GB / 16,
    "layers": 10_000.0,
}
"""The limits: bytes of a line of a text file, characters of a text in a row, seconds and bytes of memory of one
rendering of a chat template, bytes of a model's config.json, and the number of layers in it.
"""

_UNITS = {"": 1.0, "kb": 2.0**10, "mb": 2.0**20, "gb": 2.0**30}
_VALUE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")


def bound(name: str) -> float:
    """A limit of `DEFAULTS`, or its value in the environment. Raises: ConfigError for an invalid value."""
    return _asked(os.environ.get(VARIABLE, "")).get(name, DEFAULTS[name])


def raising(name: str, value: str) -> str:
    """The part of an error message that says how to raise a limit."""
    return f"{VARIABLE}={name}={value} raises that limit"


def size(number: float) -> str:
    """Bytes as people write them."""
    for unit, step in (("GB", 2.0**30), ("MB", 2.0**20), ("kB", 2.0**10)):
        if number >= step:
            return f"{number / step:.3g} {unit}"
    return f"{number:.0f} bytes"


@lru_cache(maxsize=8)
def _asked(text: str) -> dict[str, float]:
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        read = _VALUE.fullmatch(value.strip().lower())
        if name.strip() not in DEFAULTS or not equals or read is None or read[2] not in _UNITS:
            raise ConfigError(
                f"{VARIABLE} holds {part!r}, which is not a limit. Write it like line=4GB,field=1GB; the limits are "
                f"{', '.join(DEFAULTS)}."
            )
        found[name.strip()] = float(read[1]) * _UNITS[read[2]]
    return found
