"""`--format` and `--margin_from_scores` reach the data."""

from __future__ import annotations

from pathlib import Path

import pytest

from preftune.cli.flags.arguments import DataArguments
from preftune.cli.train.datasets import open_datasets
from preftune.errors import DatasetError

FILES = Path(__file__).parents[2] / "data" / "format_rows"


def test_the_flags_reach_the_data() -> None:
    name = str(FILES / "safe-rlhf.jsonl")
    train, _ = open_datasets(DataArguments(dataset_name=name, format="safe-rlhf-safer"), evaluate=False, seed=0)
    assert train.format == "safe-rlhf-safer"
    name = str(FILES / "ultrafeedback.jsonl")
    train, _ = open_datasets(DataArguments(dataset_name=name, margin_from_scores=0.5), evaluate=False, seed=0)
    assert train[0].margin == 0.25
    with pytest.raises(DatasetError, match="Did you mean 'ultrafeedback'"):
        open_datasets(DataArguments(dataset_name=name, format="ultrafedback"), evaluate=False, seed=0)
