"""Files as they come off disks, spreadsheets and broken pipes: a count, or one clear error; never a wrong pair."""

from __future__ import annotations

import csv
import gzip
import io
import json
import resource
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preftune.data import load_pairs
from preftune.data.conversion.convert import Input, convert_pairs
from preftune.data.pairs.open import read_pairs
from preftune.data.reading.half_pairs import _warn_once
from preftune.data.reading.text_files import text_rows
from preftune.errors import DatasetError

ROW = {"prompt": "Wie heißt der Fluß?", "chosen": "Der Main.", "rejected": "Weiß nicht."}
LINE = (json.dumps(ROW, ensure_ascii=False) + "\n").encode()


def write(folder: Path, content: bytes, name: str = "pairs.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def sides(path: Path) -> list[tuple[Any, Any, Any]]:
    """The same pairs read whole, and as a stream."""
    loaded = [(pair.prompt, pair.chosen, pair.rejected) for pair in load_pairs(path)]
    streamed = [(pair.prompt, pair.chosen, pair.rejected) for pair in load_pairs(path, streaming=True)]
    assert loaded == streamed
    return loaded


def fails(path: Path, *expected: str) -> None:
    """One paragraph that names the file, whichever way it is read."""
    for streaming in (False, True):
        with pytest.raises(DatasetError) as caught:
            list(load_pairs(path, streaming=streaming))  # type: ignore[call-overload]
        message = str(caught.value)
        assert message.startswith(str(path)), message
        assert "\n" not in message
        assert len(message) < 900, len(message)
        for part in expected:
            assert part in message


GOOD = [tuple(ROW.values())]


def test_another_encoding(tmp_path: Path) -> None:
    content = LINE + json.dumps(ROW, ensure_ascii=False).encode("latin-1") + b"\n"
    fails(write(tmp_path, content), "is not text in UTF-8", "line 2", f"byte {content.index(0xDF, len(LINE))}")
    fails(write(tmp_path, LINE.decode().encode("cp1252"), "a.csv"), "line 1")
    fails(write(tmp_path, b"\xff\xfe" + LINE), "begins like text in UTF-16 but is not")


def test_a_byte_order_mark_and_utf16(tmp_path: Path) -> None:
    assert sides(write(tmp_path, b"\xef\xbb\xbf" + LINE * 2)) == GOOD * 2
    assert sides(write(tmp_path, LINE.decode().encode("utf-16"))) == GOOD
    assert sides(write(tmp_path, b"\xef\xbb\xbfprompt,chosen,rejected\np,c,r\n", "a.csv")) == [("p", "c", "r")]
    fails(write(tmp_path, b"\xef\xbb\xbf" + LINE + b"\xdf\n"), "line 2", f"byte {3 + len(LINE)}")


def test_nul_bytes(tmp_path: Path) -> None:
    fails(write(tmp_path, LINE + b'{"prompt": "a\0b"}\n'), "is a binary file, not text (line 2)")
    fails(write(tmp_path, b"prompt,chosen,rejected\np,c\0,r\n", "a.csv"), "(line 2)")
    escaped = json.dumps({**ROW, "chosen": "a\0b"}).encode()  # written as an escape, it is a character like others
    assert sides(write(tmp_path, escaped))[0][1] == "a\0b"


def test_a_line_of_fifty_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.write(LINE + b'{"prompt": "p", "rejected": "r", "chosen": "')
        for _ in range(50):
            file.write(b"x" * 2**20)
        file.write(b'"}\n' + LINE)
    pairs = load_pairs(path)
    assert [len(pair.chosen) for pair in pairs] == [9, 50 * 2**20, 9]
    with path.open("ab") as file:
        file.write(b'{"chosen": "' + b"x" * 2**20)
    fails(path, "line 4 is not valid JSON: Unterminated string")


@pytest.mark.parametrize("share", [0.5, 0.98])
def test_half_a_gzip(tmp_path: Path, share: float) -> None:
    lines = b"".join(json.dumps({**ROW, "chosen": f"{i * 7919 % 10007}"}).encode() + b"\n" for i in range(3000))
    whole = gzip.compress(lines, mtime=0)
    fails(write(tmp_path, whole[: int(len(whole) * share)], "a.jsonl.gz"), "is a broken gzip file", "Compress it again")
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 255
    fails(write(tmp_path, bytes(damaged), "b.jsonl.gz"))  # of the gzip, or of the first line that makes no sense
    assert len(sides(write(tmp_path, whole + whole, "two.jsonl.gz"))) == 6000  # members one after another are allowed


def test_mixed_schemas(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}]
    rows: list[Any] = [
        ROW,
        {"prompt": turns, "chosen": [{"role": "assistant", "content": "a"}], "rejected": "b", "meta": {"x": 1}},
        {**ROW, "meta": "text", "weight": 2},
        {**ROW, "meta": [1, "two", None], "weight": 0.5},
        {"chosen": "4", "rejected": "null", "prompt": "2+2?", "id": 2**70},
    ]
    path = write(tmp_path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    found = sides(path)
    assert found[0] == GOOD[0]
    assert found[1] == (turns, [{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "b"}])
    assert found[4] == ("2+2?", "4", "null")
    pairs = load_pairs(path)
    assert [pair.weight for pair in pairs] == [1, 1, 2, 0.5, 1]
    assert pairs[4].id == str(2**70)
    fails(write(tmp_path, LINE + b'{"prompt": "p", "good": "c"}\n'), "row 1", "'chosen'")


def test_a_kind_that_changes_after_the_first_thousand_rows(tmp_path: Path) -> None:
    rows: list[Any] = [{**ROW, "weight": 1, "note": None}] * 1500
    rows += [
        {**ROW, "weight": 0.5, "note": "n"},
        {**ROW, "weight": 2, "chosen": [{"role": "assistant", "content": "4"}]},
    ]
    path = write(tmp_path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    pairs = load_pairs(path)
    assert [pair.weight for pair in pairs][-3:] == [1, 0.5, 2]
    assert pairs[0].chosen == ROW["chosen"]
    assert pairs[1501].chosen == [{"role": "assistant", "content": "4"}]
    assert pairs.raw[1500]["note"] == "n"


@pytest.mark.parametrize(
    "value", ["true", "false", "3", "0.5", "{}", "[true]", '[{"role": "assistant", "content": 1}]']
)
@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
def test_what_is_no_text_where_text_belongs(tmp_path: Path, column: str, value: str) -> None:
    row = json.dumps({**ROW, column: "VALUE"}).replace('"VALUE"', value).encode()
    path = write(tmp_path, LINE * 3 + row + b"\n" + LINE)
    fails(path, f"row 3, column {column!r}:")
    manifest = convert_pairs(
        [Input(str(path), read_pairs(path, tolerant=True))], tmp_path / "out.jsonl", overwrite=True
    )
    assert [(left["reason"], left["rows"]) for left in manifest["dropped"]] == [("no_preference", [3])]
    assert sides(tmp_path / "out.jsonl") == GOOD * 4


def test_a_csv_of_quotes_and_newlines(tmp_path: Path) -> None:
    rows = [
        ('He said "no", twice', "line one\nline two\r\nline three", "a,b\tc"),
        ("", "\n", '"'),
        ("trailing ", " leading", "\u2028 and \x0b"),
        ("4", "true", "null"),
    ]
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=delimiter).writerows([("prompt", "chosen", "rejected"), *rows])
        assert sides(write(tmp_path, text.getvalue().encode(), name)) == rows
    fails(write(tmp_path, b'prompt,chosen,rejected\np,c,r\np,"c,r\n', "b.csv"), "line 3 is not valid CSV")
    fails(write(tmp_path, b'prompt,chosen,rejected\np,c"x"y,r\np,"c"x,r\n', "b.csv"), "line 3 is not valid CSV")
    fails(write(tmp_path, b"\nprompt,chosen,rejected\np,c\n", "b.csv"), "line 3 has 2 fields, but the header has 3")


@pytest.mark.parametrize("end", [b"\r\n", b"\r\r\n", b"\n\r\n", b" \n"])
def test_line_ends_of_other_systems(tmp_path: Path, end: bytes) -> None:
    assert sides(write(tmp_path, (LINE.strip() + end) * 3)) == GOOD * 3
    assert sides(write(tmp_path, LINE.strip() + end + LINE.strip())) == GOOD * 2


def test_a_csv_with_the_line_ends_of_old_macs(tmp_path: Path) -> None:
    assert sides(write(tmp_path, b'prompt,chosen,rejected\rp,"c\rd",r\rq,s,t', "a.csv")) == [
        ("p", "c\rd", "r"),
        ("q", "s", "t"),
    ]


def test_a_key_that_is_there_twice(tmp_path: Path) -> None:
    fails(
        write(tmp_path, LINE + b'{"prompt": "p", "chosen": "a", "rejected": "b", "chosen": "c"}'),
        "line 2",
        "'chosen' is given twice",
    )
    fails(write(tmp_path, b'[{"chosen": "a", "chosen": "c"}]', "a.json"), "'chosen' is given twice")


HALF = json.dumps({**ROW, "chosen": "an \ud83d end"}).encode() + b"\n"
TURNS = json.dumps({**ROW, "chosen": [{"role": "assistant", "content": "an \ud83d end"}]}).encode() + b"\n"


@pytest.mark.parametrize(
    ("content", "name", "first"),
    [
        (LINE + HALF, "a.jsonl", "line 2, column 'chosen'"),
        (gzip.compress(LINE + HALF), "b.jsonl.gz", "line 2, column 'chosen'"),
        (b"[" + LINE.strip() + b"," + HALF + b"]", "c.json", "row 1, column 'chosen'"),
        (LINE + TURNS, "d.jsonl", "line 2, column 'chosen'"),
        (b'{"rows": [' + LINE.strip() + b",\n" + HALF + b"]}", "e.json", "the object, column 'rows'"),
        (LINE * 1500 + HALF * 2, "f.jsonl", "line 1501, column 'chosen'"),
        ([ROW, json.loads(HALF)], "list", "row 1, column 'chosen'"),
        ([ROW, json.loads(TURNS)], "turns", "row 1, column 'chosen'"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_half_a_surrogate_pair_is_replaced_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | list, name: str, first: str, streamed: bool
) -> None:
    _warn_once.cache_clear()
    listed = isinstance(content, list)
    read = load_pairs(content if listed else write(tmp_path, content, name), streaming=streamed)
    last = list(read)[-1].chosen
    assert "an \ufffd end" in (last if isinstance(last, str) else last[-1]["content"])
    said = [one.getMessage() for one in caplog.records if "half of a surrogate pair" in one.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("2 texts of" if name == "f.jsonl" else "1 text of")
    assert f"(first: {first})" in said[0]


def test_a_whole_surrogate_pair_is_its_character(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    line = json.dumps({**ROW, "chosen": "an \U0001f600 end"}).encode()
    assert b"\\ud83d\\ude00" in line
    assert load_pairs(write(tmp_path, line))[0].chosen == "an \U0001f600 end"
    assert not caplog.records


def test_half_a_surrogate_pair_in_a_column_name_or_in_json_inside_a_text(tmp_path: Path) -> None:
    name = json.dumps({**ROW, "n\ud83d": 1}).encode()
    with pytest.raises(DatasetError, match=r"The name .* of a column of .*pairs\.jsonl holds half"):
        load_pairs(write(tmp_path, LINE + name))
    inside = json.dumps({**ROW, "chosen": json.dumps(json.loads(TURNS)["chosen"])}).encode()
    fails(write(tmp_path, LINE + inside), "row 1, column 'chosen'", "half of a surrogate pair")


def test_nesting_without_end(tmp_path: Path) -> None:
    deep = b'{"prompt": "p", "chosen": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
    fails(write(tmp_path, LINE + deep), "line 2 is not valid JSON: nested too deeply")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b"\n \n", "is empty"),
        ("a.jsonl", b"null\n" + LINE, "line 1 holds a NoneType"),
        ("a.jsonl", LINE + b"[1]\n", "line 2 holds a list"),
        ("a.jsonl", LINE + LINE.strip() + LINE, "line 2 is not valid JSON: Extra data"),
        ("a.jsonl", LINE + LINE[: len(LINE) // 2], "line 2 is not valid JSON"),
        ("a.json", b"[" + LINE + b"," + LINE, "is not valid JSON"),
        ("a.parquet", b"PAR1" + b"\0" * 99, "is a broken parquet file"),
        ("a.jsonl.gz", gzip.compress(b"PAR1" + b"\0" * 99, mtime=0), "is a broken parquet file"),
    ],
)
def test_torn_and_foreign_files(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    fails(write(tmp_path, content, name), expected)


def test_standard_input_in_another_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO(LINE + b'{"prompt": "\xdf"}\n')

    monkeypatch.setattr(sys, "stdin", Stdin())
    with pytest.raises(DatasetError, match=r"standard input is not text in UTF-8 \(byte \d+, line 2\)"):
        load_pairs("-")


@pytest.mark.slow
def test_many_rows_take_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    with path.open("wb") as file:
        for start in range(0, 300_000, 1000):
            file.write(
                b"".join(b'{"prompt":"p%d","chosen":"a","rejected":"b"}\n' % i for i in range(start, start + 1000))
            )
        file.write(b'{"prompt":"p","chosen":"a","rejected":true}\n')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pairs = read_pairs(path, tolerant=True)
    assert len(pairs) == 300_001
    assert pairs[299_999].prompt == "p299999"
    problems = [attempt for attempt in pairs[290_000:].attempts() if attempt.pair is None]
    assert [attempt.row for attempt in problems] == [300_000]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 400 * len(pairs)  # bytes; a Python dict of the three texts alone has about as many


def test_parquet_whose_metadata_name_a_feature_that_is_not_there_names_its_file(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]})
    features = {"info": {"features": {"prompt": {"_type": "__import__", "dtype": "os"}}}}
    table = table.replace_schema_metadata({b"huggingface": json.dumps(features).encode()})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(DatasetError, match=r"x\.parquet is a broken parquet file: .*__import__"):
        load_pairs(tmp_path / "x.parquet")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("content", ["[null]", '[{"prompt": "a", "chosen": "b", "rejected": "c"}, 7]'])
def test_a_row_without_columns_is_named(tmp_path: Path, content: str, streaming: bool) -> None:
    path = tmp_path / "rows.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DatasetError, match=r"row \d is an? (NoneType|int), not an object with columns"):
        list(load_pairs(path, streaming=streaming))


@pytest.mark.parametrize("end", ["", "\n", "\n\n \n"])
def test_a_list_in_one_line_is_parsed_once(tmp_path, monkeypatch, end):
    parsed = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text, **options: parsed.append(text) or loads(text, **options))
    path = tmp_path / "rows.json"
    path.write_text('[{"prompt": "q", "chosen": "a", "rejected": "b"}]' + end)
    assert len(list(text_rows(path, "json"))) == 1
    assert len(parsed) == 1


@pytest.mark.parametrize("second", ['["q", "a", "b"]', '{"prompt": "q"}', "x"])
def test_a_list_on_each_line_of_jsonl_is_named(tmp_path, second):
    path = tmp_path / "lists.jsonl"
    path.write_text(f'["prompt", "chosen", "rejected"]\n\n{second}\n')
    with pytest.raises(DatasetError, match=r"lists.jsonl holds a list on its first line.*\"messages\": \[\.\.\.\]"):
        load_pairs(path)
    path.write_text('[{"prompt": "q", "chosen": "a", "rejected": "b"}]\n\n')
    assert len(load_pairs(path)) == 1
