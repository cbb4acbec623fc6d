"""The score store: what is written comes back, and whatever happens to the file is a miss, never a wrong hit."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from preftune.reference import ScoreStore
from preftune.reference import store as store_module
from preftune.storage import key_value
from tests.reference.keys import completion_key

FINGERPRINT = "ab" * 16


def store_in(folder: Path, *, fingerprint: str = FINGERPRINT, numerics: str = "cpu") -> ScoreStore:
    return ScoreStore(folder, fingerprint=fingerprint, numerics=numerics)


def some_scores(count: int = 3, *, start: int = 0, length: int = 5) -> dict[bytes, np.ndarray]:
    generator = np.random.default_rng(start)
    return {
        completion_key([1, 2], [start + i]): -generator.random(length, dtype=np.float32) for i in range(count)
    }  # fmt: skip


def assert_same(found: dict[bytes, np.ndarray], expected: dict[bytes, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for key, scores in expected.items():
        assert found[key].dtype == np.float32
        assert found[key].tobytes() == scores.tobytes()


def filled(folder: Path, count: int = 3) -> tuple[Path, dict[bytes, np.ndarray]]:
    """A store's file with nothing left in its write-ahead log, and what it holds."""
    store, scores = store_in(folder), some_scores(count)
    store.put(scores)
    store.close()
    assert not Path(f"{store.path}-wal").exists()
    return store.path, scores


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture):
    """The lines that the store logged."""
    caplog.set_level(logging.WARNING, logger="preftune")
    return lambda: [record.getMessage() for record in caplog.records]


def test_scores_come_back_bit_for_bit_from_another_store_on_the_same_folder(tmp_path):
    path, scores = filled(tmp_path)
    other = store_in(tmp_path)
    assert other.path == path
    assert_same(other.get(scores), scores)
    assert len(other) == len(scores)


def test_unknown_keys_are_misses_and_known_ones_beside_them_are_found(tmp_path):
    _, scores = filled(tmp_path)
    assert_same(store_in(tmp_path).get([*scores, b"unknown", b"also unknown"]), scores)
    assert store_in(tmp_path).get([]) == {}


@pytest.mark.parametrize("other", [{"fingerprint": "cd" * 16}, {"numerics": "cuda"}])
def test_another_model_or_other_numerics_share_nothing(tmp_path, other):
    _, scores = filled(tmp_path)
    assert store_in(tmp_path, **other).get(scores) == {}


def test_more_keys_than_one_query_can_name_are_all_found(tmp_path):
    store, scores = store_in(tmp_path), some_scores(1203, length=2)
    store.put(scores)
    assert_same(store.get(scores), scores)


def test_the_same_key_twice_in_one_request_is_one_answer(tmp_path):
    _, scores = filled(tmp_path)
    assert_same(store_in(tmp_path).get([*scores, *scores]), scores)


@pytest.mark.parametrize("kept", [0.05, 0.5, 0.95])
def test_a_truncated_file_yields_no_wrong_score_and_is_rebuilt(tmp_path, kept, said):
    path, scores = filled(tmp_path, 400)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    store = store_in(tmp_path)
    found = store.get(scores)
    assert found == {}
    assert "was damaged" in said()[0]
    store.put(scores)
    assert store.usable
    assert_same(store_in(tmp_path).get(scores), scores)


def test_a_value_with_flipped_bytes_is_a_miss_and_can_be_written_again(tmp_path):
    path, scores = filled(tmp_path)
    victim, *others = scores
    content = bytearray(path.read_bytes())
    at = content.index(scores[victim].tobytes())
    content[at + 6] ^= 0x40  # a bit of a score's exponent: another number, and a perfectly good one
    path.write_bytes(content)
    store = store_in(tmp_path)
    assert_same(store.get(scores), {key: scores[key] for key in others})
    store.put({victim: scores[victim]})
    assert_same(store.get(scores), scores)


def test_a_value_under_the_wrong_key_is_a_miss(tmp_path):
    path, scores = filled(tmp_path)
    first, second, _ = scores
    with sqlite3.connect(path) as connection:
        connection.execute(
            "UPDATE scores SET value = (SELECT value FROM scores WHERE key = ?) WHERE key = ?", (second, first)
        )
    connection.close()
    assert first not in store_in(tmp_path).get(scores)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_pages_of_garbage_in_the_middle_yield_misses_and_the_rest_is_right_or_missed(tmp_path, share, said):
    path, scores = filled(tmp_path, 400)
    content = bytearray(path.read_bytes())
    at = int(len(content) * share)
    content[at : at + 4096] = np.random.default_rng(0).bytes(4096)
    path.write_bytes(content)
    store = store_in(tmp_path)
    for key, value in scores.items():
        found = store.get([key])
        assert key not in found or found[key].tobytes() == value.tobytes()
    store.put(scores)
    assert store.usable
    assert_same(store_in(tmp_path).get(scores), scores)


@pytest.mark.parametrize("garbage", [b"this is not a database " * 300, b"\0" * 8192])
def test_a_file_of_garbage_is_set_aside_and_rebuilt(tmp_path, garbage, said):
    path, scores = filled(tmp_path)
    path.write_bytes(garbage)
    store = store_in(tmp_path)
    assert store.get(scores) == {}
    store.put(scores)
    assert_same(store_in(tmp_path).get(scores), scores)
    assert garbage in [file.read_bytes() for file in path.parent.glob("*.damaged-*")]
    assert sum("was damaged" in line for line in said()) == 1


def test_a_database_of_something_else_under_our_name_is_set_aside_whole(tmp_path, said):
    path = store_in(tmp_path).path
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as foreign:
        foreign.execute("CREATE TABLE scores (key BLOB PRIMARY KEY, value BLOB)")
        foreign.execute("INSERT INTO scores VALUES (?, ?)", (completion_key([1, 2], [0]), b"not ours"))
    foreign.close()
    store, scores = store_in(tmp_path), some_scores()
    assert store.get(scores) == {}
    store.put(scores)
    assert_same(store.get(scores), scores)
    assert "something else" in said()[0]
    (aside,) = path.parent.glob("*.damaged-*")
    with sqlite3.connect(aside) as kept:
        assert kept.execute("SELECT value FROM scores").fetchall() == [(b"not ours",)]
    kept.close()


def test_an_unusable_folder_is_said_once_and_the_run_goes_on(tmp_path, said):
    (tmp_path / "cache").write_text("a file where the folder should be")
    store, scores = store_in(tmp_path / "cache"), some_scores()
    for _ in range(3):
        store.put(scores)
        assert store.get(scores) == {}
    assert not store.usable
    assert len(store) == 0
    assert len(said()) == 1
    assert "PREFTUNE_CACHE" in said()[0]


def test_a_cache_that_cannot_be_written_any_more_can_still_be_read(tmp_path, said):
    path, scores = filled(tmp_path)
    store = store_in(tmp_path)
    store.get(scores)
    with sqlite3.connect(path) as connection:  # what a full disk or a read-only mount does to every write
        connection.execute("CREATE TRIGGER full BEFORE INSERT ON scores BEGIN SELECT RAISE(ABORT, 'no'); END")
    connection.close()
    store._connection.execute("PRAGMA query_only = 1")
    for _ in range(2):
        store.put(some_scores(start=50))
    assert not store.usable
    assert_same(store.get(scores), scores)
    assert len(said()) == 1


_WRITER = """
import importlib.util, sys, time
from pathlib import Path
import numpy as np

spec = importlib.util.spec_from_file_location("store", sys.argv[1])  # alone, because importing torch takes seconds
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
folder, which = Path(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
start = float(sys.stdin.readline())
for turn in range(30):
    while time.time() < start + turn * 0.05:
        pass
    store = module.ScoreStore(folder / str(turn), fingerprint="ab" * 16, numerics="cpu")
    for part in range(3):
        store.put({bytes([which, part]): np.array([which, part], np.float32)})
        store.get([bytes([other, part]) for other in range(3)])
    assert store.usable
    store.close()
"""


def test_processes_that_create_and_write_at_once_share_one_cache(tmp_path):
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, store_module.__file__, str(tmp_path), str(which)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for which in range(3)
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    start = time.time() + 0.1
    for writer in writers:
        writer.stdin.write(f"{start}\n")
        writer.stdin.flush()
    for writer in writers:
        _, errors = writer.communicate(timeout=60)
        assert (writer.returncode, errors) == (0, "")
    everything = {bytes([which, part]): (which, part) for which in range(3) for part in range(3)}
    for turn in range(30):
        found = store_in(tmp_path / str(turn)).get(everything)
        assert {key: tuple(scores.astype(int)) for key, scores in found.items()} == everything
    assert not list(tmp_path.rglob("*.damaged-*"))


_SAME_KEYS = """
import importlib.util, random, sys
from pathlib import Path
import numpy as np

spec = importlib.util.spec_from_file_location("store", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
folder, which = Path(sys.argv[2]), int(sys.argv[3])
keys, wrong = [bytes([i % 256, i // 256]) for i in range(400)], 0
value = {key: np.full(20, key[0] + 256 * key[1], np.float32) for key in keys}
order = random.Random(which)
store = module.ScoreStore(folder, fingerprint="ab" * 16, numerics="cpu")
for _ in range(60):
    part = order.sample(keys, 40)
    wrong += sum(found.tobytes() != value[key].tobytes() for key, found in store.get(keys).items())
    store.put({key: value[key] for key in part})
assert store.usable
print(wrong)
"""


def test_processes_that_write_the_same_scores_at_once_never_read_a_wrong_one(tmp_path):
    words = [sys.executable, "-c", _SAME_KEYS, store_module.__file__, str(tmp_path)]
    writers = [
        subprocess.Popen([*words, str(which)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for which in range(3)
    ]
    for writer in writers:
        assert writer.communicate(timeout=120) == ("0\n", "")
    everything = {bytes([i % 256, i // 256]): np.full(20, i, np.float32) for i in range(400)}
    assert_same(store_in(tmp_path).get(everything), everything)


def test_a_file_that_another_process_creates_between_the_look_and_the_creation_is_taken_as_it_is(tmp_path, monkeypatch):
    scores, has_mark = some_scores(), key_value.has_mark
    looks = []

    def looked(connection, mark):
        answer = has_mark(connection, mark)
        looks.append(answer)
        if len(looks) == 1:
            store_in(tmp_path).put(scores)
        return answer

    monkeypatch.setattr(key_value, "has_mark", looked)
    first = store_in(tmp_path)
    assert_same(first.get(scores), scores)
    assert looks[0] is False
    assert first.usable
    assert not list(tmp_path.rglob("*.damaged-*"))


def test_damage_that_another_process_has_repaired_already_is_not_set_aside_again(tmp_path):
    path, scores = filled(tmp_path, 400)
    reader = store_in(tmp_path)
    assert len(reader.get(list(scores)[:1])) == 1
    reader._set_aside(sqlite3.DatabaseError("what this process saw before the other one rebuilt the file"))
    assert_same(reader.get(scores), scores)
    assert not list(path.parent.glob("*.damaged-*"))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and newer, because torch has threads
def test_a_forked_child_uses_a_connection_of_its_own_and_leaves_the_parents_alone(tmp_path):
    store, scores = store_in(tmp_path), some_scores()
    store.put(scores)
    before = store._connection
    child = os.fork()
    if child == 0:
        try:
            assert_same(store.get(scores), scores)
            assert store._connection is not before
            assert before in store_module._OF_THE_PARENT  # SQLite forbids the child to close it
            store.put(some_scores(start=100))
            store.close()
            os._exit(0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert store._connection is before
    store.put(some_scores(start=200))
    assert len(store) == 9
