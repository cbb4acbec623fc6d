"""A plan on the terminal: a line for each kind of memory, then work, time, and what makes it fit."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence

from preftune.amounts import counted
from preftune.cli.flags.messages import tell
from preftune.plan.fit import Change
from preftune.plan.forecast import ROUGH, Plan, roughly, size
from preftune.plan.memory import parameters

_NAME, _SIZE = 13, 10
_NARROW = 60
"""Columns below which a note stands on a line of its own."""
_UNKNOWN_WIDTH = 80


def show(plan: Plan, words: Sequence[str]) -> None:
    """Prints a plan.

    Args:
        words: the training's own flags, for the commands that are printed.
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _UNKNOWN_WIDTH
    tell(text(plan, words, width=width))


def text(plan: Plan, words: Sequence[str], *, width: int) -> str:
    """The lines of a plan, none wider than `width` but for a command, which can be copied as it is."""
    return "\n".join(
        [*_head(plan, width), "", *_memory(plan, width), "", *_work(plan, width), *_end(plan, words, width)]
    )


def _head(plan: Plan, width: int) -> Iterator[str]:
    settings, load = plan.settings, plan.workload
    place = settings.device.name
    if settings.ranks > 1:
        spread = "FSDP2 (" + ", ".join(sorted(settings.fsdp)) + ")" if settings.sharded else "DDP"
        place = f"{settings.gpus} x {place}" + f" on each of {settings.nodes} nodes" * (settings.nodes > 1)
        place += f", {spread}"
    yield from _wrapped(f"preftune {settings.command} on {place}. {_trains(plan)}", width)
    saved = f", {load.saved:.0%} fewer than without sharing prompts" if load.saved >= 0.005 else ""
    epochs = f"{counted(load.steps, 'step')} ({load.epochs:.3g} {'epoch' if load.epochs == 1 else 'epochs'})"
    yield from _wrapped(
        f"{counted(load.rows, load.unit)}, {load.tokens:,} tokens{saved}; {epochs} of "
        f"{counted(load.rows_per_step, load.unit)}.",
        width,
    )
    if not plan.shape.usual:
        yield from _wrapped(f"Memory is {ROUGH}.", width)


def _trains(plan: Plan) -> str:
    what = (
        "All weights are trained" if plan.shape.full else f"An adapter of {parameters(plan.shape.adapter)} is trained"
    )
    checkpointing = "with" if plan.settings.checkpointing else "without"
    return f"{what}, {checkpointing} activation checkpointing."


def _memory(plan: Plan, width: int) -> Iterator[str]:
    memory = plan.memory
    yield "Memory of each rank:" if plan.settings.ranks > 1 else "Memory:"
    for line in memory.lines:
        if line.bytes or line.name in ("reference", "adapter"):
            yield from _row(line.name, line.bytes, line.note, width)
    limit = f"of {size(memory.limit)}: " if memory.limit else ""
    yield from _row("total", memory.total, limit + ("it fits" if memory.fits else "it does not fit"), width)
    if memory.host:
        yield from _row("host", memory.host, "in main memory, of each rank", width)
    if plan.settings.reference == "none":
        return
    one = plan.shape.second_model()
    held = "a copy of what is trained" if plan.settings.reference == "copy" else "none"
    yield from _wrapped(
        f"A second model as the reference would add {size(one)}: {size(2 * one)} for both in half precision (of a 7B "
        f"model the well-known 28 GB). preftune holds {held}.",
        width,
    )


def _row(name: str, count: float, note: str, width: int) -> list[str]:
    start = f"  {name:<{_NAME}}{size(count):>{_SIZE}}"
    if not note:
        return [start]
    if width < _NARROW:
        return [start, *textwrap.wrap(note, width, initial_indent="    ", subsequent_indent="    ")]
    indent = " " * (len(start) + 2)
    return textwrap.wrap(note, width, initial_indent=f"{start}  ", subsequent_indent=indent)


def _work(plan: Plan, width: int) -> Iterator[str]:
    work = plan.work
    if work.seconds is None or work.rate.flops is None:
        yield from _wrapped(f"Time: {work.rate.source}.", width)
        return
    cost = f", {work.cost:,.2f} at the given price" if work.cost is not None else ""
    each = " per rank" if plan.settings.ranks > 1 else ""
    yield from _wrapped(
        f"Time: about {roughly(work.seconds)}{cost} for {work.flops:.3g} useful FLOPs at "
        f"{work.rate.flops / 1e12:.3g} TFLOP/s{each} ({work.rate.source}). Loading, evaluation and checkpoints are "
        "not included.",
        width,
    )


def _end(plan: Plan, words: Sequence[str], width: int) -> Iterator[str]:
    if plan.memory.fits:
        return
    yield ""
    if not plan.fixes:
        yield from _wrapped("No setting makes it fit: take a smaller model or a larger device.", width)
        return
    yield "What makes it fit:"
    for change in plan.fixes:
        yield from _wrapped(f"{change.words}: {size(change.total)}", width, first="  ")
        yield f"    {command(change, words, plan.settings.command)}"


def command(change: Change, words: Sequence[str], name: str) -> str:
    """The command that runs a training with a change."""
    settings = change.case.settings
    start = "preftune"
    if settings.ranks > 1:
        nodes = f"--nnodes {settings.nodes} " if settings.nodes > 1 else ""
        start = f"torchrun {nodes}--nproc_per_node {settings.gpus} --no-python preftune"
    return " ".join([start, name, *_without(words, change.flags), *change.flags])


def _without(words: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The words of a command line without the flags that are given anew."""
    named = {flag.split()[0].lstrip("-").replace("-", "_") for flag in flags}
    kept: list[str] = []
    skips = False
    for word in words:
        if word.startswith("--"):
            skips = word.lstrip("-").partition("=")[0].replace("-", "_") in named
        if not skips:
            kept.append(word)
    return kept


def _wrapped(text: str, width: int, first: str = "") -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=first, break_long_words=False, break_on_hyphens=False
    )
