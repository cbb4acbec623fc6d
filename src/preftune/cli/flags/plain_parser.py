"""argparse for the small commands: no abbreviations, dashes or underscores in names, errors as `RequestError`."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from preftune.errors import RequestError, did_you_mean, sentence


def spellings(names: Sequence[str]) -> list[str]:
    """The names of a flag, each with underscores and with dashes."""
    found: dict[str, None] = {}
    for name in names:
        plain = name.removeprefix("--")
        others = (f"--{plain.replace('-', '_')}", f"--{plain.replace('_', '-')}") if plain != name else ()
        found |= dict.fromkeys((name, *others))
    return list(found)


def wrapped(text: str, width: int, first: str = "", others: str = "") -> str:
    """Wraps a text at blanks only: no word, flag or path is broken. `first` and `others` are indents of lines."""
    return textwrap.fill(
        " ".join(text.split()),
        width,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


_NOUNS = {
    name: noun
    for noun, names in {
        "folder": "FOLDER RUN ARTEFACT output_dir",
        "file": "FILE OUT OUT.yaml DATA DATA2 PAIRS PROMPTS SAMPLES RECIPE RECIPE.yaml prompts dataset_name "
        "eval_dataset_name",
        "model": "MODEL M SFT ALIGNED BASE ADAPTER model baseline model_name_or_path base_model",
    }.items()
    for name in names.split()
}
"""Metavar or field -> what it names, for the message about an empty one."""
_MAY_BE_EMPTY = ("system", "criteria")
"""Flags of which an empty text has a meaning."""


def refuse_empty(actions: Iterable[argparse.Action], values: argparse.Namespace, words: Sequence[str]) -> None:
    """Refuses an empty text, such as that of an unset variable of the shell: as a path it would be the working
    directory.

    Args:
        words: the command line; a flag that it does not have is not checked.
    Raises: RequestError.
    """
    typed = {word.partition("=")[0] for word in words}
    for action in actions:
        given = getattr(values, action.dest, None)
        texts = given if isinstance(given, list) else [given]
        if action.dest in _MAY_BE_EMPTY or given == action.const:  # a flag without a value, as `--ray`
            continue
        if not any(isinstance(text, str) and not text.strip() for text in texts):
            continue
        flags = sorted(action.option_strings, key=lambda flag: (flag in typed and flag.startswith("--"), len(flag)))
        if flags and typed.isdisjoint(flags):
            continue
        noun = _NOUNS.get(str(action.metavar or action.dest))
        fix = f"Name a {noun}." if noun else "Give a value." if action.required else "Give a value, or leave it out."
        raise RequestError(f"{flags[-1] if flags else action.metavar} is empty. {fix}")


_OUTPUTS = ("output", "output_dir")
"""What a command writes to, by the name of its value."""


def refuse_unencodable(actions: Iterable[argparse.Action], values: argparse.Namespace) -> None:
    """Refuses an output path that is not UTF-8, before anything is loaded. Raises: RequestError."""
    from preftune.storage.run_directory import check_encodable

    for action in actions:
        given = getattr(values, action.dest, None)
        if action.dest in _OUTPUTS and isinstance(given, str):
            flag = max(action.option_strings, key=lambda name: (name.startswith("--"), -len(name)))
            noun = _NOUNS.get(str(action.metavar or action.dest), "path").upper()
            check_encodable(given, flag, f"{flag} {noun}")


NEGATIVE_NUMBER = re.compile(r"-(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?$|-(?:inf|nan)$")
"""What is a value and no flag; argparse's own takes -1e-5 for a flag."""


def not_a_choice(value: str, choices: Iterable[str]) -> str:
    """The sentence about a value that is not in a flag's list."""
    hint = did_you_mean(value, choices := list(choices), otherwise=f"Its values are {', '.join(choices)}.")
    return f"{value!r} is not one of its values. {hint}"


def with_near_choice(message: str) -> str:
    """Argparse's complaint about a value, with the nearest one in place of the whole list."""
    found = re.search(r"invalid choice: (.*) \(choose from (.*)\)", message, re.DOTALL)
    if found is None:
        return message
    value, *choices = (text.strip("'\"") for text in (found[1], *found[2].split(", ")))
    return message[: found.start()] + not_a_choice(value, choices)


class WholeWords(argparse.HelpFormatter):
    """Help pages in which no word, flag or path is broken."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_long_words=False, break_on_hyphens=False)

    def _format_usage(self, *args: Any) -> str:
        """argparse indents by the command's name, which leaves a narrow terminal no room for a flag with its value."""
        text = super()._format_usage(*args)
        if max(map(len, text.splitlines()), default=0) <= self._width + 2:
            return text
        return wrapped(" ".join(text.split()), self._width + 2, "", "  ") + "\n\n"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        text = super()._format_action_invocation(action)
        room = self._width - self._current_indent
        return text if len(text) <= room else wrapped(text, self._width, "", " " * (self._current_indent + 4))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return wrapped(text, width, indent, indent)


class _Group(argparse._ArgumentGroup):
    """Flags under their own title."""

    def add_argument(self, *names: Any, **options: Any) -> Any:
        return super().add_argument(*spellings(names), **options)


class PlainParser(argparse.ArgumentParser):
    """`add_argument("--max_new_tokens")` takes `--max-new-tokens` too; a misspelt flag fails with the nearest name."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **{"formatter_class": WholeWords, **options})
        self._negative_number_matcher = NEGATIVE_NUMBER

    def add_argument(self, *names: Any, **options: Any) -> Any:
        return super().add_argument(*spellings(names), **options)

    def add_argument_group(self, *args: Any, **options: Any) -> _Group:
        group = _Group(self, *args, **options)
        self._action_groups.append(group)
        return group

    def read(self, args: Sequence[str]) -> argparse.Namespace:
        """The values of a command line. Raises: RequestError."""
        values: argparse.Namespace
        values, unknown = self.parse_known_args(list(args))
        if unknown:
            flags = [option for action in self._actions for option in action.option_strings]
            help_ = f"See {self.prog} --help."
            hint = did_you_mean(unknown[0].partition("=")[0], flags, otherwise=help_, shown="{}")
            raise RequestError(f"{self.prog} does not know {unknown[0]!r}. {hint}")
        return values

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        values, unknown = super().parse_known_args(args, namespace)
        refuse_empty(self._actions, values, sys.argv[1:] if args is None else args)
        refuse_unencodable(self._actions, values)
        return values, unknown

    def error(self, message: str) -> NoReturn:
        """Argparse's own complaints as one paragraph."""
        message = with_near_choice(message)
        raise RequestError(f"{sentence(message[:1].upper() + message[1:])} See {self.prog} --help.")
