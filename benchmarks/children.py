"""Starts measured runs in processes of their own, one after the other: nothing of one run is in another's memory."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class ChildError(RuntimeError):
    """A measured run did not end well; the message has the end of what it said."""


def timed_run(library: str, *, cache: Path, **options: Any) -> dict[str, Any]:
    """Run `timed_run.py` and return what it measured.

    Args:
        cache: preftune's cache folder in that run. An empty one measures a first run, the same one again a second run.
        options: its flags with underscores; True for those without a value, False and None for not given.
    Raises: ChildError.
    """
    words: list[str] = [library]
    for name, value in options.items():
        if value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    result = json_of("timed_run.py", words, {"PREFTUNE_CACHE": str(cache)})
    if not all(math.isfinite(loss) for loss in result["losses"]):
        raise ChildError(f"timed_run.py {' '.join(words)}: the losses are {result['losses']}")
    return result


def in_turn(
    kinds: Iterable[str], repeats: int, run: Callable[[str, int], dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Run every kind once, then every kind again (A B A B), so that a machine that changes meanwhile changes for all.

    Args:
        run: gets the kind and the number of the repeat.
    """
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for repeat in range(repeats):
        for kind, made in runs.items():
            made.append(run(kind, repeat))
    return runs


def matrix_rate(dtype: str, device: str) -> dict[str, Any]:
    """Run `matrix_rate.py` and return what it measured."""
    return json_of("matrix_rate.py", ["--dtype", dtype, "--device", device], {})


@contextmanager
def rows_in_file(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[Path, Path]]:
    """A file with the rows for all runs of a case, and a folder for their caches; both go at the end."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        yield file, Path(folder)


def json_of(script: str, words: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run a script of this folder and return the JSON of its last line. Raises: ChildError."""
    command = [sys.executable, str(HERE / script), *words]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        cause = f"signal {-done.returncode} (9: out of memory?)" if done.returncode < 0 else f"exit {done.returncode}"
        raise ChildError(f"{script} {' '.join(words)}: {cause}\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
