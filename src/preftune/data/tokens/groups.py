"""Tokenised groups in flat arrays: 160,000 rows take a few arrays, not a hundred million Python integers."""

from __future__ import annotations

import operator
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preftune.types import Label, Preference, Span, TokenizedGroup

_NO_SPANS = np.zeros((0, 3), np.int64)
_NO_LABELS = np.zeros((0, 3), np.float64)
_NO_SCORES = np.zeros((0, 2), np.float64)

Indices = Sequence[int] | NDArray[np.integer]


class GroupDataset(Sequence[TokenizedGroup]):
    """A map-style dataset of `TokenizedGroup`, compact, picklable, without torch.

    Holds groups of any shape: one pair (DPO), one completion (SFT), several completions and pairs.
    """

    def __init__(
        self,
        tokens: NDArray[np.int32],
        segments: NDArray[np.int64],
        groups: NDArray[np.int64],
        preferences: NDArray[np.float64],
        preference_groups: NDArray[np.int64],
        ids: Sequence[str],
        scored: NDArray[np.int64] | None = None,
        labels: NDArray[np.float64] | None = None,
        scores: NDArray[np.float64] | None = None,
    ) -> None:
        """Arrays as `from_groups` makes them.

        Args:
            tokens: the tokens of all segments, concatenated.
            segments: where each segment begins in `tokens`, and the end; a group's first segment is its prompt.
            groups: where each group begins in `segments`, and the end.
            preferences: (pairs, 4): chosen, rejected, weight, margin.
            preference_groups: where each group's pairs begin in `preferences`, and the end.
            ids: one per group.
            scored: (spans, 3), ascending: segment, begin, end, for the completions of which not every token is scored;
                None if there are none.
            labels: (labelled completions, 3), ascending: segment, desirable, weight; None if there are none.
            scores: (completions with a score, 2), ascending: segment, score; None if there are none.
        """
        self._tokens = tokens
        self._segments = segments
        self._groups = groups
        self._preferences = preferences
        self._preference_groups = preference_groups
        self._ids = list(ids)
        self._scored = _NO_SPANS if scored is None else scored
        self._labels = _NO_LABELS if labels is None else labels
        self._scores = _NO_SCORES if scores is None else scores

    @classmethod
    def from_groups(cls, groups: Iterable[TokenizedGroup]) -> GroupDataset:
        """Packs groups one by one; only the flat arrays are kept."""
        tokens = array("i")  # four bytes a token, also while it grows
        lengths: list[int] = []
        per_group: list[int] = []
        preferences: list[tuple[int, int, float, float]] = []
        pairs_per_group: list[int] = []
        ids: list[str] = []
        scored: list[tuple[int, int, int]] = []
        labels: list[tuple[int, bool, float]] = []
        scores: list[tuple[int, float]] = []
        for group in groups:
            for segment, spans in enumerate(group.scored, start=len(lengths) + 1):
                scored += [(segment, begin, end) for begin, end in spans]
            labels += [(segment, *label) for segment, label in enumerate(group.labels, start=len(lengths) + 1)]
            scores += list(enumerate(group.scores, start=len(lengths) + 1))
            parts = (group.prompt_ids, *group.completions)
            for part in parts:
                tokens.extend(part)
            lengths += [len(part) for part in parts]
            per_group.append(len(parts))
            preferences += [pair[:4] for pair in group.pairs]
            pairs_per_group.append(len(group.pairs))
            ids.append(group.id)
        return cls(
            np.frombuffer(tokens, np.int32) if tokens else np.zeros(0, np.int32),
            _offsets(lengths),
            _offsets(per_group),
            np.asarray(preferences, np.float64).reshape(-1, 4),
            _offsets(pairs_per_group),
            ids,
            np.asarray(scored, np.int64).reshape(-1, 3),
            np.asarray(labels, np.float64).reshape(-1, 3),
            np.asarray(scores, np.float64).reshape(-1, 2),
        )

    def __len__(self) -> int:
        return len(self._groups) - 1

    def __repr__(self) -> str:
        return f"GroupDataset({len(self)} groups, {self.total_tokens} tokens)"

    # `Sequence` would allow slices; `select` says better that a new dataset is made.
    def __getitem__(self, index: int) -> TokenizedGroup:  # type: ignore[override]
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"group {index} of {len(self)}")
        index %= len(self)
        first, last = int(self._groups[index]), int(self._groups[index + 1])
        bounds = self._segments[first : last + 1].tolist()
        prompt, *completions = (self._tokens[start:end].tolist() for start, end in pairwise(bounds))
        rows = self._preferences[self._preference_groups[index] : self._preference_groups[index + 1]].tolist()
        return TokenizedGroup(
            prompt_ids=prompt,
            completions=tuple(completions),
            pairs=tuple(
                Preference(int(chosen), int(rejected), weight, margin) for chosen, rejected, weight, margin in rows
            ),
            id=self._ids[index],
            scored=tuple(self._spans(segment) for segment in range(first + 1, last)) if len(self._scored) else (),
            labels=self._labels_of(first + 1, last) if len(self._labels) else (),
            scores=self._scores_of(first + 1, last) if len(self._scores) else (),
        )

    def __iter__(self) -> Iterator[TokenizedGroup]:
        return (self[index] for index in range(len(self)))

    def _spans(self, segment: int) -> tuple[Span, ...]:
        """The spans of a segment, as in `TokenizedGroup.scored`."""
        begin, end = np.searchsorted(self._scored[:, 0], (segment, segment + 1))
        return tuple((int(first), int(stop)) for _, first, stop in self._scored[begin:end])

    def _labels_of(self, first: int, last: int) -> tuple[Label, ...]:
        begin, end = np.searchsorted(self._labels[:, 0], (first, last))
        return tuple(Label(bool(good), float(weight)) for _, good, weight in self._labels[begin:end])

    def _scores_of(self, first: int, last: int) -> tuple[float, ...]:
        begin, end = np.searchsorted(self._scores[:, 0], (first, last))
        return tuple(self._scores[begin:end, 1].tolist())

    def is_rated(self, index: int) -> bool:
        """Whether the group has pairs and scores of its completions."""
        pairs = self._preference_groups[index + 1] > self._preference_groups[index]
        begin, end = np.searchsorted(self._scores[:, 0], (self._groups[index], self._groups[index + 1]))
        return bool(pairs and end > begin)

    @property
    def labels(self) -> tuple[int, int]:
        """The number of completions labelled good, and the number labelled bad."""
        good = int(self._labels[:, 1].sum())
        return good, len(self._labels) - good

    def select(self, indices: Indices) -> GroupDataset:
        """The groups at these positions, in this order, as a new dataset."""
        return GroupDataset.from_groups(self[int(index)] for index in indices)

    def rearranged(
        self,
        segments: Sequence[Sequence[int]],
        preferences: Sequence[Sequence[tuple[int, int, int]]],
        ids: Sequence[str],
    ) -> GroupDataset:
        """New groups from this dataset's segments and pairs, made without converting tokens to Python integers.

        Args:
            segments: for each new group, the indices of its prompt and its completions among this dataset's segments.
            preferences: for each new group, its pairs: the preference of this dataset that gives weight and margin, and
                the indices of chosen and rejected in the new group.
            ids: one per new group.
        """
        order = [index for group in segments for index in group]
        bounds = self._segments.tolist()
        rows = np.asarray([row for group in preferences for row in group], np.int64).reshape(-1, 3)
        pairs = self._preferences[rows[:, 0]]
        pairs[:, :2] = rows[:, 1:]
        scored = (
            [(new, *span) for new, old in enumerate(order) for span in self._spans(old)] if len(self._scored) else []
        )
        return GroupDataset(
            np.concatenate([self._tokens[bounds[i] : bounds[i + 1]] for i in order]) if order else self._tokens[:0],
            _offsets(np.diff(self._segments)[order].tolist() if order else []),
            _offsets([len(group) for group in segments]),
            pairs,
            _offsets([len(group) for group in preferences]),
            ids,
            np.asarray(scored, np.int64).reshape(-1, 3),
        )

    def numbered(self) -> Iterator[tuple[range, list[int], list[tuple[int, int, int]], str]]:
        """Every group with numbers for its contents: equal segments of any groups have equal numbers.

        Completions that differ only in their scored spans have different numbers.

        Yields: the indices of the group's segments (prompt first), their numbers, its pairs as (index among all
        preferences, chosen, rejected), and its id.
        """
        import xxhash

        numbers: dict[bytes, int] = {}
        bounds, sides = self._segments.tolist(), self._preferences[:, :2].astype(np.int64).tolist()
        for index, name in enumerate(self._ids):
            segments = range(int(self._groups[index]), int(self._groups[index + 1]))
            contents = [xxhash.xxh3_128_digest(self._tokens[bounds[i] : bounds[i + 1]].tobytes()) for i in segments]
            if len(self._scored):
                contents = [
                    content + np.asarray(self._spans(i), np.int64).tobytes()
                    for i, content in zip(segments, contents, strict=True)
                ]
            pairs = range(int(self._preference_groups[index]), int(self._preference_groups[index + 1]))
            yield (
                segments,
                [numbers.setdefault(content, len(numbers)) for content in contents],
                [(pair, sides[pair][0], sides[pair][1]) for pair in pairs],
                name,
            )

    @property
    def prompts(self) -> int:
        """Number of distinct prompts."""
        return len(self.prompt_hashes())

    def prompt_hashes(self, *, least: int = 0) -> set[int]:
        """Hashes of the distinct prompts with at least `least` tokens; valid only within this process."""
        starts = self._segments.tolist()
        return {
            hash(self._tokens[starts[i] : starts[i + 1]].tobytes())
            for i in self._groups[:-1].tolist()
            if starts[i + 1] - starts[i] >= least
        }

    @property
    def segment_lengths(self) -> NDArray[np.int64]:
        """(segments,): number of tokens of every prompt and completion, group after group."""
        return np.diff(self._segments)

    @property
    def total_tokens(self) -> int:
        """Number of tokens, with every prompt counted once."""
        return len(self._tokens)

    @property
    def scored_tokens(self) -> int:
        """Number of tokens that the loss covers: those of the completions without their context."""
        lengths = self.segment_lengths.copy()
        lengths[self._groups[:-1]] = 0  # the prompts; a group has at least its prompt
        lengths[self._scored[:, 0]] = 0
        return int(lengths.sum() + (self._scored[:, 2] - self._scored[:, 1]).sum())

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(groups,): number of tokens of each group in a packed row, the prompt once; for samplers that limit a
        batch.
        """
        starts = self._segments[self._groups]
        return np.diff(starts)

    @property
    def longest(self) -> int:
        """Number of tokens of the longest prompt with one of its completions."""
        prompts = self.segment_lengths[self._groups[:-1]]
        completions = self.segment_lengths.copy()
        completions[self._groups[:-1]] = 0
        return int((prompts + np.maximum.reduceat(completions, self._groups[:-1])).max()) if len(self) else 0

    @property
    def pairs(self) -> int:
        return len(self._preferences)

    @property
    def has_margins(self) -> bool:
        """Whether a pair has a margin."""
        return bool(self._preferences[:, 3].any())

    @property
    def fingerprint(self) -> str:
        """Hash of the tokens, the scored spans, the preferences and their order (not of the ids)."""
        import xxhash

        digest = xxhash.xxh3_128()
        part: NDArray[Any]
        for part in (self._tokens, self._segments, self._groups, self._preferences, self._preference_groups):
            digest.update(np.ascontiguousarray(part).tobytes())
        for part in (self._scored, self._labels, self._scores):
            if len(part):
                digest.update(part.tobytes())
        return digest.hexdigest()


def _offsets(lengths: Sequence[int]) -> NDArray[np.int64]:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
