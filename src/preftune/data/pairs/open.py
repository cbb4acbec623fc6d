"""Opens a dataset as a lazy sequence of `PreferencePair`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack, overload

from preftune.data.formats.apply import sample_of
from preftune.data.formats.columns import resolve_columns
from preftune.data.formats.select import shape
from preftune.data.pairs.checks import (
    HEAD,
    check_head,
    check_nulls,
    check_scale,
    contradicting,
    good_ones,
    not_used,
    optional_columns,
    unused_texts,
)
from preftune.data.pairs.dataset import PairDataset
from preftune.data.reading.load import Source, display_name, load_table
from preftune.errors import DatasetError

if TYPE_CHECKING:
    from preftune.data.pairs.stream import PairStream


def read_pairs(
    source: Source | PairDataset,
    *,
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
    columns: Mapping[str, str | None] | None = None,
    format: str | None = None,
    margin_from_scores: float | None = None,
    name: str | None = None,
    tolerant: bool = False,
) -> PairDataset:
    """Opens preference data; see `load_rows` for what `source` can be and `adapters` for the formats.

    Args:
        columns: canonical name -> the dataset's own name, if they differ: `{"chosen": "better"}`. A dot reaches into
            a column ("input.messages"), a plus joins texts ("instruction+input"), None leaves a column unread.
        format: a key of `formats.FORMATS`; None to recognise it by its shape.
        margin_from_scores: nats of margin per unit of the data's own strength (a point of a rating, a rank, a unit of
            ln(votes)). With None ratings do not change margins, because strength in other units than reward is not a
            margin.
        name: name of the data in messages; by default the path, or "the dataset".
        tolerant: accept rows that are not a preference, unless all of the first 1,000 are such;
            `PairDataset.attempts` gives each with its problem.
    Raises:
        DatasetError: nothing to read, missing columns, or (among the first 1,000 rows; later ones when they are read)
            a row that is not a preference.
    """
    if isinstance(source, PairDataset):
        if columns or format is not None or margin_from_scores is not None:
            raise DatasetError(
                "These pairs are already open. Give columns, format and margin_from_scores where they are loaded."
            )
        return source
    name = name or display_name(source)
    rows = load_table(source, name, split=split, config=config, revision=revision)
    shaped = shape(rows, format=format, columns=columns, name=name)
    resolved = resolve_columns(shaped.rows.features, shaped.columns, name=name, rows=shaped.rows)
    if not tolerant:
        check_nulls(shaped.rows, resolved, name)
    if margin_from_scores is not None:
        check_scale(margin_from_scores, shaped, resolved, name)
    pairs = PairDataset(
        shaped.rows,
        resolved,
        name=name,
        numbers=shaped.numbers,
        raw=rows,
        format=shaped.format,
        scores=shaped.scores,
        scale=margin_from_scores,
        ratings=shaped.ratings,
        left=shaped.left,
        unused=unused_texts(sample_of(rows), shaped.used or (*resolved.needed, *shaped.scores)),
    )
    tried = list(pairs[:HEAD].attempts())
    noticed = check_head(good_ones(tried, tolerant=tolerant), resolved, rows.features, name=name, unused=pairs.unused)
    noticed += contradicting(tried, margin_from_scores)
    pairs.notes = (*shaped.notes, *optional_columns(resolved), *not_used(pairs.unused), *noticed)
    return pairs


class Reading(TypedDict, total=False):
    """Options of reading: those of `read_pairs` that `load_pairs` takes."""

    split: str
    columns: Mapping[str, str | None] | None
    format: str | None
    margin_from_scores: float | None
    config: str | None
    revision: str | None


@overload
def load_pairs(
    source: Source, *, streaming: Literal[False] = ..., seed: int = ..., **options: Unpack[Reading]
) -> PairDataset: ...
@overload
def load_pairs(source: Source, *, streaming: Literal[True], **options: Unpack[Reading]) -> PairStream: ...
def load_pairs(
    source: Source, *, streaming: bool = False, seed: int = 0, **options: Unpack[Reading]
) -> PairDataset | PairStream:
    """Preference pairs from a path, "-", a hub id, a `datasets.Dataset`, a list of dicts, or several of these.

    Args:
        source: what `load_rows` takes; or a list of names ("a.jsonl", or with proportions "a.jsonl:0.7"), which are
            mixed as `mix_pairs` does.
        split, columns, format, margin_from_scores, config, revision: see `read_pairs`; for a list, they apply to each
            dataset.
        streaming: return a `PairStream`, which reads rows one by one and keeps none.
        seed: seed of the rows that are drawn if a list has proportions.
    Raises:
        DatasetError: see `read_pairs`.
    """
    from preftune.data.pairs.mixture import is_mixture, mix_pairs, parse_sources
    from preftune.data.pairs.stream import open_stream

    if is_mixture(source):
        if streaming:
            raise DatasetError(
                "streaming=True reads one dataset, and several are named. Give one, or leave streaming out: large "
                "files are read through a table on disk in any case."
            )
        named = parse_sources(source)
        parts = [read_pairs(name, **options) for name, _ in named]
        return mix_pairs(parts, [proportion for _, proportion in named], seed=seed)
    return open_stream(source, **options) if streaming else read_pairs(source, **options)
