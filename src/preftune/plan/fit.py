"""The one setting that makes a training fit, or the fewest that do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from preftune.plan.memory import Memory, memory_of
from preftune.plan.settings import Settings
from preftune.plan.shape import ModelShape
from preftune.plan.workload import MicroBatch, Workload

_STEP = 256
"""Token budgets are advised in multiples of this."""
_RANK = 16
"""Of the adapter that is advised: the default of `--lora_r`."""
_SPREADS = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Case:
    """A training as far as its memory depends on it."""

    shape: ModelShape
    settings: Settings
    batch: MicroBatch
    micro_batches: int
    smallest: MicroBatch

    @classmethod
    def of(cls, shape: ModelShape, settings: Settings, workload: Workload) -> Case:
        return cls(shape, settings, workload.largest, workload.micro_batches, workload.smallest_possible)

    @property
    def memory(self) -> Memory:
        return memory_of(self.shape, self.settings, self.batch, micro_batches=self.micro_batches)


@dataclass(frozen=True, slots=True)
class Change:
    """Flags, the case that they make, and what they do in words."""

    flags: tuple[str, ...]
    case: Case
    words: str

    @property
    def total(self) -> float:
        return self.case.memory.total


def fixes(case: Case) -> list[Change]:
    """What makes a case fit that does not: every single setting that suffices, first those that change no update; if
    none does, the fewest together. Empty if it fits, or if nothing helps.
    """
    if case.memory.fits:
        return []
    singles = [change for change in _changes(case) if change.case.memory.fits]
    if singles:
        return singles
    for last in ("four_bit", "spread"):  # weights in 4 bits cannot be sharded
        change = Change((), case, "")
        for kind in ("checkpointing", "budget", "shard", "adapter", last):
            for found in _changes(change.case, only=kind):
                words = f"{change.words} and {found.words}" if change.words else found.words
                change = Change((*change.flags, *found.flags), found.case, words)
                break
            if change.flags and change.case.memory.fits:
                return [_without_needless(case, change)]
    return []


def _without_needless(case: Case, change: Change) -> Change:
    """Of several settings, only the last ones if they suffice."""
    for first in range(1, len(change.flags)):
        flags, current = change.flags[first:], case
        words: list[str] = []
        for flag in flags:
            found = next((one for one in _changes(current) if one.flags[:1] == (flag,)), None)
            if found is None:
                break
            current, words = found.case, [*words, found.words]
        else:
            if current.memory.fits:
                return _without_needless(case, Change(flags, current, " and ".join(words)))
    return change


def _changes(case: Case, *, only: str | None = None) -> Iterator[Change]:
    """Single settings that lower the memory, the mildest first."""
    kinds = {
        "checkpointing": _checkpointing,
        "budget": _budget,
        "shard": _shard,
        "adapter": _adapter,
        "four_bit": _four_bit,
        "spread": _spread,
    }
    for name, make in kinds.items():
        change = make(case) if only in (None, name) else None
        if change is not None and change.total < case.memory.total:
            yield change


def _checkpointing(case: Case) -> Change | None:
    if case.settings.checkpointing:
        return None
    settings = replace(case.settings, checkpointing=True)
    return Change(
        ("--gradient_checkpointing true",),
        replace(case, settings=settings),
        "activation checkpointing (same update, about a quarter more time)",
    )


def _budget(case: Case) -> Change | None:
    """The largest token budget that fits, or the smallest possible one."""
    longest, most = case.smallest.tokens, case.batch.tokens
    if most <= longest:
        return None
    budgets = range(_STEP * -(-longest // _STEP), most, _STEP)
    low, high = 0, len(budgets)
    while low < high:  # memory grows with the budget
        middle = (low + high) // 2
        if within(case, budgets[middle]).memory.fits:
            low = middle + 1
        else:
            high = middle
    if not budgets:
        return None
    budget = budgets[max(0, low - 1)]
    return Change(
        (f"--max_tokens_per_batch {budget}",),
        within(case, budget),
        f"at most {budget:,} tokens at a time (same update)",
    )


def within(case: Case, budget: int) -> Case:
    """The case with a token budget: a step of proportionally smaller micro-batches."""
    share = min(1.0, budget / case.batch.tokens)
    batch = case.batch
    smaller = MicroBatch(
        tokens=round(share * batch.tokens),
        scored=round(share * batch.scored),
        keys=round(share * batch.keys),
        further_keys=round(share * batch.further_keys),
        masked=round(share * batch.masked),
        seen=round(share * batch.seen),
        longest=batch.longest,
    )
    if smaller.tokens < case.smallest.tokens:
        smaller = case.smallest
    return replace(case, batch=smaller, micro_batches=max(2, case.micro_batches))


def _shard(case: Case) -> Change | None:
    if case.settings.ranks < 2 or case.settings.sharded or not case.settings.can_shard:
        return None
    settings = replace(case.settings, fsdp=frozenset({"full_shard"}))
    words = f"FSDP2 over the {settings.ranks} devices"
    return Change(("--fsdp full_shard",), replace(case, settings=settings), words)


def _adapter(case: Case) -> Change | None:
    if not case.shape.full:
        return None
    settings = replace(case.settings, reference="adapter off" if case.settings.reference != "none" else "none")
    shape = with_adapter(case.shape, _RANK)
    return Change(("--use_peft",), replace(case, shape=shape, settings=settings), "LoRA instead of all weights")


def _four_bit(case: Case) -> Change | None:
    if case.settings.bits is not None or case.settings.sharded:
        return None
    start = _adapter(case)
    case = case if start is None else start.case
    settings = replace(case.settings, bits=4)
    words = "the base in 4 bits" if start is None else "LoRA on a base in 4 bits"
    return Change(("--load_in_4bit",), replace(case, settings=settings), words)


def _spread(case: Case) -> Change | None:
    """FSDP2 over the fewest devices of which each has room."""
    if case.settings.device.kind != "cuda" or case.settings.sharded or not case.settings.can_shard:
        return None
    for gpus in _SPREADS:
        if gpus <= case.settings.ranks:
            continue
        nodes = max(1, gpus // 8)
        settings = replace(case.settings, gpus=gpus // nodes, nodes=nodes, fsdp=frozenset({"full_shard"}))
        change = Change(("--fsdp full_shard",), replace(case, settings=settings), f"FSDP2 over {gpus} of these devices")
        if change.case.memory.fits:
            return change
    return None


def with_adapter(shape: ModelShape, rank: int) -> ModelShape:
    """The shape with a LoRA adapter on all linear layers, by the usual sizes of a decoder layer."""
    wide, keys, inner, width = shape.query_width, shape.key_width, shape.inner, shape.width
    layer = rank * (2 * (width + wide) + 2 * (width + keys) + 3 * (width + inner))
    return replace(
        shape,
        trainable=layer * shape.layers,
        adapter=layer * shape.layers,
        largest_layer=shape.largest_layer + layer,
        largest_layer_trainable=layer,
        root_trainable=0,
        largest_weight=rank * max(inner, width),
        norms_trained=False,
        narrow=7 * rank,
        adapted_inputs=6 * width + inner,
    )
