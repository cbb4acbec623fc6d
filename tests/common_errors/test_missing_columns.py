"""The tutorial's "Could not find columns 'chosen' and 'rejected'"."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from preftune import load_pairs
from preftune.cli.main import main
from preftune.errors import DatasetError
from tiny import rows, save_tiny, tiny_model

from .common_runs import LN2, first_loss, make


def renamed(names: dict[str, str], count: int = 8) -> list[dict[str, str]]:
    return [{names.get(key, key): value for key, value in row.items()} for row in rows(count)]


FOREIGN = {
    "both sides": {"chosen": "good", "rejected": "bad"},
    "one side": {"rejected": "rejected_response"},
    "all three": {"prompt": "task", "chosen": "winner", "rejected": "loser"},
    "the prompt alone": {"prompt": "problem"},
}


@pytest.mark.parametrize("names", FOREIGN.values(), ids=FOREIGN)
class TestMissingColumns:
    def message(self, data: Any, folder: Path) -> str:
        with pytest.raises(DatasetError) as caught:
            make(tiny_model(), folder, data=data)
        return str(caught.value)

    def test_the_message_names_columns_and_row(self, names, tmp_path):
        message = self.message(renamed(names), tmp_path)
        missing = "prompt" if list(names) == ["prompt"] else next(n for n in ("chosen", "rejected") if n in names)
        assert f"no column {missing!r}" in message or f"no columns {missing!r}" in message
        for row in renamed(names, 1):
            assert all(repr(column) in message for column in row)
        assert "first bad row: 0" in message

    def test_the_rename_in_python_fixes_it(self, names, tmp_path):
        dataset = Dataset.from_list(renamed(names))
        found = re.search(r"dataset\.rename_columns\((\{.*?\})\)", self.message(dataset, tmp_path))
        mended = dataset.rename_columns(ast.literal_eval(found[1]))
        assert first_loss(make(tiny_model(), tmp_path, data=mended)) == pytest.approx(LN2, abs=1e-5)

    def test_naming_the_columns_in_python_fixes_it(self, names, tmp_path):
        dataset = Dataset.from_list(renamed(names))
        with pytest.raises(DatasetError) as caught:
            load_pairs(dataset)
        found = re.search(r"columns=(\{.*?\})", str(caught.value))
        pairs = load_pairs(dataset, columns=ast.literal_eval(found[1]))
        assert first_loss(make(tiny_model(), tmp_path, data=pairs)) == pytest.approx(LN2, abs=1e-5)

    def test_the_flag_fixes_it_on_the_command_line(self, names, tmp_path, capsys):
        data = tmp_path / "pairs.jsonl"
        Dataset.from_list(renamed(names)).to_json(data)
        words = ["dpo", "--model", save_tiny(tmp_path / "model"), "--data", str(data), "--max_steps", "1"]
        words += ["--output_dir", str(tmp_path / "run")]
        assert main(words) == 2
        found = re.search(r"--columns (.*?) \(in Python", capsys.readouterr().err)
        assert main([*words, "--columns", *shlex.split(found[1])]) == 0
        assert (tmp_path / "run" / "model.safetensors").exists()


def test_columns_that_no_one_can_guess_are_asked_for(tmp_path):
    names = {"chosen": "colonne_a", "rejected": "colonne_b"}
    with pytest.raises(DatasetError, match=r"'colonne_a', 'colonne_b'.*--columns chosen=<chosen column>"):
        make(tiny_model(), tmp_path, data=renamed(names))


def test_a_side_that_is_null_names_its_row_and_the_filter_fixes_it(tmp_path):
    dataset = Dataset.from_list([{**row, "rejected": None} if i == 5 else row for i, row in enumerate(rows(8))])
    with pytest.raises(DatasetError, match=r"row 5 has no 'rejected'") as caught:
        make(tiny_model(), tmp_path, data=dataset)
    fix = re.search(r"dataset\.filter\(.*\)", str(caught.value))[0]
    trainer = make(tiny_model(), tmp_path, data=eval(fix, {"dataset": dataset}))
    assert len(trainer.train_dataset) == 7
    assert first_loss(trainer) == pytest.approx(LN2, abs=1e-5)


def test_a_missing_column_is_reported_before_the_model_is_loaded(tmp_path, monkeypatch):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("preftune.models.load_model", refuse)
    with pytest.raises(DatasetError):
        make(save_tiny(tmp_path / "model"), tmp_path / "run", data=renamed({"chosen": "good"}))
