"""The datasets of Axolotl's recipes: `datasets`, `test_datasets`, and the `field_*` keys that name their columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from preftune.cli.recipes.carried import Carried
from preftune.cli.recipes.sources import Source, evaluate_on, joined, named_columns, train_on

_FIELDS = {
    "field_prompt": "prompt",
    "field_chosen": "chosen",
    "field_rejected": "rejected",
    "field_completion": "completion",
    "field_output": "completion",
    "field_label": "label",
    "field_system": "system",
    "field_tools": "tools",
    "field": "text",
}
"""Key -> canonical name. `field_messages`, `field_instruction` and `field_input` depend on the method."""
_FORMATS = {
    "prompt_format": "{prompt}",
    "chosen_format": "{chosen}",
    "rejected_format": "{rejected}",
    "completion_format": "{completion}",
    "format": "{instruction}",
    "no_input_format": "{instruction}",
    "system_format": "{system}",
    "system_prompt": "",
}
"""Key -> the value that leaves the text of the row as it is."""
_BUILDERS = ("json", "csv", "parquet", "text", "arrow")
"""Values of `path` that only say what kind of file `data_files` are."""
_STRATEGIES = (
    "chat_template chatml llama3 zephyr passthrough user_defined command_r alpaca sharegpt completion oasst gpteacher "
    "reflection explainchoice context_qa summarizetldr jeopardy metharme input_output pygmalion creative_acr "
    "orcamini stepwise_supervised bradley_terry"
).split()
"""Axolotl's own types, of which only the part before the dot matters: their rows are recognised by their columns."""
_TURNS = "Turns are read by role and content, or from and value: rename other keys in the rows."
_OF_TEMPLATES = {
    "message_property_mappings": _TURNS,
    "message_field_role": _TURNS,
    "message_field_content": _TURNS,
    "roles": "The roles are user (human), assistant (gpt), system and tool: rename others in the rows.",
    "roles_to_train": "The assistant's turns are trained, and no others.",
    "train_on_eos": "The end of each trained turn is trained.",
    "chat_template": "The model's own chat template is used.",
    "chat_template_jinja": "The model's own chat template is used.",
    "revision": "The newest revision of the data is read: download another one, and name its folder.",
    "trust_remote_code": "Datasets are read without code of their own.",
    "shards": "All rows are read; train[:1000] as the split reads some.",
}
_PLAIN: dict[str, tuple[Any, ...]] = {
    "message_property_mappings": (
        {"role": "role", "content": "content"},
        {"role": "from", "content": "value"},
    ),
    "message_field_role": ("role", "from"),
    "message_field_content": ("content", "value"),
    "roles_to_train": (["assistant"], ["gpt", "assistant"]),
    "train_on_eos": ("turn",),
    "chat_template": ("tokenizer_default",),
}
"""Values that change nothing."""


def read(carried: Carried) -> None:
    """Carries over the data of a recipe."""
    train_on(carried, _named(carried, "datasets"))
    evaluate_on(carried, _named(carried, "test_datasets"), "test_datasets")


def _named(carried: Carried, key: str) -> list[Source]:
    given = carried.take(key, [])
    for entry in (entry for entry in given if not isinstance(entry, Mapping)):
        carried.lost[f"{key}: {entry}"] = "An entry is a mapping with path: and type:."
    entries = [dict(entry) for entry in given if isinstance(entry, Mapping)]
    return [source for entry in entries for source in _sources(carried, entry, key)]


def _sources(carried: Carried, entry: dict[str, Any], key: str) -> list[Source]:
    """The files or the dataset of one entry; what is not carried over is recorded."""
    path, files = str(entry.pop("path", "")), entry.pop("data_files", None) or []
    files = [files] if isinstance(files, str) else [str(file) for file in files]
    shown = path if path and path not in _BUILDERS else ", ".join(files)
    if files and path and path not in _BUILDERS:
        carried.lost[f"{key}: path {path}"] = (
            f"{', '.join(files)} (data_files) is read as a path on this machine: download it from a hub dataset first."
        )
    kind = entry.pop("type", None)
    if isinstance(kind, Mapping):
        entry, kind = {**entry, **kind}, "user_defined.default"
    entry = {name: value for name, value in entry.items() if value not in (None, "", [], {}, False)}
    entry.pop("ds_type", None)
    name, split = (str(entry.pop(one)) if one in entry else None for one in ("name", "split"))
    columns = named_columns(carried, _columns(carried, entry, str(kind or ""), f"{key} {shown}"), f"{key} {shown}")
    _lose_formats(carried, entry, f"{key} {shown}")
    _lose_type(carried, kind, columns, key)
    return [Source(place, name, split, columns) for place in files or [path] if place]


def _columns(carried: Carried, entry: dict[str, Any], kind: str, where: str) -> dict[str, str]:
    """Canonical name -> column, of the `field_*` keys, which are removed from the entry."""
    asked = {canonical: str(entry.pop(key)) for key, canonical in _FIELDS.items() if key in entry}
    parts = [str(entry.pop(key)) for key in ("field_instruction", "field_input") if key in entry]
    if parts:
        asked["prompt"] = joined(carried, parts, where)
    own = kind == "user_defined.default" and carried.command != "sft"
    if own and "system" in asked and "{system}" not in str(entry.get("prompt_format", "")):
        column = asked.pop("system")
        carried.lost[f"{where}: field_system {column}"] = "It has no effect without {system} in prompt_format."
    of_pairs = carried.command in ("dpo", "reward")
    messages = entry.pop("field_messages", None)
    if messages is not None:
        asked["prompt" if of_pairs else "messages"] = str(messages)
    elif asked and of_pairs and kind in ("chat_template", "chat_template.default"):
        asked.setdefault("prompt", "messages")  # Axolotl's default
    return asked


def _lose_formats(carried: Carried, entry: Mapping[str, Any], where: str) -> None:
    """Records the keys of an entry that change its rows in Axolotl and have no counterpart."""
    for name, value in entry.items():
        if value in _PLAIN.get(name, ()):
            continue
        if name in _FORMATS:
            if value != _FORMATS[name]:
                carried.lost[f"{where}: {name} {value!r}"] = (
                    "Texts are trained as the rows have them, WITHOUT this text around them. Write it into the rows "
                    "before training, or the model learns other prompts and answers than in Axolotl."
                )
        else:
            reason = _OF_TEMPLATES.get(name, "preftune has no option of this name for one dataset.")
            carried.lost[f"{where}: {name}"] = reason


def _lose_type(carried: Carried, kind: Any, columns: Mapping[str, str], key: str) -> None:
    """Says what becomes of the name of a type."""
    if not kind or kind == "user_defined.default":
        return
    if str(kind).partition(".")[0] not in _STRATEGIES:
        reason = (
            "This is not one of Axolotl's own types, and its changes to the rows are not applied. Apply them before "
            "training, and look at the first pairs with preftune convert."
        )
    elif columns:
        reason = "Of it, the columns are carried over (columns); the prompt is written by the model's chat template."
    else:
        reason = (
            "The shape of the rows is recognised (format names it); the prompt is written by the model's chat "
            "template, without the text and marks that the type puts around it."
        )
    carried.lost[f"{key}: type {kind}"] = reason
