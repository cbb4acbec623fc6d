"""The definition of an adapter, and the rows that adapters make.

An adapter either names the columns that hold the canonical values (one raw row, one pair; nothing is copied), or makes
canonical rows of raw ones: `prompt`, `chosen`, `rejected`, and if the data have them `agreement`, `strength`, the
ratings of both sides, `id`. A row without a pair becomes a `Left` with its reason, so that it is counted.

Strength is how much better the chosen side is in the dataset's own units: points of a rating, places in a ranking, the
natural logarithm of a ratio of votes. It is not a margin: `PreferencePair.margin` is in nats of reward and changes the
loss. Strength only filters and sorts; only `load_pairs(..., margin_from_scores=SCALE)` turns it into a margin, of SCALE
nats per unit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from datasets import Dataset

Row: TypeAlias = Mapping[str, Any]

PROMPTS = ("prompt", "instruction", "question", "query", "input")
"""Names of the prompt in lists of answers and annotation tools, the likeliest first."""

ANSWERS = ("completions", "responses", "answers", "generations", "outputs", "candidates")
"""Names of lists of answers."""

LEFT: Mapping[str, tuple[str, str]] = {
    "tied": ("two answers have the same rating, so neither is preferred", "Leave them out."),
    "other_count": ("a row does not have as many scores as answers", "Give one score for each answer."),
    "one_completion": ("a prompt has fewer than two rated answers", "Rate a second answer, or leave the prompt out."),
    "unrated": ("an answer has no rating, rank or label", "Rate it, or leave it out."),
    "unpaired": (
        "no other answer to the same prompt has the opposite label",
        "Train on single answers with preftune kto, or add the missing answers (preftune sample, then preftune label).",
    ),
    "deleted": ("the message was deleted or rejected by its reviewers", "No action is needed."),
    "orphan": ("the conversation before the answers was deleted or is missing", "Load the whole trees."),
    "other_shape": ("the row does not have the shape of its format", "Correct it, or name its format with --format."),
}
"""Why a row gives no pair: reason -> (what is wrong, how to fix it)."""


@dataclass(frozen=True, slots=True)
class Left:
    """A row, or part of one, that gives no pair."""

    reason: str
    """A key of `LEFT`."""


Made: TypeAlias = dict[str, Any] | Left


class AllRows(Protocol):
    """Questions about every row of a dataset. Rows are often sorted, so the first ones may not show what there is."""

    def search(self, column: str, wanted: Callable[[Any], bool]) -> list[Any]:
        """Some of the values that satisfy a condition."""
        ...

    def has_keys(self, column: str, keys: Iterable[str]) -> bool:
        """Whether objects inside the values may have one of these keys. Values are not decoded."""
        ...

    def distinct(self, column: str, most: int) -> list[Any] | None:
        """The distinct values; None if there are more than `most`."""
        ...


class Sample:
    """The first rows of a dataset, by which its format is recognised, and what other rows add to them."""

    def __init__(self, table: Mapping[str, Sequence[Any]], whole: AllRows | None = None) -> None:
        """
        Args:
            table: the first rows.
            whole: all rows; None for a stream, of which only the first rows are known.
        """
        self._table, self._whole = table, whole
        self._found: dict[tuple[Any, ...], Any] = {}
        """Answers about all rows, by question: formats ask the same ones."""

    def __contains__(self, column: object) -> bool:
        return column in self._table

    def has(self, *columns: str) -> bool:
        """Whether all of these columns exist."""
        return all(column in self._table for column in columns)

    def any(self, *columns: str) -> bool:
        """Whether one of these columns exists."""
        return self.name_of(columns) is not None

    def name_of(self, columns: Iterable[str]) -> str | None:
        """The first of these columns that exists."""
        return next((column for column in columns if column in self._table), None)

    @property
    def columns(self) -> list[str]:
        return list(self._table)

    def values(self, column: str) -> list[Any]:
        """Some values of a column, without null and empty text. An empty list: the column has no other values."""
        here = list(filter(_is_there, self._table.get(column, ())))
        return here or self._later(column, filled=False)

    def ever(self, column: str) -> bool:
        """Whether any row has a value in this column that is not empty."""
        return any(self._table.get(column, ())) or bool(self._later(column, filled=True))

    def distinct(self, column: str, most: int) -> list[Any]:
        """The distinct values of a column in all rows, without null and empty text; empty if there are more than
        `most`.
        """
        if column not in self._table:
            return []
        if ("distinct", column, most) not in self._found:
            whole = self._whole
            found = distinct_of(self._table[column], most) if whole is None else whole.distinct(column, most)
            self._found["distinct", column, most] = found or []
        return list(self._found["distinct", column, most])

    def within(self, column: str, keys: Iterable[str], wanted: Callable[[Any], bool]) -> bool:
        """Whether any row's value in this column satisfies a condition that needs an object with one of the keys."""
        if any(map(wanted, filter(_is_there, self._table.get(column, ())))):
            return True
        whole, question = self._whole, ("within", column, wanted)
        if question not in self._found:
            found = whole is not None and whole.has_keys(column, keys) and bool(whole.search(column, wanted))
            self._found[question] = found
        return bool(self._found[question])

    def _later(self, column: str, *, filled: bool) -> list[Any]:
        if self._whole is None or column not in self._table:
            return []
        if (column, filled) not in self._found:
            self._found[column, filled] = self._whole.search(column, bool if filled else _is_there)
        return list(self._found[column, filled])

    def first(self, column: str) -> Any:
        """The first value that is not null; None if there is none."""
        return next(iter(self.values(column)), None)


def _is_there(value: Any) -> bool:
    return value is not None and value != ""


def distinct_of(values: Iterable[Any], most: int) -> list[Any] | None:
    """The distinct values without null and blank text; None if there are more than `most`."""
    found: dict[tuple[type, str], Any] = {}
    for value in values:
        if value is not None and (not isinstance(value, str) or value.strip()):
            found.setdefault((type(value), str(value)), value)
            if len(found) > most:
                return None
    return list(found.values())


@dataclass(frozen=True, slots=True)
class Adapter:
    """One format. It has those of `columns`, `rows`, `table` and `refused` that it needs; `columns` is tried first."""

    name: str
    """The name for `--format`."""
    holds: str
    """The contents of a row, in a few words."""
    recognises: Callable[[Sample], bool]
    """Whether data have this format. No two adapters recognise the same data."""
    columns: Callable[[Sample], Mapping[str, str] | None] | None = None
    """Canonical name -> column, path or sum of columns; None if rows have to be made."""
    scores: Callable[[Sample], tuple[str, ...] | None] | None = None
    """The column of the strength, or those of the ratings of chosen and rejected, whose difference is the strength."""
    ratings: Callable[[Sample], tuple[str, ...] | None] | None = None
    """The columns of the ratings of chosen and rejected, if the rows have them."""
    rows: Callable[[Row], Iterable[Made]] | None = None
    """One raw row -> canonical rows."""
    table: Callable[[Iterable[Row]], Iterable[tuple[int, Made]]] | None = None
    """All raw rows -> numbers of rows and canonical rows: for formats whose rows belong together."""
    uses: Callable[[Sample], Iterable[str]] | None = None
    """The columns that rows are made from. Not used if `columns` names them."""
    ignores: Callable[[Sample], Iterable[str]] | None = None
    """Columns with names that the format knows, which hold something else in these data. Rows are made without them, so
    that all rows are read from the columns by which the data were recognised.
    """
    hint: Callable[[Sample], str] | None = None
    """A sentence from the first rows on why no pair results; empty if they do not show it."""
    check: Callable[[Dataset, Sample], None] | None = None
    """Raises DatasetError for rows with these columns but other contents, unless the format was named."""
    refused: str = ""
    """Why no pair can be made from such data and what to do, in whole sentences; for every dataset, or if no pair
    results.
    """


def asked_of(row: Row) -> Any:
    """The question of a row: an instruction together with its input, or the first of `PROMPTS` that it has; after the
    earlier turns of a row with a history.
    """
    texts = [row.get("instruction"), row.get("input")]
    if row.get("prompt") is None and all(isinstance(text, str) for text in texts):
        return after_history("\n\n".join(str(text) for text in texts if str(text).strip()), row)
    return after_history(next((row[name] for name in PROMPTS if row.get(name) is not None), None), row)


def after_history(prompt: Any, row: Row) -> Any:
    """A prompt after the earlier turns of its row, as messages: [[question, answer], ...], as LLaMA-Factory has them,
    or messages. Unchanged without a list `history`; None for one of another form.
    """
    if not isinstance(prompt, str) or not isinstance(row.get("history"), list | tuple):
        return prompt
    turns: list[Any] = []
    for entry in row["history"]:
        pair = [entry] if isinstance(entry, Mapping) else records(entry)
        if len(pair) == 2 and all(isinstance(text, str) for text in pair):
            pair = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), pair, strict=True)]
        if not pair or not all(isinstance(turn, Mapping) for turn in pair):
            return None
        turns += pair
    return [*turns, {"role": "user", "content": prompt}]


def asked_columns(sample: Sample) -> list[str]:
    """The columns that `asked_of` reads."""
    column = sample.name_of(PROMPTS)
    names = [] if column is None else [column]
    if "prompt" not in sample and sample.has("instruction", "input"):
        names = ["instruction", "input"]
    return [*names, *(["history"] if "history" in sample else [])]


def number(value: Any) -> float | None:
    """A finite number, also from text; None for anything else ("N/A", null, a boolean)."""
    if isinstance(value, bool):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def records(value: Any) -> list[Any]:
    """The items of a list; a dict of lists (an old form of lists of dicts) is transposed."""
    if isinstance(value, Mapping) and value and all(isinstance(inner, list | tuple) for inner in value.values()):
        return [dict(zip(value, items, strict=False)) for items in zip(*value.values(), strict=False)]
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else []


def rated_pairs(prompt: Any, answers: Sequence[tuple[Any, float | None]], *, id: Any = None) -> Iterator[Made]:
    """Every pair of answers with different scores, the best first; together they form one group.

    Args:
        answers: (answer, score), higher is better; None for an answer without a score.
        id: of the prompt.
    """
    rated = [(answer, score) for answer, score in answers if score is not None]
    yield from [Left("unrated")] * (len(answers) - len(rated))
    if len(rated) < 2:
        yield Left("one_completion")
        return
    for (better, high), (worse, low) in combinations(sorted(rated, key=lambda item: -item[1]), 2):
        if high == low:
            yield Left("tied")
            continue
        yield {
            "prompt": prompt,
            "chosen": better,
            "rejected": worse,
            "strength": high - low,
            "score_chosen": high,
            "score_rejected": low,
            "id": id,
        }


def asked_as(prompt: Any, row: Row) -> str:
    """What answers of several rows must have in common to be answers to the same prompt: the prompt itself, and what
    the row puts before it.
    """
    before = [row.get(name) for name in ("system", "tools", "chat_template_kwargs")]
    return json.dumps([prompt, *before], sort_keys=True, default=str)
