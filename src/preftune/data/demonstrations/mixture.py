"""Several datasets of demonstrations as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from preftune.data.demonstrations.dataset import DemonstrationDataset
from preftune.data.formats.apply import LeftOut
from preftune.data.pairs.mixture import share_out
from preftune.data.reading.arrow_tables import dataset_of
from preftune.types import Example

_COLUMNS = ("prompt", "completion", "id", "chat_template_kwargs", "tools", "source")


@dataclass(frozen=True, slots=True)
class MixtureReader:
    """Reads rows that were demonstrations already."""

    needed: tuple[str, ...] = _COLUMNS

    @property
    def facts(self) -> tuple[Any, ...]:
        return ("mixture",)

    def read(self, row: Mapping[str, Any], place: int) -> Example:
        return Example(
            row["prompt"],
            (row["completion"],),
            id=row["id"],
            chat_template_kwargs=row["chat_template_kwargs"] or {},
            tools=row["tools"],
            row=place,
            source=row["source"],
        )


def mix_demonstrations(
    parts: Sequence[DemonstrationDataset], proportions: Sequence[float | None], *, seed: int = 0
) -> DemonstrationDataset:
    """First the rows of the first dataset, then those of the second, ...; training shuffles them.

    Args:
        proportions: one per part, relative to each other; all None for all rows; see `mixture.share_out`.
        seed: of the draw.
    Raises:
        DatasetError: a row that holds no demonstration, of those that are taken.
    """
    if len(parts) == 1:
        return parts[0]
    chosen = share_out([len(part) for part in parts], proportions, seed=seed)
    taken = [part.select(rows) for part, rows in zip(parts, chosen, strict=True)]
    name = " + ".join(part.name for part in parts)

    def rows() -> Iterator[Mapping[str, Any]]:
        for part in taken:
            for made in part:
                yield {
                    "prompt": made.prompt,
                    "completion": made.completion,
                    "id": made.id,
                    "chat_template_kwargs": dict(made.chat_template_kwargs) or None,
                    "tools": None if made.tools is None else list(made.tools),
                    "source": made.source or part.name,
                }

    table = dataset_of(rows, name)
    total = sum(map(len, chosen))
    notes = [note for part in parts for note in part.notes]
    notes += [
        f"{part.name}: {len(rows):,} of {len(part):,} rows are in the mixture ({len(rows) / total:.0%} of it)."
        for part, rows in zip(parts, chosen, strict=True)
    ]
    left: dict[str, LeftOut] = {}
    for part in parts:
        for reason, out in part.left.items():
            whole = left.setdefault(reason, LeftOut())
            whole.count += out.count
            whole.rows += out.rows[: 5 - len(whole.rows)]
    return DemonstrationDataset(
        table, MixtureReader(), name=name, places=np.arange(total, dtype=np.int64), notes=notes, left=left
    )
