"""Checks when pairs are opened: nulls, missing prompts, columns that may have another purpose."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from preftune.amounts import counted
from preftune.data.formats.adapter import Sample, number
from preftune.data.formats.columns import SYNONYMS, Columns, guess_columns, listing, missing_columns
from preftune.data.formats.select import Shaped
from preftune.data.pairs.row_reader import Attempt
from preftune.errors import DatasetError
from preftune.types import PreferencePair, Text

if TYPE_CHECKING:
    from datasets import Dataset

_EXPLICIT = "Explicit prompts are recommended: preftune convert writes them out."
HEAD = 1000
"""Number of rows that are checked when a dataset is opened, so that wrong data end a run before a model is loaded."""


def good_ones(tried: Sequence[Attempt], *, tolerant: bool = True) -> list[PreferencePair]:
    """The pairs of some rows.

    Raises: DatasetError about the first row without a pair, if it is not tolerated or no row holds a pair.
    """
    pairs = [attempt.pair for attempt in tried if attempt.pair is not None]
    problem = next((attempt.problem for attempt in tried if attempt.pair is None), "")
    if problem and not (tolerant and pairs):
        raise DatasetError(problem)
    return pairs


def check_scale(scale: float, shaped: Shaped, columns: Columns, name: str) -> None:
    if isinstance(scale, bool) or number(scale) is None or scale < 0:
        raise DatasetError(
            f"margin_from_scores is {scale!r}; give the nats of margin per point as a positive number, such as 0.5."
        )
    if not shaped.scores:
        raise DatasetError(
            f"{name} has no ratings of both answers, which margin_from_scores needs. Leave it out, or name a column "
            "that holds margins in nats: --columns margin=COLUMN."
        )
    if "margin" in columns:
        raise DatasetError(
            f"{name} has a column 'margin' and margin_from_scores is given. Keep one of the two: --columns margin= "
            "(columns={'margin': None}) leaves the column unread."
        )


MEDIA = ("image", "images", "video", "videos", "audio", "audios")
"""Other trainers' names of the columns of pictures and sounds."""


def unused_texts(sample: Sample, used: Iterable[str]) -> list[str]:
    """The columns with text that are not used, those that look like a prompt or an answer first.

    A column holds text if one of its first values has several words or is messages, or if its name says so; columns of
    pictures and sounds are recognised by name."""
    read = set(used)
    likely = [name for names in SYNONYMS.values() for name in names]
    found = []
    for column in sample.columns:
        values = [value for value in sample.values(column) if value not in ([], {})]
        if column not in read and values and (column.lower() in (*likely, *MEDIA) or any(map(_has_words, values))):
            found.append(column)
    return sorted(found, key=lambda column: column.lower() not in likely)


def _has_words(value: Any) -> bool:
    """Whether a value is or contains a text of several words."""
    if isinstance(value, str):
        return len(value.split(maxsplit=1)) > 1
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return any(map(_has_words, inner))


def not_used(unused: Sequence[str]) -> list[str]:
    """The note about columns with text that are not used."""
    media, texts = ([name for name in unused if (name.lower() in MEDIA) is of_media] for of_media in (True, False))
    notes = []
    if texts:
        systems = (name for name in texts if "system" in name.lower())
        system = next((f" --columns system={name} reads the system prompt." for name in systems), "")
        notes.append(
            f"Not used: {listing(texts)}. --columns prompt=COLUMN (columns={{'prompt': COLUMN}}) reads one of them "
            f"instead; a plus joins several.{system}"
        )
    if media:
        notes.append(
            f"Not used: {listing(media)}. preftune trains on text only: the model does not get what these columns "
            "show. Remove rows whose answers need it."
        )
    return notes


def optional_columns(columns: Columns) -> list[str]:
    """Notes on columns that change the training, and that a dataset may hold for another purpose."""
    return [
        f"The column {columns.paths[column][0][0]!r} is read as {meaning}; "
        f"--columns {column}= (columns={{{column!r}: None}}) leaves it unread."
        for column, meaning in (
            ("weight", "each pair's factor in the loss"),
            ("margin", "the distance in reward that the loss asks for"),
            ("system", "each conversation's system prompt"),
        )
        if column in columns
    ]


def contradicting(head: Sequence[Attempt], scale: float | None) -> list[str]:
    """A note on ratings that contradict the preference, among the first pairs, if ratings become margins (`scale`)."""
    if scale is None:
        return []
    against = sum(attempt.strength is not None and attempt.strength < 0 for attempt in head)
    if not against:
        return []
    return [
        f"In {against} of the first {counted(len(head), 'row')} the rejected answer has the higher rating; the "
        "margin of such pairs is 0. Check which column holds which rating."
    ]


def check_nulls(rows: Dataset, columns: Columns, name: str) -> None:
    """Raises for a side that is null in some row; the table itself is searched, so that this is fast for any size."""
    for canonical in ("chosen", "rejected"):
        (path, *_) = columns.paths[canonical]
        for start, end, nulls in _nulls(rows, path[0]):
            row = start + nulls[0]
            has = [column for column, value in rows.with_format(None)[row].items() if value is not None]
            raise DatasetError(
                f"{name} row {row} has no {canonical!r} ({counted(len(nulls), 'such row')} among the first {end}; this "
                f"one has: {', '.join(map(repr, has))}). Fill it in, or remove such rows: dataset.filter(lambda row: "
                f"row[{path[0]!r}] is not None)."
            )


def _nulls(rows: Dataset, column: str) -> Iterator[tuple[int, int, list[int]]]:
    """Begin and end of every part of the table with nulls in the column, and their positions."""
    import pyarrow.compute as pc

    start = 0
    for part in rows.select_columns([column]).with_format("arrow").iter(batch_size=10_000):
        end = start + part.num_rows
        if part.column(0).null_count:
            yield start, end, pc.indices_nonzero(pc.is_null(part.column(0))).to_pylist()
        start = end


def check_head(
    head: Sequence[PreferencePair],
    columns: Columns,
    features: Mapping[str, Any],
    *,
    name: str,
    unused: Sequence[str] = (),
) -> list[str]:
    """Checks the first pairs; a fault of all of them is noted, or raises.

    Args:
        unused: the columns with text that are not used.
    """
    asked = any(isinstance(pair.prompt, str) or _has_question(pair.prompt) for pair in head)
    if head and not asked and any(pair.prompt for pair in head) and (unused or "prompt" not in columns):
        because = ", and no prompt holds a turn of the user" + (f"; not used: {listing(unused)}" if unused else "")
        named = Columns({key: paths for key, paths in columns.paths.items() if key != "prompt"})
        raise missing_columns(["prompt"], features, named.paths, name=name, row=head[0].row, because=because)
    if "prompt" in columns:
        notes = []
        repeating = sum(
            isinstance(p.prompt, str)
            and bool(p.prompt.strip())
            and str(p.chosen).lstrip().startswith(p.prompt.strip())
            and str(p.rejected).lstrip().startswith(p.prompt.strip())
            for p in head
        )
        if repeating:
            notes.append(
                f"In {repeating} of the first {counted(len(head), 'row')} chosen and rejected both begin with the text "
                "of the prompt; it is trained as part of the answers. Remove it there if it only repeats the prompt."
            )
        return notes
    differ = [p.row for p in head if not p.prompt and all(_asks(side) for side in (p.chosen, p.rejected))]
    if head and len(differ) == len(head):
        raise DatasetError(
            f"{name}: chosen and rejected begin with different turns (first bad row: {differ[0]}), so they answer "
            "different questions. Give both sides the same turns up to the answer."
        )
    texts = [pair for pair in head if isinstance(pair.prompt, str)]
    apart = [pair.row for pair in head if not pair.prompt]
    likely = texts and _prompt_like(columns, features)
    if likely or len(apart) == len(head):
        because = ", and chosen and rejected hold only the answers" if likely or texts or apart else ""
        row = 0 if likely else apart[0]
        raise missing_columns(["prompt"], features, columns.paths, name=name, row=row, because=because)
    if texts:
        return [
            "There is no column 'prompt': the words with which both chosen and rejected begin are taken as the prompt "
            f"({len(apart)} of the first {len(head)} rows have no common beginning). {_EXPLICIT}"
        ]
    return [
        "There is no column 'prompt': the turns with which both chosen and rejected begin are taken as the prompt. "
        f"{_EXPLICIT}"
    ]


def _asks(side: Text) -> bool:
    return not isinstance(side, str) and _has_question(side)


def _has_question(prompt: Sequence[Mapping[str, Any]]) -> bool:
    return any(turn["role"] == "user" for turn in prompt)


def _prompt_like(columns: Columns, features: Mapping[str, Any]) -> bool:
    """Whether another column looks like the prompt of plain strings."""
    taken = {path[0] for found in columns.paths.values() for path in found}
    return bool(guess_columns(["prompt"], features, taken))
