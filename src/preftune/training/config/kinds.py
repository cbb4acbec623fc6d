"""Checks that values have the type of their field: transformers would accept the text "false" as true."""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from typing import Any, get_args, get_type_hints

from preftune.errors import ConfigError


def settle_kinds(config: Any) -> None:
    """Converts whole numbers written as floats. Raises: ConfigError for a value that does not have the type of its
    field.
    """
    for name, kinds in _fields(config.__class__):
        value = getattr(config, name, None)
        if value is None:
            continue
        if kinds != {bool}:
            setattr(config, name, _number(name, value, whole=float not in kinds))
        elif value not in (True, False):
            text = " is text, but" if isinstance(value, str) else ""
            raise ConfigError(f"{name}={value!r}{text} must be True or False, without quotes, or left out.")


@lru_cache
def _fields(config: Any) -> list[tuple[str, set[Any]]]:
    """The fields that take only true or false, or only a number. (Parsers change the types that dataclasses keep, so
    the annotations are read.)
    """
    hints = get_type_hints(config)
    found = ((one.name, set(get_args(hints[one.name]) or (hints[one.name],)) - {type(None)}) for one in fields(config))
    return [(name, kinds) for name, kinds in found if kinds <= {bool} or kinds <= {int, float}]


def _number(name: str, value: Any, *, whole: bool) -> Any:
    if isinstance(value, str):
        raise ConfigError(f"{name}={value!r} is text, but must be a number. Leave out the quotes.")
    if isinstance(value, bool):
        raise ConfigError(f"{name}={value!r} is true or false, but must be a number. Give one, or leave it out.")
    if whole and isinstance(value, float):
        if not value.is_integer():
            raise ConfigError(f"{name}={value!r} must be a whole number.")
        return int(value)
    return value
