"""Several ranks under the guard: one decides, and nobody waits for a rank whose guard has failed.

That training is the same, and that both ranks end, is tested with real processes in test_traps.py.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from preftune.training.guard import callback
from preftune.training.guard.callback import Guard
from tests.training.dpo_runs import lora_model

from .guard_runs import guarded, pay_for_everything


class Said:
    """The broadcast of a group of two, as the first or the second rank sees it."""

    def __init__(self, word: int | None = None) -> None:
        self.word, self.heard = word, list[int]()

    def broadcast(self, tensor: torch.Tensor, src: int) -> None:
        assert src == 0
        if self.word is not None:
            tensor.fill_(self.word)
        self.heard.append(int(tensor))


class TwoRanks(Guard):
    """A guard that takes a run of one process for that of two."""

    rank = 0

    def _first(self) -> bool:
        return self.rank == 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_end(SimpleNamespace(world_size=2), state, control, **kwargs)

    def _sum_over_ranks(self, sums: torch.Tensor) -> torch.Tensor:
        return 2 * sums

    def _broadcast(self, word: int) -> int:
        said = torch.tensor(word)
        torch.distributed.broadcast(said, src=0)
        return int(said)


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(callback, "Guard", TwoRanks)
    pay_for_everything(monkeypatch)

    def as_rank(rank: int, word: int | None = None) -> Said:
        said = Said(word)
        monkeypatch.setattr(TwoRanks, "rank", rank)
        monkeypatch.setattr(torch.distributed, "broadcast", said.broadcast)
        return said

    return as_rank


def test_the_first_rank_gives_after_every_glance_and_counts_the_pairs_of_both(two, tmp_path):
    said = two(0)
    run = guarded(lora_model(), tmp_path)
    run.train()
    assert len(said.heard) == 4
    assert [glance.pairs for glance in run.guard._history.glances] == [4] * 4
    assert run.guard._history.glances[0].loss == pytest.approx(0.6931, abs=1e-4)  # a mean, not a sum


def test_a_failed_guard_gives_the_others_once_and_all_are_off(two, monkeypatch, tmp_path):
    monkeypatch.setattr(callback.Looker, "prepare", lambda self, budget: 1 / 0)
    said = two(0)
    run = guarded(lora_model(), tmp_path)
    run.train()
    assert said.heard == [callback.OFF]
    assert run.state.global_step == 4


def test_another_rank_looks_at_nothing_and_follows_the_first(two, monkeypatch, tmp_path):
    monkeypatch.setattr(callback.Looker, "prepare", lambda self, budget: 1 / 0)
    monkeypatch.setattr(callback.Looker, "look", lambda *args: 1 / 0)
    said = two(1, word=callback.STOP)
    run = guarded(lora_model(), tmp_path, guard="stop")
    run.train()
    assert said.heard == [callback.STOP]
    assert run.state.global_step == 1
    assert not (tmp_path / "samples.jsonl").exists()


def test_another_rank_keeps_and_puts_back_its_weights(two, tmp_path):
    said = two(1, word=callback.KEEP)
    run = guarded(lora_model(), tmp_path, guard="rollback", max_steps=2)
    run.train()
    assert said.heard == [callback.KEEP] * 2
    assert run.guard._good.step == 2
    kept = {name: p.detach().clone() for name, p in run.model.named_parameters() if p.requires_grad}
    said.word = callback.ROLL_BACK
    control = SimpleNamespace(should_training_stop=False)
    run.guard._end(callback.ROLL_BACK, 3, control)
    assert control.should_training_stop
    assert run.guard.rolled_back_to == 2
    for name, parameter in run.model.named_parameters():
        if name in kept:
            assert torch.equal(parameter, kept[name])
