"""`preftune audit`: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from preftune.cli.commands.audit import default_output
from preftune.cli.display.audit_table import plain
from tests.audit.made_up import clean_chats, clean_rows
from tests.cli.command import write_rows


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loaded(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    return values


def test_findings_are_reported_and_written(preftune, here: Path) -> None:
    rows = clean_rows()
    rows[7]["rejected"] = rows[7]["chosen"]
    result = preftune("audit", write_rows(here / "pairs.jsonl", rows))
    assert result.code == 0
    assert "60 rows, 60 pairs" in result.out
    assert "1 error and 1 warning." in result.out
    assert "error  Chosen and rejected are the same: 1 (1.7%), rows 7." in result.out
    folder = here / "runs" / "audit" / "pairs"
    assert sorted(path.name for path in folder.iterdir()) == ["audit.html", "audit.json"]
    values = loaded(folder)
    (finding, _) = values["findings"]
    assert (finding["name"], finding["count"], finding["rows"]) == ("identical", 1, [7])
    assert finding["share"] == pytest.approx(1 / 60)
    assert finding["effect"]
    assert finding["fix"]
    assert values["examples"]["identical"][0]["chosen"]["text"] == rows[7]["chosen"]


def test_json_alone_on_standard_output(preftune, here: Path) -> None:
    result = preftune("audit", write_rows(here / "pairs.jsonl", clean_rows()), "--json", "-o", "out")
    assert json.loads(result.out) == loaded(here / "out")


@pytest.mark.parametrize(
    ("fail_on", "code"),
    [("error", 1), ("warning", 1), ("identical", 1), ("contradictions,identical", 1), ("contradictions", 0)],
)
def test_a_gate(preftune, here: Path, fail_on: str, code: int) -> None:
    rows = clean_rows()
    rows[7]["rejected"] = rows[7]["chosen"]
    result = preftune("audit", write_rows(here / "pairs.jsonl", rows), "--fail-on", fail_on)
    assert result.code == code
    assert ("identical (1)" in result.message) == bool(code)


def test_warnings_do_not_fail_where_errors_do(preftune, here: Path) -> None:
    name = write_rows(here / "pairs.jsonl", clean_rows())
    assert preftune("audit", name, "--fail-on", "error").code == 0
    assert preftune("audit", name, "--fail-on", "warning").code == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--fail-on", "contradiction"], "Did you mean 'contradictions'?"),
        (["--max_length", "100"], "--max_length counts tokens. Name the tokenizer"),
        (["--with-reference"], "--with_reference is about the model"),
        (["--load_in_4bit"], "--load_in_4bit is about the model"),
        (["--eval_split", "test"], "--eval_split is the split of the evaluation data"),
        (["--near_duplicates", "maybe"], "'maybe' is not one of its values. Its values are on, off."),
        (["--colums", "a=b"], "Did you mean --columns?"),
        (["--columns", "chosen"], "write canonical=yours"),
        (["--format", "opnai"], "Did you mean 'openai'?"),
        (["--split", "test"], "has only the split 'train', not 'test'"),
    ],
)
def test_wrong_requests(preftune, here: Path, words: list[str], says: str) -> None:
    result = preftune("audit", write_rows(here / "pairs.jsonl", clean_rows(10)), *words)
    assert result.code == 2
    assert says in result.err
    assert result.err.count("\n") == 1
    assert not (here / "runs").exists()


def test_missing_files_and_folders_that_cannot_be_written(preftune, here: Path) -> None:
    name = write_rows(here / "pairs.jsonl", clean_rows(10))
    result = preftune("audit", "pair.jsonl")
    assert result.code == 2
    assert "Did you mean 'pairs.jsonl'?" in result.err
    result = preftune("audit", name, "-o", here / "pairs.jsonl" / "inside")
    assert result.code == 2
    assert "cannot be written" in result.err
    assert preftune("audit").code == 2


def test_columns_evaluation_data_and_splits(preftune, here: Path) -> None:
    rows = [{"ask": row["prompt"], "good": row["chosen"], "bad": row["rejected"]} for row in clean_rows()]
    name = write_rows(here / "pairs.jsonl", rows)
    columns = ["--columns", "prompt=ask", "chosen=good", "rejected=bad"]
    result = preftune("audit", name, "--eval", write_rows(here / "held.jsonl", rows[50:]), *columns)
    assert result.code == 0
    assert "Evaluation prompts that are trained on: 10 (all)" in result.out
    result = preftune("audit", name, "--split", "train[:20]", *columns)
    assert "20 rows, 20 pairs" in result.out


def test_tokens_and_what_a_limit_cuts(preftune, here: Path, tiny_model: str) -> None:
    rows = clean_chats()
    rows[3]["chosen"][0]["content"] = "long " * 200  # one token a byte
    rows[4]["prompt"][0]["content"] = "asks " * 200
    name = write_rows(here / "pairs.jsonl", rows)
    result = preftune("audit", name, "--model", tiny_model, "--max_length", 700, "-o", "out")
    assert result.code == 0
    values = loaded(here / "out")
    by_name = {finding["name"]: finding for finding in values["findings"]}
    assert by_name["answers_cut"]["rows"] == [3]
    assert by_name["no_room"]["rows"] == [4]
    assert values["figures"]["lengths"]["unit"] == "tokens"
    cut = list(csv.DictReader((here / "out" / "cut.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["row"], row["outcome"]) for row in cut] == [("3", "cut"), ("4", "no_room")]
    lengths = {key: int(cut[0][key]) for key in ("prompt", "chosen", "rejected", "cut_chosen", "cut_rejected")}
    assert lengths["cut_chosen"] == lengths["prompt"] + lengths["chosen"] - 700 > 0
    assert lengths["cut_rejected"] == 0
    preftune("audit", name, "--model", tiny_model, "--max_length", 5000, "-o", "out")
    assert not (here / "out" / "cut.csv").exists()


def test_plain_text_for_a_chat_model(preftune, here: Path, tiny_model: str) -> None:
    name = write_rows(here / "pairs.jsonl", clean_rows())
    assert "Plain text, and a tokenizer with a chat template: 60" in preftune("audit", name, "--model", tiny_model).out
    assert "Plain text" not in preftune("audit", name, "--model", tiny_model, "--as_chat").out


def test_a_narrow_terminal_gets_lines_and_a_wide_one_a_table(preftune, here: Path, monkeypatch) -> None:
    rows = clean_rows()
    rows[7]["rejected"] = rows[7]["chosen"]
    name = write_rows(here / "pairs.jsonl", rows)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for width, table in ((60, False), (140, True)):
        monkeypatch.setenv("COLUMNS", str(width))
        out = re.sub(r"\x1b\[[0-9;]*m", "", preftune("audit", name).out)
        assert ("fix" in out.split()) == table
        assert max(map(len, out.splitlines())) <= width


def test_characters_that_steer_a_terminal_are_not_printed() -> None:
    assert plain("a\x1b[31mred\u202eback\x9b2J") == "a\ufffd[31mred\ufffdback\ufffd2J"


@pytest.mark.parametrize(
    ("data", "folder"),
    [
        ("some/where/pairs.jsonl.gz", "runs/audit/pairs"),
        ("owner/name", "runs/audit/owner-name"),
        ("-", "runs/audit/stdin"),
        ("..", "runs/audit/data"),
    ],
)
def test_default_output(here: Path, data: str, folder: str) -> None:
    if "." in data and data != "..":
        path = here / data
        path.parent.mkdir(parents=True)
        path.touch()
    assert default_output(data) == folder


def test_no_torch_without_a_model(here: Path) -> None:
    name = write_rows(here / "pairs.jsonl", clean_rows(20))
    code = (
        "import sys\nfrom preftune.cli.main import main\n"
        f"assert main(['audit', {name!r}]) == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=here)


def test_a_huge_text_is_tokenised_as_far_as_lengths_are_counted(preftune, tmp_path, monkeypatch):
    from preftune.data.tokens.shorten import shortening
    from tiny import save_tiny, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    save_tiny(tmp_path / "tokenizer")
    most = shortening(tokenizer, 1024).most
    monkeypatch.setattr("preftune.cli.commands.audit._COUNTED", 8)
    row = {"prompt": "a", "chosen": "word " * most, "rejected": "b"}
    (tmp_path / "huge.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    seen = []
    plain = type(tokenizer).__call__

    def counting(self, texts, *args, **kwargs):
        seen.append(max(map(len, texts)) if isinstance(texts, list) else len(texts))
        return plain(self, texts, *args, **kwargs)

    monkeypatch.setattr(type(tokenizer), "__call__", counting)
    done = preftune("audit", tmp_path / "huge.jsonl", "--tokenizer", tmp_path / "tokenizer", "-o", tmp_path / "out")
    assert done.code == 0, done.message
    assert 0 < max(seen) <= 2 * most + 100 < len(row["chosen"])
