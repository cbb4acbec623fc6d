"""Which demonstrations are trained on and which are held out, from the data flags."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preftune.cli.flags.arguments import DataArguments
from preftune.cli.train.datasets import has_splits, named_datasets, split_by
from preftune.errors import RequestError

if TYPE_CHECKING:
    from preftune.data import DemonstrationDataset


def open_demonstrations(
    data: DataArguments, *, evaluate: bool, seed: int
) -> tuple[DemonstrationDataset, DemonstrationDataset | None]:
    """Training rows, and held-out rows if they are named or `evaluate` asks for them; as `open_datasets` for pairs.

    Raises:
        RequestError: evaluation asked for and nothing there to evaluate on, or an option of pairs.
        DatasetError: what `load_demonstrations` raises.
    """
    from preftune.data.demonstrations.mixture import mix_demonstrations
    from preftune.data.pairs.mixture import check_seed

    check_seed(seed)
    if data.margin_from_scores is not None:
        raise RequestError("--margin_from_scores is about pairs, and demonstrations have no margin. Leave it out.")
    named = named_datasets(data)
    separate = data.eval_dataset_name is not None or data.eval_fraction is not None
    names = " + ".join(entry.path for entry in named)
    if evaluate and not separate and (len(named) > 1 or not has_splits(names)):
        raise RequestError(
            f"--eval_strategy asks for evaluation, but {names} is one set of rows without a "
            f"{data.dataset_test_split!r} part. Add --eval_fraction 0.05 to hold some out, or --eval_dataset_name FILE."
        )
    if any(entry.columns is not None for entry in named):
        raise RequestError("datasets: columns of an entry are not honoured for demonstrations. Use columns: instead.")
    parts = [_open(data, entry.path, entry.split, config=entry.name) for entry in named]
    train = mix_demonstrations(parts, [entry.proportion for entry in named], seed=seed)
    if data.eval_fraction is not None:
        return split_by_question(train, data.eval_fraction, seed=seed)
    if data.eval_dataset_name is not None:
        split = data.dataset_test_split if has_splits(data.eval_dataset_name) else "train"  # what a file's rows are
        return train, _open(data, data.eval_dataset_name, split)
    if not evaluate:
        return train, None
    (entry,) = named
    return train, _open(data, entry.path, data.dataset_test_split, config=entry.name)


def _open(data: DataArguments, name: str, split: str, *, config: str | None = None) -> DemonstrationDataset:
    from preftune.data import load_demonstrations

    rows = load_demonstrations(name, split=split, config=config, columns=data.column_names(), format=data.format)
    return rows.as_chat() if data.as_chat else rows


def split_by_question(
    rows: DemonstrationDataset, fraction: float, *, seed: int
) -> tuple[DemonstrationDataset, DemonstrationDataset]:
    """Holds out a share of the prompts: none is on both sides, or evaluation would measure memory."""
    from preftune.data.demonstrations.dataset import question_key

    return split_by(question_key, rows, fraction, seed=seed)
