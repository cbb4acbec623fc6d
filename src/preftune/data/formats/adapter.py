"""What an adapter is, and the rows that adapters make.

An adapter either names the columns that hold the canonical values (one raw row, one pair; nothing is copied), or makes
canonical rows of raw ones: `prompt`, `chosen`, `rejected`, and where the data have them `agreement`, `strength`, the
ratings of both sides, `id`.
What gives no pair is made into a `Left` with its reason, so that it is counted.

Strength is how much better the chosen side is in the dataset's own units: points of a rating, places in a ranking, the
natural logarithm of a ratio of votes. It is no margin: `PreferencePair.margin` is in nats of reward and changes what is
trained. Strength filters and sorts; only `load_pairs(..., margin_from_scores=SCALE)` turns it into a margin, of SCALE
nats per unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from datasets import Dataset

Row: TypeAlias = Mapping[str, Any]

PROMPTS = ("prompt", "instruction", "question", "query", "input")
"""What lists of answers and annotation tools call the prompt, the likeliest first."""

LEFT: Mapping[str, tuple[str, str]] = {
    "tied": ("two answers have the same rating, so neither is preferred", "Leave them out."),
    "other_count": ("a row has another number of scores than answers", "Give one score for each answer."),
    "one_completion": ("a prompt has fewer than two rated answers", "Rate a second one, or leave the prompt out."),
    "unrated": ("an answer has no rating, rank or label", "Rate it, or leave it out."),
    "unpaired": (
        "no other answer to the same prompt has the opposite label",
        "Train on single answers with preftune kto, or add the missing ones (preftune sample, then preftune label).",
    ),
    "deleted": ("the message was deleted or rejected by its reviewers", "No action is needed."),
    "orphan": ("the conversation before the answers was deleted or is missing", "Load the whole trees."),
    "other_shape": ("the row does not have the shape of its format", "Correct it, or name its format with --format."),
}
"""Why something gives no pair: reason -> (what is wrong, how to fix it)."""


@dataclass(frozen=True, slots=True)
class Left:
    """Something that gives no pair."""

    reason: str
    """A key of `LEFT`."""


Made: TypeAlias = dict[str, Any] | Left


class Sample:
    """The first rows of a dataset, which tell its shape."""

    def __init__(self, table: Mapping[str, Sequence[Any]]) -> None:
        self._table = table

    def __contains__(self, column: object) -> bool:
        return column in self._table

    def has(self, *columns: str) -> bool:
        """Whether all of these columns are there."""
        return all(column in self._table for column in columns)

    def any(self, *columns: str) -> bool:
        """Whether one of these columns is there."""
        return self.name_of(columns) is not None

    def name_of(self, columns: Iterable[str]) -> str | None:
        """The first of these columns that is there."""
        return next((column for column in columns if column in self._table), None)

    @property
    def columns(self) -> list[str]:
        return list(self._table)

    def values(self, column: str) -> list[Any]:
        """What is not null in a column."""
        return [value for value in self._table.get(column, ()) if value is not None]

    def first(self, column: str) -> Any:
        """The first value that is not null; None without one."""
        return next(iter(self.values(column)), None)


@dataclass(frozen=True, slots=True)
class Adapter:
    """One format. Of `columns`, `rows`, `table` and `refused` it has what it needs; `columns` is asked first."""

    name: str
    """As `--format` names it."""
    holds: str
    """What a row holds, in a few words."""
    recognises: Callable[[Sample], bool]
    """Whether data have this shape. No two adapters recognise the same data."""
    columns: Callable[[Sample], Mapping[str, str] | None] | None = None
    """Canonical name -> column, path or sum of columns; None where rows must be made after all."""
    scores: Callable[[Sample], tuple[str, ...] | None] | None = None
    """The column of the strength, or the ratings of chosen and rejected, whose difference it is."""
    ratings: Callable[[Sample], tuple[str, ...] | None] | None = None
    """The columns of the ratings of chosen and rejected, where the rows have them."""
    rows: Callable[[Row], Iterable[Made]] | None = None
    """One raw row -> canonical rows."""
    table: Callable[[Iterable[Row]], Iterable[tuple[int, Made]]] | None = None
    """All raw rows -> numbers of rows and canonical rows: for formats whose rows belong together."""
    uses: Callable[[Sample], Iterable[str]] | None = None
    """The columns that rows are made of. Not asked where `columns` names them: then they are those."""
    hint: Callable[[Sample], str] | None = None
    """What the first rows say about why no pair results, in a whole sentence; empty where they say nothing."""
    check: Callable[[Dataset, Sample], None] | None = None
    """Raises DatasetError for rows of this shape that hold something else, unless the format was named."""
    refused: str = ""
    """Why no pair can be made of such data and what to do, in whole sentences; for all of it, or if none results."""


def asked_of(row: Row) -> Any:
    """What a row asks: an instruction together with its input, or the first of `PROMPTS` that it has."""
    texts = [row.get("instruction"), row.get("input")]
    if row.get("prompt") is None and all(isinstance(text, str) for text in texts):
        return "\n\n".join(str(text) for text in texts if str(text).strip())
    return next((row[name] for name in PROMPTS if row.get(name) is not None), None)


def asked_columns(sample: Sample) -> list[str]:
    """The columns that `asked_of` reads."""
    if "prompt" not in sample and sample.has("instruction", "input"):
        return ["instruction", "input"]
    column = sample.name_of(PROMPTS)
    return [] if column is None else [column]


def number(value: Any) -> float | None:
    """A finite number, also out of text; None for anything else ("N/A", null, a boolean)."""
    if isinstance(value, bool):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def records(value: Any) -> list[Any]:
    """The items of a list; a dict of lists (an old form of lists of dicts) is turned round."""
    if isinstance(value, Mapping) and value and all(isinstance(inner, list | tuple) for inner in value.values()):
        return [dict(zip(value, items, strict=False)) for items in zip(*value.values(), strict=False)]
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else []


def rated_pairs(prompt: Any, answers: Sequence[tuple[Any, float | None]], *, id: Any = None) -> Iterator[Made]:
    """Every pair of answers of different score, the best first; together they are one group.

    Args:
        answers: (answer, score), higher is better; None for an answer without one.
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
