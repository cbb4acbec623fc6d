"""`preftune report`: one run, or several side by side, as a page, as Markdown, or as pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.cli.flags.messages import tell
from preftune.cli.flags.plain_parser import PlainParser
from preftune.errors import RequestError, did_you_mean

if TYPE_CHECKING:
    from preftune.report.write import Form

PROG = "preftune report"
_ENDINGS: dict[str, Form] = {".html": "html", ".htm": "html", ".md": "md", ".markdown": "md"}


def run(argv: Sequence[str]) -> int:
    """Runs `preftune report` and returns its exit code."""
    asked = _parser().read(argv)
    form = _form(asked.format, asked.output)
    if asked.audit is not None and form != "html":
        raise RequestError("--audit is for the page. Leave it out, or leave --format out.")
    audit = _audit(asked.audit)

    from preftune.report.write import write_report

    if asked.output == "-":
        _print(_text(asked.runs, form, audit))
        return 0
    tell(str(write_report(asked.runs, output=asked.output, form=form, audit=audit)))
    return 0


def _parser() -> PlainParser:
    parser = PlainParser(
        prog=PROG,
        description="Show the result of a run on one page: the verdict, answers before and after, curves, alarms, "
        "data, settings. Several runs are shown side by side, and a folder of several seeds with the verdict over all "
        "of them. Only files of run directories are read.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run directory (--output_dir), or several")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="where to write (default: RUN/report.html, RUN/report.md, RUN/plots/); - prints",
    )
    parser.add_argument(
        "--format",
        metavar="FORM",
        help="html (default), md for a pull request, png for a folder of plots; default: as FILE's ending says",
    )
    parser.add_argument("--audit", metavar="FOLDER", help="output of preftune audit on the data, shown on the page")
    return parser


def _form(asked: str | None, output: str | None) -> Form:
    """Raises: RequestError for an unknown form."""
    from preftune.report.write import FORMS

    if asked is None:
        ending = Path(output).suffix.lower() if output else ""
        if ending == ".png":
            raise RequestError("Plots are a folder of pictures. Name the folder: --format png -o FOLDER.")
        return _ENDINGS.get(ending, "html")
    for form in FORMS:
        if asked.lower() == form:
            return form
    hint = did_you_mean(asked, FORMS, otherwise=f"Known are {', '.join(FORMS)}.")
    raise RequestError(f"--format {asked!r} is not known. {hint}")


def _text(runs: Sequence[str], form: Form, audit: dict[str, Any] | None) -> str:
    from preftune.report.reading.seeds import read_runs

    if form == "png":
        raise RequestError("Pictures cannot be printed. Name a folder: -o FOLDER.")
    read, seeds = read_runs(runs)
    if form == "md":
        from preftune.report.markdown import markdown_report

        return markdown_report(read, seeds=seeds)
    from preftune.report.run.page import run_page

    return run_page(read, audit=audit, seeds=seeds)


def _print(text: str) -> None:
    """Prints in UTF-8, as in a file, independent of the terminal's encoding; lone surrogates become question marks."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    sys.stdout.buffer.flush()


def _audit(place: str | None) -> dict[str, Any] | None:
    """The contents of audit.json. Raises: RequestError."""
    if place is None:
        return None
    path = Path(place).expanduser()
    file = path / "audit.json" if path.is_dir() else path
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not JSON"
        raise RequestError(
            f"--audit {place}: {file} cannot be read ({reason}). Name the output of preftune audit."
        ) from error
    if not isinstance(values, dict) or "findings" not in values:
        raise RequestError(f"--audit {place}: {file} is not an audit. Name the folder that preftune audit wrote (-o).")
    return values
