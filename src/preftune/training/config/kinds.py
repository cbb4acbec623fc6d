"""Checks that values have the type of their field: transformers would accept the text "false" as true."""

from __future__ import annotations

from dataclasses import fields
from enum import Enum
from functools import lru_cache
from typing import Any, get_args, get_type_hints

from preftune.errors import ConfigError, did_you_mean

_OF_YAML = {False: ("off", "no"), True: ("on", "yes")}


def settle_kinds(config: Any) -> None:
    """Converts whole numbers written as floats, truth values written for words, and a list of one word. Raises:
    ConfigError for a value that does not have the type of its field, or is not in its list.
    """
    for name, allowed, optional in _words(config.__class__):
        given = value = getattr(config, name, None)
        if value is None and optional:
            continue
        if isinstance(value, bool):  # YAML reads the words off, no, on and yes as truth values
            value = next((word for word in _OF_YAML[value] if word in allowed), value)
        elif isinstance(value, list | tuple) and len(value) == 1:
            value = value[0]
        text = str(getattr(value, "value", value))
        if text not in allowed:
            listing = f"Its values are {', '.join(allowed)}."
            raise ConfigError(f"{name}={value!r} is unknown. {did_you_mean(text, allowed, otherwise=listing)}")
        if value is not given:
            setattr(config, name, value)
    for name, kinds in _numbers(config.__class__):
        value = getattr(config, name, None)
        if value is None:
            continue
        if kinds != {bool}:
            number = _number(name, value, whole=float not in kinds)
            if number is not value:
                setattr(config, name, number)
        elif value not in (True, False):
            text = " is text, but" if isinstance(value, str) else ""
            raise ConfigError(f"{name}={value!r}{text} must be True or False, without quotes, or left out.")


@lru_cache
def _kinds(config: Any) -> dict[str, set[Any]]:
    """The types of each field. (Parsers change the types that dataclasses keep, so the annotations are read.)"""
    hints = get_type_hints(config)
    return {one.name: set(get_args(hints[one.name]) or (hints[one.name],)) for one in fields(config)}


@lru_cache
def _words(config: Any) -> list[tuple[str, tuple[str, ...], bool]]:
    """The fields with a list of values, an enum of transformers or the field's `choices`: name, list, whether None is
    accepted.
    """
    found = []
    for one in fields(config):
        kinds = _kinds(config)[one.name]
        enums = [tuple(str(member.value) for member in kind) for kind in kinds if _is_enum(kind)]
        choices = one.metadata.get("choices")
        lists = [*enums, *([tuple(map(str, choices))] if choices else [])]
        found += [(one.name, allowed, bool(enums) or type(None) in kinds) for allowed in lists]
    return found


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


@lru_cache
def _numbers(config: Any) -> list[tuple[str, set[Any]]]:
    """The fields that take only true or false, or only a number."""
    found = ((name, kinds - {type(None)}) for name, kinds in _kinds(config).items())
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
