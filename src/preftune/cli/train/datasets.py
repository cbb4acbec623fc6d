"""Which pairs are trained on and which are held out, from the data flags."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.cli.flags.arguments import DataArguments, MixtureEntry
from preftune.errors import DatasetError, RequestError

if TYPE_CHECKING:
    from preftune.data.pairs.dataset import PairDataset


def open_datasets(data: DataArguments, *, evaluate: bool, seed: int) -> tuple[PairDataset, PairDataset | None]:
    """Training pairs, and held-out pairs if they are named or `evaluate` asks for them.

    Args:
        evaluate: whether `--eval_strategy` asks for evaluation; it then needs pairs that are not trained on.
        seed: of the split that `--eval_fraction` draws.
    Raises:
        RequestError: no data named, or evaluation asked for and nothing there to evaluate on.
        DatasetError: what `load_pairs` raises.
    """
    if not data.dataset_name:
        raise RequestError("No preference pairs: name them with --data FILE_OR_HUB_ID.")
    from preftune.data.pairs.mixture import check_seed

    check_seed(seed)
    named = named_datasets(data)
    separate = data.eval_dataset_name is not None or data.eval_fraction is not None
    names = " + ".join(entry.path for entry in named)
    if evaluate and not separate and (len(named) > 1 or not has_splits(names)):
        raise RequestError(
            f"--eval_strategy asks for evaluation, but {names} is one set of pairs without a "
            f"{data.dataset_test_split!r} part. Add --eval_fraction 0.05 to hold some out, or --eval_dataset_name FILE."
        )
    train = _open_training(data, named, seed=seed)
    if data.eval_fraction is not None:
        return split_by_prompt(train, data.eval_fraction, seed=seed)
    if data.eval_dataset_name is not None:
        split = data.dataset_test_split if has_splits(data.eval_dataset_name) else "train"  # what a file's rows are
        return train, _open(data, data.eval_dataset_name, split)
    if not evaluate:
        return train, None
    (entry,) = named
    return train, _open(data, entry.path, data.dataset_test_split, config=entry.name, only=entry.columns)


def named_datasets(data: DataArguments) -> list[MixtureEntry]:
    """What to train on, one dataset or several, without the proportions in the names."""
    from preftune.data.pairs.mixture import all_or_none, parse_sources

    if data.mixture:
        all_or_none([(entry.path, entry.proportion) for entry in data.mixture])
        return data.mixture
    return [
        MixtureEntry(str(name), data.dataset_config, data.dataset_train_split, proportion=proportion)
        for name, proportion in parse_sources(data.dataset_name)
    ]


def _open_training(data: DataArguments, named: list[MixtureEntry], *, seed: int) -> PairDataset:
    """The one dataset, or the mixture of several."""
    from preftune.data.pairs.mixture import mix_pairs

    parts = [_open(data, entry.path, entry.split, config=entry.name, only=entry.columns) for entry in named]
    return mix_pairs(parts, [entry.proportion for entry in named], seed=seed)


def _open(
    data: DataArguments, name: str, split: str, *, config: str | None = None, only: list[str] | None = None
) -> PairDataset:
    """One dataset; with `only`, its other columns are left unread."""
    from preftune.data import CANONICAL, load_pairs

    columns = data.column_names()
    if only is not None:
        columns = {**dict.fromkeys(c for c in CANONICAL if c not in only), **(columns or {})}
    pairs = load_pairs(
        name,
        split=split,
        config=config,
        columns=columns,
        format=data.format,
        margin_from_scores=data.margin_from_scores,
    )
    return pairs.as_chat() if data.as_chat else pairs


def split_by_prompt(pairs: PairDataset, fraction: float, *, seed: int) -> tuple[PairDataset, PairDataset]:
    """Holds out a share of the *prompts*: no prompt is on both sides, or evaluation would measure memory."""
    from preftune.data.conversion.filters import split_key

    return split_by(split_key, pairs, fraction, seed=seed)


def split_by(key: Callable[[Any], int], rows: Any, fraction: float, *, seed: int) -> tuple[Any, Any]:
    """Holds out a share of the keys, with all rows of each.

    Args:
        rows: a dataset with `name` and `select`.
    Raises: DatasetError when all rows have one key.
    """
    places: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        places.setdefault(key(row), []).append(index)
    if len(places) < 2:
        raise DatasetError(f"--eval_fraction {fraction}: {rows.name} has a single prompt, so nothing can be held out.")
    keys = list(places)
    random.Random(seed).shuffle(keys)
    count = min(len(keys) - 1, max(1, round(fraction * len(keys))))
    held_out = sorted(index for one in keys[:count] for index in places[one])
    kept = sorted(index for one in keys[count:] for index in places[one])
    return rows.select(kept), rows.select(held_out)


def has_splits(name: str) -> bool:
    """Whether a name can stand for several splits: a hub id or a folder, not a file or standard input."""
    return name != "-" and not Path(name).expanduser().is_file()
