"""Prompts to answer: from preference data in any format, rows with a prompt or messages, or plain lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from preftune.data.chat.messages import role_of
from preftune.data.formats import single_answers
from preftune.data.formats.adapter import Adapter
from preftune.data.formats.apply import said_of, sample_of
from preftune.data.formats.columns import SYNONYMS, guess_columns, listing, resolve_columns
from preftune.data.formats.registry import adapter_named, recognise
from preftune.data.formats.to_pair import to_prompt
from preftune.data.pairs.checks import not_used, unused_texts
from preftune.data.pairs.open import read_pairs
from preftune.data.reading.load import display_name, load_rows
from preftune.errors import DatasetError
from preftune.storage.jsonl import digest
from preftune.types import Example, PreferencePair, Text

_SINGLE = frozenset(adapter.name for adapter in single_answers.ADAPTERS)
_CONVERSATIONS = ("messages", "conversations", "conversation")
CATEGORIES = ("category", "topic", "source")
"""Columns by which prompts are grouped; the first existing one is used."""
KEYS = ("key_fact", "answer", "expected")
"""Columns that rules read."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt to answer."""

    id: str
    prompt: Text
    key: str
    """Content address of the prompt, its tools and the arguments of the chat template."""
    carried: Mapping[str, Any] = field(default_factory=dict)
    """`tools` and `chat_template_kwargs`, if there are any."""
    kept: Mapping[str, Any] = field(default_factory=dict)
    """Other columns of the row that a judge may need."""
    chosen: str | None = None
    """The better answer, if the prompt comes from a pair."""

    def row(self, by: str | None = None) -> dict[str, Any]:
        """The prompt as a row for `evaluate_pairwise`: `id`, `prompt`, the judge's columns, and its `category`.

        Args:
            by: the column that is the category; by default the first of `CATEGORIES` that is there.
        """
        found = (self.kept.get(name) for name in (CATEGORIES if by is None else (by,)))
        category = next((value for value in found if value is not None), None)
        named = {} if category is None else {"category": str(category)}
        return {**self.kept, **self.carried, "id": self.id, "prompt": self.prompt, **named}


@dataclass(frozen=True, slots=True)
class Prompts:
    """The distinct prompts of a source, in its order."""

    prompts: list[Prompt]
    name: str
    repeated: int
    """Number of repetitions of prompts; each prompt is used once."""
    notes: tuple[str, ...] = ()
    """The parts of the source that are not used, in sentences."""


def load_prompts(
    source: Any,
    *,
    split: str = "train",
    columns: Mapping[str, str | None] | None = None,
    format: str | None = None,
    as_chat: bool = False,
    keep: Sequence[str] = (),
    keep_if_there: Sequence[str] = (),
    limit: int | None = None,
) -> Prompts:
    """Reads prompts.

    Args:
        source: what `load_rows` takes, or a .txt file with one prompt per line. From pairs and groups the prompts are
            used; from a conversation the turns before the last turns of the assistant.
        split, columns, format: as for `load_pairs`; `columns={"prompt": "question"}` names the column of the prompts.
        as_chat: make text prompts a user's turn.
        keep: columns that are copied for a judge.
        keep_if_there: the same, for optional columns.
        limit: use only the first distinct prompts, up to this number.
    Raises: DatasetError for a source that cannot be read, holds no prompts, or has a row without a prompt.
    """
    name = display_name(source)
    found: dict[str, Prompt] = {}
    ids: set[str] = set()
    repeated = 0
    notes: list[str] = []
    asked = _asked(
        source,
        split=split,
        columns=dict(columns or {}),
        format=format,
        as_chat=as_chat,
        keep=keep,
        with_rows=bool(keep or keep_if_there),
        notes=notes,
    )
    for example, row in asked:
        prompt = example.prompt
        if not prompt or (isinstance(prompt, str) and not prompt.strip()):
            raise DatasetError(f"{name} row {example.row} has an empty prompt. Fill it in, or remove the row.")
        carried = carried_by(example)
        key = digest([prompt, carried])
        if key in found:
            repeated += 1
            continue
        if limit is not None and len(found) >= limit:
            break
        own = example.id if example.id is not None and example.id not in ids else key
        ids.add(own)
        kept = {column: row.get(column) for column in keep}
        kept |= {column: row[column] for column in keep_if_there if row.get(column) is not None}
        found[key] = Prompt(own, prompt, key, carried, kept, _last_words(*example.completions[:1]))
    if not found:
        raise DatasetError(f"{name} holds no prompts. Give at least one.")
    return Prompts(list(found.values()), name, repeated, tuple(notes))


def carried_by(pair: PreferencePair | Example) -> dict[str, Any]:
    """What belongs to the prompt besides its words: `tools` and `chat_template_kwargs`, if there are any."""
    carried: dict[str, Any] = {}
    if pair.tools:
        carried["tools"] = list(pair.tools)
    if pair.chat_template_kwargs:
        carried["chat_template_kwargs"] = dict(pair.chat_template_kwargs)
    return carried


def prompt_key(pair: PreferencePair) -> str:
    """The `Prompt.key` of a pair's prompt."""
    return digest([pair.prompt, carried_by(pair)])


def _asked(
    source: Any,
    *,
    split: str,
    columns: dict[str, str | None],
    format: str | None,
    as_chat: bool,
    keep: Sequence[str],
    with_rows: bool,
    notes: list[str],
) -> Iterator[tuple[Example, Mapping[str, Any]]]:
    """Prompts, with both completions if the data are pairs, each with its raw row (empty unless columns of it are
    kept). Adds to `notes`.
    """
    name = display_name(source)
    if isinstance(source, str | Path) and str(source).lower().endswith(".txt") and Path(source).expanduser().is_file():
        if keep or columns or format:
            raise DatasetError(
                f"{name} holds plain lines, which have no columns. Leave --keep, --columns and --format out."
            )
        for number, line in enumerate(_lines(Path(source).expanduser())):
            if line.strip():
                yield to_prompt({"prompt": line}, name=name, row=number, chat=as_chat), {}
        return
    rows: Any = load_rows(source, split=split)
    missing = [column for column in keep if column not in rows.features]
    if missing:
        raise DatasetError(
            f"--keep {missing[0]}: {name} has no such column (found: {listing(rows.features)}). Name one of those."
        )
    adapter: Adapter | None
    if format is not None:
        adapter = adapter_named(format)
    else:
        adapter = None if {"prompt", "chosen", "rejected"} & set(columns) else recognise(sample_of(rows), name=name)
    if {"chosen", "rejected"} & set(columns) or (adapter is not None and adapter.name not in _SINGLE):
        pairs = read_pairs(rows, columns=columns, format=format, name=name)
        notes += _not_asked(pairs.unused, keep)
        if pairs.left:
            notes += [
                f"{name}: only prompts of rows that give a pair are asked.",
                *said_of(pairs.left),
            ]
        for pair in pairs.as_chat() if as_chat else pairs:
            yield pair.example, pairs.raw[pair.row] if with_rows else {}
        return
    yield from _of_rows(rows, columns, name=name, as_chat=as_chat, keep=keep, notes=notes)


def _not_asked(unused: Sequence[str], keep: Sequence[str]) -> list[str]:
    """The note about unused columns that look like a part of the prompt; columns of answers are not listed."""
    likely = {"prompt", *SYNONYMS["prompt"]} - {*_CONVERSATIONS, *keep}
    return not_used([column for column in unused if column.lower() in likely])


def _of_rows(
    rows: Any, columns: dict[str, str | None], *, name: str, as_chat: bool, keep: Sequence[str], notes: list[str]
) -> Iterator[tuple[Example, Mapping[str, Any]]]:
    prompt = columns.pop("prompt", None) or _prompt_column(rows.features, name)
    # Only the prompt is wanted; the sides must be named somehow for the columns to be resolved and checked.
    found = resolve_columns(
        rows.features, {**columns, "prompt": prompt, "chosen": prompt, "rejected": prompt}, name=name
    )
    notes += _not_asked(unused_texts(sample_of(rows), found.needed), keep)
    conversation = prompt in _CONVERSATIONS
    number = 0
    for table in rows.with_format(None).iter(batch_size=1000):
        for place in range(len(next(iter(table.values())))):
            row = {column: values[place] for column, values in table.items()}
            values = found.pick(row)
            if conversation and isinstance(values.get("prompt"), list):
                values["prompt"] = _before_the_answer(values["prompt"])
            if values.get("prompt") is None:
                raise DatasetError(f"{name} row {number} has no prompt to answer. Fill it in, or remove the row.")
            yield to_prompt(values, name=name, row=number, chat=as_chat or "system" in found), row
            number += 1


def _last_words(answer: Text | None = None) -> str | None:
    """An answer as text: of several turns, the assistant's last text before the user's next turn.

    Later turns answer another question than the prompt; earlier ones are tool calls.
    """
    if answer is None or isinstance(answer, str):
        return answer
    own = list(takewhile(lambda turn: turn.get("role") != "user", answer)) or answer
    said = [turn for turn in own if turn.get("role") == "assistant"] or own
    return str(said[-1].get("content") or "") if said else ""


def _before_the_answer(turns: list[Any]) -> list[Any]:
    """A conversation up to and including the last turn that is not the assistant's."""
    end = len(turns)
    while end > 0 and isinstance(turns[end - 1], Mapping) and role_of(turns[end - 1]) == "assistant":
        end -= 1
    return turns[:end]


def _prompt_column(features: Mapping[str, Any], name: str) -> str:
    for column in ("prompt", *_CONVERSATIONS):
        if column in features:
            return column
    if "instruction" in features:
        return "instruction+input" if "input" in features else "instruction"
    guess = guess_columns(["prompt"], features).get("prompt", "<column>")
    raise DatasetError(
        f"{name} has no column of prompts (found: {listing(features)}). Name it with --columns prompt={guess}."
    )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not text in UTF-8 (byte {error.start}). Save it in UTF-8.") from error
