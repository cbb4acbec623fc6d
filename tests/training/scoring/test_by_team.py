"""The batches of reference scores on workers, with a team that returns nothing before it has every block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from preftune.data import GroupDataset
from preftune.reference import completion_keys
from preftune.training.scoring.by_team import Address, score_on_team
from preftune.types import Preference, TokenizedGroup


class Team:
    """Scores every completion with zeros."""

    def __init__(self, *, at_once: bool) -> None:
        self._at_once = at_once
        self.batches: list[list[str]] = []

    def compute(self, blocks: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        for number, block in enumerate(list(blocks) if self._at_once else blocks):
            self.batches += [[group.id for group in batch] for batch in block]
            groups = [group for batch in block for group in batch]
            keys = [key for one in groups for key in completion_keys(one.prompt_ids, one.completions, one.scored)]
            address = Address("f" * 16, "n" * 16, (), "a model")
            yield number, (address, dict.fromkeys(keys, np.zeros(1, np.float32)))

    def close(self) -> None:
        pass


def group_of(row: int) -> TokenizedGroup:
    number = row % 40 if row % 3 == 0 else row
    return TokenizedGroup([1, 10 + number], ([2], [3]), (Preference(0, 1),), id=str(number))


def test_rows_that_repeat_are_sent_once_while_workers_have_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [GroupDataset.from_groups([group_of(row) for row in rows]) for rows in (range(700), range(100, 900))]
    args: Any = SimpleNamespace(precompute_ref_batch_size=2, per_device_eval_batch_size=1, loss_type="sigmoid")
    teams = Team(at_once=False), Team(at_once=True)
    for team in teams:
        monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / str(team._at_once)))
        scored = score_on_team(team, data, args)
        assert scored.rows == 1500
    ids = [one for batch in teams[1].batches for one in batch]
    assert len(set(ids)) == len({group.id for part in data for group in part})
    assert teams[0].batches == teams[1].batches
