"""A printed command means in a shell what was meant, and shows no control character."""

from __future__ import annotations

import subprocess

import pytest

from preftune.cli.flags.messages import tell
from preftune.shell_words import command_line, path_word, word

TEXTS = [
    "plain",
    "with space",
    "it's",
    'a"b',
    "back\\slash",
    "new\nline",
    "ti ny\x1b[31m",
    "pä irs\u202e",
    "\x7f'\\",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_word_is_read_back_by_bash(text: str) -> None:
    """ESC in the name of a folder reached the terminal with "Talk to it: ..."."""
    assert word(text).isprintable()
    env = {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"}
    said = subprocess.run(["bash", "-c", f"printf %s {word(text)}"], capture_output=True, check=True, env=env)
    assert said.stdout.decode() == text


@pytest.mark.parametrize(
    ("path", "printed"),
    [
        ("-out", "./-out"),
        ("-my out", "'./-my out'"),
        ("-", "-"),
        ("runs/-out", "runs/-out"),
        ("some/model", "some/model"),
    ],
)
def test_a_path_is_no_flag(path: str, printed: str) -> None:
    """`preftune chat --model -out` ended in argparse."""
    assert path_word(path) == printed


def test_the_words_of_a_user_stay_as_they_are() -> None:
    assert command_line(["preftune", "dpo", "--output_dir=-out", "a b"]) == "preftune dpo --output_dir=-out 'a b'"


def test_lines_of_a_result_have_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    tell("The model is in ti\x1b[31mny.\n\x1b]0;title\x07Second line")
    assert capsys.readouterr().out == "The model is in tiny.\nSecond line\n"
