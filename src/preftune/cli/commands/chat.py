"""`preftune chat`: talk to a model, side by side with the model that it was trained from."""

from __future__ import annotations

import argparse
import codecs
import io
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from preftune.cli.flags.messages import echo
from preftune.cli.flags.model_flags import (
    ENDPOINT_FLAGS,
    add_endpoint_options,
    add_model_options,
    conduct_and_budget,
    model_options,
    refuse,
)
from preftune.cli.flags.plain_parser import PlainParser
from preftune.errors import RequestError
from preftune.log import printable

if TYPE_CHECKING:
    from preftune.cli.commands.chat_session import RemoteSpeaker, Speaker

WIDE = 100
"""Width of the terminal, in columns, from which two answers are shown side by side."""


def run(argv: Sequence[str]) -> int:
    """Runs `preftune chat` and returns its exit code."""
    asked = _parser().read(argv)
    if asked.temperature < 0 or asked.max_new_tokens < 1:
        raise RequestError(
            "--temperature must be 0 (always the likeliest token) or more, and --max_new_tokens at least 1."
        )

    _check(asked)
    with ExitStack() as opened:
        _chat(asked, opened)
    return 0


def _check(asked: argparse.Namespace) -> None:
    """Raises: RequestError for flags without effect."""
    from preftune.generation.endpoint.client import is_endpoint

    remote = [is_endpoint(name) for name in (asked.model, asked.baseline) if name is not None]
    if all(remote):
        flags = ("base", "dtype", "load_in_4bit", "trust_remote_code")
        refuse(asked, flags, unless="one of the models is on this machine")
    if not any(remote):
        refuse(asked, ENDPOINT_FLAGS, unless="a model is openai:MODEL@BASE_URL")
    refuse(asked, ("concurrency",), unless="several questions are asked at once, as in preftune eval")


def _chat(asked: argparse.Namespace, opened: ExitStack) -> None:
    speakers = _speakers(asked, opened)
    _read_any_bytes()
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if terminal:
        echo(f"Talking to {' and '.join(s.name for s in speakers)}. /reset forgets, /exit or Ctrl-D ends.")
    settings = {"max_new_tokens": asked.max_new_tokens, "temperature": asked.temperature}
    for turn, message in enumerate(_messages(terminal)):
        if message == "/exit":
            break
        if message == "/reset":
            for speaker in speakers:
                speaker.reset()
            continue
        _answer_all(speakers, message, terminal=terminal, seed=asked.seed + turn, **settings)


def _speakers(asked: argparse.Namespace, opened: ExitStack) -> Sequence[Speaker | RemoteSpeaker]:
    """The models of the chat, the baseline first."""
    from preftune.cli.commands.chat_session import RemoteSpeaker, labels, load_speakers
    from preftune.generation.endpoint.client import Endpoint, EndpointName, is_endpoint

    names = [name for name in (asked.baseline, asked.model) if name is not None]
    if not any(map(is_endpoint, names)):
        return load_speakers(asked.model, asked.baseline, system=asked.system, **model_options(asked))
    if asked.model == asked.baseline:
        raise RequestError(
            f"--model and --baseline are both {asked.model}. Name as --baseline the model that it was trained from."
        )
    conduct, budget = conduct_and_budget(asked, opened)

    def speaker(name: str, label: str) -> Speaker | RemoteSpeaker:
        if not is_endpoint(name):
            local = load_speakers(name, None, system=asked.system, **model_options(asked))[-1]
            local.name = label
            return local
        endpoint = opened.enter_context(Endpoint(EndpointName.parse(name), conduct=conduct, budget=budget))
        endpoint.check()
        return RemoteSpeaker(label, endpoint, system=asked.system)

    return [speaker(*pair) for pair in zip(names, labels(*names), strict=True)]


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="preftune chat",
        description="Talk to a model. An adapter is shown next to its base, which is the same loaded model with the "
        "adapter off. One message per line is read, until the end of the input or /exit; /reset clears "
        "the conversation.",
    )
    parser.add_argument(
        "--model",
        "--model_name_or_path",
        dest="model",
        required=True,
        help="a path, a hub id, or openai:MODEL@BASE_URL",
    )
    parser.add_argument("--baseline", help="a second model to answer the same messages")
    parser.add_argument("--system", help="a system prompt for both")
    parser.add_argument("--max_new_tokens", type=int, default=512, help="maximum length of an answer, in tokens (512)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="sampling temperature; 0 always takes the likeliest token (0)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of sampling at a temperature above 0 (0)")
    add_model_options(parser)
    add_endpoint_options(parser)
    return parser


def _read_any_bytes() -> None:
    """Reads and writes UTF-8 where the locale has only ASCII; characters that cannot be read or shown are replaced."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        plain = codecs.lookup(sys.stdin.encoding).name == "ascii"
        sys.stdin.reconfigure(encoding="utf-8" if plain else sys.stdin.encoding, errors="replace")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _messages(terminal: bool) -> Iterator[str]:
    """The user's messages, one per line; empty lines are skipped."""
    if terminal:
        import readline  # noqa: F401  line editing and history for input()
    while True:
        try:
            line = input("> " if terminal else "")
        except EOFError:
            return
        if line.strip():
            yield line.strip()


def _answer_all(speakers: Sequence[Speaker | RemoteSpeaker], message: str, *, terminal: bool, **settings: Any) -> None:
    if not terminal:
        _answer_lines(speakers, message, settings)
    elif len(speakers) > 1 and shutil.get_terminal_size().columns >= WIDE:
        _answer_columns(speakers, message, settings)
    else:
        _answer_stacked(speakers, message, settings)


def _answer_lines(speakers: Sequence[Speaker | RemoteSpeaker], message: str, settings: dict[str, Any]) -> None:
    """Output for pipes: one line per answer; with two models each line begins with the model's name."""
    for speaker in speakers:
        text = " ".join(printable(speaker.answer(message, show=lambda text: None, **settings)).split())
        print(f"{printable(speaker.name)}: {text}" if len(speakers) > 1 else text, flush=True)


def _answer_stacked(speakers: Sequence[Speaker | RemoteSpeaker], message: str, settings: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console()
    for speaker in speakers:
        if len(speakers) > 1:
            console.rule(f"[bold]{printable(speaker.name)}", align="left")
        written = ""

        def show(text: str) -> None:
            nonlocal written
            text = printable(text)
            if text.startswith(written):  # decoding may still change its mind about the last token
                print(text[len(written) :], end="", flush=True)
                written = text

        speaker.answer(message, show=show, **settings)
        print("\n")


def _answer_columns(speakers: Sequence[Speaker | RemoteSpeaker], message: str, settings: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    texts = [""] * len(speakers)

    def columns() -> Table:
        table = Table(expand=True, show_lines=False)
        for speaker in speakers:
            table.add_column(printable(speaker.name), ratio=1, overflow="fold")
        table.add_row(*(Text(printable(text)) for text in texts))
        return table

    console = Console()
    with Live(columns(), console=console, refresh_per_second=12, transient=True) as live:  # cut to the screen's height
        for index, speaker in enumerate(speakers):

            def show(text: str, index: int = index) -> None:
                texts[index] = text
                live.update(columns())

            texts[index] = speaker.answer(message, show=show, **settings)
            live.update(columns(), refresh=True)
    console.print(columns())
