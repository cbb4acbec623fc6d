"""Rated pairs of a prompt as one list of its answers, as listwise losses train on them.

Every pair of a list of K rated answers says how its two sides are rated, so the pairs of a prompt hold the whole list.
Four rated answers are six pairs, and one list: each answer is computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from preftune.data.tokens.groups import GroupDataset
from preftune.types import Preference, Span, TokenizedGroup


@dataclass(slots=True)
class ListCounts:
    """What became of rated pairs."""

    lengths: list[int] = field(default_factory=list)
    """Answers of each list of more than two."""
    of_two: int = 0
    """Pairs that are lists of two."""
    contradicting: int = 0
    """Prompts whose answers are rated alike on average, so that they prefer nothing."""
    rerated: int = 0
    """Answers that several rows rate differently: their mean counts."""


def as_lists(groups: GroupDataset) -> tuple[GroupDataset, ListCounts]:
    """Merges the rated pairs whose prompts have the same token ids into one group with one pair, of the best and the
    worst answer, and the scores of all answers, from the best to the worst.

    An answer that several rows rate has the mean of its ratings; a list has the mean weight and margin of its pairs.
    Pairs without ratings stay what they are: lists of two. A list stands where its prompt appeared first and is called
    "ID+5" after the first row and the number of further ones. Doing it again changes nothing.
    """
    counts = ListCounts()
    return GroupDataset.from_groups(_lists(groups, counts)), counts


def _lists(groups: GroupDataset, counts: ListCounts) -> Iterator[TokenizedGroup]:
    rated: dict[int, list[int]] = {}
    prompts: list[int] = []
    for index, (_, numbers, _, _) in enumerate(groups.numbered()):
        prompts.append(numbers[0])
        if groups.is_rated(index):
            rated.setdefault(numbers[0], []).append(index)
    for index, prompt in enumerate(prompts):
        if not groups.is_rated(index):
            group = groups[index]
            counts.of_two += len(group.pairs)
            yield group
            continue
        members = rated[prompt]
        if members[0] != index:
            continue
        made = _merged([groups[member] for member in members], counts)
        if made is None:
            counts.contradicting += 1
            continue
        counts.of_two += len(made.completions) == 2
        if len(made.completions) > 2:
            counts.lengths.append(len(made.completions))
        yield made


def _merged(members: Sequence[TokenizedGroup], counts: ListCounts) -> TokenizedGroup | None:
    """One list; None where all answers have the same score."""
    ratings: dict[tuple[tuple[int, ...], tuple[Span, ...]], list[float]] = {}
    pairs: list[Preference] = []
    for group in members:
        pairs += group.pairs
        for place, (completion, score) in enumerate(zip(group.completions, group.scores, strict=True)):
            key = (tuple(completion), group.scored[place] if group.scored else ())
            ratings.setdefault(key, []).append(score)
    counts.rerated += sum(len(set(values)) > 1 for values in ratings.values())
    scores = {answer: sum(values) / len(values) for answer, values in ratings.items()}
    ordered = sorted(scores, key=lambda answer: -scores[answer])
    if scores[ordered[0]] == scores[ordered[-1]]:
        return None
    weight, margin = (sum(values) / len(pairs) for values in zip(*((p.weight, p.margin) for p in pairs), strict=True))
    return TokenizedGroup(
        members[0].prompt_ids,
        tuple(list(completion) for completion, _ in ordered),
        (Preference(0, len(ordered) - 1, weight, margin),),
        id=members[0].id if len(members) == 1 else f"{members[0].id}+{len(members) - 1}",
        scored=tuple(spans for _, spans in ordered),
        scores=tuple(scores[answer] for answer in ordered),
    )
