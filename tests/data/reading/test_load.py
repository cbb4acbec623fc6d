"""Every source that can be named, and every wrong one with its message."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from preftune.data import load_demonstrations, load_labelled, load_pairs, load_rows
from preftune.errors import DatasetError
from preftune.generation.prompts import load_prompts

ROWS: list[dict[str, Any]] = [
    {"prompt": "What is 2 + 2?", "chosen": "4", "rejected": "It depends."},
    {"prompt": "Name, please", "chosen": 'Ann "A", yes\nno', "rejected": "None of it"},
    {"prompt": "Und öfter?", "chosen": "Früher", "rejected": "später\u2028nie"},
]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows, indent=2), encoding="utf-8")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    datasets.Dataset.from_list(rows).to_pandas().to_csv(path, index=False)


def write_tsv(path: Path, rows: list[dict[str, Any]]) -> None:
    datasets.Dataset.from_list(rows).to_pandas().to_csv(path, index=False, sep="\t")


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    datasets.Dataset.from_list(rows).to_pandas().to_parquet(path)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "jsonl": write_jsonl,
    "json": write_json,
    "csv": write_csv,
    "tsv": write_tsv,
    "parquet": write_parquet,
}


def fails(source: Any, **kwargs: Any) -> str:
    with pytest.raises(DatasetError) as caught:
        load_rows(source, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("zipped", [False, True])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, kind: str, zipped: bool) -> None:
    path = tmp_path / f"pairs.{kind}"
    WRITERS[kind](path, ROWS)
    if zipped:
        path = path.with_suffix(path.suffix + ".gz")
        path.write_bytes(gzip.compress((tmp_path / f"pairs.{kind}").read_bytes()))
    assert list(load_rows(path)) == ROWS
    assert list(load_rows(str(path))) == ROWS


def test_a_gzip_or_parquet_file_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    write_jsonl(path, ROWS)
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert list(load_rows(path)) == ROWS
    write_parquet(tmp_path / "download", ROWS)
    assert list(load_rows(tmp_path / "download")) == ROWS


def test_byte_order_marks_and_utf16(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_text("\n".join(json.dumps(row) for row in ROWS), encoding=encoding)
        assert list(load_rows(path)) == ROWS


def test_json_may_be_an_object_that_holds_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    for indent in (None, 2):
        path.write_text(json.dumps({"version": 1, "data": ROWS}, indent=indent), encoding="utf-8")
        assert list(load_rows(path)) == ROWS
    path.write_text(json.dumps(ROWS[0], indent=2), encoding="utf-8")
    assert list(load_rows(path)) == ROWS[:1]
    path.write_text(json.dumps({"train": ROWS, "test": ROWS}), encoding="utf-8")
    assert "several lists of rows ('train', 'test')" in fails(path)


def test_large_files_are_memory_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from preftune.data.reading import files

    monkeypatch.setattr(files, "_LARGE", 1)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for kind in ("jsonl", "parquet", "csv"):
        WRITERS[kind](tmp_path / f"pairs.{kind}", ROWS)
        rows = load_rows(tmp_path / f"pairs.{kind}")
        assert list(rows) == ROWS
        assert rows.cache_files
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\n{"a": \n')
    assert "bad.jsonl line 2 is not valid JSON" in fails(tmp_path / "bad.jsonl")


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is read through a kept table."""
    from preftune.data.reading import files

    monkeypatch.setattr(files, "_LARGE", 1)
    WRITERS["jsonl"](tmp_path / "large.jsonl", ROWS)
    return tmp_path / "large.jsonl"


@pytest.mark.parametrize("damage", ["a changed letter", "cut", "emptied", "noise"])
def test_a_damaged_table_of_a_large_file_is_made_again(damage: str, large: Path, caplog) -> None:
    from preftune.data.reading.arrow_tables import cached_table

    assert list(load_rows(large)) == ROWS
    kept = cached_table(large)
    data = kept.read_bytes()
    changed = data.replace(b"It depends.", b"iT depends.", 1)
    assert changed != data
    other = {"a changed letter": changed, "cut": data[:-9], "emptied": b"", "noise": b"\xff" * len(data)}[damage]
    kept.write_bytes(other)
    assert list(load_rows(large)) == ROWS
    assert "are damaged, and are read again" in caplog.text
    assert kept.read_bytes() == data


def test_a_large_file_that_changed_under_the_same_size_and_time_is_read_again(large: Path) -> None:
    assert list(load_rows(large)) == ROWS
    facts, text = large.stat(), large.read_text(encoding="utf-8")
    large.write_text(text.replace("It depends.", "iT depends.", 1), encoding="utf-8")
    os.utime(large, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert large.stat().st_size == facts.st_size
    assert load_rows(large)[0]["rejected"] == "iT depends."


def test_rows_are_read_where_no_table_can_be_kept(large: Path, tmp_path: Path, monkeypatch, caplog) -> None:
    (tmp_path / "no-folder").write_text("")
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "no-folder"))
    assert list(load_rows(large)) == ROWS
    assert "Rows are not kept for the next run" in caplog.text


def test_one_conversational_row_in_a_jsonl_file_is_a_row(tmp_path: Path) -> None:
    row = {"chosen": [{"role": "user", "content": "a"}], "rejected": [{"role": "user", "content": "b"}]}
    write_jsonl(tmp_path / "one.jsonl", [row])
    assert list(load_rows(tmp_path / "one.jsonl")) == [row]


def test_optional_keys_of_later_rows_are_kept(tmp_path: Path) -> None:
    rows = [ROWS[0], {**ROWS[1], "weight": 2.0}]
    assert [pair.weight for pair in load_pairs(rows)] == [1.0, 2.0]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    assert [pair.weight for pair in load_pairs(tmp_path / "pairs.jsonl")] == [1.0, 2.0]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(json.dumps(row) for row in ROWS)))
    assert list(load_rows("-")) == ROWS
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert "standard input is empty" in fails("-")


def test_datasets_dicts_folders_and_frames(tmp_path: Path) -> None:
    dataset = datasets.Dataset.from_list(ROWS)
    assert load_rows(dataset) is dataset
    assert list(load_rows(dataset.to_pandas())) == ROWS
    splits = datasets.DatasetDict(train=dataset, test=dataset.select([0]))
    assert len(load_rows(splits, split="test")) == 1
    dataset.save_to_disk(tmp_path / "one")
    splits.save_to_disk(tmp_path / "two")
    assert list(load_rows(tmp_path / "one")) == ROWS
    assert len(load_rows(tmp_path / "two", split="test")) == 1
    message = fails(splits, split="tests")
    assert "no split 'tests' (found: 'train', 'test')" in message
    assert "Did you mean 'test'?" in message


def test_a_dict_of_splits_may_hold_lists_and_streams() -> None:
    assert list(load_rows({"train": ROWS, "test": ROWS[:1]})) == ROWS
    assert list(load_rows({"train": ROWS, "test": ROWS[:1]}, split="test")) == ROWS[:1]
    assert list(load_rows({"train": ROWS}, split="train[:1]")) == ROWS[:1]
    streamed = datasets.Dataset.from_list(ROWS).to_iterable_dataset()
    assert list(load_rows(datasets.IterableDatasetDict(train=streamed))) == ROWS


@pytest.mark.parametrize(
    ("given", "holds"),
    [
        (ROWS[0], "no 'train' (found: 'prompt', "),
        ({name: [value] for name, value in ROWS[0].items()}, "no 'train' (found: 'prompt', "),
        ({"prompt": [{"role": "user", "content": "a"}], "chosen": []}, "no 'train' (found: 'prompt', "),
        ({"train": 5}, "an int as 'train', but"),
        ({}, "no 'train' (found: ), but"),
    ],
)
def test_a_dict_that_holds_no_splits_is_answered_with_the_type_that_is_wanted(given: Any, holds: str) -> None:
    says = fails(given)
    assert f"is a dict with {holds}" in says
    assert "must hold a dataset or a list of rows for each split. Put a single row in a list, [row]; make" in says


def test_a_folder_of_files_has_its_splits_by_name(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train-00000.jsonl", ROWS[:1])
    write_jsonl(tmp_path / "train-00001.jsonl", ROWS[1:])
    write_jsonl(tmp_path / "test.jsonl", ROWS[2:])
    (tmp_path / "README.md").write_text("card")
    assert list(load_rows(tmp_path)) == ROWS
    assert list(load_rows(tmp_path, split="test")) == ROWS[2:]
    assert "none is named after the split 'validation'" in fails(tmp_path, split="validation")


def test_slices_of_a_split(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    write_jsonl(path, ROWS)
    assert list(load_rows(path, split="train[:2]")) == ROWS[:2]
    assert list(load_rows(ROWS, split="train[1:]")) == ROWS[1:]
    assert len(load_rows(datasets.Dataset.from_list(ROWS * 10), split="train[:50%]")) == 15
    assert "cannot be read" in fails(ROWS, split="train[a:b]")


def test_the_training_rows_are_never_taken_for_another_split(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", ROWS)
    assert "has only the split 'train', not 'test'" in fails(tmp_path / "pairs.jsonl", split="test")
    assert "not 'test'" in fails(datasets.Dataset.from_list(ROWS), split="test")
    named = datasets.Dataset.from_list(ROWS, split="test")
    assert load_rows(named, split="test") is named


def test_streaming(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", ROWS)
    stream = load_rows(tmp_path / "pairs.jsonl", streaming=True)
    assert isinstance(stream, datasets.IterableDataset)
    assert list(stream) == ROWS
    with pytest.raises(DatasetError, match="is streamed, but its length must be known"):
        load_pairs(stream)


@pytest.mark.parametrize("empty", ["", " "])
@pytest.mark.parametrize(
    "load",
    [load_rows, load_pairs, load_demonstrations, load_labelled, load_prompts,
     lambda name: load_pairs([name, "train.jsonl"]),
     lambda name: load_pairs(name, streaming=True), lambda name: load_rows(name, streaming=True)],
)  # fmt: skip
def test_an_empty_name_is_not_the_working_directory(
    load: Callable[[str], Any], empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=r"^The name of the data is empty\. Name a file, a folder or a hub id\.$"):
        load(empty)


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", ROWS)
    message = fails(tmp_path / "pair.jsonl")
    assert "pair.jsonl does not exist" in message
    assert f"Did you mean {str(tmp_path / 'pairs.jsonl')!r}" in message
    assert f"There is no folder {tmp_path / 'dta'}" in fails(tmp_path / "dta" / "pairs.jsonl")
    assert "does not exist" in fails("./nothing-here")
    assert "does not exist" in fails("~/nothing-here/at.all")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("empty.jsonl", b"", ["is empty"]),
        ("blank.jsonl", b" \n\n", ["is empty"]),
        ("none.json", b"[]", ["has no rows"]),
        ("empty.jsonl.gz", gzip.compress(b"", mtime=0), ["is empty inside its gzip"]),
        ("torn.jsonl.gz", gzip.compress(b"{}" * 99, mtime=0)[:-9], ["is a broken gzip file"]),
        ("header.csv", b"prompt,chosen,rejected\n", ["has no rows"]),
        ("model.bin", bytes(range(256)), ["is a binary file"]),
        ("nul.jsonl", b"{}\0\0\0", ["is a binary file"]),
        ("photo.jsonl", b"\x89PNG\r\n\x1a\n" + bytes(99), ["not text in UTF-8", "byte 0, line 1"]),
        ("notes.txt", b"some words", ["not in a file format that preftune reads", "jsonl, json, csv"]),
        ("fake.parquet", b"some words", ["is not a parquet file"]),
        ("torn.parquet", b"PAR1" + bytes(99), ["is a broken parquet file"]),
        ("list.jsonl", b'{"a": 1}\n[1, 2]\n', ["line 2 holds a list, not an object: '[1, 2]'"]),
        (
            "bad.jsonl",
            b'{"a": 1}\n\n{"a": 1,}\n',
            ["line 3 is not valid JSON", "column 9", "Correct or remove that line"],
        ),
        ("bad.json", b'[{"a": 1},\n{"a" 1}]', ["line 2 is not valid JSON", "column 6"]),
        ("words.json", b'["a", "b"]', ["row 0 is a str, not an object"]),
        ("ragged.csv", b"a,b\n1,2\n1,2,3\n", ["line 3 has 3 fields, but the header has 2"]),
        ("quote.csv", b'a,b\n1,"2\n', ["is not valid CSV", "unexpected end of data"]),
        ("twice.csv", b"a,a\n1,2\n", ["has two columns named 'a'"]),
    ],
)
def test_a_wrong_file_is_one_paragraph(tmp_path: Path, name: str, content: bytes, expected: list[str]) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = fails(path)
    assert message.startswith(str(path))
    assert all(part in message for part in expected), message


def test_a_folder_without_data(tmp_path: Path) -> None:
    assert "is a folder without data" in fails(tmp_path)
    (tmp_path / "dataset_info.json").write_text("{}")
    assert "is a damaged save_to_disk folder" in fails(tmp_path)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    write_jsonl(path, ROWS)
    path.chmod(0)
    assert "cannot be read: Permission denied" in fails(path)


@pytest.mark.parametrize("source", [7, None, b"bytes"])
def test_things_that_are_no_data(source: Any) -> None:
    assert "Data cannot be read from a" in fails(source)


def test_rows_that_are_no_rows() -> None:
    assert "row 1 is a str, not an object with columns: 'text'" in fails([ROWS[0], "text"])
    assert "has no rows" in fails([])


def test_a_hub_id_that_no_one_answers_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    def no_network(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", no_network)
    message = fails("owner/pairs")
    assert "There is no file or folder 'owner/pairs' on this machine, and the hub cannot be asked" in message
    assert "Name or service not known" in message
    write_jsonl(tmp_path / "pairs.jsonl", ROWS)
    assert "(there is 'pairs.jsonl')" in fails("pairs")


def test_a_hub_id_with_a_typo_gets_near_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from unittest.mock import Mock

    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    def not_found(*args: Any, **kwargs: Any) -> None:
        raise RepositoryNotFoundError("404", response=Mock(headers={}))

    class Info:
        id = "trl-lib/ultrafeedback_binarized"

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", not_found)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_datasets", lambda *args, **kwargs: [Info()])
    message = fails("trl-lib/ultrafeedback_binarised")
    assert "the hub has no dataset of that name. Did you mean 'trl-lib/ultrafeedback_binarized'?" in message


def test_what_the_hub_library_raises_becomes_one_paragraph(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unknown_split(*args: Any, **kwargs: Any) -> None:
        raise ValueError('Unknown split "trian".\nShould be one of ["train"].')

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *args, **kwargs: None)
    monkeypatch.setattr(datasets, "load_dataset", unknown_split)
    message = fails("owner/pairs", split="trian", config="en")
    assert "'owner/pairs' (split 'trian', config 'en') cannot be loaded" in message
    assert 'Should be one of ["train"]' in message


def test_sets_of_tutorials_are_known_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", _offline)
    with pytest.raises(DatasetError, match=r"Did you mean 'Anthropic/hh-rlhf'\?"):
        load_rows("anthropic/hh-rhlf")
    with pytest.raises(DatasetError) as caught:
        load_rows("Anthropic/hh-rlhf")
    assert "Did you mean" not in str(caught.value)


def _offline(*_: object, **__: object) -> None:
    raise OSError("offline")
