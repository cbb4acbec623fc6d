"""Sources of a suite's questions: a given path, or the authors' dataset on the hub."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from preftune.data.reading.load import load_table
from preftune.errors import DatasetError, RequestError
from preftune.evaluation.suites.result import Part

Row: TypeAlias = dict[str, Any]


class HubData(NamedTuple):
    """A dataset on the hub: one file of it, or a split."""

    repo: str
    file: str | None = None
    """None loads the split. A file where the repository holds a loading script, which datasets no longer runs."""
    revision: str | None = None
    split: str = "train"


def read_rows(data: str | Path | None, hub: HubData, *, suite: str) -> list[Row]:
    """All rows of a suite's data.

    Args:
        data: a path to a jsonl, json, csv or parquet file, or a hub id; None for the suite's own place on the hub.
    Raises: DatasetError when they cannot be had, with what to do instead.
    """
    if data is not None:
        return load_listed(os.fspath(data))
    if hub.file is not None:
        return load_listed(hub_file(hub, suite=suite))
    try:
        return load_listed(hub.repo, split=hub.split, revision=hub.revision)
    except DatasetError as error:
        raise _not_fetched(hub, suite, error) from error


def load_listed(source: str | Path, **where: Any) -> list[Row]:
    """The rows of a small dataset as a list; `where` goes to `load_table`."""
    rows: Any = load_table(source, **where)
    return [dict(rows[index]) for index in range(len(rows))]


def hub_file(hub: HubData, *, suite: str) -> Path:
    """The file on this machine, downloaded once and kept in the hub's own cache.

    Raises: DatasetError.
    """
    from huggingface_hub import hf_hub_download

    assert hub.file is not None
    try:
        return Path(hf_hub_download(hub.repo, hub.file, repo_type="dataset", revision=hub.revision))
    except Exception as error:  # no network, offline mode, a gate, a server's fault: each a class of its own
        raise _not_fetched(hub, suite, error) from error


def _not_fetched(hub: HubData, suite: str, error: Exception) -> DatasetError:
    return DatasetError(
        f"The data of the suite {suite} could not be fetched from the hub ({hub.repo}: {type(error).__name__}: "
        f"{' '.join(str(error).split())[:160]}). Check the network connection, or give a copy with --suite_data PATH."
    )


def look_at_some(rows: Sequence[Row], limit: int | None) -> tuple[list[Row], Part | None]:
    """At most `limit` rows, evenly spread, so that every category has its share; and how many of how many.

    Raises: RequestError for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise RequestError(f"--limit {limit}: a suite needs at least one question. Give 1 or more, or leave it out.")
    if limit is None or limit >= len(rows):
        return list(rows), None
    return [rows[i * len(rows) // limit] for i in range(limit)], Part(limit, len(rows))


def text_of(row: Mapping[str, Any], names: Sequence[str], *, suite: str, index: int, where: object) -> str:
    """The first of these columns that holds text.

    Raises: DatasetError naming the row and the columns that it has.
    """
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            return value
    raise missing_column(row, names, suite=suite, index=index, where=where)


def missing_column(
    row: Mapping[str, Any], names: Sequence[str], *, suite: str, index: int, where: object
) -> DatasetError:
    """The error for data that are not this suite's."""
    return DatasetError(
        f"Row {index} of {where or 'the data'} has no {' or '.join(map(repr, names))} for the suite {suite} (columns: "
        f"{', '.join(map(repr, row)) or 'none'}). Give the suite's own file with --suite_data, or leave it out to take "
        "it from the hub."
    )
