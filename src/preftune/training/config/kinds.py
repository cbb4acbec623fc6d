"""Checks that values have the type of their field: transformers would accept the text "false" as true."""

from __future__ import annotations

from dataclasses import fields
from enum import Enum
from functools import lru_cache
from typing import Any, get_args, get_type_hints

from preftune.errors import ConfigError, did_you_mean

_OF_YAML = {False: ("off", "no"), True: ("on", "yes")}


def settle_kinds(config: Any) -> None:
    """Converts whole numbers written as floats. Raises: ConfigError for a value that does not have the type of its
    field, or is not in its list.
    """
    for name, allowed in _words(config.__class__):
        value = getattr(config, name, None)
        if isinstance(value, bool):  # YAML reads the words off, no, on and yes as truth values
            value = next((word for word in _OF_YAML[value] if word in allowed), value)
            setattr(config, name, value)
        text = str(getattr(value, "value", value))
        if value is not None and not isinstance(value, list | tuple) and text not in allowed:
            listing = f"Its values are {', '.join(allowed)}."
            raise ConfigError(f"{name}={value!r} is unknown. {did_you_mean(text, allowed, otherwise=listing)}")
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
def _words(config: Any) -> list[tuple[str, tuple[str, ...]]]:
    """The fields that take a word of a list of transformers, with the list."""
    hints = get_type_hints(config)
    enums = ((one.name, kind) for one in fields(config) for kind in get_args(hints[one.name]) if _is_enum(kind))
    lists = ((one.name, one.metadata["choices"]) for one in fields(config) if one.metadata.get("choices"))
    return [
        *((name, tuple(str(member.value) for member in kind)) for name, kind in enums),
        *((name, tuple(map(str, choices))) for name, choices in lists),
    ]


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


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
