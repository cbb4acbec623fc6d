"""Token ids of a stream: made while its rows are read, in a fixed order that can be continued at any row."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import asdict, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from preftune.data.formats.adapter import LEFT, Left
from preftune.data.formats.apply import RowCount, said_of
from preftune.data.streams.examples import ExampleStream
from preftune.data.streams.rows import shuffled
from preftune.data.tokens.encode import Encoder
from preftune.data.tokens.encode_demonstrations import Covered, DemonstrationEncoder
from preftune.data.tokens.encoded import Encoded
from preftune.data.tokens.groups import GroupDataset
from preftune.data.tokens.report import AnyReport, DemonstrationReport, LabelledReport, TokenizeReport, report_of
from preftune.data.tokens.tokenize import Limits, Run, Truncation
from preftune.errors import DatasetError, PreftuneError
from preftune.log import say
from preftune.types import Example, TokenizedGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KNOWN = 256
"""Groups at the beginning that are kept, for checks before the first step."""
_ROWS = 32
"""Rows that are tokenised together."""
_REPORTS = {"pair": TokenizeReport, "answer": LabelledReport, "demonstration": DemonstrationReport}


class Position(NamedTuple):
    """Where the next group is."""

    number: int = 0
    """Of the pass over the rows."""
    rows: int = 0
    """Rows of the shuffled pass that are used up."""
    groups: int = 0
    """Groups of the next row that are used up."""


class StreamedGroups(GroupDataset):
    """The groups of a training on a stream, by their place in its order: as many as its steps need.

    Every group is read once, in order; `known` groups at the beginning stay. When the rows end, another pass begins, in
    another order. What describes all groups (`pairs`, `total_tokens`, ...) supposes they are as those that are known.
    """

    check: Callable[[TokenizedGroup], None] | None = None
    """Called with every group that is read. Raises for one that cannot be trained on."""

    def __init__(
        self, stream: ExampleStream, run: Run[Any], *, count: int, buffer: int, seed: int, recent: int
    ) -> None:
        """
        Args:
            count: groups of the whole training.
            buffer: rows among which the next one is drawn; 0 or 1 for the order of the data.
            recent: groups before the last one that was read whose position is kept.
        """
        self.stream, self.run = stream, run
        self.left: dict[str, RowCount] = {}
        """Why rows gave no example: reason (a key of `LEFT`) -> count and first rows."""
        self.warned: set[str] = set()
        """Sentences of the report that were given already."""
        self._count, self._buffer, self._seed = count, buffer, seed
        self._positions: deque[tuple[int, Position]] = deque(maxlen=max(recent, KNOWN) + 1)
        self._begin(0, Position(), counted=0)
        known = [self._next() for _ in range(min(count, KNOWN))]
        self._known = GroupDataset.from_groups(known)
        vars(self).update(vars(self._known))  # the arrays are those of the groups that are known

    @property
    def known(self) -> GroupDataset:
        return self._known

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> TokenizedGroup:  # type: ignore[override]
        index = range(self._count)[index]
        if index < self._held:
            return super().__getitem__(index)
        if index < self._place:
            raise PreftuneError(
                f"group {index} of {self.stream.name} was read before, and a stream is read once. Please report this."
            )
        while self._place < index:
            self._next()
        return self._next()

    @property
    def read(self) -> int:
        """The number of groups that were read so far."""
        return self._place

    # --- the order ---

    def _begin(self, place: int, position: Position, *, counted: int) -> None:
        """
        Args:
            place: of the next group.
            counted: groups that the report has counted already.
        """
        self._place, self._counted = place, counted
        self._source = self._read(position)
        self._positions.clear()
        self._positions.append((place, position))

    def _next(self) -> TokenizedGroup:
        group, position = next(self._source)
        self._place += 1
        self._positions.append((self._place, position))
        if self.check is not None:
            self.check(group)
        return group

    def _read(self, position: Position) -> Iterator[tuple[TokenizedGroup, Position]]:
        """Groups from a position on, each with the position after it."""
        number, rows, used = position
        while True:
            entries = shuffled(self.stream.begin(number), self._buffer, seed=self._seed, number=number)
            found = rows > 0 or used > 0
            place = sum(1 for _ in islice(entries, rows))
            while batch := list(islice(entries, _ROWS)):
                for group, row, of_row in self._groups_of(batch, used):
                    found = True
                    yield group, Position(number, place + row, of_row)
                place, used = place + len(batch), 0
            if not found:
                raise DatasetError(f"Nothing is left to train on. {' '.join(self.run.report.lines())}")
            say(f"{self.stream.name} ended after {place:,} rows: it is read again, in another order.")
            number, rows, used = number + 1, 0, 0

    def _groups_of(self, batch: list[tuple[int, Any]], used: int) -> Iterator[tuple[TokenizedGroup, int, int]]:
        """The groups of some rows: each with the place of its row, and its number among those of the row.

        Args:
            used: groups of the first row that were trained on.
        """
        items = [
            (place, number, one) for place, (number, row) in enumerate(batch) for one in self.stream.read(row, number)
        ]
        encoded = iter(self.run.encoder.encode([one for _, _, one in items if isinstance(one, Example)]))
        row, of_row = -1, 0
        for place, number, one in items:
            row, of_row = (row, of_row) if place == row else (place, 0)
            if isinstance(one, Left):
                self._leave(one.reason, number)
                continue
            ids = next(encoded)
            before = row == 0 and of_row < used
            group = self._group_of(one, ids, again=before or self._place < self._counted)
            of_row += group is not None
            if group is not None and not before:
                yield group, row, of_row

    # --- what is counted ---

    def _group_of(self, example: Example, encoded: Encoded, *, again: bool) -> TokenizedGroup | None:
        """
        Args:
            again: whether it was read and counted before the checkpoint from which the run continues.
        """
        run = self._uncounted() if again else self.run
        run.report.rows_in += 1
        group = run.group(example, encoded)
        if run.beyond:
            raise run.too_long()
        if group is not None:
            run.report.measure_next(group)
        return group

    def _uncounted(self) -> Run[Any]:
        """A run with the same limits, whose counts are not kept."""
        run = copy(self.run)
        run.report = type(run.report)(name=run.report.name)
        run.plain, run.details, run.prompt_keys, run.over_limit = 0, {}, array("Q"), []
        return run

    def _leave(self, reason: str, number: int) -> None:
        if self._place < self._counted:
            return
        if reason in LEFT:
            self.left.setdefault(reason, RowCount()).add(number)
        else:
            self.run.report.rows_in += 1
            self.run.report.drop(reason, number)

    @property
    def report(self) -> AnyReport:
        """What was kept, dropped, cut and left out so far."""
        report: AnyReport = self.run.report
        return replace(report, notes=[*report.notes, *self.run.notes(), *said_of(self.left)])

    # --- a checkpoint ---

    def unite_prompt_keys(self) -> None:
        """Keeps each key of a prompt once: several passes have the same ones."""
        keys = array("Q", np.unique(np.asarray(self.run.report.prompt_keys, np.uint64)).tobytes())
        self.run.report.prompt_keys = self.run.prompt_keys = keys

    def state(self, place: int) -> dict[str, Any]:
        """What continues after `place` groups, as plain values."""
        position = next((after for at, after in self._positions if at == place), None)
        if position is None:
            raise PreftuneError(
                f"the position of group {place} in {self.stream.name} is not known. Please report this."
            )
        return {
            "place": place,
            "position": list(position),
            "counted": self._place,
            "report": self.run.report.to_json(),
            "plain": self.run.plain,
            "details": dict(self.run.details),
            "left": {reason: asdict(count) for reason, count in self.left.items()},
        }

    def begin(self, state: Mapping[str, Any] | None) -> None:
        """Begin a training: with the first group, or with that of the place of `state` and the report as it was."""
        if state is not None:
            self._go_on(state)
        elif self._place > self._held:
            report = self.run.report
            self.run.report, self.left = type(report)(name=report.name, notes=list(self.stream.notes)), {}
            self.run.prompt_keys, self.run.plain, self.run.details = self.run.report.prompt_keys, 0, {}
            self._begin(0, Position(), counted=0)

    def _go_on(self, state: Mapping[str, Any]) -> None:
        keys = self.run.report.prompt_keys
        self.run.report = report_of(state["report"], type(self.run.report))
        self.run.report.prompt_keys = self.run.prompt_keys = keys
        self.run.plain, self.run.details = state["plain"], dict(state["details"])
        self.left = {reason: RowCount(**count) for reason, count in state["left"].items()}
        if state["place"] >= self._held:
            self._begin(state["place"], Position(*state["position"]), counted=state["counted"])
        else:
            self._counted = state["counted"]

    # --- what all groups are like ---

    @property
    def _times(self) -> float:
        return self._count / self._held

    @property
    def pairs(self) -> int:
        return round(super().pairs * self._times)

    @property
    def labels(self) -> tuple[int, int]:
        good, bad = super().labels
        return round(good * self._times), round(bad * self._times)

    @property
    def total_tokens(self) -> int:
        return round(super().total_tokens * self._times)

    @property
    def scored_tokens(self) -> int:
        return round(self._known.scored_tokens * self._times)

    @property
    def fingerprint(self) -> str:
        """Of the groups that are known, and of what decides the order of the others."""
        import xxhash

        facts = repr((self._known.fingerprint, self.stream.facts, self._buffer, self._seed))
        return xxhash.xxh3_128_hexdigest(facts.encode())


def open_groups(
    stream: ExampleStream,
    tokenizer: PreTrainedTokenizerBase,
    *,
    count: int,
    buffer: int,
    seed: int,
    recent: int,
    max_length: int | None = 1024,
    max_prompt_length: int | None = None,
    truncation: Truncation = "truncate",
    **covered: bool | None,
) -> StreamedGroups:
    """The groups of a stream, tokenised with the same limits and counts as data of known length.

    Args:
        count, buffer, seed, recent: see `StreamedGroups`.
        max_length, max_prompt_length, truncation: see `tokenize_pairs`; truncation="error" raises at the first one.
        covered: for demonstrations `completion_only_loss` and `assistant_only_loss`, as `tokenize_demonstrations` has
            them.
    Raises: ConfigError: an impossible limit. DatasetError: a row that holds no example; nothing to train on.
    """
    encoder = Encoder(tokenizer)
    if stream.kind == "demonstration":
        encoder = demonstrations = DemonstrationEncoder(tokenizer)
        demonstrations.covered = Covered(covered["completion_only_loss"], covered["assistant_only_loss"])
    report = _REPORTS[stream.kind](name=stream.name, notes=list(stream.notes))
    run: Run[Any] = Run(encoder, Limits(max_length, max_prompt_length, truncation), report)
    run.prompt_keys = report.prompt_keys
    return StreamedGroups(stream, run, count=count, buffer=buffer, seed=seed, recent=recent)
