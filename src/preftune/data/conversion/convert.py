"""`preftune convert`: converts any known format to the canonical one, with filters and a manifest of every row's
outcome.

The data are read twice: once to decide about every pair (hashes and numbers are kept, no text), once to write the pairs
that stay. So memory grows with the number of rows, not with their length."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preftune.data.conversion.filters import REASONS, Decision, Facts, Filters, decide
from preftune.data.conversion.passes import EXAMPLES, Kept, Seen, look, use_case_of, written
from preftune.data.conversion.write import PairWriter, Part, beside, check_output, outputs_of
from preftune.data.formats import LEFT
from preftune.data.pairs.blocks import Here, Rows, blocks_here, blocks_to_send
from preftune.data.pairs.dataset import PairDataset
from preftune.data.pairs.stream import PairStream
from preftune.errors import ConfigError, DatasetError
from preftune.log import warn
from preftune.storage.atomic import sha256_of, staged
from preftune.version import __version__
from preftune.workers import Team
from preftune.workers.team import in_order

_SHOW_PROGRESS = 2000
"""Minimum number of rows for a progress bar (on a terminal only)."""


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


def convert_pairs(
    inputs: Sequence[Input],
    output: Path,
    filters: Filters | None = None,
    *,
    strict: bool = False,
    overwrite: bool = False,
    options: Mapping[str, Any] | None = None,
    team: Team | None = None,
) -> dict[str, Any]:
    """Writes the kept pairs, the held-out pairs, and a manifest.

    The same inputs, filters and versions give the same bytes. Either all files are written or none. A file of pairs
    that an earlier run held out is removed if nothing is held out now: they may all be in the new file.

    Args:
        output: its ending determines the file format; `FILE.held-out.jsonl` and the manifest are in its folder.
        strict: raise at the first row that is not a preference.
        overwrite: replace or remove files with these names.
        options: the options with which the inputs were opened, for the manifest.
        team: workers that do `passes.working`.
    Returns: the manifest.
    Raises:
        ConfigError: the output has no known ending, exists already, or is an input.
        DatasetError: nothing is left, or (strict) a row is not a preference.
    """
    filters = filters or Filters()
    check_output(output)
    stale = beside(output, "held-out") if filters.split is None else None
    _check_free(inputs, outputs_of(output, split=True), stale, overwrite=overwrite)
    parquet = output.name.endswith(".parquet")
    passes = _Passes(inputs, filters, parquet, team)
    seen, begins = passes.look(strict=strict)
    decision = decide(seen.facts, filters)
    if not decision.kept.any():
        counts = "; ".join(f"{len(rows):,}: {REASONS[reason]}" for reason, rows in decision.dropped.items())
        examples = f" The first: {seen.problems[0]}" if seen.problems else ""
        raise DatasetError(f"Nothing is left to write ({counts}).{examples}")
    with ExitStack() as stack:
        writers = [stack.enter_context(PairWriter(output, seen.shape))]
        if filters.split is not None:
            writers.append(stack.enter_context(PairWriter(beside(output, "held-out"), seen.shape)))
        for parts in passes.write(seen, decision):
            for writer, part in zip(writers, parts, strict=False):
                writer.write(part)
        written = [writer.finish() for writer in writers]
        manifest = _manifest(inputs, seen, begins, decision, filters, written, {**(options or {}), "strict": strict})
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        with staged(outputs_of(output, split=False)[-1], text.encode("utf-8")):
            for writer in writers:
                writer.keep()
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


class _Passes:
    """Both passes over all rows, in this process or on the workers of a team."""

    def __init__(self, inputs: Sequence[Input], filters: Filters, parquet: bool, team: Team | None) -> None:
        self._inputs, self._filters, self._parquet, self._team = inputs, filters, parquet, team

    def look(self, *, strict: bool) -> tuple[Seen, list[int]]:
        """What is known of every row, and the first position of each input.

        Raises: DatasetError: (strict) a row is not a preference.
        """
        near = self._filters.dedupe == "near"
        seen, begins = Seen(Facts(near=near)), list[int]()
        use_case = use_case_of(self._filters)
        for dataset, entry in enumerate(self._inputs):
            leaves = use_case.of(entry.pairs, entry.name)
            begins.append(len(seen.facts))
            found: Iterator[Seen]
            if self._team is None:
                blocks = self._here(entry, "Reading")
                found = (look(block, leaves, near=near, parquet=self._parquet) for block in blocks)
            else:
                conditions = bool(self._filters.topics or self._filters.rule)
                sent = self._sent(entry, "Reading", with_raw=conditions)
                found = in_order(self._team.compute((dataset, rows, None) for rows in sent))
            for part in found:
                seen.extend(part)
                if strict and seen.problems:
                    raise DatasetError(seen.problems[0])
        use_case.seen.update(seen.topics)
        use_case.check()
        return seen, begins

    def write(self, seen: Seen, decision: Decision) -> Iterator[tuple[Part, Part]]:
        """What is written of every block, in order: the pairs that stay, and those that are held out.

        Raises: DatasetError if the rows are no longer those of the first pass.
        """
        sound, at = np.asarray(seen.facts.codes) == 0, 0

        def kept(rows: int) -> Kept:
            nonlocal at
            part = slice(at, at + rows)
            at += rows
            return Kept(sound[part], decision.kept[part], decision.held_out[part], seen.shape, self._parquet)

        for dataset, entry in enumerate(self._inputs):
            if self._team is None:
                yield from (written(block, kept(len(block.read))) for block in self._here(entry, "Writing"))
            else:
                sent = self._sent(entry, "Writing", with_raw=False)
                yield from in_order(self._team.compute((dataset, rows, kept(len(rows.numbers))) for rows in sent))

    def _here(self, entry: Input, doing: str) -> Iterator[Here]:
        with _progress(entry, doing) as bar:
            for block in blocks_here(entry.pairs.attempts()):
                yield block
                bar.update(len(block.read))

    def _sent(self, entry: Input, doing: str, *, with_raw: bool) -> Iterator[Rows]:
        if isinstance(entry.pairs, PairStream):
            raise ConfigError("--streaming reads the rows in this process. Leave it or --ray out.")
        with _progress(entry, doing) as bar:
            for rows in blocks_to_send(entry.pairs, with_raw=with_raw):
                yield rows
                bar.update(len(rows.numbers))


def _progress(entry: Input, doing: str) -> Any:
    """A progress bar over the rows of an input."""
    from tqdm.auto import tqdm

    total = len(entry.pairs) if isinstance(entry.pairs, PairDataset) else None
    hidden = None if total is None or total >= _SHOW_PROGRESS else True  # None: on a terminal only
    return tqdm(desc=f"{doing} {entry.name}", unit="row", total=total, disable=hidden)


def _manifest(
    inputs: Sequence[Input],
    seen: Seen,
    begins: Sequence[int],
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
                "rows": _first_places(positions, inputs, seen, begins),
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


def _first_places(
    positions: NDArray[np.int64], inputs: Sequence[Input], seen: Seen, begins: Sequence[int]
) -> list[int | str]:
    """The first few rows; a row that makes several pairs is named once."""
    places = dict.fromkeys(_place(int(position), inputs, seen, begins) for position in positions[:1000])
    return list(places)[:EXAMPLES]


def _place(position: int, inputs: Sequence[Input], seen: Seen, begins: Sequence[int]) -> int | str:
    """A row's number, with the dataset's name if there are several."""
    row = seen.rows[position]
    if len(inputs) == 1:
        return row
    index = max(place for place, begin in enumerate(begins) if begin <= position)
    return f"{inputs[index].name} row {row}"
