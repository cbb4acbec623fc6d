"""Flags and recipe -> dataclasses, with transformers' `HfArgumentParser`: `--learning_rate` or `--learning-rate`.

A recipe's values come first, flags override them. An unknown name is an error that suggests the nearest one.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, get_args, get_type_hints

from transformers import HfArgumentParser

from preftune.cli.flags.field_names import what_of
from preftune.cli.flags.plain_parser import NEGATIVE_NUMBER, refuse_empty, refuse_unencodable, with_near_choice
from preftune.cli.flags.recipe import Entry, Recipe
from preftune.errors import RequestError, sentence

LAST = "last checkpoint"
"""The meaning of `--resume` without a value."""


class FieldParser(HfArgumentParser):
    """The fields of several dataclasses as flags; a wrong flag raises `RequestError`."""

    def __init__(self, dataclass_types: Sequence[Any], *, prog: str) -> None:
        self._hints = {
            name: hint for kind in dataclass_types for name, hint in get_type_hints(kind).items() if hint is not None
        }
        super().__init__(dataclass_types, prog=prog, allow_abbrev=False)
        self._negative_number_matcher = NEGATIVE_NUMBER
        self._let_booleans_stand_alone()
        self._let_nothing_be_said()
        self.add_argument("--resume", nargs="?", const=LAST, default=None, dest="resume")
        self.add_argument("--config", default=None)

    def _let_booleans_stand_alone(self) -> None:
        """Gives fields that are true, false or None (automatic) both `--bf16` and `--no_bf16`, as plain booleans
        have.
        """
        taken = self.names()
        for action in list(self._actions):
            if self._hints.get(action.dest) == bool | None and action.nargs is None and action.const is None:
                action.nargs, action.const = "?", True
                if f"no_{action.dest}" not in taken:
                    dashed = f"--no-{action.dest.replace('_', '-')}"
                    self.add_argument(
                        f"--no_{action.dest}", dashed, dest=action.dest, action="store_false", default=action.default
                    )

    def _let_nothing_be_said(self) -> None:
        """Accepts `None`, `null` and `~` for fields that may be None, `auto` for fields that are then set
        automatically, and the words for "off" where a field has one.
        """
        for action in self._actions:
            hint = self._hints.get(action.dest)
            if hint in (bool, bool | None) and action.type is not None:
                action.type = _switch(action.default, may_be_none=hint is not bool, automatic=action.dest in _AUTOMATIC)
            elif action.type in (int, float):
                action.type = _number(action.type, action.default, automatic=action.dest in _AUTOMATIC)
            if action.dest in _OFF:
                action.type = _changed(action.type, _turned_off(_OFF[action.dest]))
            elif hint is not None and type(None) in get_args(hint) and action.nargs in (None, "?"):
                action.type = _changed(action.type, lambda text: None if _word(text) in _NOTHING else text)

    def error(self, message: str) -> NoReturn:
        """Argparse's own complaints (a value of the wrong type, a missing one) as one paragraph."""
        message = re.sub(r"^argument (--[^/:]+)[^:]*:", r"Argument \1:", with_near_choice(message))  # one spelling
        raise RequestError(f"{sentence(message[:1].upper() + message[1:])} See {self.prog} --help.")

    def names(self) -> dict[str, str]:
        """Every spelling of every flag, without leading dashes -> the field it sets."""
        return {
            option.lstrip("-"): action.dest
            for action in self._actions
            for option in action.option_strings
            if option.startswith("--")
        }

    def _plain_names(self) -> list[str]:
        return [name for name in self.names() if "-" not in name]

    def parse(self, words: Sequence[str], recipe: Recipe | None = None) -> argparse.Namespace:
        """The values of all fields: defaults, then the recipe, then the flags.

        Raises: RequestError for an unknown key or flag, and for a value that its field cannot take or that is empty.
        """
        start = argparse.Namespace() if recipe is None else self._parse_recipe(recipe)
        values, unknown = self.parse_known_args(list(words), namespace=start)
        if unknown:
            raise RequestError(self._unknown(unknown[0]))
        refuse_empty(self._actions, values, words)
        refuse_unencodable(self._actions, values)
        return values

    def build(self, kind: type, values: argparse.Namespace) -> Any:
        """One of the dataclasses from the parsed values."""
        names = [entry.name for entry in dataclasses.fields(kind) if entry.init]
        try:
            return kind(**{name: getattr(values, name) for name in names})
        except RequestError:
            raise
        except ValueError as error:
            raise RequestError(str(error)) from error

    def _unknown(self, word: str) -> str:
        if not word.startswith("-"):
            return f"{word!r} does not belong to a flag. Values follow their flag, and a value with spaces is quoted."
        return what_of(word.partition("=")[0], self._plain_names(), prog=self.prog)

    def _parse_recipe(self, recipe: Recipe) -> argparse.Namespace:
        names = self.names()
        seen: dict[str, str] = {}
        values = argparse.Namespace()
        for entry in recipe.entries:
            where = f"The recipe {recipe.path}, line {entry.line}"
            field = names.get(entry.key)
            if field is None or field in ("config", "help", "allow_env"):
                raise RequestError(f"{where}: {what_of(entry.key, self._plain_names(), prog=self.prog)}")
            if field in seen:
                raise RequestError(f"{where}: {entry.key} and {seen[field]} are the same field. Keep one.")
            seen[field] = entry.key
            try:
                self._take(entry, field, values)
            except RequestError as error:
                raise RequestError(f"{where}: {error}") from None
        return values

    def _take(self, entry: Entry, field: str, values: argparse.Namespace) -> None:
        """Adds one entry to the values, parsed as if it were typed on the command line."""
        value, hint = entry.value, self._hints.get(field, str | None)
        many = any(action.dest == field and action.nargs == "+" for action in self._actions)
        if isinstance(value, dict) and field == "columns":
            value = [f"{canonical}={own}" for canonical, own in value.items()]
        if value is None and field in _OFF:
            value = _OFF[field]
        if value is None and hint is bool:
            value = "null"
        if value is None and type(None) not in get_args(hint):
            raise RequestError(f"{entry.key} has no value. Give one, or remove the line.")
        if isinstance(value, dict) and not _takes(dict, hint):
            several = "a list of values, such as [a, b]," if many else "one value,"
            raise RequestError(f"{entry.key} takes {several} not a mapping.")
        if isinstance(value, list) and not many and not _takes(list, hint):
            raise RequestError(f"{entry.key} takes one value, not a list.")
        if isinstance(value, str):
            words = [f"--{entry.key}={value}"]
        elif isinstance(value, list) and many and value:
            words = [f"--{entry.key}", *value]
        else:
            setattr(values, field, value)
            return
        _, unknown = self.parse_known_args(words, namespace=values)
        if unknown:
            raise RequestError(f"{entry.key} cannot take {unknown[0]!r}.")


_OFF = {
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
    "guard": "off",
}
"""Fields that have their own word for "off", and the words that people write instead."""
_NOTHING = frozenset({"none", "null", "~"})
_OFF_WORDS = _NOTHING | {"no", "off", "false"}
_AUTOMATIC = frozenset({"bf16", "fp16", "tf32", "greater_is_better", "disable_tqdm", "learning_rate"})
"""Fields that are set from the hardware or the method unless a value is given: `auto` means no value."""
_SWITCHES = {
    **dict.fromkeys(("true", "t", "yes", "y", "on", "1"), True),
    **dict.fromkeys(("false", "f", "no", "n", "off", "0"), False),
}


def _switch(default: Any, *, may_be_none: bool, automatic: bool) -> Callable[[str], bool | None]:
    """The type of a boolean field; an empty value means false, except where the default is true."""

    def read(text: str | bool) -> bool | None:
        word = str(text).strip().strip("'\"").lower()
        if word in _SWITCHES:
            return _SWITCHES[word]
        if (word == "auto" and automatic) or (word in _NOTHING and (may_be_none or not default)):
            return None if may_be_none else False
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither true nor false. Write one of the two, or leave it out{_default(default)}"
        )

    return read


def _number(kind: type, default: Any, *, automatic: bool) -> Callable[[str], Any]:
    """The type of a number; whole numbers also as `1e3` and `512.0`, which people write in YAML."""

    def read(text: str) -> Any:
        word = str(text).strip().strip("'\"").lower()
        if word == "auto" and automatic:
            return None
        try:
            value = float(word) if kind is float or any(mark in word for mark in ".e") else int(word)
            if kind is float or value == int(value):
                return kind(value)
        except (ValueError, OverflowError):
            pass
        what = "number" if kind is float else "whole number"
        raise argparse.ArgumentTypeError(f"{text!r} is not a {what}. Give one, or leave it out{_default(default)}")

    return read


def _default(value: Any) -> str:
    return "" if value is None else f" for the default ({value})"


def _changed(kind: Any, change: Callable[[str], str | None]) -> Callable[[str], Any]:
    """The type of an action, after a change of the text; None stays None."""

    def read(text: str) -> Any:
        changed = change(text)
        return changed if kind is None or changed is None else kind(changed)

    read.__name__ = getattr(kind, "__name__", "str")
    return read


def _turned_off(word: str) -> Callable[[str], str]:
    return lambda text: word if _word(text) in _OFF_WORDS else text


def _word(text: str) -> str:
    return text.strip().lower()


def _takes(kind: type, hint: Any) -> bool:
    return any(getattr(part, "__origin__", part) is kind for part in (hint, *get_args(hint)))
