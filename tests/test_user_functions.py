"""Functions of the user, by the name of a module or the path of a file; the message blames what is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from preftune.errors import ConfigError, RequestError
from preftune.judges.registry import load_judge
from preftune.training.online.scoring import as_spec
from preftune.user_functions import load_function

RULES = """\
import helper_next_to_a_rule
def f(prompt, a, b, row): return helper_next_to_a_rule.ANSWER
async def waits(prompt, a, b, row): return "a"
class Fails:
    def __init__(self): raise OSError("no disk")
    def __call__(self, prompt, a, b, row): return "a"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "rules_by_path.py").write_text(RULES)
    (tmp_path / "sub" / "helper_next_to_a_rule.py").write_text("ANSWER = 'b'\n")
    (tmp_path / "sub" / "broken_by_path.py").write_text("None + 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return tmp_path


@pytest.mark.parametrize("place", ["sub/rules_by_path.py", "./sub/rules_by_path.py", "./sub/rules_by_path", "ABSOLUTE"])
def test_a_file_is_named_by_its_path(place: str, folder: Path) -> None:
    """`rule:./my.py:f` blamed the user's module and advised `python -c 'import ./my.py'`."""
    path = place.replace("ABSOLUTE", str(folder / "sub" / "rules_by_path.py"))
    before = list(sys.path)
    assert load_judge(f"rule:{path}:f")("q", "x", "y", {}) == "b"
    assert load_judge(f"rule:{path}:f") is load_judge(f"rule:{path}:f")  # the file runs once
    assert sys.path == before
    assert as_spec(f"rule:{path}:f") == f"rule:{path}:f"


@pytest.mark.parametrize(
    ("place", "name", "words"),
    [
        ("nowhere.py", "f", "--rule x: there is no file nowhere.py .looked in "),
        ("./nowhere", "f", "there is no file nowhere.py"),
        (
            "sub/broken_by_path.py",
            "f",
            "running sub/broken_by_path.py ended in TypeError: .*Correct that file: python sub",
        ),
        ("sub/rules_by_path.py", "g", r"sub/rules_by_path.py has no 'g' \(it has: f, waits, Fails\)"),
        ("sub/rules_by_path.py", "waits", "waits is an async function"),
        ("sub/rules_by_path.py", "Fails", r"Fails\(\) ended in OSError: no disk. Correct the class Fails"),
        ("no_such_module", "f", r"give the path of the file \(FOLDER/no_such_module.py:FUNCTION\)"),
    ],
)
def test_what_cannot_be_had(place: str, name: str, words: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        load_function(place, name, asked="--rule x", error=ConfigError)


def test_a_file_without_a_function_is_told_the_form(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"rule:my_rules.py:prefer_polite"):
        load_judge("rule:sub/rules_by_path.py")
