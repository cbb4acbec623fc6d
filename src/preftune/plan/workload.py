"""How much there is to compute: tokens of rows, of a step's micro-batches, of an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from preftune.types import TokenizedGroup


class RowLengths(NamedTuple):
    """Lengths of one group, in tokens."""

    prompt: int
    completions: tuple[int, ...]
    scored: int
    """Tokens that are predicted."""
    separate: int
    """Tokens if every side of every pair were computed with a prompt of its own."""

    @property
    def tokens(self) -> int:
        return self.prompt + sum(self.completions)

    @classmethod
    def of(cls, group: TokenizedGroup) -> RowLengths:
        prompt, completions = len(group.prompt_ids), tuple(map(len, group.completions))
        sides = [side for pair in group.pairs for side in (pair.chosen, pair.rejected)] or range(len(completions))
        return cls(prompt, completions, sum(group.scored_lengths), sum(prompt + completions[side] for side in sides))


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What is computed at a time: one packed row."""

    tokens: int
    """R."""
    scored: int
    """T."""
    keys: int
    """Keys of all segments; the prompt counts once for each completion."""
    further_keys: int
    """Of them, those of all completions but the first of each group."""
    masked: int
    """Elements of the masks of these completions: queries times keys."""
    seen: int
    """Pairs of a query and a key that it sees."""
    longest: int
    """Tokens of the longest prompt with one completion."""

    @classmethod
    def of(cls, rows: Sequence[RowLengths]) -> MicroBatch:
        keys = further = masked = seen = 0
        for row in rows:
            seen += row.prompt * (row.prompt + 1) // 2
            for index, length in enumerate(row.completions):
                keys += row.prompt + length
                seen += length * row.prompt + length * (length + 1) // 2
                if index:
                    further += row.prompt + length
                    masked += length * (row.prompt + length)
        return cls(
            tokens=sum(row.tokens for row in rows),
            scored=sum(row.scored for row in rows),
            keys=keys,
            further_keys=further,
            masked=masked,
            seen=seen,
            longest=max((row.prompt + max(row.completions) for row in rows), default=0),
        )


@dataclass(frozen=True, slots=True)
class Workload:
    """The whole training, and its largest micro-batch."""

    unit: str
    """What a row is: pair, row, answer, group."""
    rows: int
    """In the data."""
    rows_per_step: int
    """Over all ranks."""
    steps: int
    epochs: float
    sampled: MicroBatch
    """Sums over `sample` rows."""
    sample: int
    tokens: int
    """Of one epoch, prompts shared."""
    separate_tokens: int
    """Of one epoch, without sharing."""
    largest: MicroBatch
    micro_batches: int
    """Most in a step of one rank."""
    smallest_possible: MicroBatch
    """The longest row alone: below it, no token budget helps."""
    budget: int | None
    """Most tokens computed at a time; None for whole batches."""

    @property
    def saved(self) -> float:
        """Share of the tokens that sharing prompts saves."""
        return 1 - self.tokens / max(1, self.separate_tokens)

    @property
    def trained_rows(self) -> float:
        """Rows of all steps, repeated ones counted each time."""
        return self.rows * self.epochs
