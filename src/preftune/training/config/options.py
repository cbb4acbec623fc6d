"""A field of a configuration with its help text."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(default: Any, help: str, **extra: Any) -> Any:
    """A dataclass field with its help text."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help, **extra})
    return field(default=default, metadata={"help": help, **extra})
