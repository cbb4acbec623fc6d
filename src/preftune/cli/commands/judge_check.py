"""`preftune judge-check`: measures how often a judge agrees with people."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.cli.display.terminal import console as fitting_console
from preftune.cli.flags.arguments import column_names
from preftune.cli.flags.judge_flags import (
    JUDGE_FORMS,
    add_judge_options,
    check_judge,
    echo_cost,
    open_asked_judge,
)
from preftune.cli.flags.messages import echo, tell
from preftune.cli.flags.model_flags import add_endpoint_options, conduct_and_budget
from preftune.cli.flags.plain_parser import PlainParser
from preftune.errors import RequestError

if TYPE_CHECKING:
    from preftune.judges.people.agreement import Agreement, Judged, Rate
    from preftune.judges.people.labels import HumanLabels

_NARROW = 76
"""Width in columns below which a terminal gets lines instead of a table."""
_EXAMPLES = 50
"""Number of disagreements that are written to the file."""


def run(argv: Sequence[str]) -> int:
    """Runs `preftune judge-check` and returns its exit code."""
    asked = _parser().read(argv)
    _check(asked)

    from preftune.judges.people.agreement import agreement, judge_labels, questions_of
    from preftune.judges.people.labels import load_labels
    from preftune.progress import Counting

    labels = load_labels(
        asked.data,
        split=asked.split,
        columns=column_names(asked.columns),
        format=asked.format,
        limit=asked.limit,
        seed=asked.seed,
        thoughts=bool(asked.judge_thoughts),
    )
    for note in labels.notes:
        echo(f"preftune: {note}")
    try:
        with ExitStack() as opened:
            conduct, budget = conduct_and_budget(asked, opened)
            judge = open_asked_judge(asked, opened, conduct=conduct, budget=budget)
            again = bool(asked.ask_again)
            what = "each pair of answers, in both orders"
            echo_cost(judge, questions_of(labels.labels, judge.judge), again=again, what=what)
            progress = opened.enter_context(Counting("judging", unit="verdicts"))
            judged = judge_labels(labels.labels, judge.judge, again=again, progress=progress)
            found = agreement(judged, judge.judge, confidence=asked.confidence, seed=asked.seed)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "Stopped. The verdicts received so far are kept; the same command continues from there."
        ) from None
    _show(found)
    if asked.output:
        _write(Path(asked.output), asked, labels, judged, found)
    return 0


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="preftune judge-check",
        description="Compare a judge with people's judgements: agreement, position bias, length bias. Verdicts of "
        "models and endpoints are kept on disk, so a second check costs nothing.",
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        help="pairs labelled by people (a path, a hub id, or -), or rows with prompt, answer_a, answer_b, label",
    )
    parser.add_argument("--judge", required=True, help=JUDGE_FORMS)
    parser.add_argument("-o", "--output", metavar="FILE", help="file for all figures and the disagreements, as JSON")
    parser.add_argument("--limit", type=int, metavar="N", help="check only N judgements, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="seed of that draw and of the bootstrap (0)")
    parser.add_argument("--confidence", type=float, default=0.95, help="confidence level of the intervals (0.95)")
    parser.add_argument("--columns", nargs="+", default=[], metavar="C=YOURS", help="renames: chosen=good rejected=bad")
    parser.add_argument("--format", metavar="NAME", help="format of the data, if it cannot be recognised")
    parser.add_argument("--split", default="train", help="split of the data; slices work: train[:1000]")
    add_judge_options(parser)
    add_endpoint_options(parser)
    return parser


def _check(asked: argparse.Namespace) -> None:
    if asked.output and Path(asked.output).is_dir():
        raise RequestError(f"-o {asked.output} is a folder. Name a file in it, such as judge.json.")
    if not 0 < asked.confidence < 1:
        raise RequestError(f"--confidence {asked.confidence:g} is not between 0 and 1. 0.95 is usual.")
    check_judge(asked, asked.judge)


def _rows(found: Agreement) -> list[tuple[str, Rate | float | None]]:
    return [
        ("agreement with people (ties half)", found.agreement),
        ("  where neither says tie", found.decided),
        ("  where people prefer the longer", found.on_longer),
        ("  where people prefer the shorter", found.on_shorter),
        ("taking the longer answer agrees", found.longer_rule),
        ("two people agree", found.two_people),
        ("annotators agree with the label", found.person_and_label),
        ("kappa", found.kappa),
        ("says tie", found.judge_ties),
        ("people say tie", found.human_ties),
        ("takes the longer answer", found.judge_longer),
        ("people take the longer answer", found.human_longer),
        ("contradicts itself when swapped", found.contradicted),
        ("tie in one order only", found.wavered),
        ("prefers the first place", found.first_place),
    ]


def _cells(name: str, value: Rate | float) -> tuple[str, str, str, str]:
    if isinstance(value, float):
        return name, f"{value:.1%}", "", ""
    if name == "kappa":
        return name, f"{value.value:.2f}", f"{value.ci_low:.2f} to {value.ci_high:.2f}", f"{value.n:,}"
    return name, f"{value.value:.1%}", f"{value.ci_low:.1%} to {value.ci_high:.1%}", f"{value.n:,}"


def _show(found: Agreement) -> None:
    """A table on a terminal that is wide enough, lines elsewhere."""
    from rich.text import Text

    terminal = sys.stdout.isatty()
    console = fitting_console(highlight=False, markup=False, soft_wrap=not terminal)
    headline, *others = found.sentences()
    console.print(Text(headline, style="bold"))
    console.print()
    cells = [_cells(name, value) for name, value in _rows(found) if value is not None]
    if terminal and console.width >= _NARROW:
        console.print(_table(cells, found.confidence))
    else:
        for name, value, interval, n in cells:
            between = f" ({interval}, n={n})" if interval else ""
            console.print(f"{name.strip()}: {value}{between}")
    console.print()
    for line in others:
        console.print(line)


def _table(cells: Sequence[tuple[str, str, str, str]], confidence: float) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("")
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column(f"{confidence:.0%} interval", justify="right", no_wrap=True)
    table.add_column("of", justify="right", no_wrap=True)
    for row in cells:
        table.add_row(*row)
    return table


def _write(
    path: Path, asked: argparse.Namespace, labels: HumanLabels, judged: Sequence[Judged], found: Agreement
) -> None:
    from preftune.storage.jsonl import prepare_folder, write_json
    from preftune.version import __version__

    wrong = [item for item in judged if item.verdict is not None and item.verdict != item.label.label]
    wrong.sort(key=lambda item: item.verdict == "tie")  # opposite verdicts first, then ties
    prepare_folder(path.parent)
    write_json(
        path,
        {
            "preftune": __version__,
            "data": labels.name,
            "judge": asked.judge,
            "criteria": asked.criteria,
            "limit": asked.limit,
            "seed": asked.seed,
            **found.to_dict(),
            "sentences": found.sentences(),
            "disagreements": [
                {
                    "id": item.label.id,
                    "prompt": item.label.prompt,
                    "answer_a": item.label.answer_a,
                    "answer_b": item.label.answer_b,
                    "people": item.label.label,
                    "judge": item.verdict,
                }
                for item in wrong[:_EXAMPLES]
            ],
            "disagreements_in_all": len(wrong),
        },
    )
    tell(f"All figures and the first {_EXAMPLES} disagreements are in {path}.")
