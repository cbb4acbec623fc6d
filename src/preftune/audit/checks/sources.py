"""The sources of the rows: counts of the values of columns such as source, topic or category."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from preftune.audit.checks.check import Check
from preftune.audit.finding import Finding, Kind, Rows

NAMES = frozenset(
    "source sources dataset subset topic category subcategory domain task task_type language lang origin "
    "type skill model models".split()
)
"""Names of columns, or of keys in a column of metadata, that give the source of a row."""

_SHOWN = 20
_DIFFERENT = 1000
"""Number of values above which a column identifies rows rather than sources."""
_SHARE = 0.9

ONE_SOURCE = Kind(
    "one_source",
    "info",
    "Nearly all pairs come from one source",
    "The others hardly count: the model learns the preferences of this source.",
    "Take a sample of each: preftune convert --source NAME --sample N.",
)


class SourcesCheck(Check):
    """Counts the pairs of each value of these columns."""

    kinds = (ONE_SOURCE,)
    section = "sources"

    @cached_property
    def counts(self) -> dict[str, Counter[str]]:
        return dict(self._read())

    def _read(self) -> Iterator[tuple[str, Counter[str]]]:
        pairs = self.setting.data.pairs
        if pairs is None:
            return
        numbers = pairs.numbers
        weights = None if numbers is None else np.bincount(numbers, minlength=len(pairs.raw))
        raw = pairs.raw.with_format(None)
        first = raw[0]
        for column in pairs.raw.column_names:
            if column.lower() in NAMES:
                yield from _useful(column, self._count(raw, column, None, weights))
            elif isinstance(first[column], Mapping):
                for key in [key for key in first[column] if str(key).lower() in NAMES]:
                    yield from _useful(f"{column}.{key}", self._count(raw, column, key, weights))

    def _count(self, raw: Any, column: str, key: str | None, weights: Any) -> Counter[str]:
        counts: Counter[str] = Counter()
        row = 0
        for table in raw.select_columns([column]).iter(batch_size=10_000):
            for value in table[column]:
                if key is not None:
                    value = value.get(key) if isinstance(value, Mapping) else None
                weight = 1 if weights is None else int(weights[row])
                row += 1
                if weight and not isinstance(value, Mapping | list):
                    counts["(none)" if value is None else str(value)[:80]] += weight
            if len(counts) > _DIFFERENT:
                return Counter()
        return counts

    def findings(self, pairs: int) -> Iterator[Finding]:
        for column, counts in self.counts.items():
            (value, most), total = counts.most_common(1)[0], counts.total()
            if len(counts) > 1 and most >= _SHARE * total:
                detail = f"{value!r} in column {column!r} has {most / total:.0%} of the pairs."
                yield from ONE_SOURCE.found(Rows(most), of=total, detail=detail)

    def figures(self) -> Mapping[str, Any]:
        return {
            column: {
                "different": len(counts),
                "counts": dict(counts.most_common(_SHOWN)),
                "others": counts.total() - sum(count for _, count in counts.most_common(_SHOWN)),
            }
            for column, counts in self.counts.items()
        }


def _useful(name: str, counts: Counter[str]) -> Iterator[tuple[str, Counter[str]]]:
    """Yields a column that names sources: one value for all rows, or each value at least twice on average."""
    if counts and set(counts) != {"(none)"} and (len(counts) == 1 or counts.total() >= 2 * len(counts)):
        yield name, counts
