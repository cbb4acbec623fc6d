"""Checks that values have the type of their field, before anything is computed with them: transformers would accept the
text "false" as true, and the errors of other libraries name neither field nor value.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from enum import Enum
from functools import lru_cache, partial
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from transformers.trainer_pt_utils import AcceleratorConfig

from preftune.amounts import of_type, shown
from preftune.errors import ConfigError, did_you_mean

Settle = Callable[[str, Any], Any]
"""Field and value -> the value as it is kept. Raises: ConfigError that names both."""

_OF_YAML = {False: ("off", "no"), True: ("on", "yes")}
_READ_ELSEWHERE = ("fsdp", "fsdp_config", "deepspeed", "resume_from_checkpoint")
"""Fields that take more than their annotations say."""
_MOST_BITS = 1024
"""Of a whole number that is still a float."""


def settle_kinds(config: Any) -> None:
    """Converts other ways to write a value: a whole number as a float, a number of NumPy, a truth value for a word, a
    value in a list of one, a list of one as its value, and None where the default is 0, False or empty.

    Raises: ConfigError for a value that does not have the type of its field, or is not in its list.
    """
    for field in _fields(config.__class__):
        given = getattr(config, field.name, None)
        if given is not None:
            value = field.settle(field.name, given)
        elif field.optional:
            continue
        elif field.default:
            default = getattr(field.default, "value", field.default)
            raise ConfigError(f"{field.name}=None: give a value, or leave it out for the default ({default}).")
        else:
            value = type(field.default)()
        if value is not given:
            setattr(config, field.name, value)


def read_mapping(name: str, given: Any, *, file: bool = False) -> dict[str, Any]:
    """A mapping, given as such or as JSON.

    Args:
        file: the JSON may be in a file that is named.
    Raises: ConfigError that names the field.
    """
    value, such = given, 'such as {"key": 1}' + ", or a JSON file with one" * file
    if isinstance(given, str | os.PathLike):
        text = os.fspath(given)
        try:
            if file and not text.lstrip().startswith("{"):
                text = Path(text).expanduser().read_text(encoding="utf-8")
            value = json.loads(text)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{name}={shown(os.fspath(given))} cannot be read ({error}). Give a mapping, {such}."
            ) from error
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name}={shown(given)} is not a mapping. Give one, {such}.")
    return dict(value)


class _FieldKind(NamedTuple):
    name: str
    settle: Settle
    optional: bool
    """Whether None is a value of its own."""
    default: Any


@lru_cache
def _fields(config: Any) -> list[_FieldKind]:
    """The fields whose type can be checked. (Parsers change the types that dataclasses keep, so the annotations are
    read.)
    """
    hints = get_type_hints(config)
    found = []
    for one in fields(config):
        hint = hints[one.name]
        kinds = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
        settle = None if one.name in _READ_ELSEWHERE else _settle_of(one, kinds - {type(None)})
        if settle is not None:
            default = one.default if one.default_factory is MISSING else one.default_factory()
            found.append(_FieldKind(one.name, settle, type(None) in kinds, default))
    return found


def _settle_of(field: Field[Any], kinds: set[Any]) -> Settle | None:
    enums = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum)]
    choices = field.metadata.get("choices") or [member.value for kind in enums for member in kind]
    if choices:
        return partial(_word, tuple(map(str, choices)))
    if field.name == "accelerator_config":
        return _accelerator
    several = next((get_args(kind)[0] for kind in kinds if get_origin(kind) is list), None)
    if several is not None:
        element = _plain(({several} | kinds) - {kind for kind in kinds if get_origin(kind) is list})
        return None if element is None else partial(_list, element, several not in kinds)
    if any(kind is dict or get_origin(kind) is dict for kind in kinds):
        return _mapping
    return _plain(kinds)


def _plain(kinds: set[Any]) -> Settle | None:
    """The check of a single text, number or truth value; None for other types."""
    if kinds == {bool}:
        return _switch
    if kinds <= {int, float}:
        return partial(_number, float not in kinds)
    return _text if kinds == {str} else None


def _word(allowed: tuple[str, ...], name: str, value: Any) -> Any:
    if isinstance(value, bool):  # YAML reads the words off, no, on and yes as truth values
        value = next((word for word in _OF_YAML[value] if word in allowed), value)
    value = _alone(value)
    text = str(getattr(value, "value", value))
    if text not in allowed:
        listing = f"Its values are {', '.join(allowed)}."
        raise ConfigError(f"{name}={shown(value)} is unknown. {did_you_mean(text, allowed, otherwise=listing)}")
    return value


def _switch(name: str, value: Any) -> Any:
    value = _of_python(value)
    if not isinstance(value, bool | int | float) or value not in (True, False):
        text = " is text, but" if isinstance(value, str) else ""
        raise ConfigError(f"{name}={shown(value)}{text} must be True or False, without quotes, or left out.")
    return value


def _number(whole: bool, name: str, value: Any) -> Any:
    value = _of_python(_alone(_of_python(value)))
    if isinstance(value, str):
        raise ConfigError(f"{name}={value!r} is text, but must be a number. Leave out the quotes.")
    if isinstance(value, bool):
        raise ConfigError(f"{name}={value!r} is true or false, but must be a number. Give one, or leave it out.")
    if not isinstance(value, int | float):
        raise ConfigError(f"{name}={shown(value)} is {of_type(value)}, but must be one number. Give one.")
    if isinstance(value, int) and value.bit_length() >= _MOST_BITS:
        raise ConfigError(f"{name}={shown(value)} is beyond all limits. Give a smaller number.")
    if whole and isinstance(value, float):
        if not value.is_integer():
            raise ConfigError(f"{name}={value!r} must be a whole number.")
        return int(value)
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"{name}={shown(value)} is {of_type(value)}, but must be text. Give one, or leave it out.")
    return value if isinstance(value, str) else str(os.fspath(value))


def _list(element: Settle, always: bool, name: str, value: Any) -> Any:
    """
    Args:
        always: whether a single value becomes a list too.
    """
    value = _of_python(value)
    if isinstance(value, list | tuple):
        return [element(f"{name}[{place}]", one) for place, one in enumerate(value)]
    single = element(name, value)
    return [single] if always else single


def _mapping(name: str, value: Any) -> Any:
    found = read_mapping(name, value)
    return value.strip() if isinstance(value, str) else found  # transformers has its own way with text


def _accelerator(name: str, value: Any) -> Any:
    if isinstance(value, AcceleratorConfig):
        return value
    found, known = read_mapping(name, value, file=True), [one.name for one in fields(AcceleratorConfig)]
    for key in found:
        if key not in known:
            hint = did_you_mean(key, known, otherwise=f"Its settings are {', '.join(known)}.")
            raise ConfigError(f"{name} has no setting {key!r}. {hint}")
    return found


def _alone(value: Any) -> Any:
    """The value of a list of one."""
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


def _of_python(value: Any) -> Any:
    """Numbers of NumPy or torch, and arrays of them, as Python's."""
    return value.tolist() if hasattr(value, "tolist") else value
