"""Columns of classes (`datasets.ClassLabel`) hold numbers, which are places in a list of names and depend on its order:
they are read as the names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Names = Mapping[str, Sequence[str]]
"""Column -> the names of its classes."""
_ADDED = " names of classes"


def classes_in(features: Mapping[str, Any] | None) -> Names:
    """The columns of classes among the features of a dataset."""
    from datasets import ClassLabel

    return {column: kind.names for column, kind in (features or {}).items() if isinstance(kind, ClassLabel)}


def named(classes: Names, table: Mapping[str, Sequence[Any]]) -> dict[str, list[str | None]]:
    """The columns of classes in a part of a table, by name; a number below 0 is a missing class."""
    return {
        column: [None if number is None or number < 0 else names[number] for number in table[column]]
        for column, names in classes.items()
    }


def with_class_names(rows: Any) -> Any:
    """A `Dataset` or `IterableDataset` whose columns of classes hold names."""
    from datasets import Dataset, Features, Value

    if not (classes := classes_in(rows.features)):
        return rows
    if not isinstance(rows, Dataset):
        features = Features({**rows.features, **dict.fromkeys(classes, Value("string"))})
        return rows.map(lambda table: named(classes, table), batched=True, features=features)
    columns = rows.column_names
    for column, names in named(classes, rows.with_format(None).select_columns(list(classes))[:]).items():
        added = rows.add_column(_ADDED, names, feature=Value("string"))
        rows = added.remove_columns(column).rename_column(_ADDED, column)
    return rows.select_columns(columns)
