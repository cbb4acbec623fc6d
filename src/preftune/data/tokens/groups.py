"""Tokenised groups in flat arrays, which are mapped files where they are large; a group is made when it is read.

No object per group is held: the arrays of a million rows are pages of a file, which the system reads when they are
needed and drops when memory is needed. What is computed over all groups is computed a part at a time.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from preftune.data.tokens.flat_arrays import GrowingArray, GrowingTexts, Texts
from preftune.types import Label, Preference, Span, TokenizedGroup

_NO_SPANS = np.zeros((0, 3), np.int64)
_NO_LABELS = np.zeros((0, 3), np.float64)
_NO_SCORES = np.zeros((0, 2), np.float64)

_BLOCK = 2**15
"""Groups over which something is computed at a time."""

Indices = Sequence[int] | NDArray[np.integer]


Rearranged: TypeAlias = tuple[Sequence[int], Sequence[tuple[int, int, int]], str]
"""A new group: its segments, its pairs as (preference, chosen, rejected), and its id."""


class Described(NamedTuple):
    """What a group is made of."""

    segments: range
    """The indices of its prompt and its completions among all segments."""
    lengths: list[int]
    """The number of tokens of each segment."""
    contents: list[bytes]
    """For each segment, digests of its tokens and its scored spans: equal segments of any groups have equal ones."""
    pairs: list[tuple[int, int, int]]
    """Its pairs as (index among all preferences, chosen, rejected)."""
    id: str


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
        self._ids = ids if isinstance(ids, Texts) else Texts.of(ids)
        self._scored = _NO_SPANS if scored is None else scored
        self._labels = _NO_LABELS if labels is None else labels
        self._scores = _NO_SCORES if scores is None else scores

    @classmethod
    def from_groups(cls, groups: Iterable[TokenizedGroup]) -> GroupDataset:
        """Packs groups one by one; only the flat arrays are kept."""
        made = _Arrays()
        for group in groups:
            begun = made.begin(group.id)
            for segment, spans in enumerate(group.scored, start=begun + 1):
                made.add_spans(segment, spans)
            for segment, label in enumerate(group.labels, start=begun + 1):
                made.labels.extend((segment, *label))
            for segment, score in enumerate(group.scores, start=begun + 1):
                made.scores.extend((segment, score))
            made.add_segment(group.prompt_ids)
            for part in group.completions:
                made.add_segment(part)
            for pair in group.pairs:
                made.preferences.extend(pair[:4])
            made.end(len(group.pairs))
        return made.dataset()

    def __len__(self) -> int:
        return len(self._groups) - 1

    @property
    def _held(self) -> int:
        """The number of groups in the arrays."""
        return len(self._groups) - 1

    @property
    def known(self) -> GroupDataset:
        """The groups that can be read in any order: all, if this is not a stream."""
        return self

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

    def rearranged(self, groups: Iterable[Rearranged]) -> GroupDataset:
        """New groups from this dataset's segments and pairs, made without converting tokens to Python integers.

        Args:
            groups: for each new group, the indices of its prompt and its completions among this dataset's segments; its
                pairs: the preference of this dataset that gives weight and margin, and the indices of chosen and
                rejected in the new group; and its id.
        """
        made = _Arrays()
        for segments, pairs, name in groups:
            begun = made.begin(name)
            for new, old in enumerate(segments, start=begun):
                begin, end = self._segments[old : old + 2]
                made.add_array(self._tokens[begin:end])
                if len(self._scored):
                    made.add_spans(new, self._spans(old))
            for pair, chosen, rejected in pairs:
                made.preferences.extend((chosen, rejected, *self._preferences[pair, 2:]))
            made.end(len(pairs))
        return made.dataset()

    def described(self, index: int) -> Described:
        """What a group is made of. Completions that differ only in their scored spans have different contents."""
        import xxhash

        segments = range(int(self._groups[index]), int(self._groups[index + 1]))
        bounds = self._segments[segments.start : segments.stop + 1].tolist()
        contents = [xxhash.xxh3_128_digest(self._tokens[begin:end].data) for begin, end in pairwise(bounds)]
        if len(self._scored):
            contents = [
                content + np.asarray(self._spans(i), np.int64).tobytes()
                for i, content in zip(segments, contents, strict=True)
            ]
        first, last = self._preference_groups[index : index + 2].tolist()
        sides = self._preferences[first:last, :2].tolist()
        pairs = [(pair, int(chosen), int(rejected)) for pair, (chosen, rejected) in enumerate(sides, start=first)]
        lengths = [end - begin for begin, end in pairwise(bounds)]
        return Described(segments, lengths, contents, pairs, self._ids[index])

    @property
    def prompts(self) -> int:
        """Number of distinct prompts."""
        return len(np.unique(self.prompt_keys()))

    def prompt_keys(self, *, least: int = 0) -> NDArray[np.void]:
        """(prompts,): digests of the prompts with at least `least` tokens, group after group, 16 bytes each."""
        import xxhash

        keys = np.zeros(self._held, [("high", np.uint64), ("low", np.uint64)])
        places, count = keys.view(np.uint8).data, 0
        for start in range(0, self._held, _BLOCK):
            prompts = self._groups[start : min(start + _BLOCK, self._held)]
            bounds = zip(self._segments[prompts].tolist(), self._segments[prompts + 1].tolist(), strict=True)
            for begin, end in bounds:
                if end - begin >= least:
                    places[16 * count : 16 * count + 16] = xxhash.xxh3_128_digest(self._tokens[begin:end].data)
                    count += 1
        return keys[:count]

    def _blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Some groups at a time: the lengths of their segments, and where among those each group begins."""
        for start in range(0, self._held, _BLOCK):
            groups = self._groups[start : start + _BLOCK + 1]
            yield np.diff(self._segments[groups[0] : groups[-1] + 1]), groups[:-1] - groups[0]

    @property
    def segment_lengths(self) -> NDArray[np.int64]:
        """(segments,): number of tokens of every prompt and completion, group after group."""
        return np.diff(self._segments)

    @property
    def total_tokens(self) -> int:
        """Number of tokens, with every prompt counted once."""
        return len(self._tokens)

    @cached_property
    def largest_id(self) -> int:
        """The largest token id; -1 without tokens."""
        step = 2**20
        parts = (self._tokens[start : start + step] for start in range(0, len(self._tokens), step))
        return max((int(part.max()) for part in parts), default=-1)

    @cached_property
    def scored_tokens(self) -> int:
        """Number of tokens that the loss covers: those of the completions without their context."""
        partly = self._scored[:, 0].astype(np.int64)  # segments of which not every token is scored
        bounds = np.unique(partly)
        unscored = int((self._segments[bounds + 1] - self._segments[bounds]).sum())
        completions = sum(int(lengths.sum() - lengths[begins].sum()) for lengths, begins in self._blocks())
        return completions - unscored + int((self._scored[:, 2] - self._scored[:, 1]).sum())

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(groups,): number of tokens of each group in a packed row, the prompt once; for samplers that limit a
        batch.
        """
        starts = self._segments[self._groups]
        return np.diff(starts)

    @cached_property
    def longest(self) -> int:
        """Number of tokens of the longest prompt with one of its completions."""
        most = 0
        for lengths, begins in self._blocks():
            prompts = lengths[begins]
            lengths[begins] = 0
            most = max(most, int((prompts + np.maximum.reduceat(lengths, begins)).max()))
        return most

    @property
    def pairs(self) -> int:
        return len(self._preferences)

    @property
    def has_margins(self) -> bool:
        """Whether a pair has a margin."""
        return bool(self._preferences[:, 3].any())

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the tokens, the scored spans, the preferences and their order (not of the ids)."""
        import xxhash

        digest = xxhash.xxh3_128()
        part: NDArray[Any]
        for part in (self._tokens, self._segments, self._groups, self._preferences, self._preference_groups):
            digest.update(_bytes_of(part))
        for part in (self._scored, self._labels, self._scores):
            if len(part):
                digest.update(_bytes_of(part))
        return digest.hexdigest()


def _bytes_of(part: NDArray[Any]) -> memoryview:
    """The same memory, where the array is contiguous."""
    return np.ascontiguousarray(part).reshape(-1).view(np.uint8).data


class _Arrays:
    """The arrays of a dataset in the making, group after group."""

    def __init__(self) -> None:
        self.tokens, self.segments, self.groups = GrowingArray("i"), GrowingArray("q"), GrowingArray("q")
        self.preferences, self.preference_groups = GrowingArray("d"), GrowingArray("q")
        self.ids = GrowingTexts()
        self.scored, self.labels, self.scores = GrowingArray("q"), GrowingArray("d"), GrowingArray("d")
        self._tokens = self._segments = self._pairs = 0
        for offsets in (self.segments, self.groups, self.preference_groups):
            offsets.append(0)

    def begin(self, name: str) -> int:
        """Begins a group. Returns: the number of its first segment, which is its prompt."""
        self.ids.append(name)
        return self._segments

    def add_segment(self, ids: Sequence[int]) -> None:
        self.tokens.extend(ids)
        self._count(len(ids))

    def add_array(self, ids: NDArray[np.int32]) -> None:
        self.tokens.extend_bytes(ids.tobytes())
        self._count(len(ids))

    def _count(self, tokens: int) -> None:
        self._tokens += tokens
        self._segments += 1
        self.segments.append(self._tokens)

    def add_spans(self, segment: int, spans: Sequence[Span]) -> None:
        for begin, end in spans:
            self.scored.extend((segment, begin, end))

    def end(self, pairs: int) -> None:
        """Ends a group."""
        self._pairs += pairs
        self.groups.append(self._segments)
        self.preference_groups.append(self._pairs)

    def dataset(self) -> GroupDataset:
        return GroupDataset(
            self.tokens.done(),
            self.segments.done(),
            self.groups.done(),
            self.preferences.done().reshape(-1, 4),
            self.preference_groups.done(),
            self.ids.done(),
            self.scored.done().reshape(-1, 3),
            self.labels.done().reshape(-1, 3),
            self.scores.done().reshape(-1, 2),
        )
