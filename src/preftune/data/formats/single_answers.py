"""Single answers: with a label (KTO), with a thumb (chat logs), or with neither (Alpaca, for supervised fine-tuning).

- `kto`: `prompt`, `completion`, `label` (TRL), or a conversation and `label` or `kto_tag` (LLaMA-Factory).
- `thumbs`: a conversation (`messages`) or `prompt` and `response` with a thumb (`thumbs`, `feedback`, `vote`,
  `reaction`, `rating`: up or down, 1 or -1); or conversations with a thumb in each assistant turn.
- `alpaca`: `instruction`, `input`, `output`: one answer, no preference. Refused.

Answers to the same prompt with opposite labels form pairs: one for each answer with the more frequent label, cycling
through the answers with the other one, so that every answer is used and a frequent prompt does not give millions of
pairs. The other answers are counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from preftune.data.chat.messages import role_of
from preftune.data.formats.adapter import (
    Adapter,
    Left,
    Made,
    Row,
    Sample,
    after_history,
    asked_as,
    number,
    records,
)

_CONVERSATIONS = ("messages", "conversations", "conversation")
_COMPLETIONS = ("completion", "response", "answer", "output")
_LABELS = ("label", "kto_tag")
_THUMBS = ("thumbs", "thumb", "feedback", "vote", "reaction", "rating")
_GOOD = frozenset(
    "up thumbs_up thumbs-up thumbsup 👍 like liked good positive 1 true yes desirable chosen accepted".split()
)
_BAD = frozenset(
    "down thumbs_down thumbs-down thumbsdown 👎 dislike disliked bad negative 0 -1 false no undesirable "
    "rejected".split()
)
_MOST = 8
"""Distinct values that a column of labels may have, some of which are not labels; a column with more holds texts."""


def verdict(value: Any) -> bool | None:
    """Reads a label: True for a good answer, False for a bad one, None for any other value."""
    if isinstance(value, bool):
        return value
    amount = number(value)
    if amount is not None and amount.is_integer():
        value = int(amount)  # pandas writes 1.0 where a label is missing in another row
    word = str(value).strip().lower().replace(" ", "_")
    return True if word in _GOOD else False if word in _BAD else None


def _answered(sample: Sample) -> bool:
    """Whether rows hold exactly one answer."""
    if sample.any("chosen", "rejected"):
        return False
    column = sample.name_of(_CONVERSATIONS)
    if column is not None:
        return isinstance(sample.first(column), list)
    return sample.any("prompt", "instruction") and sample.any(*_COMPLETIONS)


def labels_in(sample: Sample, columns: Iterable[str]) -> tuple[str, list[Any]] | None:
    """The first of these columns that holds labels, and its other values.

    Numbers other than 1, 0 and -1 are ratings and no labels. Null and blank text mean that there is no label."""
    for column in columns:
        values = sample.distinct(column, _MOST)
        others = [value for value in values if verdict(value) is None]
        if len(others) < len(values) and all(number(value) is None for value in others):
            return column, others
    return None


def _is_kto(sample: Sample) -> bool:
    return _answered(sample) and labels_in(sample, _LABELS) is not None


def _is_thumbs(sample: Sample) -> bool:
    if not _answered(sample) or _is_kto(sample):
        return False
    if labels_in(sample, _THUMBS) is not None:
        return True
    column = sample.name_of(_CONVERSATIONS)
    return column is not None and sample.within(column, _THUMBS, _has_thumb)


def _has_thumb(turns: Any) -> bool:
    return any(isinstance(turn, Mapping) and _thumb_of(turn) is not None for turn in records(turns))


def _is_alpaca(sample: Sample) -> bool:
    return (
        sample.has("instruction", "output")
        and not sample.any("chosen", "rejected", "chosen_response")
        and isinstance(sample.first("output"), str)
        and not _is_kto(sample)
        and not _is_thumbs(sample)
    )


def _pairs(columns: tuple[str, ...], rows: Iterable[Row]) -> Iterator[tuple[int, Made]]:
    answers: dict[str, tuple[Any, dict[bool, list[tuple[int, Any]]]]] = {}
    for index, row in enumerate(rows):
        found = list(_answers_of(row, columns))
        if not found:
            yield index, Left("other_shape")
        for prompt, answer, verdict in found:
            if verdict is None:
                yield index, Left("unrated")
                continue
            key = asked_as(prompt, row)
            answers.setdefault(key, (prompt, {True: [], False: []}))[1][verdict].append((index, answer))
    for prompt, sides in answers.values():
        good, bad = sides[True], sides[False]
        if not good or not bad:
            yield from ((index, Left("unpaired")) for index, _ in good or bad)
            continue
        for turn in range(max(len(good), len(bad))):
            index, chosen = good[turn % len(good)]
            yield index, {"prompt": prompt, "chosen": chosen, "rejected": bad[turn % len(bad)][1]}


def _answers_of(row: Row, columns: tuple[str, ...]) -> Iterator[tuple[Any, Any, bool | None]]:
    """The (prompt, answer, verdict) of every labelled answer in a row."""
    label = next((found for name in columns if (found := verdict(row.get(name))) is not None), None)
    turns = next((records(row[name]) for name in _CONVERSATIONS if row.get(name) is not None), None)
    if turns is None:
        prompt = row.get("prompt")
        if prompt is None and isinstance(row.get("instruction"), str):
            texts = [row["instruction"], row.get("input")]
            prompt = "\n\n".join(text for text in texts if isinstance(text, str) and text.strip())
        prompt = after_history(prompt, row)
        answer = next((row[name] for name in _COMPLETIONS if row.get(name) is not None), None)
        if prompt is not None and answer is not None:
            yield prompt, answer, label
        return
    if not all(isinstance(turn, Mapping) for turn in turns):
        return
    plain = [{key: value for key, value in turn.items() if key not in _THUMBS} for turn in turns]
    if label is None:
        for place, turn in enumerate(turns):
            if (thumb := _thumb_of(turn)) is not None and place:
                yield plain[:place], [plain[place]], thumb
    if len(turns) > 1 and role_of(turns[-1]) == "assistant" and (label is not None or _thumb_of(turns[-1]) is None):
        yield plain[:-1], [plain[-1]], label


def _thumb_of(turn: Mapping[str, Any]) -> bool | None:
    if role_of(turn) != "assistant":
        return None
    value = next((turn[name] for name in _THUMBS if turn.get(name) is not None), None)
    return None if value is None else verdict(value)


def _uses(columns: tuple[str, ...], sample: Sample) -> list[str]:
    turns, labels = sample.name_of(_CONVERSATIONS), labels_in(sample, columns)
    answer = sample.name_of(_COMPLETIONS)
    asked = ["prompt"] if "prompt" in sample else ["instruction", "input"]
    read = [turns] if turns else [*asked, answer, "history"]
    return [column for column in (*read, labels and labels[0]) if column is not None]


def _other_labels(columns: tuple[str, ...], sample: Sample) -> list[str]:
    """The columns with such names that are not the labels: a count of votes is no thumb."""
    found = labels_in(sample, columns)
    return [column for column in columns if found is not None and column != found[0]]


def _one_label(columns: tuple[str, ...], sample: Sample) -> str:
    labels = labels_in(sample, columns)
    column = labels[0] if labels else ""
    found = {verdict(value) for value in sample.values(column)} - {None}
    if len(found) != 1:
        return ""
    return f"Every {column!r} among the first rows says {'good' if found.pop() else 'bad'}. "


_NO_PAIRS = (
    "No prompt has both a good and a bad answer, and a pair needs two answers to the same prompt. Train on single "
    "answers with preftune kto."
)

ADAPTERS = (
    Adapter(
        "kto",
        "single answers with a label",
        _is_kto,
        table=partial(_pairs, _LABELS),
        uses=partial(_uses, _LABELS),
        ignores=partial(_other_labels, _LABELS),
        hint=partial(_one_label, _LABELS),
        refused=_NO_PAIRS,
    ),
    Adapter(
        "thumbs",
        "single answers with a thumb",
        _is_thumbs,
        table=partial(_pairs, _THUMBS),
        uses=partial(_uses, _THUMBS),
        ignores=partial(_other_labels, _THUMBS),
        hint=partial(_one_label, _THUMBS),
        refused=_NO_PAIRS,
    ),
    Adapter(
        "alpaca",
        "instructions with one answer each, for supervised fine-tuning",
        _is_alpaca,
        refused="The data hold no preferences. Add a worse answer to every row as 'rejected' and call the good one "
        "'chosen', or train on the data with preftune sft.",
    ),
)
