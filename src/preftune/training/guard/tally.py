"""Sums over the pairs of every training step, on the device, with one transfer and one reduction when they are read.

A step adds the scores that its pairs had before it changed the weights, so that nothing is computed for the guard.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
import xxhash
from numpy import asarray, frombuffer, int64, uint64
from torch import Tensor

from preftune.logps.batch import PackedBatch
from preftune.training.guard.figures import ALIKE_IN_LENGTH, Glance
from preftune.training.step.metrics import PER_PAIR
from preftune.types import TokenizedGroup

_SUMS = (
    "pairs", "loss", "margin", "square", "accuracy", "chosen", "rejected", "chosen_tokens", "rejected_tokens",
    "copies", "known", "margin_known", "longer", "shorter", "contained", "accuracy_alike",
)  # fmt: skip
_CHOSEN, _REJECTED, _MARGIN, _ACCURACY = (
    PER_PAIR.index(f"rewards/{n}") for n in ("chosen", "rejected", "margins", "accuracies")
)
_CHOSEN_TOKENS, _REJECTED_TOKENS = (PER_PAIR.index(f"completions/{side}_length") for side in ("chosen", "rejected"))


FLAGS = 3
"""Columns of `Seen.flags`."""


class Seen:
    """Hashes of the pairs that were trained on, 8 bytes each."""

    def __init__(self) -> None:
        self._ever: set[int] = set()
        self._this_pass: set[int] = set()
        self._pass = 0

    def flags(self, batch: PackedBatch, *, epoch: float) -> Tensor:
        """Three columns for each pair, shape (N, FLAGS), float32, on the batch's device: whether it was trained on in
        this pass over the data (0 or 1), whether it ever was (0 or 1), and the share of the shorter side's tokens that
        are in the longer side. The batch is not added, so that a step may be repeated.
        """
        if int(epoch + 1e-6) != self._pass:
            self._pass = int(epoch + 1e-6)
            self._this_pass.clear()
        here: set[int] = set()
        rows = []
        for group in batch.groups:
            for key, share in zip(_keys(group), _contained(group), strict=True):
                again = key in here
                rows.append((float(again or key in self._this_pass), float(again or key in self._ever), share))
                here.add(key)
        return torch.tensor(rows, device=batch.input_ids.device).view(len(rows), FLAGS)

    def add(self, batches: Sequence[PackedBatch]) -> None:
        """Add the pairs of a finished step."""
        keys = {key for batch in batches for group in batch.groups for key in _keys(group)}
        self._this_pass |= keys
        self._ever |= keys

    def state(self) -> dict[str, Any]:
        """The hashes for a checkpoint, as JSON."""
        return {"pass": self._pass, "ever": _packed(self._ever), "this_pass": _packed(self._this_pass)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._pass = state["pass"]
        self._ever, self._this_pass = _unpacked(state["ever"]), _unpacked(state["this_pass"])


def _packed(keys: Collection[int]) -> str:
    return base64.b64encode(asarray(sorted(keys), uint64).tobytes()).decode()


def _unpacked(text: str) -> set[int]:
    return set(frombuffer(base64.b64decode(text), uint64).tolist())


def _keys(group: TokenizedGroup) -> list[int]:
    """A hash for each pair, of the tokens of prompt, chosen and rejected."""
    prompt = asarray(group.prompt_ids, int64).tobytes()
    sides = [asarray(completion, int64).tobytes() for completion in group.completions]
    return [xxhash.xxh3_64_intdigest(b"|".join([prompt, sides[p.chosen], sides[p.rejected]])) for p in group.pairs]


def _contained(group: TokenizedGroup) -> list[float]:
    counts = [Counter(completion) for completion in group.completions]
    shares = []
    for pair in group.pairs:
        chosen, rejected = counts[pair.chosen], counts[pair.rejected]
        common = (chosen & rejected).total()
        shares.append(common / max(1, min(chosen.total(), rejected.total())))
    return shares


class Tally:
    """Sums of the steps since the last call of `drain`.

    Args:
        beta: the rewards are divided by it, so that distances are in nats of log-probability.
    """

    def __init__(self, *, beta: float) -> None:
        self._beta = beta
        self._steps: list[Tensor] = []
        self._last_loss: float | None = None

    def __len__(self) -> int:
        return len(self._steps)

    def state(self) -> dict[str, Any]:
        """The sums for a checkpoint, as JSON."""
        return {"steps": [sums.tolist() for sums in self._steps], "last_loss": self._last_loss}

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        self._steps = [torch.tensor(sums, device=device) for sums in state["steps"]]
        self._last_loss = state["last_loss"]

    def add(self, loss: Tensor, rows: Tensor, flags: Tensor) -> None:
        """Count one optimiser step.

        Args:
            loss: the step's loss, scalar: this rank's share times the number of ranks.
            rows: shape (N, metrics), as `pair_metrics` returns them.
            flags: shape (N, FLAGS), as `Seen.flags` returns them.
        """
        copies, known, contained = flags.unbind(1)
        chosen_tokens, rejected_tokens = rows[:, _CHOSEN_TOKENS], rows[:, _REJECTED_TOKENS]
        difference = (chosen_tokens - rejected_tokens) / torch.maximum(chosen_tokens, rejected_tokens).clamp_min(1)
        longer, shorter = difference > ALIKE_IN_LENGTH, difference < -ALIKE_IN_LENGTH
        margin, right = rows[:, _MARGIN] / self._beta, rows[:, _ACCURACY]
        columns = (
            torch.ones_like(margin),
            torch.zeros_like(margin),
            margin,
            margin**2,
            right,
            rows[:, _CHOSEN] / self._beta,
            rows[:, _REJECTED] / self._beta,
            chosen_tokens,
            rejected_tokens,
            copies,
            known,
            margin * known,
            longer.float(),
            shorter.float(),
            contained,
            right * ~(longer | shorter),
        )
        sums = torch.stack(columns, 1).sum(0)
        sums[_SUMS.index("loss")] = loss.detach().float()
        self._steps.append(sums)

    def drain(self, step: int, reduce: Callable[[Tensor], Tensor], *, ranks: int) -> Glance | None:
        """The means since the last call; None without a step. Every rank must call it at the same step.

        Args:
            step: the last of the steps.
            reduce: sums a tensor over ranks.
            ranks: number of ranks.
        """
        if not self._steps:
            return None
        table = reduce(torch.stack(self._steps)).cpu().double()
        self._steps = []
        losses = (table[:, _SUMS.index("loss")] / ranks).tolist()
        total = dict(zip(_SUMS, table.sum(0).tolist(), strict=True))
        pairs = max(1.0, total["pairs"])
        before = losses[0] if self._last_loss is None else self._last_loss
        changes = [now - then for then, now in zip([before, *losses], losses, strict=False)]
        self._last_loss = losses[-1]
        alike = total["pairs"] - total["longer"] - total["shorter"]
        straight = ("margin", "accuracy", "chosen", "rejected", "chosen_tokens", "rejected_tokens", "copies", "known",
                    "longer", "shorter", "contained")  # fmt: skip
        return Glance(
            step=step,
            steps=len(losses),
            pairs=total["pairs"],
            loss=sum(losses) / len(losses),
            loss_change=(sum(change**2 for change in changes) / len(changes)) ** 0.5,
            margin_rms=(total["square"] / pairs) ** 0.5,
            margin_known=total["margin_known"] / max(1.0, total["known"]),
            accuracy_alike=total["accuracy_alike"] / max(1.0, alike),
            **{name: total[name] / pairs for name in straight},
        )
