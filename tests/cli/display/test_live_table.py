"""The table on a terminal: what it shows, how it fits, what is left of the terminal afterwards."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from preftune.cli.display.live_table import LiveTable, is_terminal
from preftune.cli.display.progress import ShownProgress

TRAINED = {
    "loss": 0.3214, "rewards/margins": 1.234, "rewards/accuracies": 0.875, "tokens_per_second": 1234.0,
    "learning_rate": 5e-6,
}  # fmt: skip
HELD_OUT = {"eval_loss": 0.4321, "eval_rewards/margins": 0.987, "eval_rewards/accuracies": 0.8125}


def shown(width: int, height: int = 24, *, steps: int = 12) -> list[str]:
    """The lines of a table after some steps."""
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    table = LiveTable(1200, console=console)
    for step in range(1, steps + 1):
        table.advance(step)
        table.log(step, TRAINED)
        table.log(step, {"guard/kl_per_token": 0.012})
    table.log(steps, HELD_OUT)
    table.alarm("alarm at step 9, repetition: 22% of the words\nare repeated.")
    console.print(table.render())
    return console.file.getvalue().rstrip("\n").split("\n")


def test_everything_that_is_asked_for() -> None:
    text = "\n".join(shown(120))
    for words in (
        "0.3214", "1.234", "87.5%", "0.012", "1,234", "5.0e-06", "12/1,200", " left", "held out, step 12: loss 0.4321",
        "margin 0.987, accuracy 81.2%", "alarm at step 9, repetition: 22% of the words are repeated.",
    ):  # fmt: skip
        assert words in text, words
    assert text.count("0.3214") == 8


def test_reward_and_kl_of_a_run_on_fresh_answers() -> None:
    """The columns are those that the run has numbers for."""
    console = Console(file=io.StringIO(), width=60, height=24, force_terminal=True, color_system=None)
    table = LiveTable(64, console=console)
    logs = {"loss": 0.1, "objective/scores": 1.2345, "objective/kl": 3.21, "completions/mean_length": 17.4}
    for step in (16, 32):
        table.advance(step)
        table.log(step, logs)
    console.print(table.render())
    header, *rows = [line.split() for line in console.file.getvalue().split("\n") if "16" in line or "step" in line]
    assert header == ["step", "loss", "reward", "KL", "length"]
    assert rows[0] == ["16", "0.1000", "1.234", "3.21", "17"]


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 200])
@pytest.mark.parametrize("height", [8, 24])
def test_it_fits(width: int, height: int) -> None:
    lines = shown(width, height)
    assert max(map(len, lines)) <= width
    assert len(lines) <= height
    assert any("0.3214" in line for line in lines)


def test_named_held_out_sets() -> None:
    console = Console(file=io.StringIO(), width=100)
    table = LiveTable(10, console=console)
    table.log(5, {"eval_hard_loss": 0.5, "eval_hard_rewards/margins": 2.5, "eval_hard_rewards/accuracies": 0.75})
    console.print(table.render())
    assert "held out, step 5: loss 0.5000, margin 2.500, accuracy 75.0%" in console.file.getvalue()


def test_time_left_follows_the_last_steps(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    table = LiveTable(100, first=50, console=Console(file=io.StringIO()))
    assert table.seconds_left() is None
    for step in range(51, 61):
        now[0] += 2.0
        table.advance(step)
    assert table.seconds_left() == pytest.approx(80.0)


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("CI", "true")])
def test_plain_lines_where_a_table_cannot_move(monkeypatch, name: str, value: str) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert is_terminal()
    monkeypatch.setenv(name, value)
    assert not is_terminal()


PROGRAM = """
import sys, time
from preftune.cli.display.live_table import LiveTable
from preftune.log import say, warn
table = LiveTable(4)
table.start()
try:
    for step in range(1, 5):
        table.advance(step)
        table.log(step, {"loss": 0.1 * step, "rewards/margins": 1.0})
        say(f"a fact at {step}")
        print("printed at", step)
        time.sleep(0.05)
    print("waiting", flush=True)
    while len(sys.argv) > 1:
        time.sleep(0.05)
finally:
    table.close()
print("after")
"""


def on_its_terminal() -> None:
    """In the child: its own terminal, and Ctrl-C as a shell gives it (a suite in the background ignores it)."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("interrupt", [False, True])
def test_on_a_real_terminal(interrupt: bool) -> None:
    """Messages stand above the table in whole lines; the cursor comes back, after Ctrl-C too."""
    main, second = pty.openpty()
    fcntl.ioctl(second, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    for name in ("CI", "COLUMNS", "LINES", "NO_COLOR"):
        environment.pop(name, None)
    words = [sys.executable, "-c", PROGRAM, *(["wait"] if interrupt else [])]
    process = subprocess.Popen(
        words, stdin=second, stdout=second, stderr=second, env=environment, start_new_session=True,
        preexec_fn=on_its_terminal,
    )  # fmt: skip
    os.close(second)
    said = b""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if not select.select([main], [], [], 1)[0]:
            continue
        try:
            part = os.read(main, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        said += part
        if interrupt and b"waiting" in said:
            interrupt = False
            os.write(main, b"\x03")
    process.wait(timeout=60)
    os.close(main)
    text = said.decode()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is shown again
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "\n")
    lines = [line.rstrip() for line in plain.split("\n")]
    for step in range(1, 5):
        assert f"preftune: a fact at {step}" in lines
        assert f"printed at {step}" in lines
    assert "4/4" in plain[plain.rindex("0.4000") :]
    assert (process.returncode == 0) == ("after" in lines)


def test_a_reader_that_has_gone_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """`preftune dpo ... | head -2`: training goes on, unread."""

    class Gone(io.StringIO):
        lines = 0

        def write(self, text: str) -> int:
            Gone.lines += 1
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Gone())
    progress, state = ShownProgress(), SimpleNamespace(is_world_process_zero=True, global_step=1, max_steps=9)
    for _ in range(2):
        progress.on_log(None, state, None, logs=TRAINED)
    assert Gone.lines == 1
