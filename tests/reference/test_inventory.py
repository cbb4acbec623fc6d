"""The cache folder looked at, cleared and checked: nothing foreign is touched, nothing in use is taken away."""

from __future__ import annotations

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
from preftune.reference.inventory import StoreFile, choose, list_stores, remove, verify
from preftune.storage import key_value
from preftune.storage.cache_items import list_items

NOTE = {"model": "Org/Small-Model", "engine": "packed", "dtype": "float32", "device": "cpu"}


def fill(folder: Path, letter: str = "a", count: int = 3, *, close: bool = True, length: int = 5) -> ScoreStore:
    """A store of some completions; `letter` stands for its model's fingerprint."""
    store = ScoreStore(folder, fingerprint=letter * 32, numerics="0" * 16, note=NOTE)
    generator = np.random.default_rng(ord(letter))
    store.put({bytes([i % 256, i // 256]): -generator.random(length, dtype=np.float32) for i in range(count)})
    if close:
        store.close()
    return store


def only(folder: Path) -> StoreFile:
    (file,) = list_stores(folder)
    return file


def age(path: Path, days: float) -> None:
    then = time.time() - days * 86_400
    os.utime(path, (then, then))


def flip_a_score(path: Path, key: bytes) -> None:
    """Another score under the same key, with the old checksum; SQLite itself sees nothing wrong."""
    with sqlite3.connect(path) as connection:
        (value,) = connection.execute("SELECT value FROM scores WHERE key = ?", (key,)).fetchone()
        connection.execute("UPDATE scores SET value = ? WHERE key = ?", (value[:-1] + bytes([value[-1] ^ 1]), key))
    connection.close()


def overwrite(path: Path, start: float, stop: float) -> None:
    """Garbage over a part of the file, given as shares of its length."""
    content = bytearray(path.read_bytes())
    first, last = int(len(content) * start), int(len(content) * stop)
    content[first:last] = b"\xa5" * (last - first)
    path.write_bytes(content)


# --- looking ---


def test_a_store_says_what_it_holds_and_whose_it_is(tmp_path):
    store = fill(tmp_path, count=7)
    file = only(tmp_path)
    assert (file.path, file.state, file.completions, file.model) == (store.path, "store", 7, "Org/Small-Model")
    assert {name: file.note[name] for name in NOTE} == NOTE
    assert abs(float(file.note["created"]) - time.time()) < 60
    assert file.note["preftune"]
    assert file.size == store.path.stat().st_size
    assert abs(file.last_used - time.time()) < 60
    assert not list(tmp_path.rglob("*-wal"))  # looking leaves nothing behind


def test_the_note_is_of_the_user_who_created_the_file_and_no_part_of_the_address(tmp_path):
    path = fill(tmp_path).path
    other = ScoreStore(tmp_path, fingerprint="a" * 32, numerics="0" * 16, note={"model": "another name"})
    assert other.path == path
    assert len(other.get([b"\0\0"])) == 1
    assert only(tmp_path).model == "Org/Small-Model"


def test_a_store_from_before_there_were_notes_is_read_and_listed_as_unknown(tmp_path):
    path = fill(tmp_path).path
    with sqlite3.connect(path) as connection:
        scores = connection.execute("SELECT key, value FROM scores").fetchall()
        connection.execute("DROP TABLE note")
        connection.execute("DROP TABLE scores")
        connection.execute("CREATE TABLE scores (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
        connection.executemany("INSERT INTO scores VALUES (?, ?)", scores)
    connection.close()
    file = only(tmp_path)
    assert (file.state, file.completions, file.model, file.note) == ("store", 3, "unknown", {})
    assert verify(file).sound
    store = ScoreStore(tmp_path, fingerprint="a" * 32, numerics="0" * 16, note=NOTE)
    store.put({b"new": np.zeros(2, np.float32)})
    assert len(store.get([b"\0\0", b"new"])) == 2


def test_reading_alone_is_a_use_and_the_least_recently_used_comes_first(tmp_path):
    for letter, days in zip("abc", (1, 9, 5), strict=True):
        age(fill(tmp_path, letter).path, days)
    assert [file.id[0] for file in list_stores(tmp_path)] == ["b", "c", "a"]
    reader = ScoreStore(tmp_path, fingerprint="b" * 32, numerics="0" * 16)
    reader.get([b"\0\0"])
    reader.close()
    assert [file.id[0] for file in list_stores(tmp_path)] == ["c", "a", "b"]


def test_what_is_not_ours_is_distinguished(tmp_path):
    fill(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with sqlite3.connect(tmp_path / "photos.sqlite") as foreign:
        foreign.execute("CREATE TABLE photos (name TEXT)")
    foreign.close()
    impostor = tmp_path / "bb" / f"{'b' * 32}-{'0' * 16}.sqlite"
    impostor.parent.mkdir()
    with sqlite3.connect(impostor) as foreign:
        foreign.execute("CREATE TABLE scores (key BLOB PRIMARY KEY, value BLOB)")
    foreign.close()
    states = {file.path.name: file.state for file in list_stores(tmp_path)}
    assert sorted(states.values()) == ["foreign", "foreign", "foreign", "store"]
    assert [remove(file) for file in list_stores(tmp_path) if file.state == "foreign"] == ["not ours"] * 3
    assert len(list_stores(tmp_path)) == 4
    assert not [f for f in choose(list_stores(tmp_path), now=time.time(), max_size=0) if f.state == "foreign"]


def test_a_folder_that_is_not_there_is_empty(tmp_path):
    assert list_stores(tmp_path / "nowhere") == []


# --- clearing ---


def stores(*facts: tuple[str, float, int], state: str = "store") -> list[StoreFile]:
    """(name, days since its last use, bytes) as files, at time 0."""
    return [
        StoreFile(Path(name), state, size, -days * 86_400, 1, {"model": name})  # type: ignore[arg-type]
        for name, days, size in facts
    ]


def names(files: list[StoreFile]) -> list[str]:
    return [str(file.path) for file in files]


FILES = stores(("old big", 40, 500), ("old small", 35, 10), ("young", 2, 300))


def test_choosing_by_age_by_name_and_by_both():
    assert names(choose(FILES, now=0, older_than=30 * 86_400)) == ["old big", "old small"]
    assert names(choose(FILES, now=0, model="OLD")) == ["old big", "old small"]
    assert names(choose(FILES, now=0, older_than=86_400, model="young")) == ["young"]
    assert names(choose(FILES, now=0)) == ["old big", "old small", "young"]


def test_choosing_by_size_takes_the_least_recently_used_until_the_rest_fits():
    assert names(choose(FILES, now=0, max_size=1000)) == []
    assert names(choose(FILES, now=0, max_size=810)) == []
    assert names(choose(FILES, now=0, max_size=809)) == ["old big"]
    assert names(choose(FILES, now=0, max_size=309)) == ["old big", "old small"]
    assert names(choose(FILES, now=0, max_size=0)) == ["old big", "old small", "young"]
    assert names(choose(FILES, now=0, max_size=0, older_than=36 * 86_400)) == ["old big"]


def test_damaged_files_go_first_and_belong_to_no_model():
    files = FILES + stores(("torn", 0, 50), state="torn") + stores(("aside", 1, 50), state="aside")
    assert names(choose(files, now=0, max_size=810))[:2] == ["aside", "torn"]
    assert names(choose(files, now=0, model="o")) == ["old big", "old small", "young"]


def test_removing_takes_the_side_files_along_and_the_next_run_begins_anew(tmp_path):
    store = fill(tmp_path)
    Path(f"{store.path}-wal").write_bytes(b"")
    assert remove(only(tmp_path)) == "removed"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert store.get([b"\0\0"]) == {}
    fill(tmp_path)
    assert len(store.get([b"\0\0"])) == 1


def test_a_store_that_is_open_stays(tmp_path):
    store = fill(tmp_path, close=False)  # between two steps: no transaction is open
    assert remove(only(tmp_path)) == "in use"
    store.put({b"new": np.zeros(1, np.float32)})
    assert len(store.get([b"\0\0", b"new"])) == 2
    store.close()
    assert remove(only(tmp_path)) == "removed"


_HOLDER = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("store", sys.argv[1])  # alone, because importing torch takes seconds
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
store = module.ScoreStore(Path(sys.argv[2]), fingerprint="a" * 32, numerics="0" * 16)
assert len(store.get([bytes([0, 0])])) == 1
print("ready", flush=True)
sys.stdin.readline()
assert len(store.get([bytes([1, 0])])) == 1
"""


def test_a_store_that_another_process_has_open_stays(tmp_path):
    fill(tmp_path)
    words = [sys.executable, "-c", _HOLDER, store_module.__file__, str(tmp_path)]
    holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "ready\n"
    assert remove(only(tmp_path)) == "in use"
    holder.communicate("go on\n", timeout=60)
    assert holder.returncode == 0
    assert remove(only(tmp_path)) == "removed"


def test_a_run_that_waited_for_a_store_while_it_was_removed_opens_a_new_one(tmp_path, monkeypatch):
    path, has_mark = fill(tmp_path).path, key_value.has_mark
    removed = []

    def remove_first(connection, mark):
        if not removed:
            removed.append(remove(only(tmp_path)))
        return has_mark(connection, mark)

    monkeypatch.setattr(key_value, "has_mark", remove_first)
    store = ScoreStore(tmp_path, fingerprint="a" * 32, numerics="0" * 16)
    store.put({b"new": np.zeros(1, np.float32)})
    store.close()
    assert removed == ["removed"]
    assert path.exists()
    assert only(tmp_path).completions == 1


# --- checking ---


def test_a_sound_store_is_sound(tmp_path):
    fill(tmp_path, count=300)
    check = verify(only(tmp_path))
    assert check.sound
    assert (check.completions, check.damaged, check.torn, check.repaired) == (300, 0, None, False)


def test_single_damaged_scores_are_counted_and_removed_and_the_others_stay(tmp_path):
    store = fill(tmp_path, count=300)
    for key in (b"\x05\0", b"\x07\x01"):
        flip_a_score(store.path, key)
    check = verify(only(tmp_path))
    assert (check.sound, check.completions, check.damaged, check.torn) == (False, 300, 2, None)
    assert only(tmp_path).completions == 300  # looking repairs nothing
    assert verify(only(tmp_path), repair=True).repaired
    assert verify(only(tmp_path)).sound
    assert only(tmp_path).completions == 298
    assert store.get([b"\x05\0", b"\x06\0"]).keys() == {b"\x06\0"}


def test_text_that_is_not_utf_8_costs_one_row(tmp_path):
    store = fill(tmp_path, count=3)
    with sqlite3.connect(store.path) as connection:  # one bit of a row's header makes a text of a blob
        connection.execute("UPDATE scores SET value = CAST(x'ff00' AS TEXT) WHERE key = x'0000'")
        connection.execute("UPDATE note SET value = CAST(x'ff00' AS TEXT) WHERE name = 'model'")
    assert only(tmp_path).note.keys() == {*NOTE, "created", "preftune"} - {"model"}
    check = verify(only(tmp_path))
    assert (check.completions, check.damaged, check.torn) == (3, 1, None)
    assert store.get([b"\0\0", b"\1\0"]).keys() == {b"\1\0"}
    assert store.usable


@pytest.mark.parametrize(("start", "stop"), [(0.4, 0.7), (0.0, 0.01), (0.0, 1.0)])
def test_a_torn_file_is_found_and_set_aside_and_then_prunable(tmp_path, start, stop):
    store = fill(tmp_path, count=3000)
    overwrite(store.path, start, stop)
    check = verify(only(tmp_path))
    assert check.torn is not None
    assert not check.sound
    assert not check.repaired
    assert verify(only(tmp_path), repair=True).repaired
    assert not store.path.exists()
    assert only(tmp_path).state == "aside"
    assert remove(only(tmp_path)) == "removed"
    assert list_stores(tmp_path) == []


@pytest.mark.parametrize("kept", [0, 100, 0.3, 0.95])
def test_a_truncated_file_is_found(tmp_path, kept):
    path = fill(tmp_path, count=3000).path
    size = path.stat().st_size
    os.truncate(path, kept if kept == 0 or kept > 1 else int(size * kept))
    if kept == 0:  # as a run leaves it that was killed before it wrote: nothing is lost, nothing wrong can be read
        assert only(tmp_path).state == "torn"
    assert not verify(only(tmp_path)).sound


def test_a_torn_file_that_is_open_is_not_set_aside(tmp_path):
    store = fill(tmp_path, count=3000)
    content = store.path.read_bytes()
    holder = ScoreStore(tmp_path, fingerprint="a" * 32, numerics="0" * 16)
    holder.get([b"\0\0"])
    with store.path.open("r+b") as file:  # closing it would drop the locks of this process' connections
        file.seek(len(content) // 2)
        file.write(b"\xa5" * 8192)
        os.fsync(file.fileno())
        words = [sys.executable, "-c", _VERIFIER, str(store.path)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["another", "process", "has", "it", "open"]
    assert store.path.exists()
    holder.close()


_VERIFIER = """
import sys
from pathlib import Path
from preftune.reference.inventory import StoreFile, verify
check = verify(StoreFile(Path(sys.argv[1]), "store", 0, 0.0), repair=True)
assert check.torn
print(check.hindered)
"""


def test_a_folder_that_cannot_be_read_is_said_and_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    for kind in ("reference", "tokens"):
        (tmp_path / kind).mkdir()
    assert list_stores(tmp_path / "reference") == []
    assert list_items(tmp_path, now=0.0) == []

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.listdir", refuse)
    with pytest.raises(PermissionError, match="reference"):
        list_stores(tmp_path / "reference")
    with pytest.raises(PermissionError, match="tokens"):
        list_items(tmp_path, now=0.0)
