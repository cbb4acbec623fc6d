"""`preftune cache`: what people see of the reference scores on disk, and what they can do about them."""

from __future__ import annotations

import io
import json
import os
import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from preftune.judges.cache import VerdictCache
from preftune.reference import ScoreStore
from preftune.storage.atomic import sweep
from preftune.storage.cache_folder import cache_folder


def fill(letter: str, model: str, *, days: float = 0, count: int = 4, length: int = 100) -> Path:
    """A store of `count` completions, last used `days` ago."""
    note = {"model": model, "engine": "packed", "dtype": "float32", "device": "cpu"}
    store = ScoreStore(cache_folder() / "reference", fingerprint=letter * 32, numerics="0" * 16, note=note)
    store.put({bytes([i]): np.full(length, -float(i), np.float32) for i in range(count)})
    store.close()
    then = time.time() - days * 86_400
    os.utime(store.path, (then, then))
    return store.path


def kilobytes(path: Path) -> str:
    return f"{path.stat().st_size / 1000:.1f} kB"


def damage(path: Path) -> None:
    """One score that is not what was written."""
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE scores SET value = zeroblob(length(value)) WHERE key = x'02'")
    connection.close()


@pytest.fixture
def three() -> dict[str, Path]:
    return {
        "old": fill("a", "Org/Old-Model", days=40),
        "big": fill("b", "Org/Big-Model", days=10, count=50, length=500),
        "new": fill("c", "/models/my-model"),
    }


@pytest.fixture
def terminal(monkeypatch):
    """Standard input and output are a terminal of some width, and somebody answers."""

    def at(width: int, answer: str = "") -> None:
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        stdin = io.StringIO(answer)
        stdin.isatty = lambda: True  # type: ignore[method-assign]
        monkeypatch.setattr("sys.stdin", stdin)

    return at


def test_ls_names_models_sizes_and_ages(preftune, three) -> None:
    (cache_folder() / "models").mkdir()
    (cache_folder() / "models" / "weights").write_bytes(bytes(2000))
    result = preftune("cache", "ls")
    assert result.code == 0
    first, head, *rows = result.out.splitlines()
    assert first == f"Reference scores in {cache_folder() / 'reference'}"
    assert head.split() == ["id", "model", "computed", "by", "completions", "size", "last", "used"]
    assert rows[0].split() == (
        f"aaaaaaaa Org/Old-Model packed, float32, cpu 4 {kilobytes(three['old'])} 5 weeks ago".split()
    )
    assert [row.split()[0] for row in rows[:3]] == ["aaaaaaaa", "bbbbbbbb", "cccccccc"]  # least recently used first
    assert "10 days ago" in rows[1]
    assert "just now" in rows[2]
    assert rows[3].startswith("3 stores, 58 completions, ")
    assert rows[4] == "Also kept: models, 2.0 kB (preftune cache prune --kind models)."


def test_ls_as_json(preftune, three) -> None:
    (cache_folder() / "reference" / "mine.txt").write_text("mine")
    found = json.loads(preftune("cache", "ls", "--json").out)
    assert found["folder"] == str(cache_folder() / "reference")
    stores = {Path(store["path"]): store for store in found["stores"] if store["state"] == "store"}
    assert set(stores) == set(three.values())
    assert stores[three["big"]]["completions"] == 50
    assert stores[three["big"]]["bytes"] == three["big"].stat().st_size
    assert stores[three["old"]]["note"]["engine"] == "packed"
    assert found["total"] == {"bytes": sum(path.stat().st_size for path in three.values()), "completions": 58}
    assert [store["state"] for store in found["stores"]].count("foreign") == 1


def test_ls_of_an_empty_cache(preftune) -> None:
    result = preftune("cache", "ls")
    assert result.code == 0
    assert "0 stores, 0 completions, 0 bytes in all." in result.out
    assert not (cache_folder() / "reference").exists()  # looking creates nothing


@pytest.mark.parametrize("width", [40, 60, 100, 160])
def test_ls_fits_its_terminal(preftune, three, terminal, width: int) -> None:
    fill("d", "somebody-with-a-long-name/a-model-with-a-very-long-name-Instruct-v0.3-DPO")
    terminal(width)
    out = re.sub(r"\x1b\[[0-9;]*m", "", preftune("cache", "ls").out)
    table = out[out.index("\n") + 1 : out.index("4 stores")]
    assert max(map(len, table.splitlines())) <= width
    for word in ("Org/Old-Model", "50", "5 weeks ago", "just now"):
        assert word in out
    assert "[" not in out


def test_ls_is_as_wide_as_columns_says_where_there_is_no_terminal(
    preftune, three, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    out = preftune("cache", "ls").out
    table = out[out.index("\n") + 1 : out.index("3 stores")]
    assert max(map(len, table.splitlines())) <= 40
    assert "Org/Old-Model" in table


def test_ls_names_damaged_and_foreign_files(preftune, three) -> None:
    three["old"].write_bytes(b"torn" * 3000)
    (three["big"].parent / "holiday.jpg").write_bytes(bytes(10))
    out = preftune("cache", "ls").out
    assert "1 damaged file among them, 12.0 kB: preftune cache verify has the details." in out
    assert "1 file was not written by preftune: left unchanged." in out


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["--older-than", "30d"], ["big", "new"]),
        (["--older_than=1w"], ["new"]),
        (["--older-than", "30d", "--model", "big"], ["old", "big", "new"]),
        (["--model", "org/"], ["new"]),
        (["--max-size", "0"], []),
        (["--max-size", "40kB"], ["new"]),
        (["--max-size", "1 GB"], ["old", "big", "new"]),
        (["--all"], []),
    ],
)
def test_prune_removes_what_is_named(preftune, three, words: list[str], left: list[str]) -> None:
    result = preftune("cache", "prune", *words, "--yes")
    assert result.code == 0, result.err
    assert [name for name, path in three.items() if path.exists()] == left
    gone = 3 - len(left)
    if gone:
        assert result.out.splitlines()[-1].startswith(f"Removed {gone} file{'s' * (gone != 1)}, ")
    else:
        assert result.out == "There is nothing to remove.\n"


@pytest.fixture
def others() -> dict[str, Path]:
    """One of every other kind, a month old, and what killed runs left, an hour and no time ago."""
    root = cache_folder()
    files = {
        "tokens": root / "tokens" / "a.npz",
        "rows": root / "rows" / "b.arrow",
        "judge": root / "judges" / "c" / "model.safetensors",
        "model": root / "models" / "d" / "model.safetensors",
        "left": root / "tokens" / ".writing-old",
        "half": root / "models" / ".d.01234567" / "part",
        "writing": root / "rows" / ".writing-new",
    }
    for name, path in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))
        days = {"writing": 0.0, "left": 0.1, "half": 0.1}.get(name, 30)
        then = time.time() - days * 86_400
        os.utime(path, (then, then))
    with closing(VerdictCache()) as verdicts:
        verdicts.put({"old": "A", "older": "B"}, judge="j")
        with verdicts._connection:
            verdicts._connection.execute("UPDATE verdicts SET created = ?", (int(time.time() - 30 * 86_400),))
        verdicts.put({"new": "B"}, judge="j")
    return files


def verdicts() -> set[str]:
    with closing(VerdictCache()) as store:
        return set(store.get(["old", "older", "new"]))


@pytest.mark.parametrize(
    ("words", "gone", "kept"),
    [
        (["--all"], ["tokens", "rows", "judge", "model", "left", "half"], set()),
        (["--older-than", "1w"], ["tokens", "rows", "judge", "model"], {"new"}),
        (["--max-size", "0"], ["tokens", "rows", "left", "half"], {"old", "older", "new"}),
        (["--kind", "verdicts"], [], set()),
        (["--kind", "verdicts", "--older-than", "1w"], [], {"new"}),
        (["--kind", "leftovers"], ["left", "half"], {"old", "older", "new"}),
        (["--kind", "tokens", "rows"], ["tokens", "rows"], {"old", "older", "new"}),
        (["--model", "org/"], [], {"old", "older", "new"}),
    ],
)
def test_prune_covers_everything_that_is_kept(preftune, three, others, words, gone, kept) -> None:
    result = preftune("cache", "prune", *words, "--yes")
    assert result.code == 0, result.err
    assert [name for name, path in others.items() if not path.exists()] == gone
    assert verdicts() == kept
    assert others["writing"].exists(), "somebody may be writing it"
    if "--kind" in words:
        assert all(path.exists() for path in three.values())


def test_prune_makes_room_by_what_was_used_last_over_all_kinds(preftune, three, others) -> None:
    keep = three["new"].stat().st_size + three["big"].stat().st_size
    result = preftune("cache", "prune", "--max-size", str(keep), "--yes")
    assert result.code == 0
    assert "leftovers  .writing-old" in result.out
    assert [name for name, path in three.items() if not path.exists()] == ["old"]
    assert not others["tokens"].exists()


def test_verdicts_that_a_judge_is_adding_to_are_removed_all_the_same(preftune, others) -> None:
    with closing(VerdictCache()) as judging:
        assert preftune("cache", "prune", "--kind", "verdicts", "--yes").code == 0
        judging.put({"new": "A"}, judge="j")
    assert verdicts() == {"new"}


def test_ls_counts_every_kind(preftune, others) -> None:
    found = json.loads(preftune("cache", "ls", "--json").out)["others"]
    assert set(found) == {"tokens", "rows", "verdicts", "judges", "models", "leftovers"}
    assert found["leftovers"] == 2000


def test_what_killed_writers_left_is_swept_by_the_next_one(others) -> None:
    sweep(others["left"].parent)
    sweep(others["writing"].parent)
    assert not others["left"].exists()
    assert others["writing"].exists()


def test_scores_of_another_version_are_set_aside_and_made_anew(caplog) -> None:
    path = fill("a", "m")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP TABLE scores")
        connection.execute("CREATE TABLE scores2 (key BLOB)")
    store = ScoreStore(cache_folder() / "reference", fingerprint="a" * 32, numerics="0" * 16)
    assert store.get([b"\0"]) == {}
    store.put({b"\0": np.zeros(3, np.float32)})
    assert len(store.get([b"\0"])) == 1
    store.close()
    assert "set aside and is rebuilt" in caplog.text
    assert len(list(path.parent.glob("*.damaged-*"))) == 1


def test_a_dry_run_removes_nothing_and_says_what_it_would(preftune, three) -> None:
    result = preftune("cache", "prune", "--all", "--dry-run")
    assert result.code == 0
    assert all(path.exists() for path in three.values())
    assert f"aaaaaaaa  Org/Old-Model, {kilobytes(three['old'])}, last used 5 weeks ago" in result.out
    assert "Would remove 3 files, " in result.out


@pytest.mark.parametrize(("answer", "stays"), [("y\n", False), ("YES\n", False), ("n\n", True), ("\n", True)])
def test_prune_asks_on_a_terminal(preftune, three, terminal, answer: str, stays: bool) -> None:
    terminal(80, answer)
    size = kilobytes(three["old"])
    result = preftune("cache", "prune", "--older-than", "30d")
    assert result.code == 0
    assert f"Remove 1 file, {size}? [y/N]" in result.out
    assert three["old"].exists() == stays
    assert ("Nothing was removed." in result.out) == stays


def test_prune_asks_no_one_in_a_script_and_removes_nothing_without_yes(preftune, three, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    result = preftune("cache", "prune", "--all")
    assert result.code == 2
    assert "Add --yes" in result.message
    assert all(path.exists() for path in three.values())


@pytest.mark.parametrize("words", [[], ["--yes"], ["--all", "--model", "x"], ["--all", "--max-size", "1GB"]])
def test_prune_asks_what_to_remove(preftune, three, words: list[str]) -> None:
    result = preftune("cache", "prune", *words)
    assert result.code == 2
    assert "--older-than 30d" in result.message
    assert all(path.exists() for path in three.values())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--older-than", "soon"], "'soon' is not a duration: write 30d, 12h or 2w"),
        (["--max-size", "much"], "'much' is not a size: write 2GB or 500MB"),
        (["--max-size", "2PB"], "'2PB' is not a size"),
        (["--modle", "x"], "Did you mean --model?"),
    ],
)
def test_wrong_words_are_reported(preftune, words: list[str], says: str) -> None:
    result = preftune("cache", "prune", *words)
    assert result.code == 2
    assert says in result.message


def test_prune_leaves_what_a_run_has_open_and_what_is_foreign(preftune, three) -> None:
    foreign = three["new"].parent / "holiday.jpg"
    foreign.write_bytes(bytes(10))
    store = ScoreStore(cache_folder() / "reference", fingerprint="b" * 32, numerics="0" * 16)
    store.get([b"\0"])
    result = preftune("cache", "prune", "--all", "--yes")
    store.close()
    assert result.code == 0
    assert f"Kept {three['big'].name}: another process has it open." in result.out
    assert "Removed 2 files, " in result.out
    assert [path.exists() for path in three.values()] == [False, True, False]
    assert foreign.exists()


def test_verify_of_a_sound_cache(preftune, three) -> None:
    result = preftune("cache", "verify")
    assert result.code == 0
    assert "bbbbbbbb  Org/Big-Model: 50 completions, none damaged." in result.out
    assert "3 stores, 58 intact completions, 0 problems." in result.out


def test_verify_finds_damage_and_repair_removes_it(preftune, three) -> None:
    damage(three["big"])
    three["old"].write_bytes(b"torn" * 3000)
    result = preftune("cache", "verify")
    assert result.code == 1
    assert "bbbbbbbb  Org/Big-Model: 1 of 50 completions damaged." in result.out
    assert "aaaaaaaa  unknown: the file is torn (file is not a database)." in result.out
    assert "3 stores, 53 intact completions, 2 problems." in result.out
    assert "--repair" in result.out.splitlines()[-1]
    repaired = preftune("cache", "verify", "--repair")
    assert repaired.code == 0
    assert "1 of 50 completions damaged; removed." in repaired.out
    assert "the file is torn (file is not a database); set aside." in repaired.out
    again = preftune("cache", "verify")
    assert again.code == 0
    assert "1 damaged file set aside earlier, 12.0 kB" in again.out
    assert "2 stores, 53 intact completions, 0 problems." in again.out
    assert preftune("cache", "prune", "--all", "--yes").code == 0
    assert [path for path in cache_folder().rglob("*") if path.is_file()] == []


def test_a_file_without_our_mark_is_kept_and_the_way_out_is_named(preftune, three) -> None:
    three["old"].write_bytes(b"torn" * 3000)
    result = preftune("cache", "prune", "--all", "--yes")
    assert "verify --repair" in result.out
    assert three["old"].exists()


@pytest.mark.parametrize(("words", "says"), [([], "ls, prune or verify"), (["lst"], "Did you mean 'ls'?")])
def test_without_an_action_it_asks_for_one(preftune, words: list[str], says: str) -> None:
    result = preftune("cache", *words)
    assert result.code == 2
    assert says in result.message


@pytest.mark.parametrize("action", ["ls", "prune", "verify"])
def test_every_action_has_help(preftune, action: str) -> None:
    result = preftune("cache", action, "--help")
    assert result.code == 0
    assert result.out.startswith(f"usage: preftune cache {action}")
    assert action in preftune("cache", "--help").out
