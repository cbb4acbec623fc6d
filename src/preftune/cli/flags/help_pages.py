"""`--help` and `--help-all` of a training command, made from the source of its settings, without importing torch."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from preftune.cli.flags.field_names import Field
from preftune.cli.flags.plain_parser import wrapped

MODEL = "model dtype use_peft lora_r lora_alpha load_in_4bit"
OUTPUT = "output_dir resume seeds no_report push_to_hub report_to"
_MORE = "config verbose help-all traceback"

_NAME_WIDTH = 27
_FIRST_SENTENCE = re.compile(r"(?<!et al)(?<!\.\.)\. ")
_WORDS = {
    "model": "path or hub id (also --model_name_or_path)",
    "data": "jsonl, json, csv, parquet (also .gz), a folder, a hub id, - for stdin (also --dataset_name)",
    "num_train_epochs": "passes over the data, unless --max_steps is given",
    "max_steps": "total number of optimiser steps",
    "per_device_train_batch_size": "rows per device and micro-batch",
    "gradient_accumulation_steps": "micro-batches per optimiser step",
    "eval_strategy": "no, steps (with --eval_steps), epoch",
    "output_dir": "the run directory: adapter or model, run.json, metrics.jsonl, checkpoints",
    "resume": "[CHECKPOINT] continue from the last checkpoint, or from this one; auto: start if there is no checkpoint",
    "seeds": "N ... train with each of these seeds, and say how far the results differ",
    "no_report": "write no report.html at the end",
    "push_to_hub": "upload the result to the hub, as --hub_model_id",
    "report_to": "wandb, tensorboard, trackio, ...",
    "neftune_noise_alpha": "scale of the noise on the embeddings; 5 is usual",
    "config": "RECIPE.yaml: the same names in a file; flags override it",
    "verbose": "show all notes; run.json always has them",
    "help-all": "every flag",
    "traceback": "the whole traceback of an error",
}
"""Help texts of flags that are not fields of preftune, and of transformers' fields, whose own texts are long."""


@dataclass(frozen=True, slots=True)
class HelpPage:
    """The content of a command's help page."""

    usage: str
    about: str
    sections: Mapping[str, str]
    """Title -> names of flags, separated by blanks."""
    words: Mapping[str, str] = field(default_factory=dict)
    """Flag -> its text, where it differs from the field's own help."""

    def text(self, fields: Iterable[Field]) -> str:
        """The page, as wide as the terminal but at most 80 columns."""
        known = {entry.name: entry for entry in fields}
        width = min(80, max(40, shutil.get_terminal_size().columns))
        parts = [wrapped(f"usage: {self.usage}", width, "", "         "), wrapped(self.about, width)]
        sections = {**self.sections, "output": self.sections.get("output", OUTPUT), "": _MORE}
        for title, names in sections.items():
            entries = [self._entry(name, known.get(name.removeprefix("no_")), width) for name in names.split()]
            parts.append("\n".join([title, *entries] if title else entries))
        return "\n\n".join(parts) + "\n"

    def _entry(self, name: str, known: Field | None, width: int) -> str:
        flag, text = f"  --{name}", self._what(name, known)
        if width < 60:
            return f"{flag}\n{wrapped(text, width, ' ' * 6, ' ' * 6)}"
        indent = " " * (_NAME_WIDTH + 2)
        body = wrapped(text, width, indent, indent)
        return f"{flag}\n{body}" if len(flag) > _NAME_WIDTH else flag + body[len(flag) :]

    def _what(self, name: str, known: Field | None) -> str:
        text = self.words.get(name) or _WORDS.get(name)
        if text is None:
            text = _FIRST_SENTENCE.split(known.help)[0].rstrip(".") if known is not None else ""
            text = text if text[1:2].isupper() else text[:1].lower() + text[1:]
        default = _default(known) if name in (known.name if known is not None else "",) else ""
        return f"{text} ({default})" if default and name not in self.words else text


def _default(known: Field | None) -> str:
    """A default as people write it; empty if there is no default, and for False, None and empty values."""
    if known is None or known.default in ("", "False", "True", "''", "[]", "{}", "-1", "'none'"):
        return ""
    return known.default.strip("[]'").replace("', '", ", ").removesuffix(".0")


_KINDS = {"str": "TEXT", "int": "INTEGER", "float": "NUMBER", "dict": "JSON", "list": "VALUE ..."}
_NO_FIELDS = (
    Field("config", "str", "a YAML recipe that holds the same names; flags override it"),
    Field(
        "resume",
        "str",
        "continue from the last checkpoint or from the one named; auto: start if there is no checkpoint",
    ),
    Field("seeds", "list", "train with each of these seeds, one after the other, and say how far the results differ"),
    Field("report", "bool", "write report.html at the end", "True"),
    Field("allow_env", "", "accept every variable that the env: block of a recipe sets"),
    Field("verbose", "", "show all notes; run.json always has them"),
    Field("traceback", "", "the whole traceback of an error"),
    Field("help", "", "list the most important flags"),
)


def page(prog: str, fields: Iterable[Field]) -> str:
    """The page of a command."""
    width = min(100, max(40, shutil.get_terminal_size().columns))
    head = f"usage: {prog} [options]\n\n{wrapped('Underscores and hyphens are the same in every name.', width)}"
    return "\n".join([head, *(_whole_entry(field, width) for field in (*fields, *_NO_FIELDS))]) + "\n"


def _whole_entry(field: Field, width: int) -> str:
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
