"""`preftune demo`: the whole path on an embedded model and dataset."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from preftune.cli.display.terminal import console as fitting_console
from preftune.cli.flags.plain_parser import PlainParser
from preftune.log import printable
from preftune.shell_words import path_word

if TYPE_CHECKING:
    from pathlib import Path

    from preftune.cli.display.progress import ShownProgress
    from preftune.demo.run import DemoResult, DemoSettings

SHOWN = 5
"""Prompts in the table of answers."""


def run(argv: Sequence[str]) -> int:
    """Runs `preftune demo` and returns its exit code: 0 when it finishes, independent of the verdict."""
    asked = _parser().read(argv)

    from preftune.cli.display.progress import show_progress
    from preftune.demo.run import DemoSettings, run_demo
    from preftune.report.write import report_at_end
    from preftune.storage.run_lock import locked

    began = time.perf_counter()
    given = {name: value for name, value in vars(asked).items() if value is not None}
    write_page = given.pop("report")
    settings = DemoSettings(**given)
    shown: list[ShownProgress] = []
    say = partial(print, flush=True)
    try:
        with locked(settings.output, another="--output FOLDER"):
            result = run_demo(settings, say=say, prepare=lambda trainer: shown.append(show_progress(trainer)))
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(
            f"Stopped. {settings.output} keeps the files written so far; preftune demo starts again, and reuses the "
            "reference scores and the converted model from the cache."
        ) from stop
    finally:
        for progress in shown:
            progress.close()
    page = report_at_end(settings.output) if write_page else None
    _show(result, settings, seconds=time.perf_counter() - began, page=page)
    return 0


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="preftune demo",
        description="Align SmolLM2-135M-Instruct with pairs that ship with preftune, by SFT and then DPO, and measure "
        "on held-out prompts whether it got better. This takes a few minutes on two CPU cores and needs no network "
        "once installed.",
    )
    parser.add_argument(
        "--output", "--output_dir", dest="output", metavar="FOLDER", help="folder of the results (runs/demo)"
    )
    parser.add_argument("--model", metavar="NAME", help="another chat model, a path or hub id")
    parser.add_argument(
        "--seed", type=int, help="seed of the order of the pairs and of the adapter's initial weights (0)"
    )
    parser.add_argument("--learning_rate", type=float, help="of DPO (3e-5)")
    parser.add_argument("--sft_learning_rate", type=float, help="of SFT (5e-5)")
    parser.add_argument("--max_pairs", type=int, help="number of the 256 pairs to train on, over all topics (128)")
    parser.add_argument("--max_prompts", type=int, help="number of held-out prompts to evaluate on (64)")
    parser.add_argument("--max_new_tokens", type=int, help="longest answer")
    parser.add_argument("--batch_size", type=int, help="pairs per step (8)")
    parser.add_argument("--report", action="store_true", default=True, help="write report.html at the end")
    parser.add_argument("--no_report", dest="report", action="store_false", help="write no report.html")
    return parser


def _show(result: DemoResult, settings: DemoSettings, *, seconds: float, page: Path | None) -> None:
    from preftune.demo.pairs import spread
    from preftune.demo.table import answers_table, results_table

    console = fitting_console()
    console.print()
    console.print(answers_table(spread(result.answered, SHOWN), result.prompts))
    console.print()
    console.print(results_table(result))
    place = path_word(settings.output)
    parts = ", ".join(f"{name} {value:.0f} s" for name, value in result.seconds.items())
    console.print(f"\nDone in {seconds:.0f} s ({parts}).", highlight=False)
    console.print(f"All answers:  {place}/eval/generations.jsonl", highlight=False, soft_wrap=True)
    if page is not None:
        console.print(f"The report:   {printable(str(page))}", highlight=False, soft_wrap=True)
    console.print(f"SFT alone:    {place}/sft", highlight=False, soft_wrap=True)
    console.print(f"Talk to both: preftune chat --model {place}", highlight=False, soft_wrap=True)
