"""`preftune convert`: converts any known format to the canonical one, with filters and a manifest of every row's
outcome.

The data are read twice: once to decide about every pair (hashes and numbers are kept, no text), once to write the pairs
that stay. So memory grows with the number of rows, not with their length."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preftune.data.conversion.filters import REASONS, Decision, Facts, Filters, decide, is_blank
from preftune.data.conversion.use_case import UseCase
from preftune.data.conversion.write import PairWriter, Shape, beside, check_output, outputs_of
from preftune.data.formats import LEFT
from preftune.data.pairs.canonical_row import canonical_row, reads_back, with_json_texts
from preftune.data.pairs.dataset import PairDataset
from preftune.data.pairs.row_reader import Attempt
from preftune.data.pairs.stream import PairStream
from preftune.errors import ConfigError, DatasetError
from preftune.log import warn
from preftune.storage.atomic import sha256_of, write_whole
from preftune.types import PreferencePair
from preftune.version import __version__

_SHOW_PROGRESS = 2000
"""Minimum number of rows for a progress bar (on a terminal only)."""
_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Input:
    """One dataset to convert."""

    name: str
    """The name as it was given."""
    pairs: PairDataset | PairStream
    of: int | None = None
    """Number of pairs before some were drawn for a mixture; None if all are read."""

    @property
    def rows(self) -> int:
        """Number of raw rows, known after all are read."""
        return self.pairs.rows_read if isinstance(self.pairs, PairStream) else len(self.pairs.raw)


@dataclass(slots=True)
class _Seen:
    """The result of the first pass."""

    facts: Facts = field(default_factory=Facts)
    shape: Shape = field(default_factory=Shape)
    problems: list[str] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    """The first position of each input."""
    rows: array[int] = field(default_factory=lambda: array("q"))
    """The row number of each position."""


def convert_pairs(
    inputs: Sequence[Input],
    output: Path,
    filters: Filters | None = None,
    *,
    strict: bool = False,
    overwrite: bool = False,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes the kept pairs, the held-out pairs, and a manifest.

    The same inputs, filters and versions give the same bytes. Either all files are written or none. A file of pairs
    that an earlier run held out is removed if nothing is held out now: they may all be in the new file.

    Args:
        output: its ending determines the file format; `FILE.held-out.jsonl` and the manifest are in its folder.
        strict: raise at the first row that is not a preference.
        overwrite: replace or remove files with these names.
        options: the options with which the inputs were opened, for the manifest.
    Returns: the manifest.
    Raises:
        ConfigError: the output has no known ending, exists already, or is an input.
        DatasetError: nothing is left, or (strict) a row is not a preference.
    """
    filters = filters or Filters()
    check_output(output)
    stale = beside(output, "held-out") if filters.split is None else None
    _check_free(inputs, outputs_of(output, split=True), stale, overwrite=overwrite)
    seen = _look(inputs, filters, strict=strict, parquet=output.name.endswith(".parquet"))
    decision = decide(seen.facts, filters)
    if not decision.kept.any():
        counts = "; ".join(f"{len(rows):,}: {REASONS[reason]}" for reason, rows in decision.dropped.items())
        examples = f" The first: {seen.problems[0]}" if seen.problems else ""
        raise DatasetError(f"Nothing is left to write ({counts}).{examples}")
    with ExitStack() as stack:
        writers = [stack.enter_context(PairWriter(output, seen.shape))]
        if filters.split is not None:
            writers.append(stack.enter_context(PairWriter(beside(output, "held-out"), seen.shape)))
        for position, attempt in enumerate(_attempts(inputs, "Writing")):
            if position >= len(seen.facts) or (seen.facts.codes[position] == 0 and attempt.pair is None):
                raise DatasetError(
                    "The dataset changed while it was being converted. Run the conversion again when nothing is "
                    "writing to it."
                )
            if decision.kept[position]:
                assert attempt.pair is not None
                writer = writers[int(decision.held_out[position])]
                writer.write(attempt)
        written = [writer.finish() for writer in writers]
        manifest = _manifest(inputs, seen, decision, filters, written, {**(options or {}), "strict": strict})
        for writer in writers:
            writer.keep()
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    write_whole(outputs_of(output, split=False)[-1], text.encode("utf-8"))
    if stale is not None and stale.exists():
        stale.unlink()
        warn(f"Removed {stale}, held out by an earlier run: this run holds nothing out (no --split).")
    return manifest


def _check_free(inputs: Sequence[Input], outputs: Sequence[Path], stale: Path | None, *, overwrite: bool) -> None:
    sources = {Path(entry.name).expanduser().resolve() for entry in inputs if entry.name != "-"}
    for path in outputs:
        if path.resolve() in sources:
            raise ConfigError(f"{path} is an input, and would be overwritten while it is read. Give another output.")
        if path.exists() and not overwrite and path == stale:
            raise ConfigError(
                f"{path} exists already, and without --split it would hold out nothing of the new file. Give another "
                "output, or --overwrite to remove it."
            )
        if path.exists() and not overwrite:
            raise ConfigError(f"{path} exists already. Give another output, or --overwrite to replace it.")


def _attempts(inputs: Sequence[Input], doing: str) -> Iterator[Attempt]:
    from tqdm.auto import tqdm

    for entry in inputs:
        total = len(entry.pairs) if isinstance(entry.pairs, PairDataset) else None
        show = None if total is None or total >= _SHOW_PROGRESS else True  # None: on a terminal only
        yield from tqdm(entry.pairs.attempts(), desc=f"{doing} {entry.name}", unit="row", total=total, disable=show)


def _look(inputs: Sequence[Input], filters: Filters, *, strict: bool, parquet: bool) -> _Seen:
    """The first pass: collects the facts about every pair."""
    seen = _Seen(Facts(near=filters.dedupe == "near"))
    use_case = UseCase(filters.topics, filters.keywords, filters.languages, filters.rule)
    for entry in inputs:
        leaves = use_case.of(entry.pairs, entry.name)
        seen.begins.append(len(seen.facts))
        for attempt in _attempts([entry], "Reading"):
            seen.rows.append(attempt.row)
            if attempt.pair is None:
                if strict:
                    raise DatasetError(attempt.problem)
                seen.facts.add_none("no_preference")
                if len(seen.problems) < _EXAMPLES:
                    seen.problems.append(attempt.problem)
                continue
            row = canonical_row(attempt.pair, attempt.strength, attempt.ratings, attempt.gold)
            reason = _fault(attempt.pair, row, parquet=parquet) or leaves(attempt.pair)
            seen.facts.add(attempt.pair, attempt.strength, reason)
            if reason is None:
                seen.shape.add(row)
    use_case.check()
    return seen


def _fault(pair: PreferencePair, row: Mapping[str, Any], *, parquet: bool) -> str | None:
    """Why a pair states no preference, or cannot be written; None if it can be kept."""
    if is_blank(pair.chosen) or is_blank(pair.rejected):
        return "empty"
    if pair.chosen == pair.rejected:
        return "identical"
    if pair.prompt == []:
        return "no_shared_prompt"
    sound = reads_back(row, pair) and (not parquet or reads_back(with_json_texts(row), pair))
    return None if sound else "unlike_itself"


def _manifest(
    inputs: Sequence[Input],
    seen: _Seen,
    decision: Decision,
    filters: Filters,
    written: list[dict[str, Any]],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    digest = hashlib.sha256()
    for values in (seen.facts.prompts, seen.facts.chosen, seen.facts.rejected):
        digest.update(values.tobytes())
    return {
        "preftune": __version__,
        "inputs": [_describe(entry) for entry in inputs],
        "rows_read": sum(entry.rows for entry in inputs),
        "pairs_read": int(sum(1 for code in seen.facts.codes if code != 1)),
        "pairs_digest": digest.hexdigest(),
        "options": {name: value for name, value in options.items() if value not in (None, False, [], {})},
        "filters": filters.asked(),
        "min_margin_is_of": decision.margin_from,
        "dropped": [
            {
                "reason": reason,
                "what": REASONS[reason],
                "count": len(positions),
                "rows": _first_places(positions, inputs, seen),
            }
            for reason, positions in decision.dropped.items()
        ],
        "problems": seen.problems,
        "pairs_written": int(decision.kept.sum()),
        "written": written,
    }


def _describe(entry: Input) -> dict[str, Any]:
    path = Path(entry.name).expanduser()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    known = entry.name != "-" and (path.is_file() or path.is_dir())
    described: dict[str, Any] = {
        "name": entry.name,
        "format": entry.pairs.format,
        "rows": entry.rows,
        "sha256": {file.name: sha256_of(file) for file in files} if known else {},
    }
    if entry.of is not None:
        described["pairs_drawn"] = f"{len(entry.pairs) if isinstance(entry.pairs, PairDataset) else 0} of {entry.of}"
    described["gave_no_pair"] = [
        {"reason": reason, "what": LEFT[reason][0], "do": LEFT[reason][1], "count": left.count, "rows": left.rows}
        for reason, left in entry.pairs.left.items()
    ]
    described["not_used"] = list(entry.pairs.unused)
    described["notes"] = list(entry.pairs.notes)
    return described


def _first_places(positions: NDArray[np.int64], inputs: Sequence[Input], seen: _Seen) -> list[int | str]:
    """The first few rows; a row that makes several pairs is named once."""
    places = dict.fromkeys(_place(int(position), inputs, seen) for position in positions[:1000])
    return list(places)[:_EXAMPLES]


def _place(position: int, inputs: Sequence[Input], seen: _Seen) -> int | str:
    """A row's number, with the dataset's name if there are several."""
    row = seen.rows[position]
    if len(inputs) == 1:
        return row
    index = max(place for place, begin in enumerate(seen.begins) if begin <= position)
    return f"{inputs[index].name} row {row}"
