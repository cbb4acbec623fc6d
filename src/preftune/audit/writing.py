"""The files of an audit. Each is replaced in one step, so that a reader never gets a partly written file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preftune.audit.checks.lengths import CutRow
from preftune.audit.run import Audit
from preftune.errors import RequestError
from preftune.storage.atomic import write_whole
from preftune.storage.run_directory import plain


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step.

    Raises:
        RequestError: the file cannot be written.
    """
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise RequestError(
            f"--output {path.parent} cannot be written ({error.strerror or error}). Choose a folder that you can write "
            "to: --output FOLDER."
        ) from error


def write_audit(audit: Audit, folder: Path) -> list[Path]:
    """Write audit.json, and cut.csv if the limits cut rows; otherwise remove the cut.csv of an earlier audit.

    Returns: the paths of the written files.
    Raises: RequestError if the folder cannot be written.
    """
    written = [folder / "audit.json"]
    write_text(written[0], as_text(audit.to_json()))
    table = folder / "cut.csv"
    if audit.cut_rows:
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(CutRow._fields)
        writer.writerows(audit.cut_rows)
        write_text(table, text.getvalue())
        written.append(table)
    else:
        table.unlink(missing_ok=True)
    return written


def as_text(values: Mapping[str, Any]) -> str:
    """The values as JSON; numbers that are not finite become null."""
    return json.dumps(plain(values), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
