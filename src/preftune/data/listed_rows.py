"""A list of rows with the few methods of `datasets.Dataset` that pairs are made with: for environments without it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from preftune.errors import DatasetError


class ListedRows:
    """Rows of a list, which may differ in their keys; a key that a row lacks is None there."""

    split = None

    def __init__(self, rows: Sequence[Mapping[str, Any]], column_names: Sequence[str] | None = None) -> None:
        self._rows = rows
        found = dict.fromkeys(str(key) for row in rows for key in row) if column_names is None else column_names
        self.column_names = list(found)

    @property
    def features(self) -> dict[str, Any]:
        """Each column's name, and a value of it in place of its type."""
        return {name: next(iter(self._values(name)), None) for name in self.column_names}

    @property
    def mappings(self) -> Sequence[Mapping[str, Any]]:
        """The rows as they came."""
        return self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: self._rows[index].get(name) for name in self.column_names}

    def with_format(self, kind: str | None) -> ListedRows:
        """Itself: there is only one format."""
        return self

    def select_columns(self, names: Sequence[str]) -> ListedRows:
        return ListedRows(self._rows, names)

    def select(self, indices: Iterable[Any]) -> ListedRows:
        return ListedRows([self._rows[int(index)] for index in indices], self.column_names)

    def iter(self, batch_size: int) -> Iterator[dict[str, list[Any]]]:
        for start in range(0, len(self), batch_size):
            part = self._rows[start : start + batch_size]
            yield {name: [row.get(name) for row in part] for name in self.column_names}

    def nulls(self, column: str) -> list[int]:
        """The rows that have nothing in a column."""
        return [number for number, row in enumerate(self._rows) if row.get(column) is None]

    def _values(self, column: str) -> Iterator[Any]:
        return (row[column] for row in self._rows if row.get(column) is not None)


def listed_rows(source: Any, *, split: str, name: str) -> ListedRows:
    """The rows of a list of dicts where the package datasets is not installed.

    Raises:
        DatasetError: the source is something else, or a part of it is asked for: that takes the package.
    """
    rows = list(source) if isinstance(source, Sequence) and not isinstance(source, str | bytes) else None
    if rows is None or split != "train" or not all(isinstance(row, Mapping) for row in rows):
        raise DatasetError(
            f"{name} cannot be read: the package datasets is not installed, and without it data are a list of dicts. "
            "Install it (pip install datasets), or pass such a list."
        )
    return ListedRows(rows)
