"""The top level: help without torch, exit codes, one paragraph per error."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from preftune.cli import main as entry
from preftune.cli.main import COMMANDS, main
from preftune.errors import PreftuneError, RequestError
from preftune.version import __version__

HEAVY = ("torch", "transformers", "datasets", "peft", "numpy", "rich", "yaml")


def _fails_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr(entry.importlib, "import_module", lambda name: SimpleNamespace(run=run))


@pytest.mark.parametrize("words", [["--help"], ["--version"], [], ["dpo", "--help"], ["frobnicate"]])
def test_help_and_version_import_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\nfrom preftune.cli.main import main\n"
        f"main({words!r})\nprint([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stderr.strip().splitlines()[-1]
    assert loaded == ("['yaml']" if words[:1] == ["dpo"] else "[]")


def test_help_names_every_command(preftune) -> None:
    result = preftune("--help")
    assert result.code == 0
    assert all(f"  {name} " in result.out for name in COMMANDS)
    assert max(map(len, result.out.splitlines())) <= 110


def test_version(preftune) -> None:
    assert preftune("--version").out == f"preftune {__version__}\n"


def test_no_command_shows_help_and_is_a_wrong_request(preftune) -> None:
    result = preftune()
    assert result.code == 2
    assert "usage" in result.out


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["eval", "--model", "m", "--judge", "shorter", "-o", ""], "--output is empty. Name a folder."),
        (["audit", "d.jsonl", "-o", " "], "--output is empty. Name a folder."),
        (["convert", "d.jsonl", "-o", ""], "--output is empty. Name a file."),
        (["merge", "runs/dpo", "-o", ""], "--output is empty. Name a folder."),
        (["demo", "--output", ""], "--output is empty. Name a folder."),
        (["dpo", "--model", "m", "--data", "d", "--output_dir", ""], "--output_dir is empty. Name a folder."),
        (["dpo", "--model", "m", "--data", "d", "--output-dir=", "--seeds", "0", "1"], "--output-dir is empty."),
        (["dpo", "--model", "m", "--data", ""], "--data is empty. Name a file."),
        (["sft", "--model", "m", "--dataset_name", "d", " "], "--dataset_name is empty. Name a file."),
        (["kto", "--model", "m", "--data", "d", "--eval_dataset_name", ""], "--eval_dataset_name is empty."),
        (["dpo", "--model", "m", "--data", "d", "--resume", ""], "--resume is empty. Give a value, or leave it out."),
        (["dpo", "--config="], "--config is empty. Name a file."),
        (["sample", "--model", "m", "--data", "", "-o", "s.jsonl"], "--data is empty. Name a file."),
        (["audit", ""], "DATA is empty. Name a file."),
        (["audit", "d.jsonl", "--eval="], "--eval is empty. Name a file."),
        (["convert", "", "-o", "o.jsonl"], "DATA is empty. Name a file."),
        (["eval", "--model", "m", "--judge", "shorter", "--prompts="], "--prompts is empty. Name a file."),
        (["compare", "--model", "m", "--data", "", "--judge", "shorter"], "--data is empty. Name a file."),
        (["label", "", "--judge", "shorter", "-o", "o.jsonl"], "SAMPLES is empty. Name a file."),
        (["report", ""], "RUN is empty. Name a folder."),
        (["merge", "", "-o", "o"], "ADAPTER is empty. Name a model."),
        (["convert-recipe", ""], "RECIPE.yaml is empty. Name a file."),
        (["sweep", " "], "RECIPE is empty. Name a file."),
        (["serve", ""], "RUN is empty. Name a folder."),
        (["chat", "--model", ""], "--model is empty. Name a model."),
        (["score", "--model", "m", "--data="], "--data is empty. Name a file."),
        (["plan", "dpo", "--model", "m", "--data", ""], "--data is empty. Name a file."),
    ],
)
def test_an_empty_name_is_not_the_working_directory(
    preftune, words: list[str], flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = preftune(*words)
    assert (result.code, flag in result.message) == (2, True), result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("word", "near"), [("dop", "dpo"), ("merg", "merge"), ("chta", "chat")])
def test_unknown_command_names_the_nearest(preftune, word: str, near: str) -> None:
    result = preftune(word)
    assert result.code == 2
    assert f"Did you mean {near!r}?" in result.err
    assert result.err.count("\n") == 1


def test_option_before_command(preftune) -> None:
    result = preftune("--beta", "0.1", "dpo")
    assert result.code == 2
    assert "the command comes first" in result.err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(preftune, name: str) -> None:
    result = preftune(name, "--help")
    assert result.code == 0
    assert result.out.startswith(f"usage: preftune {name}")


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (RequestError("beta is wrong."), 2, "preftune: beta is wrong."),
        (PreftuneError("It broke."), 1, "preftune: It broke."),
        (RuntimeError("deep\n  inside"), 1, "preftune: RuntimeError: deep inside. Run again with --traceback"),
        (OSError(28, "No space left on device", "/x"), 1, "preftune: No space left on device: /x."),
        (KeyboardInterrupt(), 130, "Stopped."),
        (KeyboardInterrupt("Stopped. x is kept."), 130, "Stopped. x is kept."),
    ],
)
def test_errors_are_one_paragraph(preftune, monkeypatch, error: BaseException, code: int, says: str) -> None:
    _fails_with(monkeypatch, error)
    result = preftune("dpo")
    assert result.code == code
    assert result.err.startswith(says)
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("words", [["--traceback", "dpo"], ["dpo", "--traceback"]])
def test_traceback_anywhere(monkeypatch, words: list[str]) -> None:
    _fails_with(monkeypatch, RequestError("wrong"))
    with pytest.raises(RequestError):
        main(words)


def test_paragraph_is_wrapped_on_a_terminal(monkeypatch, capsys) -> None:
    _fails_with(monkeypatch, RequestError("word " * 40 + "--max_prompt_length"))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    main(["dpo"])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 3
    assert max(map(len, lines)) <= 60
    assert lines[-1].endswith("--max_prompt_length")


@pytest.mark.parametrize("command", ["eval", "convert", "sample", "merge"])
def test_help_fits_a_narrow_terminal(command, monkeypatch, capsys) -> None:
    """Only single words and lists of values, which nothing breaks, may be longer than the line."""
    monkeypatch.setenv("COLUMNS", "40")
    with contextlib.suppress(SystemExit):
        main([command, "--help"])
    page = capsys.readouterr().out.partition("\n\nexamples")[0]
    long = [line for line in page.splitlines() if len(line) > 40 and len(line.split()) > 1]
    assert [line for line in long if not line.startswith("a model behind")] == []
    assert "--" in page
