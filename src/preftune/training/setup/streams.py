"""Training on a stream: its groups, and the settings that it requires or does not support."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from preftune.data import GroupDataset
from preftune.data.pairs.stream import PairStream
from preftune.data.streams.examples import ExampleStream, Kind, open_examples
from preftune.data.streams.groups import StreamedGroups, open_groups
from preftune.errors import ConfigError, DatasetError
from preftune.log import say, warn
from preftune.models.positions import check_token_ids, positions_of
from preftune.training.config.base import PackedConfig
from preftune.types import TokenizedGroup

BUFFER = 1000
"""Default of `shuffle_buffer`: the number of rows among which the next one is drawn."""
MOST_HELD_OUT = 10_000
"""Most rows of a stream to evaluate on, all of which are kept in memory."""


def is_stream(source: Any) -> bool:
    """Whether the number of rows is not known: a `datasets.IterableDataset`, or what `--streaming` opens."""
    kind = type(source).__name__
    return (
        isinstance(source, ExampleStream | PairStream) or hasattr(source, "_ex_iterable") or kind == "IterableDataset"
    )


def streamed_groups(
    source: Any,
    kind: Kind,
    tokenizer: Any,
    args: PackedConfig,
    *,
    gold: bool = False,
    **limits: Any,
) -> tuple[StreamedGroups, Any]:
    """The groups of a stream to train on, and the report on those that were read so far.

    Args:
        limits: options of tokenising, such as `max_length`.
    Raises: ConfigError for a setting that needs all rows; DatasetError for rows that cannot be trained on.
    """
    _check(args)
    stream = open_examples(source, kind, gold=gold)
    buffer = BUFFER if args.shuffle_buffer is None else args.shuffle_buffer
    per_step = args.rows_per_step
    groups = open_groups(
        stream,
        tokenizer,
        count=args.max_steps * per_step,
        buffer=buffer,
        seed=args.seed if args.data_seed is None else args.data_seed,
        recent=4 * per_step,
        **limits,
    )
    order = f"drawn from a buffer of {buffer:,}" if buffer > 1 else "in their order"
    say(
        f"{stream.name} is streamed: its rows are tokenised as they are read, {order}, for {args.max_steps:,} steps of "
        f"{per_step}. Figures about all rows suppose that they are as the first {len(groups.known):,}."
    )
    warn_of(groups)
    return groups, groups.report


def warn_of(groups: StreamedGroups) -> str:
    """Warns of what was dropped, cut or noticed so far, of each thing once, as of other data before the first step.

    Returns: the sentence about how many rows were kept.
    """
    kept, *others = groups.report.lines()
    for line in others:
        if line not in groups.warned:
            groups.warned.add(line)
            warn(line)
    return kept


def _check(args: PackedConfig) -> None:
    """Raises: ConfigError for a setting that a stream does not support, or without `max_steps`."""
    if args.max_steps <= 0:
        raise ConfigError(
            "train_dataset is a stream, whose length is not known. Set max_steps (--max_steps 1000), the number of "
            "optimiser steps."
        )
    needs_all = {
        "group_by_prompt": "rows with the same prompt are anywhere in a stream",
        "precompute_ref_log_probs": "the reference scores all rows before the first step",
    }
    for name, why in needs_all.items():
        if getattr(args, name, False):
            raise ConfigError(
                f"{name}=True is not supported with IterableDataset (a stream): {why}. Leave it out, or load the data "
                "without streaming."
            )
    if getattr(_objective(args), "takes_lists", False):
        raise ConfigError(
            f"loss_type={getattr(args, 'loss_type', '')!r} ranks all answers to a prompt, and those are anywhere in a "
            "stream. Load the data without streaming, or use a loss of pairs."
        )
    if (args.dataset_num_proc or 1) > 1:
        raise ConfigError(
            f"dataset_num_proc={args.dataset_num_proc} does not apply to a stream: each process tokenises its rows "
            "while it reads them. Leave it out."
        )
    if args.dataloader_num_workers:
        raise ConfigError(
            f"dataloader_num_workers={args.dataloader_num_workers} would read a stream several times. Leave it out: "
            "rows are tokenised while they are read."
        )


def _objective(args: Any) -> Any:
    """The loss; None for a method that has only one."""
    return args.objective() if hasattr(args, "objective") else None


def refuse_buffer(args: PackedConfig, groups: object) -> None:
    """Raises: ConfigError for a `shuffle_buffer` with data that are not streamed."""
    if args.shuffle_buffer is not None and not isinstance(groups, StreamedGroups):
        raise ConfigError(
            f"shuffle_buffer={args.shuffle_buffer} applies to streams, and these rows are shuffled whole. Leave it "
            "out, or stream the data (--streaming, or a datasets.IterableDataset)."
        )


def held(source: Any, role: str) -> Any:
    """All rows of a stream to evaluate on; any other source unchanged.

    Raises: DatasetError for a stream with more than `MOST_HELD_OUT` rows, or one that was opened with options.
    """
    if not is_stream(source):
        return source
    if isinstance(source, ExampleStream | PairStream):
        raise DatasetError(
            f"the {role} dataset was opened with streaming, but every evaluation reads all of its rows. Open "
            f"{source.name} without streaming (load_pairs(DATA) without streaming=True), or give a "
            "datasets.IterableDataset."
        )
    found = list(islice(source, MOST_HELD_OUT + 1))
    if len(found) > MOST_HELD_OUT:
        raise DatasetError(
            f"the {role} dataset is a stream of more than {MOST_HELD_OUT:,} rows, and every evaluation reads all of "
            "them. Take a part: .take(1000)."
        )
    return found


def about_guard(source: Any, groups: GroupDataset | Mapping[str, GroupDataset]) -> Any:
    """The dataset of the guard's prompts: for a stream, its first groups, which can be read in any order."""
    if isinstance(source, Mapping) and isinstance(groups, Mapping):  # not the splits of one dataset
        return {name: about_guard(part, groups[name]) for name, part in source.items()}
    return groups.known if is_stream(source) and isinstance(groups, GroupDataset) else source


def check_streamed(groups: GroupDataset, model: Any, args: PackedConfig) -> None:
    """Let every group of a stream be checked when it is read, as other data are checked before the first step."""
    if not isinstance(groups, StreamedGroups):
        return
    limit, name = positions_of(model), groups.stream.name
    uses_margins = getattr(_objective(args), "uses_margins", True)

    def check(group: TokenizedGroup) -> None:
        check_token_ids(model, max(map(max, filter(None, (group.prompt_ids, *group.completions))), default=-1))
        longest = len(group.prompt_ids) + max(map(len, group.completions))
        if limit is not None and longest > limit:
            raise DatasetError(
                f"row {group.id} of {name} has {longest:,} tokens, but the model has only {limit:,} positions. Set "
                f"max_length={limit} (--max_length {limit}), which cuts longer rows or leaves them out."
            )
        if not uses_margins and any(pair.margin for pair in group.pairs):
            raise ConfigError(
                f"row {group.id} of {name} has a margin, which this loss does not use. Leave the column margin (or "
                "margin_from_scores) out, or use a loss that has a margin: sigmoid, ipo, hinge, simpo."
            )

    groups.check = check
