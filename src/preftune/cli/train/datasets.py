"""Opens the training data and the held-out data that the flags name."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from preftune.cli.flags.arguments import DataArguments, MixtureEntry
from preftune.errors import DatasetError, RequestError

if TYPE_CHECKING:
    from preftune.data import DemonstrationDataset, LabelledDataset, PairDataset
    from preftune.data.streams.examples import ExampleStream, Kind


def open_datasets(data: DataArguments, *, evaluate: bool, seed: int) -> tuple[PairDataset, PairDataset | None]:
    """Training pairs, and held-out pairs if they are named or `evaluate` is true.

    Args:
        evaluate: whether `--eval_strategy` requests evaluation, which needs pairs that are not trained on.
        seed: seed of the split by `--eval_fraction`.
    Raises:
        RequestError: no data are named, or evaluation is requested without data to evaluate on.
        DatasetError: as `load_pairs`.
    """
    if not data.dataset_name:
        raise RequestError("No preference pairs are named. Name them with --data FILE_OR_HUB_ID.")
    from preftune.data.conversion.filters import split_key
    from preftune.data.pairs.mixture import mix_pairs

    return _open_all(data, _Kind("pairs", _open_pairs, mix_pairs, split_key, "pair"), evaluate=evaluate, seed=seed)


def open_demonstrations(
    data: DataArguments, *, evaluate: bool, seed: int
) -> tuple[DemonstrationDataset, DemonstrationDataset | None]:
    """Training rows, and held-out rows if they are named or `evaluate` is true; as `open_datasets` for pairs.

    Raises:
        RequestError: evaluation is requested without data to evaluate on, or an option applies only to pairs.
        DatasetError: as `load_demonstrations`.
    """
    from preftune.data import load_demonstrations
    from preftune.data.demonstrations.dataset import question_key
    from preftune.data.demonstrations.mixture import mix_demonstrations

    _refuse_options_of_pairs(data, "demonstrations")
    kind = _Kind("rows", partial(_open, load_demonstrations), mix_demonstrations, question_key, "demonstration")
    return _open_all(data, kind, evaluate=evaluate, seed=seed)


def open_labelled(data: DataArguments, *, evaluate: bool, seed: int) -> tuple[LabelledDataset, LabelledDataset | None]:
    """The same for answers with labels.

    Raises: as `open_demonstrations`; DatasetError as `load_labelled`.
    """
    from preftune.data import load_labelled, mix_labelled
    from preftune.data.demonstrations.dataset import question_key

    _refuse_options_of_pairs(data, "answers")
    kind = _Kind("answers", partial(_open, load_labelled), mix_labelled, question_key, "answer")
    return _open_all(data, kind, evaluate=evaluate, seed=seed)


def _refuse_options_of_pairs(data: DataArguments, rows: str) -> None:
    if data.margin_from_scores is not None:
        raise RequestError(f"--margin_from_scores applies to pairs, and {rows} have no margin. Leave it out.")


class _Kind(NamedTuple):
    """What differs between pairs, demonstrations and answers with labels."""

    rows: str
    """Their name in messages."""
    open: Callable[[DataArguments, MixtureEntry], Any]
    mix: Callable[..., Any]
    key: Callable[[Any], int]
    """The key that must not be on both sides of a split."""
    of_stream: Kind
    """What a stream makes of a row."""


def _open_all(data: DataArguments, kind: _Kind, *, evaluate: bool, seed: int) -> tuple[Any, Any]:
    """Training data, and held-out data if they are named or `evaluate` is true."""
    from preftune.data.pairs.mixture import check_seed

    check_seed(seed)
    named = named_datasets(data)
    separate = data.eval_dataset_name is not None or data.eval_fraction is not None
    names = " + ".join(entry.path for entry in named)
    if evaluate and not separate and (len(named) > 1 or not has_splits(names)):
        raise RequestError(
            f"--eval_strategy requests evaluation, but {names} is one set of {kind.rows} without a "
            f"{data.dataset_test_split!r} part. Add --eval_fraction 0.05 to hold some out, or --eval_dataset_name FILE."
        )
    if data.dataset_streaming:
        train = _streamed(data, kind, named)
    else:
        parts = [kind.open(data, entry) for entry in named]
        train = kind.mix(parts, [entry.proportion for entry in named], seed=seed)
    if data.eval_fraction is not None:
        return split_by(kind.key, train, data.eval_fraction, seed=seed)
    if data.eval_dataset_name is not None:
        split = data.dataset_test_split if has_splits(data.eval_dataset_name) else "train"  # what a file's rows are
        return train, kind.open(data, MixtureEntry(data.eval_dataset_name, None, split))
    if not evaluate:
        return train, None
    (entry,) = named
    return train, kind.open(data, entry._replace(split=data.dataset_test_split))


def _streamed(data: DataArguments, kind: _Kind, named: list[MixtureEntry]) -> ExampleStream:
    """The training data as a stream. Raises: RequestError for what needs all rows."""
    from preftune.data.streams.examples import open_examples

    if len(named) > 1:
        raise RequestError(
            f"--streaming reads one dataset, and {len(named)} are named. Name one, or leave --streaming out: rows are "
            "read through tables on disk in any case."
        )
    if data.eval_fraction is not None:
        raise RequestError(
            "--eval_fraction holds out prompts of all rows, which a stream does not know. Name rows to evaluate on "
            "with --eval_dataset_name FILE, or leave --streaming out."
        )
    (entry,) = named
    if isinstance(entry.columns, list):
        raise RequestError(
            f"datasets: {entry.path} lists columns, which --streaming does not select. Map names: "
            "{completion: YOURS}."
        )
    columns = {**(data.column_names() or {}), **(entry.columns or {})} or None
    return open_examples(
        entry.path,
        kind.of_stream,
        columns=columns,
        format=data.format,
        margin_from_scores=data.margin_from_scores,  # refused for all but pairs
        chat=data.as_chat,
        split=entry.split,
        config=entry.name,
    )


def named_datasets(data: DataArguments) -> list[MixtureEntry]:
    """The training data, one dataset or several, and their names without proportions."""
    from preftune.data.pairs.mixture import all_or_none, parse_sources

    if data.mixture:
        all_or_none([(entry.path, entry.proportion) for entry in data.mixture])
        return data.mixture
    return [
        MixtureEntry(str(name), data.dataset_config, data.dataset_train_split, proportion=proportion)
        for name, proportion in parse_sources(data.dataset_name)
    ]


def _open_pairs(data: DataArguments, entry: MixtureEntry) -> PairDataset:
    """Opens one dataset; if its entry names columns, only those are read."""
    from preftune.data import CANONICAL, load_pairs

    columns = data.column_names()
    if isinstance(entry.columns, list):
        columns = {**dict.fromkeys(c for c in CANONICAL if c not in entry.columns), **(columns or {})}
    load = partial(load_pairs, margin_from_scores=data.margin_from_scores)
    whole = entry._replace(columns=None) if isinstance(entry.columns, list) else entry
    pairs: PairDataset = _open(load, data, whole, columns)
    return pairs


def _open(load: Callable[..., Any], data: DataArguments, entry: MixtureEntry, columns: Any = None) -> Any:
    columns = columns or data.column_names()
    source: dict[str, Any] = {"source": entry.path, "split": entry.split, "config": entry.name}
    if isinstance(entry.columns, dict):
        columns = {**(columns or {}), **entry.columns}
    elif entry.columns is not None:
        source = {"source": _selected(entry), "name": entry.path}
    rows = load(**source, columns=columns, format=data.format)
    return rows.as_chat() if data.as_chat else rows


def _selected(entry: MixtureEntry) -> Any:
    """The rows of an entry with only the columns that it lists. Raises: DatasetError for one that is not there."""
    from preftune.data.reading.load import load_rows

    rows: Any = load_rows(entry.path, split=entry.split, config=entry.name)
    missing = [column for column in entry.columns or () if column not in rows.column_names]
    if missing:
        raise DatasetError(
            f"datasets: {entry.path} has no column {missing[0]!r} (found: {', '.join(map(repr, rows.column_names))}). "
            "List columns of the dataset, or map names: {completion: YOURS}."
        )
    return rows.select_columns(entry.columns)


def split_by(key: Callable[[Any], int], rows: Any, fraction: float, *, seed: int) -> tuple[Any, Any]:
    """Holds out a share of the keys, with all rows of each. No prompt is on both sides, so that evaluation does not
    measure memorisation.

    Args:
        rows: a `RowDataset`; its notes and counts stay with the part that is trained.
    Raises: DatasetError if all rows have the same key.
    """
    import numpy as np

    keys = np.fromiter(map(key, rows), np.uint64, len(rows))
    _, first, number = np.unique(keys, return_index=True, return_inverse=True)
    if len(first) < 2:
        raise DatasetError(f"--eval_fraction {fraction}: {rows.name} has only one prompt, so nothing can be held out.")
    shuffled = array("q", range(len(first)))  # in the order in which they first appear
    random.Random(seed).shuffle(shuffled)
    count = min(len(first) - 1, max(1, round(fraction * len(first))))
    is_held_out = np.zeros(len(first), np.bool_)
    is_held_out[np.argsort(first)[np.asarray(shuffled[:count])]] = True
    of_rows = is_held_out[number.reshape(-1)]
    return rows.select(np.flatnonzero(~of_rows)), rows.held_out(np.flatnonzero(of_rows))


def has_splits(name: str) -> bool:
    """Whether a name can stand for several splits: a hub id or a folder, not a file or standard input."""
    return name != "-" and not Path(name).expanduser().is_file()
