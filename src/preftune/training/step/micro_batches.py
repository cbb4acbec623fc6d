"""Planning of micro-batches by tokens. It depends on integers alone, so that a resumed run makes the same plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from preftune.types import Preference, TokenizedGroup

if TYPE_CHECKING:
    import torch

    from preftune.logps import Engine
    from preftune.training.config.base import PackedConfig

AUTOMATIC_CPU_TOKENS: int | None = 1536
"""The default budget on a CPU, in tokens: matrix products gain no speed from more, and memory stays bounded."""

Cost: TypeAlias = Callable[[TokenizedGroup], int]
"""Tokens that computing a group takes."""


def token_budget(args: PackedConfig, device: torch.device) -> int | None:
    """Most tokens computed at a time: `max_tokens_per_batch`, or the default of the device; None for no limit."""
    if args.max_tokens_per_batch is not None:
        return args.max_tokens_per_batch
    return AUTOMATIC_CPU_TOKENS if device.type == "cpu" else None


def cost_of(engine: Engine | Any) -> Cost:
    """The token count of the engine: a shared prompt counts once (packed), or once for each completion."""
    return shared_tokens if engine.name == "packed" else separate_tokens


def shared_tokens(group: TokenizedGroup) -> int:
    return group.tokens


def separate_tokens(group: TokenizedGroup) -> int:
    return sum(len(group.prompt_ids) + len(completion) for completion in group.completions)


def plan_micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Best fit in order: each item joins the fullest micro-batch that still has room for it, or starts a new one.

    Args:
        lengths: tokens of each item, >= 1.
        budget: most tokens of a micro-batch, >= 1. A longer item gets a micro-batch of its own.
    Returns: indices into `lengths`, each once, in rising order within a micro-batch; the first indices of the
        micro-batches rise too.
    """
    batches: list[list[int]] = []
    room: list[int] = []
    for index, length in enumerate(lengths):
        holding = [at for at, left in enumerate(room) if left >= length]
        if holding:
            best = min(holding, key=lambda at: room[at])
            batches[best].append(index)
            room[best] -= length
        else:
            batches.append([index])
            room.append(budget - length)
    return batches


def split_group(group: TokenizedGroup, budget: int | None, cost: Cost) -> list[TokenizedGroup]:
    """The group if it is within the budget; otherwise groups with consecutive parts of its pairs (of its completions,
    if it has no pairs), each within the budget unless a single pair or completion exceeds it.

    A completion that pairs of several parts share is computed in each of them; the losses do not change.
    """
    if budget is None or parts_of(group) < 2 or cost(group) <= budget:
        return [group]
    if not group.pairs:
        return [with_completions(group, part) for part in _shares(range(len(group.completions)), group, budget, cost)]
    parts: list[list[Preference]] = []
    for pair in group.pairs:
        if parts and cost(_with_pairs(group, [*parts[-1], pair])) <= budget:
            parts[-1].append(pair)
        else:
            parts.append([pair])
    return [_with_pairs(group, pairs) for pairs in parts]


def parts_of(group: TokenizedGroup) -> int:
    """The largest number of parts into which a group can be split: its pairs, or its completions if it has no pairs."""
    return len(group.pairs) or len(group.completions)


def _shares(places: range, group: TokenizedGroup, budget: int, cost: Cost) -> list[list[int]]:
    shares: list[list[int]] = []
    for place in places:
        if shares and cost(with_completions(group, [*shares[-1], place])) <= budget:
            shares[-1].append(place)
        else:
            shares.append([place])
    return shares


def with_completions(group: TokenizedGroup, places: Sequence[int]) -> TokenizedGroup:
    """A group of the completions at `places`, with their scored spans, labels and scores."""

    def some(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(values[place] for place in places) if values else ()

    return TokenizedGroup(
        group.prompt_ids,
        some(group.completions),
        (),
        id=group.id,
        scored=some(group.scored),
        labels=some(group.labels),
        scores=some(group.scores),
    )


def _with_pairs(group: TokenizedGroup, pairs: Sequence[Preference]) -> TokenizedGroup:
    """A group of some pairs and the completions that they compare."""
    used = sorted({side for pair in pairs for side in (pair.chosen, pair.rejected)})
    place = {completion: index for index, completion in enumerate(used)}
    return TokenizedGroup(
        group.prompt_ids,
        tuple(group.completions[index] for index in used),
        tuple(pair._replace(chosen=place[pair.chosen], rejected=place[pair.rejected]) for pair in pairs),
        id=group.id,
        scored=tuple(group.scored[index] for index in used) if group.scored else (),
    )
