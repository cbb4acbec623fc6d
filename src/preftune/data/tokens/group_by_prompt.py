"""Merges rows that share a prompt into one group: the prompt once, every distinct completion once, all pairs unchanged.

Four rated completions make six pairs. As rows they cost six prompts and twelve completions, as a group one prompt and
four completions; the loss, a mean over pairs, and its gradient stay the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from preftune.data.tokens.groups import GroupDataset, Rearranged


def group_by_prompt(groups: GroupDataset, *, max_group_tokens: int | None = None) -> GroupDataset:
    """Merges the groups whose prompts have the same token ids.

    Every distinct completion of a prompt occurs once in its group, however many pairs use it (completions are equal if
    their tokens and their scored spans are equal). Every pair is kept with its weight and margin, a repeated pair as
    often as it occurs (it counts in the mean as often). Groups are in the order in which their prompts first appear; a
    merged group is named "ID+5" after the first row and the number of further rows.

    A prompt whose completions exceed `max_group_tokens` becomes several groups. Pairs that share completions stay
    together where they fit; a completion whose pairs fill more than one group is in each of them. An input group is
    never split, even if it is longer. Merging again changes nothing.

    Args:
        groups: of any shape: single pairs as the tokeniser makes them, or groups of several.
        max_group_tokens: maximum number of tokens of a merged group, including its prompt; None for no limit.
    """
    return groups.rearranged(_merged(groups, max_group_tokens))


def _merged(groups: GroupDataset, max_group_tokens: int | None) -> Iterator[Rearranged]:
    """The new groups, prompt after prompt; only the rows of one prompt are held."""
    limit = max_group_tokens or float("inf")
    for rows in _of_each_prompt(groups):
        described = [groups.described(row) for row in rows]
        alone = described[0]
        if len(rows) == 1 and len({*alone.contents[1:]}) == len(alone.contents) - 1:
            yield alone.segments, alone.pairs, alone.id
            continue
        numbers: dict[bytes, int] = {}
        sources = [
            _Source(
                one.segments,
                [numbers.setdefault(content, len(numbers)) for content in one.contents[1:]],
                one.pairs,
                one.id,
            )
            for one in described
        ]
        lengths = {
            segment: length for one in described for segment, length in zip(one.segments, one.lengths, strict=True)
        }
        for part in _parts_of(sources, lengths, limit):
            yield part.segments, part.pairs, part.name


def _of_each_prompt(groups: GroupDataset) -> Iterator[list[int]]:
    """The rows of every prompt, in the order in which the prompts first appear."""
    keys = groups.prompt_keys()
    _, first, prompt = np.unique(keys, return_index=True, return_inverse=True)
    first_row = first[prompt.reshape(-1)]
    order = np.argsort(first_row, kind="stable")
    begins = np.flatnonzero(np.diff(first_row[order], prepend=-1))
    for begin, end in pairwise(np.append(begins, len(order))):
        yield order[begin:end].tolist()


@dataclass(slots=True)
class _Source:
    """An input group: the positions of its segments, and its completions by number."""

    segments: range
    completions: list[int]
    pairs: list[tuple[int, int, int]]
    name: str


@dataclass(slots=True)
class _Merged:
    """A group under construction."""

    segments: list[int]
    tokens: int
    first: str
    places: dict[int, int] = field(default_factory=dict)
    """Completion, by number -> its index in the group."""
    pairs: list[tuple[int, int, int]] = field(default_factory=list)
    sources: int = 0

    @property
    def name(self) -> str:
        return self.first if self.sources == 1 else f"{self.first}+{self.sources - 1}"

    def cost(self, sources: Sequence[_Source], lengths: Mapping[int, int]) -> int:
        """Number of tokens that would be added."""
        new = {
            number: lengths[segment]
            for source in sources
            for number, segment in zip(source.completions, source.segments[1:], strict=True)
            if number not in self.places
        }
        return sum(new.values())

    def add(self, source: _Source, lengths: Mapping[int, int]) -> None:
        for number, segment in zip(source.completions, source.segments[1:], strict=True):
            if number not in self.places:
                self.places[number] = len(self.places)
                self.segments.append(segment)
                self.tokens += lengths[segment]
        places = [self.places[number] for number in source.completions]
        self.pairs += [(pair, places[chosen], places[rejected]) for pair, chosen, rejected in source.pairs]
        self.sources += 1


def _parts_of(sources: list[_Source], lengths: Mapping[int, int], limit: float) -> Iterator[_Merged]:
    """The groups of one prompt: a single group, if that stays within the limit."""
    whole = _begin(sources[0], lengths)
    if len(sources) == 1 or whole.tokens + whole.cost(sources, lengths) <= limit:
        for source in sources:
            whole.add(source, lengths)
        yield whole
        return
    part = whole
    for connected in _connected(sources):
        fresh = _begin(connected[0], lengths)
        fits = fresh.tokens + fresh.cost(connected, lengths) <= limit
        if part.sources and fits and part.tokens + part.cost(connected, lengths) > limit:
            yield part
            part = fresh
        for source in connected:
            if part.sources and part.tokens + part.cost([source], lengths) > limit:
                yield part
                part = _begin(source, lengths)
            part.add(source, lengths)
    yield part


def _begin(source: _Source, lengths: Mapping[int, int]) -> _Merged:
    """A group with only the prompt."""
    return _Merged([source.segments[0]], lengths[source.segments[0]], source.name)


def _connected(sources: Sequence[_Source]) -> list[list[_Source]]:
    """Sources that share completions, directly or through others; in the order of first appearance."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    seen: dict[int, int] = {}
    links = [
        (seen.setdefault(number, index), index) for index, source in enumerate(sources) for number in source.completions
    ]
    graph = coo_array((np.ones(len(links)), np.transpose(links)), (len(sources), len(sources)))
    together: dict[int, list[_Source]] = {}
    for source, part in zip(sources, connected_components(graph, directed=False)[1].tolist(), strict=True):
        together.setdefault(part, []).append(source)
    return list(together.values())
