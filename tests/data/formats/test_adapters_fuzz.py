"""Nonsense anywhere in a row or a file of any format is counted or told: no traceback, no pair without its sides.

PREFTUNE_FUZZ_SECONDS=600 (`make fuzz`) goes on for so long with ever new examples; without it, a few hundred are tried.
"""

from __future__ import annotations

import copy
import gzip
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from preftune.data import FORMATS, load_pairs
from preftune.data.conversion.convert import Input, convert_pairs
from preftune.data.formats import LEFT, Left, Made, Sample
from preftune.data.formats.columns import resolve_columns
from preftune.data.formats.to_pair import to_pair
from preftune.data.pairs.open import read_pairs
from preftune.errors import DatasetError

from .test_adapters import listed_sample

FILES = sorted((Path(__file__).parents[1] / "format_rows").iterdir())
ROWS = {path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for path in FILES}

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 12) | st.floats() | st.sampled_from(["", "1", "text", "N/A", "\x00"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "value", "rank", "a", "score", "text"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
EXAMPLES = int(os.environ.get("PREFTUNE_FUZZ_EXAMPLES", "150"))
SECONDS = float(os.environ.get("PREFTUNE_FUZZ_SECONDS", "0"))


def fuzz(inputs: st.SearchStrategy[Any], check: Callable[[Any], None], *, share: float) -> None:
    """Checks inputs; with a budget of time again and again, each time from another seed."""
    end = time.monotonic() + share * SECONDS
    rounds = 0
    while rounds == 0 or time.monotonic() < end:
        limits = settings(
            deadline=None,
            max_examples=EXAMPLES,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            print_blob=True,
        )

        @limits
        @given(inputs)
        def holds(value: Any) -> None:
            check(value)

        (seed(random.SystemRandom().getrandbits(64))(holds) if SECONDS else holds)()
        rounds += 1


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place inside a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in inner for found in ((*path, key), *places(item, (*path, key)))]


@st.composite
def broken_rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    rows = copy.deepcopy(ROWS[draw(st.sampled_from(sorted(ROWS)))])
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(places(rows[0])))
        holder: Any = rows[0]
        for step in way:
            holder = holder[step]
        if draw(st.booleans()):
            holder[last] = draw(VALUES)
        elif isinstance(holder, dict):
            del holder[last]
        if not places(rows[0]):
            break
    return rows


def made_of(rows: list[dict[str, Any]], sample: Sample, format: str) -> list[Made]:
    """What an adapter makes of rows, whether it recognises them or not; picked values where it names columns."""
    adapter = FORMATS[format]
    named = adapter.columns(sample) if adapter.columns is not None else None
    if named is not None:
        try:
            columns = resolve_columns(dict.fromkeys(key for row in rows for key in row), named, name="x")
        except DatasetError:
            return []
        return [columns.pick(row) for row in rows]
    if adapter.table is not None:
        return [made for _, made in adapter.table(rows)]
    return [made for row in rows for made in adapter.rows(row)] if adapter.rows is not None else []


def test_nonsense_ends_in_a_pair_a_count_or_a_clean_error() -> None:
    fuzz(broken_rows(), check_rows, share=0.3)


def check_rows(rows: list[dict[str, Any]]) -> None:
    sample = listed_sample(rows)
    for format, adapter in FORMATS.items():
        assert adapter.recognises(sample) in (True, False)
        for made in made_of(rows, sample, format):
            if isinstance(made, Left):
                assert made.reason in LEFT
                continue
            try:
                pair = to_pair({key: value for key, value in made.items() if value is not None}, name="x", row=0)
            except DatasetError as error:
                told = str(error)
                assert told.startswith("x row 0, column ")
                continue
            sides = (pair.prompt, pair.chosen, pair.rejected)
            assert {type(side) for side in sides} in ({str}, {list})
            turns = [turn for side in sides if isinstance(side, list) for turn in side]
            assert all(isinstance(turn["role"], str) and isinstance(turn["content"], str) for turn in turns)


# --- files ---

PIECES = (
    st.sampled_from(
        [b"\n", b"\r\n", b"\r", b"\0", b'"', b"{", b"}", b"[", b"]", b",", b":", b"\t", b" ", b"\\", b"\xff"]
    )
    | st.sampled_from([b"\\ud83d", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b"PAR1", b"\xc3\x28"])
    | st.sampled_from([b"null", b"true", b"1e999", b"NaN", b'{"chosen": 1}\n'])
    | st.binary(min_size=1, max_size=8)
)


@st.composite
def broken_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file of some format with bytes put in, taken out or doubled, and the ending of its name."""
    name = draw(st.sampled_from(sorted(ROWS)))
    ending = draw(st.sampled_from(["jsonl", "json", "csv", "tsv", "jsonl.gz", "parquet", "txt"]))
    content = as_file(ROWS[name], ending)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(content)))
        cut = draw(st.integers(0, 3) | st.integers(0, len(content)))
        content = content[:at] + draw(PIECES | st.just(b"")) + content[at + cut :]
    if ending == "jsonl.gz" and draw(st.booleans()):
        content = gzip.compress(content)
    return ending, content


def as_file(rows: list[dict[str, Any]], ending: str) -> bytes:
    if ending == "json":
        return json.dumps(rows, ensure_ascii=False).encode()
    if ending in ("csv", "tsv"):
        keys = list(dict.fromkeys(key for row in rows for key in row))
        cells = [
            [str(row.get(key, "")).replace('"', '""') for key in keys]
            for row in (dict(zip(keys, keys, strict=True)), *rows)
        ]
        return "".join(
            ("," if ending == "csv" else "\t").join(f'"{cell}"' for cell in line) + "\n" for line in cells
        ).encode()
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def tell_apart(attempts: Iterator[Any]) -> list[Any]:
    """The pairs of what was read; what is none must say where it stands."""
    pairs = []
    for attempt in attempts:
        if attempt.pair is None:
            assert " row " in attempt.problem
        else:
            pairs.append(attempt.pair)
    return pairs


def read(path: Path, *, streaming: bool) -> list[Any] | None:
    """The pairs of a file; None where it ends in an error, which must name the file."""
    try:
        opened = load_pairs(path, streaming=True) if streaming else read_pairs(path, tolerant=True)
        return tell_apart(opened.attempts())
    except DatasetError as error:
        told = str(error)
    assert str(path) in told
    assert "\n" not in told
    return None


def sides(pairs: Iterable[Any]) -> list[Any]:
    return [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]


def check_file(file: tuple[str, bytes]) -> None:
    ending, content = file
    folder = Path(tempfile.mkdtemp())
    path = folder / f"pairs.{ending}"
    path.write_bytes(content)
    try:
        whole, streamed = read(path, streaming=False), read(path, streaming=True)
        if whole is not None and streamed is not None:
            assert sides(whole) == sides(streamed)
        if whole is not None:
            check_convert(path, whole)
    finally:
        shutil.rmtree(folder)


def check_convert(path: Path, pairs: list[Any]) -> None:
    """What is written is what was read, less what is said to have been left out."""
    output = path.with_name("out.jsonl")
    try:
        manifest = convert_pairs([Input(str(path), read_pairs(path, tolerant=True))], output)
    except DatasetError:
        return
    left = sum(entry["count"] for entry in manifest["dropped"] if entry["reason"] != "no_preference")
    written = sides(load_pairs(output))
    assert len(written) == len(pairs) - left
    remaining = iter(sides(pairs))
    assert all(row in remaining for row in written)  # the same pairs, in their order


def test_broken_files_end_in_pairs_or_a_clean_error() -> None:
    fuzz(broken_files(), check_file, share=0.7)
