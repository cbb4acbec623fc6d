"""Merges the rated pairs of a prompt into one list of its answers, for listwise losses.

Every pair of a list of K rated answers says how its two sides are rated, so the pairs of a prompt hold the whole list.
Four rated answers are six pairs, and one list: each answer is computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from preftune.data.tokens.groups import GroupDataset
from preftune.types import Preference, Span, TokenizedGroup

_MOVED = 4
"""Most tokens by which an answer moves the end of its prompt: tokens of both that merge, as of two line ends."""


@dataclass(slots=True)
class ListCounts:
    """The outcome of merging rated pairs."""

    lengths: list[int] = field(default_factory=list)
    """Number of answers of each list with more than two."""
    of_two: int = 0
    """Number of pairs that are lists of two."""
    contradicting: int = 0
    """Prompts whose answers are rated alike on average, so that they prefer nothing."""
    rerated: int = 0
    """Answers that several rows rate differently: their mean counts."""


def as_lists(groups: GroupDataset) -> tuple[GroupDataset, ListCounts]:
    """Merges the rated pairs of a prompt into one group with one pair, of the best and the worst answer, and the scores
    of all answers, from the best to the worst.

    Pairs are of one prompt if it has the same token ids, or if they share an answer whose other sides move the end of
    the prompt: where one answer merges with it, the list's prompt ends before that, as if all had been tokenised
    together. An answer that several rows rate has the mean of its ratings; a list has the mean weight and margin of its
    pairs. Pairs without ratings stay what they are: lists of two. A list stands where its prompt appeared first and is
    called "ID+5" after the first row and the number of further ones. Doing it again changes nothing.
    """
    counts = ListCounts()
    return GroupDataset.from_groups(_lists(groups, counts)), counts


def _lists(groups: GroupDataset, counts: ListCounts) -> Iterator[TokenizedGroup]:
    rated: dict[int, list[int]] = {}
    prompts = _prompts(groups)
    for index, prompt in enumerate(prompts):
        if prompt is not None:
            rated.setdefault(prompt, []).append(index)
    for index, prompt in enumerate(prompts):
        if prompt is None:
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


def _prompts(groups: GroupDataset) -> list[int | None]:
    """A number for the prompt of each group, wherever its answers make it end; None for groups without ratings."""
    same: dict[int, int] = {}  # prompt -> an earlier one that is the same, or itself
    seen: dict[int, tuple[int, int]] = {}  # hash of a prompt with an answer -> that prompt, and its length
    prompts: list[int | None] = []

    def first(prompt: int) -> int:
        while same[prompt] != prompt:
            prompt = same[prompt]
        return prompt

    numbers: dict[bytes, int] = {}
    for index in range(len(groups)):
        if not groups.is_rated(index):
            prompts.append(None)
            continue
        prompt = numbers.setdefault(groups.described(index).contents[0], len(numbers))
        prompts.append(prompt)
        same.setdefault(prompt, prompt)
        group = groups[index]
        length = len(group.prompt_ids)
        for completion in group.completions:
            other, others = seen.setdefault(hash((*group.prompt_ids, *completion)), (prompt, length))
            if abs(length - others) <= _MOVED:
                one, two = sorted((first(prompt), first(other)))
                same[two] = one
    return [None if prompt is None else first(prompt) for prompt in prompts]


_Answer: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""Its tokens, and where what is scored of them ends and goes on."""


def _merged(members: Sequence[TokenizedGroup], counts: ListCounts) -> TokenizedGroup | None:
    """One list; None if all answers have the same score."""
    prompt = min((group.prompt_ids for group in members), key=len)
    ratings: dict[_Answer, list[float]] = {}
    scored: dict[_Answer, tuple[Span, ...]] = {}
    pairs: list[Preference] = []
    for group in members:
        pairs += group.pairs
        between = group.prompt_ids[len(prompt) :]  # of the answers, where the prompt ends earlier
        moved = len(between)
        for place, (completion, score) in enumerate(zip(group.completions, group.scores, strict=True)):
            spans = tuple((begin and begin + moved, end + moved) for begin, end in group.spans(place))
            answer = (*between, *completion), tuple(edge for span in spans for edge in span)[1:]
            ratings.setdefault(answer, []).append(score)
            if not moved or answer not in scored:
                scored[answer] = spans
    counts.rerated += sum(len(set(values)) > 1 for values in ratings.values())
    scores = {answer: sum(values) / len(values) for answer, values in ratings.items()}
    ordered = sorted(scores, key=lambda answer: -scores[answer])
    if scores[ordered[0]] == scores[ordered[-1]]:
        return None
    weight, margin = (sum(values) / len(pairs) for values in zip(*((p.weight, p.margin) for p in pairs), strict=True))
    return TokenizedGroup(
        prompt,
        tuple(list(answer[0]) for answer in ordered),
        (Preference(0, len(ordered) - 1, weight, margin),),
        id=members[0].id if len(members) == 1 else f"{members[0].id}+{len(members) - 1}",
        scored=tuple(scored[answer] for answer in ordered),
        scores=tuple(scores[answer] for answer in ordered),
    )
