"""Formats of demonstrations: their columns, and a row of any of them -> `Example`.

messages           a column `messages`: conversations, in any form that preferences may have
sharegpt           a column `conversations`, turns as {"from": ..., "value": ...}
alpaca             `instruction`, perhaps `input` (or `context`), and `output` (or `response`); perhaps `history`
prompt-completion  `prompt` and `completion` (or another name of an answer), each text or messages
text               a column `text`: question and answer are not separated

Data with a label or thumb per answer are read in the same way; their bad answers are left out and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from preftune.data.chat.messages import Where, not_answered, read_text
from preftune.data.formats.adapter import PROMPTS, Sample
from preftune.data.formats.columns import Columns, listing, named_paths
from preftune.data.formats.single_answers import labels_in, verdict
from preftune.data.formats.to_pair import (
    about,
    as_answer,
    as_turns,
    check_characters,
    with_system,
)
from preftune.errors import DatasetError
from preftune.types import Example, Message, Text

DEMONSTRATION_COLUMNS = (
    "messages",
    "prompt",
    "completion",
    "text",
    "system",
    "history",
    "label",
    "tools",
    "chat_template_kwargs",
    "id",
    "source",
)
"""The columns of demonstrations that are read; every other column is ignored."""

_CONTENT = ("messages", "prompt", "completion", "text")
_CONVERSATIONS = ("conversations", "conversation")
_PROMPTS = ("prompt", "question", "query")
_ANSWERS = ("completion", "response", "answer", "output")
_CONTEXTS = ("input", "context")
_LABELS = ("label", "kto_tag", "thumbs", "thumb", "feedback", "vote", "reaction", "rating")


Shape = Mapping[str, str]
"""Canonical name -> column."""


@dataclass(frozen=True, slots=True)
class DemonstrationFormat:
    """One format of demonstrations."""

    name: str
    """The name for `--format`."""
    holds: str
    columns: Callable[[Sample], Shape | None]
    """The columns of its values; None for data without these columns."""
    takes: Callable[[Any], bool]
    """Whether a value of the first of these columns has the type that the format needs."""
    chat: bool = False
    """Whether texts are turns of a conversation."""

    def fits(self, sample: Sample) -> bool:
        """Whether these rows have this format, by their columns and the type of their values."""
        columns = self.columns(sample)
        return columns is not None and self.takes(sample.first(next(iter(columns.values())).partition("+")[0]))


def _messages(sample: Sample) -> Shape | None:
    return {"messages": "messages"} if "messages" in sample else None


def _sharegpt(sample: Sample) -> Shape | None:
    column = sample.name_of(_CONVERSATIONS)
    return None if column is None else {"messages": column}


def _alpaca(sample: Sample) -> Shape | None:
    answer = sample.name_of(_ANSWERS[::-1])
    if "instruction" not in sample or answer is None:
        return None
    parts = ["instruction", *(column for column in _CONTEXTS if column in sample)]
    return {"prompt": "+".join(parts), "completion": answer, **_system(sample)}


def _prompt_completion(sample: Sample) -> Shape | None:
    prompt, answer = sample.name_of(_PROMPTS), sample.name_of(_ANSWERS)
    return None if prompt is None or answer is None else {"prompt": prompt, "completion": answer, **_system(sample)}


def _system(sample: Sample) -> Shape:
    """OpenOrca's name of the system turn."""
    return {"system": "system_prompt"} if "system_prompt" in sample and "system" not in sample else {}


def _text(sample: Sample) -> Shape | None:
    return {"text": "text"} if "text" in sample else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_turns(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, str) and value.lstrip()[:1] in ("[", "{"))


DEMONSTRATION_FORMATS: Mapping[str, DemonstrationFormat] = {
    known.name: known
    for known in (
        DemonstrationFormat("messages", "conversations", _messages, _is_turns),
        DemonstrationFormat("sharegpt", "conversations, turns as from and value", _sharegpt, _is_turns),
        DemonstrationFormat(
            "alpaca", "instructions, perhaps with an input, and their outputs", _alpaca, _is_text, chat=True
        ),
        DemonstrationFormat("prompt-completion", "prompts and completions", _prompt_completion, lambda _: True),
        DemonstrationFormat("text", "texts, trained as a whole", _text, _is_text),
    )
}
"""The formats by name; the first one that fits is used (data often hold the same contents twice, with and without a
template). If none fits, the first whose columns exist is, and its reader names the value of a wrong type.
"""


def label_column(sample: Sample, *, name: str) -> str | None:
    """The column that says whether an answer is good.

    Args:
        name: of the dataset, for messages.
    Raises: DatasetError for labels mixed with other values.
    """
    found = labels_in(sample, _LABELS)
    if found is None:
        return None
    column, others = found
    if others:
        raise DatasetError(
            f"The column {column!r} of {name} holds labels mixed with other values ({listing(map(str, others))}). "
            f"--columns label={column} leaves the rows with other values out, and --columns label= reads no labels."
        )
    return column


def find_columns(
    features: Mapping[str, Any], shape: Shape, asked: Mapping[str, str | None] | None, *, name: str
) -> Columns:
    """The column of each canonical value.

    Args:
        features: the dataset's columns.
        shape: the columns of the format.
        asked: the user's columns, which take precedence; see `columns.resolve_columns` for how a column is written.
    Raises:
        DatasetError: an unknown canonical name, a missing column, or columns without a demonstration.
    """
    own = {column: None if column in (*_CONTENT, "label") else column for column in DEMONSTRATION_COLUMNS}
    paths = named_paths(features, {**own, **shape}, asked, reads="of demonstrations", name=name)
    if not ("messages" in paths or "text" in paths or {"prompt", "completion"} <= set(paths)):
        raise unknown_shape(features, name=name)
    return Columns(paths)


_BESIDE_PROMPTS = ("id", "label", "source", "system", "weight")
"""Columns that prompts without answers may have."""


def unknown_shape(features: Mapping[str, Any], *, name: str, labelled: bool = False) -> DatasetError:
    """The error for data without recognisable demonstrations, or without answers that have labels."""
    label, command = (" label=YOURS", ", then preftune label") if labelled else ("", "")
    if {*features} & {*PROMPTS} and not {*features} - {*PROMPTS, *_BESIDE_PROMPTS}:
        return DatasetError(
            f"{name} holds prompts without answers (found: {listing(features)}). Name the column of answers with "
            f"--columns completion=YOURS{label}, or write answers first: preftune sample{command}."
        )
    if labelled:
        return DatasetError(
            f"{name} holds no answers with labels that preftune knows (found: {listing(features)}). Name the columns: "
            "--columns prompt=YOURS completion=YOURS label=YOURS (values like true and false), or chosen=YOURS "
            "rejected=YOURS of preference pairs; or the format: --format kto, thumbs, or one of the formats of pairs."
        )
    return DatasetError(
        f"{name} holds no demonstrations that preftune knows (found: {listing(features)}). Name the columns: --columns "
        "messages=YOURS, or prompt=YOURS completion=YOURS, or text=YOURS (in Python: columns={'prompt': ..., "
        f"'completion': ...}}); or the format: --format is one of {', '.join(DEMONSTRATION_FORMATS)}."
    )


@dataclass(frozen=True, slots=True)
class DemonstrationReader:
    """Makes demonstrations from raw rows."""

    columns: Columns
    name: str
    chat: bool = False

    @property
    def needed(self) -> list[str]:
        """The columns that must be read."""
        return self.columns.needed

    @property
    def facts(self) -> tuple[Any, ...]:
        """The settings that a demonstration depends on, besides its row."""
        return ("own", sorted(self.columns.paths.items()), self.chat)

    def as_chat(self) -> DemonstrationReader:
        """The same reader, with texts as turns."""
        return replace(self, chat=True)

    def refused(self, row: Mapping[str, Any]) -> str | None:
        """Why a row's label does not allow its answer to be imitated: a key of `DEMONSTRATION_REASONS`."""
        label = verdict(self.columns.pick(row).get("label"))
        return "no_label" if label is None else None if label else "bad_answer"

    def read(self, row: Mapping[str, Any], number: int) -> Example:
        """The demonstration of a row.

        Args:
            number: number of the row in the dataset that was opened.
        Raises:
            DatasetError: a value of the wrong type; the message names row, column, value and the correction.
        """
        values = self.columns.pick(row)
        where = Where(self.name, number)
        prompt, completion = self._texts(values, where)
        if not isinstance(completion, str) and "system" in values:
            if prompt is None:
                completion = with_system(values["system"], completion, where)
            else:
                assert isinstance(prompt, list)
                prompt = with_system(values["system"], prompt, where)
        return Example(prompt, (completion,), **about(values, where))

    def _texts(self, values: Mapping[str, Any], where: Where) -> tuple[Text | None, Text]:
        """Prompt and completion in the same form: both texts, or both turns."""
        if "messages" in self.columns:
            turns = self._read("messages", values, where)
            if isinstance(turns, str):
                raise where.error(
                    "messages",
                    "text, not a list of turns",
                    'Write turns like [{"role": "user", "content": "..."}], or name the column as text=.',
                )
            return None, [*self._history(values, where), *turns]
        if "completion" not in self.columns:
            text = self._read("text", values, where)
            return None, as_answer(text) if self.chat and isinstance(text, str) else text
        prompt, completion = (self._read(side, values, where) for side in ("prompt", "completion"))
        chat = self.chat or isinstance(prompt, list) or isinstance(completion, list) or "system" in self.columns
        if not chat and "history" not in self.columns:
            return prompt, completion
        asked, answer = [*self._history(values, where), *as_turns(prompt)], as_answer(completion)
        not_answered(asked, "completion", answer, where)
        return asked, answer

    def _read(self, column: str, values: Mapping[str, Any], where: Where) -> Text:
        if column not in values:
            raise where.error(column, "missing or null", "Fill it in, or remove the row.")
        text = read_text(values[column], column, where)
        check_characters(text, column, where)
        return text

    def _history(self, values: Mapping[str, Any], where: Where) -> list[Message]:
        """Earlier questions and answers in LLaMA-Factory's form: [[question, answer], ...]."""
        turns: list[Message] = []
        for number, exchange in enumerate(values.get("history") or ()):
            if not isinstance(exchange, list | tuple) or [type(text) for text in exchange] != [str, str]:
                raise where.error(
                    "history",
                    f"entry {number} is not a question and its answer",
                    "Write [[question, answer], ...], or leave the column unread with --columns history=.",
                )
            question, answer = exchange
            turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return turns
