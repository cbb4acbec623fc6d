"""Several datasets of demonstrations as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from preftune.data.demonstrations.dataset import DemonstrationDataset
from preftune.data.pairs.mixture import mixed
from preftune.data.reading.arrow_tables import dataset_of
from preftune.errors import DatasetError
from preftune.types import Example

EXAMPLE_COLUMNS = ("prompt", "completion", "id", "chat_template_kwargs", "tools", "source")
"""The columns that `example_row` writes and `example_of` reads."""


def example_row(example: Example) -> dict[str, Any]:
    """Converts an example of one completion to a row."""
    return {
        "prompt": example.prompt,
        "completion": example.completion,
        "id": example.id,
        "chat_template_kwargs": dict(example.chat_template_kwargs) or None,
        "tools": None if example.tools is None else list(example.tools),
        "source": example.source,
    }


def example_of(row: Mapping[str, Any], number: int) -> Example:
    """Converts a row to its example."""
    return Example(
        row["prompt"],
        (row["completion"],),
        id=row["id"],
        chat_template_kwargs=row["chat_template_kwargs"] or {},
        tools=row["tools"],
        row=number,
        source=row["source"],
    )


@dataclass(frozen=True, slots=True)
class MixtureReader:
    """Reads rows that were already read as demonstrations."""

    name: str
    needed: tuple[str, ...] = EXAMPLE_COLUMNS
    facts: tuple[Any, ...] = ("mixture",)

    def as_chat(self) -> MixtureReader:
        raise DatasetError(f"{self.name} is a mixture. Call as_chat() on its parts before they are mixed.")

    def read(self, row: Mapping[str, Any], number: int) -> Example:
        return example_of(row, number)


def mix_demonstrations(
    parts: Sequence[DemonstrationDataset], proportions: Sequence[float | None], *, seed: int = 0
) -> DemonstrationDataset:
    """Concatenates the rows of all datasets, in their order; training shuffles them.

    Args:
        proportions: one per part, relative to each other; all None for all rows; see `mixture.share_out`.
        seed: seed of the draw.
    Raises: DatasetError: a selected row holds no demonstration.
    """
    if len(parts) == 1:
        return parts[0]
    mixture = mixed(parts, proportions, seed=seed, rows="rows")

    def rows() -> Iterator[Mapping[str, Any]]:
        for part in mixture.taken:
            for made in part:
                yield {**example_row(made), "source": made.source or part.name}

    reader, table = MixtureReader(mixture.name), dataset_of(rows, mixture.name)
    return DemonstrationDataset(table, reader, name=mixture.name, notes=mixture.notes, left=mixture.left)
