"""What the data of a training hold in memory: nothing per row but a few numbers."""

from __future__ import annotations

import gc
import gzip
import json
import pickle
import sqlite3
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preftune.data import GroupDataset, group_by_prompt, load_demonstrations, load_labelled, load_pairs
from preftune.data.reading import arrow_tables, files
from preftune.data.tokens import cache, flat_arrays
from preftune.data.tokens.cache import tokenize_or_recall
from preftune.data.tokens.flat_arrays import GrowingArray, Texts
from preftune.errors import DatasetError
from preftune.reference import run_scores
from preftune.reference.run_scores import RunScores
from preftune.storage.cache_folder import cache_folder
from preftune.types import Label, Preference, TokenizedGroup

SIZES = (200, 600)


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is large, so that it is in a file."""
    monkeypatch.setattr(flat_arrays, "MOST_IN_MEMORY", 256)
    for module in (arrow_tables, files):
        monkeypatch.setattr(module, "MOST_IN_MEMORY", 1000)
    monkeypatch.setattr(run_scores, "MOST_IN_MEMORY", 1000)
    monkeypatch.setattr(cache, "LEAST_PAIRS", 1)


def held_per_row(make: Callable[[int], object]) -> float:
    """Bytes that Python and numpy hold for each further row of what is made; the least of two measurements, because a
    cache elsewhere in the process may grow during one."""
    make(20)  # imports and caches
    return min(_growth(make), _growth(make))


def _growth(make: Callable[[int], object]) -> float:
    held = []
    for rows in SIZES:
        gc.collect()
        tracemalloc.start()
        kept = make(rows)
        gc.collect()
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        assert kept is not None
    return (held[1] - held[0]) / (SIZES[1] - SIZES[0])


def row(number: int) -> dict[str, Any]:
    return {"prompt": f"prompt {number}?", "chosen": f"good {number}", "rejected": f"bad {number}", "id": f"é{number}"}


def group(number: int) -> TokenizedGroup:
    ids = [number, 2]
    spans = (((0, 1),), ((0, 1),)) if number % 3 == 0 else ()
    labels = (Label(True, 1.0), Label(False, 0.5)) if number % 2 else ()
    pair = Preference(0, 1, 1.0 + number % 4, 0.25)
    return TokenizedGroup([1, number // 2], (ids, [3]), (pair,), id=f"é{number}", scored=spans, labels=labels)


def test_groups_are_in_files_and_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [group(number) for number in range(40)]
    mapped = GroupDataset.from_groups(iter(groups))
    assert list(mapped) == groups
    again = pickle.loads(pickle.dumps(mapped))
    merged = group_by_prompt(mapped)
    monkeypatch.setattr(flat_arrays, "MOST_IN_MEMORY", 10**6)
    held = GroupDataset.from_groups(iter(groups))
    assert held.fingerprint == mapped.fingerprint == again.fingerprint
    assert list(group_by_prompt(held)) == list(merged)
    assert len(merged) == 20
    for name in ("longest", "scored_tokens", "total_tokens", "prompts", "labels", "pairs"):
        assert getattr(held, name) == getattr(mapped, name)
    assert held_per_row(lambda rows: GroupDataset.from_groups(map(group, range(rows)))) > 50  # what the test can see


@pytest.mark.parametrize("of", [lambda groups: groups, group_by_prompt], ids=["groups", "by prompt"])
def test_groups_hold_nothing_per_row(of: Any) -> None:
    assert held_per_row(lambda rows: of(GroupDataset.from_groups(map(group, range(rows))))) < 4


@pytest.mark.parametrize("load", [load_labelled, load_demonstrations])
def test_reading_and_tokenising_hold_a_few_numbers_per_row(load: Any, chat: Any, tmp_path: Path) -> None:
    def make(rows: int) -> object:
        path = tmp_path / f"{load.__name__}-{rows}.jsonl"
        path.write_text("".join(json.dumps(row(number)) + "\n" for number in range(rows)))
        data = load(path)
        assert data.rows.cache_files or rows < SIZES[0]  # tracemalloc does not see Arrow's memory
        groups, report, _ = tokenize_or_recall(data, chat)
        assert len(groups) >= rows
        recalled = tokenize_or_recall(data, chat)
        assert recalled[2]
        return data, groups, report, recalled, groups.fingerprint, groups.longest

    assert held_per_row(make) < 60  # keys of prompts, twice; numbers and places of rows that were selected


def test_scores_of_a_run_hold_nothing_per_row(monkeypatch: pytest.MonkeyPatch) -> None:
    opened, connect = [], sqlite3.connect

    def record(name: str, **options: Any) -> sqlite3.Connection:
        opened.append(name)
        return connect(name, **options)

    monkeypatch.setattr(sqlite3, "connect", record)

    def make(rows: int) -> RunScores:
        scores = RunScores()
        for number in range(rows):
            scores.put({number.to_bytes(16, "little"): np.full(9, number, np.float32)})
        return scores

    scores = make(30)
    keys = [number.to_bytes(16, "little") for number in (3, 29, 30)]
    assert len(scores) == 30
    assert opened == [""]  # a file, not ":memory:": tracemalloc does not see SQLite's memory
    assert scores._file is not None
    (pages,) = scores._file.execute("PRAGMA cache_size").fetchone()
    assert pages == -2000  # at most 2 MB of it in memory
    assert {key: value.tolist() for key, value in scores.get(keys).items()} == {
        keys[0]: [3.0] * 9,
        keys[1]: [29.0] * 9,
    }
    scores.put({keys[0]: np.zeros(2, np.float32)})
    assert scores.get(keys[:1])[keys[0]].tolist() == [0.0, 0.0]
    scores.clear()
    assert not scores.get(keys)
    assert held_per_row(make) < 8


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl", "rows.jsonl.gz"])
def test_a_file_is_mapped(name: str, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [row(number) for number in range(200)]
    if name == "rows.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        text = "".join(json.dumps(one) + "\n" for one in rows).encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    pairs = load_pairs(tmp_path / name)
    assert pairs.rows.cache_files
    assert [pair.id for pair in pairs] == [one["id"] for one in rows]


def test_token_ids_that_an_earlier_version_kept_are_found(chat: Any) -> None:
    """They were archives of arrays, held in memory."""
    pairs = load_pairs([row(number) for number in range(30)])
    groups, report, _ = tokenize_or_recall(pairs, chat)
    names = ("tokens", "segments", "groups", "preferences", "preference_groups", "scored", "labels", "scores")
    (file,) = (cache_folder() / "tokens").glob("*.arrow")
    values = {**report.to_json(), "notes": report.notes, "prompt_keys": list(report.prompt_keys)}

    def text(value: Any) -> Any:
        return np.frombuffer(json.dumps(value, ensure_ascii=False).encode("utf-8"), np.uint8)

    arrays = {name: np.array(getattr(groups, f"_{name}")) for name in names}
    arrays |= {"ids": text(list(groups._ids)), "report": text(values)}
    earlier = file.with_suffix(".npz")
    with earlier.open("wb") as out:
        np.savez(out, digest=text(cache._digest(arrays)), **arrays)
    expected = list(groups)
    file.unlink()
    again, report_again, recalled = tokenize_or_recall(pairs, chat)
    assert recalled
    assert list(again) == expected
    assert report_again == report
    assert (file.is_file(), earlier.is_file()) == (True, False)


def test_growing_arrays_and_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = GrowingArray("q")
    for number in range(50):
        values.append(number)
    values.extend(range(50, 60))
    values.extend_bytes(np.arange(60, 70).tobytes())
    assert values.done().tolist() == list(range(70))
    assert GrowingArray("d").done().tolist() == []
    texts = ["", "é", "half \ud800", "x" * 100]
    assert list(Texts.of(texts)) == texts

    def full() -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(flat_arrays, "_nameless_file", full)
    with pytest.raises(DatasetError, match="Set PREFTUNE_CACHE to a folder with more room"):
        GrowingArray("q").extend(range(50))
