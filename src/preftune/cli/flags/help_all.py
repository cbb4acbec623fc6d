"""`--help-all`: every flag of a training command, from the source of its settings, so that the page comes at once."""

from __future__ import annotations

import shutil
from collections.abc import Iterable

from preftune.cli.flags.field_names import Field
from preftune.cli.flags.plain_parser import wrapped

_KINDS = {"str": "TEXT", "int": "INTEGER", "float": "NUMBER", "dict": "JSON", "list": "VALUE ..."}
_OWN = (
    Field("config", "str", "a YAML recipe that holds the same names; flags override it"),
    Field("resume", "str", "go on from the last checkpoint or from the one named; auto starts without one"),
    Field("report", "bool", "write report.html when it is done", "True"),
    Field("allow_env", "", "accept any variable that the env: block of a recipe sets"),
    Field("verbose", "", "show all notes, which run.json has anyway"),
    Field("traceback", "", "the whole traceback of an error"),
    Field("help", "", "the flags that matter most"),
)


def page(prog: str, fields: Iterable[Field]) -> str:
    """The page of a command."""
    width = min(100, max(40, shutil.get_terminal_size().columns))
    head = f"usage: {prog} [options]\n\nUnderscores and hyphens are the same in every name."
    return "\n".join([head, *(_entry(field, width) for field in (*fields, *_OWN))]) + "\n"


def _entry(field: Field, width: int) -> str:
    names = [f"--{name}" for name in (field.name, *field.aliases)]
    if field.is_bool:
        names.append(f"--no_{field.name}")
    flags = " ".join(filter(None, (", ".join(names), _value(field))))
    default = f" (default: {field.default})" if field.default and field.default not in ("''", "[]", "{}") else ""
    text = wrapped(field.help + default, width, "      ", "      ")
    return f"\n{wrapped(flags, width, '  ', '      ')}\n{text}".rstrip()


def _value(field: Field) -> str:
    if field.is_bool or not field.kind:
        return ""
    if field.choices:
        return "{" + ",".join(field.choices) + "}"
    return next((shown for kind, shown in reversed(_KINDS.items()) if kind in field.kind), "VALUE")
