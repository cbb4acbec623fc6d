"""Writes a report in one of its forms: one page, one text, or a folder of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from preftune.errors import RequestError
from preftune.log import warn
from preftune.report.reading.run_files import Run
from preftune.report.reading.seeds import Seeds, read_runs
from preftune.storage.atomic import sweep_beside, write_whole
from preftune.storage.untrusted_json import Figures

Form: TypeAlias = Literal["html", "md", "png"]
FORMS: tuple[Form, ...] = get_args(Form)


def write_report(
    folders: Sequence[str | Path],
    *,
    output: str | Path | None = None,
    form: Form = "html",
    audit: Figures | None = None,
) -> Path:
    """Reads runs and writes their report.

    Args:
        folders: run directories; several are shown side by side. A folder of several seeds stands for its runs, with
            the verdict over all of them.
        output: the file, for pictures the folder; by default `default_output`.
        audit: what `preftune audit` wrote about their data (audit.json); only for the page.
    Returns: what was written: the file, or the folder of pictures.
    Raises:
        RequestError: a folder holds no run, or the output cannot be written.
    """
    runs, seeds = read_runs(folders)
    path = Path(output).expanduser() if output is not None else default_output(folders, form)
    for file, content in _content(runs, seeds, path, form, audit):
        _write(file, content)
    return path


def default_output(folders: Sequence[str | Path], form: Form) -> Path:
    """Inside a single run; for several runs inside the folder above the first."""
    first = Path(folders[0]).expanduser()
    place = first if len(folders) == 1 else first.resolve().parent
    return place / {"html": "report.html", "md": "report.md", "png": "plots"}[form]


def _content(
    runs: Sequence[Run], seeds: Seeds | None, path: Path, form: Form, audit: Figures | None
) -> list[tuple[Path, bytes]]:
    if form == "html":
        from preftune.report.run.page import run_page

        return [(path, run_page(runs, audit=audit, seeds=seeds).encode("utf-8", "replace"))]
    if form == "md":
        from preftune.report.markdown import markdown_report

        return [(path, markdown_report(runs, seeds=seeds).encode("utf-8", "replace"))]
    from preftune.report.png import pictures

    drawn = [(path / f"{name}.png", picture) for name, picture in pictures(runs)]
    if not drawn:
        names = ", ".join(str(run.folder) for run in runs)
        raise RequestError(f"{names}: there is nothing to draw (no metrics.jsonl, no evaluation). Train or evaluate.")
    return drawn


def _write(path: Path, content: bytes) -> None:
    try:
        sweep_beside(path)
        write_whole(path, content)
    except OSError as error:
        raise RequestError(
            f"The report cannot be written to {path} ({error.strerror or error}). Name a file that you can write to: "
            "-o FILE."
        ) from error


def report_at_end(folder: str | Path) -> Path | None:
    """Writes the page of a run that has just ended; a failure is a warning.

    Returns: the page, or None.
    """
    try:
        return write_report([folder])
    except Exception as error:  # a report is worth less than the run that it is about
        reason = " ".join(str(error).split()) or type(error).__name__
        warn(
            f"the report could not be written ({reason[:300]}); the run itself is complete. Try: preftune report "
            f"{folder}"
        )
        return None
