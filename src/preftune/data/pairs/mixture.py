"""Several datasets as one, whole or in proportions; every pair names the dataset that it came from."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from preftune.data.formats.apply import GOLD, RATINGS, RowCount
from preftune.data.formats.columns import Columns
from preftune.data.pairs.canonical_row import canonical_row
from preftune.data.pairs.dataset import PairDataset
from preftune.data.reading.arrow_tables import dataset_of
from preftune.data.reading.load import display_name
from preftune.data.row_dataset import RowDataset
from preftune.errors import ConfigError, DatasetError

_PROPORTION = re.compile(r"(?P<name>.+):(?P<proportion>[0-9]*\.?[0-9]+%?)")

Named = tuple[Any, float | None]
"""A dataset, and its share of the mixture."""


def is_mixture(source: object) -> bool:
    """Whether this is a list of names or of (name, proportion), and not a list of rows."""
    if not isinstance(source, list | tuple) or not source:
        return False
    return all(isinstance(item, str | os.PathLike | tuple) for item in source)


def parse_sources(sources: Sequence[Any]) -> list[Named]:
    """Parses names with their proportions: "a.jsonl:0.7", ("a.jsonl", 0.7), or "a.jsonl" alone.

    Raises:
        DatasetError: a proportion is not positive, is given for only some datasets, or is given for a single dataset.
    """
    return all_or_none([_parse(source) for source in sources])


def all_or_none(named: list[Named]) -> list[Named]:
    """Returns the datasets unchanged. Raises: DatasetError, if only some have a proportion, or a single dataset has
    one.
    """
    without = [display_name(name) for name, share in named if share is None]
    if without and len(without) < len(named):
        raise DatasetError(
            f"Some of {len(named)} datasets have a proportion, but {without[0]} does not. Give all of them a "
            "proportion (a.jsonl:0.7 b.jsonl:0.3), or none to use all rows."
        )
    name, proportion = named[0] if len(named) == 1 else ("", None)
    if proportion is not None:
        percent = max(1, round(100 * proportion)) if proportion < 1 else 10
        raise DatasetError(
            f"{display_name(name)} is a single dataset and has the proportion {proportion:g}, but proportions are for "
            f"mixtures. Leave it out for all rows; --dataset_train_split 'train[:{percent}%]' takes a part "
            "(--dataset_split or --sample of preftune convert; split= in Python)."
        )
    return named


def check_proportion(name: Any, proportion: object) -> float:
    """A proportion as a number. Raises: DatasetError, if it is not a number above 0."""
    if isinstance(proportion, int | float) and not isinstance(proportion, bool) and 0 < proportion < math.inf:
        return float(proportion)
    raise DatasetError(f"The proportion of {name} is {proportion!r}. Give a number above 0, such as 0.7.")


def _parse(source: Any) -> Named:
    if isinstance(source, tuple):
        name, proportion = source
        return name, check_proportion(name, proportion)
    text = os.fspath(source)
    found = _PROPORTION.fullmatch(text)
    if found is None or Path(text).expanduser().exists():
        return source, None
    number = found["proportion"]
    return found["name"], check_proportion(found["name"], float(number.rstrip("%")) / (100 if "%" in number else 1))


def share_out(lengths: Sequence[int], proportions: Sequence[float | None], *, seed: int) -> list[NDArray[np.int64]]:
    """The rows of each dataset that are in the mixture, in their order.

    Without proportions, all rows are. With them, as many as possible without using a row twice: the dataset that is
    smallest relative to its share is used whole, and the rows of the others are drawn at random.

    Raises:
        ConfigError: a seed below 0.
    """
    check_seed(seed)
    if None in proportions:
        return [np.arange(length) for length in lengths]
    shares = np.asarray(proportions, dtype=np.float64)
    total = min(length / share for length, share in zip(lengths, shares, strict=True))
    chosen = []
    for place, (length, share) in enumerate(zip(lengths, shares, strict=True)):
        count = min(length, max(1, round(total * share)))
        generator = np.random.default_rng([seed, place])
        chosen.append(np.sort(generator.choice(length, count, replace=False)))
    return chosen


Data = TypeVar("Data", bound=RowDataset[Any])


@dataclass(frozen=True, slots=True)
class Mixed(Generic[Data]):
    """Parts of datasets that are read one after the other."""

    taken: list[Data]
    name: str
    notes: list[str]
    left: dict[str, RowCount]
    """Why rows of the parts gave no record; row numbers count in the part."""


def mixed(parts: Sequence[Data], proportions: Sequence[float | None], *, seed: int, rows: str) -> Mixed[Data]:
    """Selects the part of each dataset that is in a mixture; see `share_out`.

    Args:
        rows: name of the rows in notes.
    """
    chosen = share_out([len(part) for part in parts], proportions, seed=seed)
    taken = [part.select(at) if len(at) < len(part) else part for part, at in zip(parts, chosen, strict=True)]
    notes = [note for part in parts for note in part.notes]
    notes += [
        f"{part.name}: {len(at):,} of {len(part):,} {rows} are in the mixture ({len(at) / sum(map(len, chosen)):.0%} "
        "of it)."
        for part, at in zip(parts, chosen, strict=True)
    ]
    left: dict[str, RowCount] = {}
    for part in parts:
        for reason, out in part.left.items():
            whole = left.setdefault(reason, RowCount())
            whole.count += out.count
            whole.rows += out.rows[: 5 - len(whole.rows)]
    return Mixed(taken, " + ".join(part.name for part in parts), notes, left)


def mix_pairs(parts: Sequence[PairDataset], proportions: Sequence[float | None], *, seed: int = 0) -> PairDataset:
    """Makes one dataset of several: the rows of all datasets follow each other in their order; training shuffles them.

    `PreferencePair.row` counts in the mixture, and `source` names the dataset if the row itself names no source;
    `mixture.raw[pair.row]` has the number of the row there as `source_row`.

    Args:
        proportions: one per part, relative to each other; all None for all rows.
        seed: seed of the draw.
    Raises:
        DatasetError: a selected row is not a preference.
    """
    if len(parts) == 1 and proportions == [None]:
        return parts[0]
    mixture = mixed(parts, proportions, seed=seed, rows="pairs")

    def canonical_rows() -> Iterator[Mapping[str, Any]]:
        for part in mixture.taken:
            for attempt in part.attempts():
                if attempt.pair is None:
                    raise DatasetError(attempt.problem)
                yield {
                    **canonical_row(attempt.pair, attempt.strength, attempt.ratings, attempt.gold),
                    "source": attempt.pair.source or part.name,
                    "source_row": attempt.row,
                }

    rows = dataset_of(canonical_rows, mixture.name)
    columns = [column for column in rows.column_names if column not in ("strength", *RATINGS, GOLD, "source_row")]
    return PairDataset(
        rows,
        Columns({column: ((column,),) for column in columns}),
        name=mixture.name,
        notes=mixture.notes,
        scores=("strength",),
        ratings=RATINGS if set(RATINGS) <= set(rows.column_names) else (),
        left=mixture.left,
    )


def check_seed(seed: int) -> None:
    """Raises: ConfigError, for a seed that the generators do not accept."""
    if seed < 0:
        raise ConfigError(f"seed is {seed}; give a whole number of 0 or more, such as 0.")
