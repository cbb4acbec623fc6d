"""Metrics of preference training: means over samples, gathered on the device, one transfer per logging step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from preftune.losses import LossOutput
from preftune.reference import ReferenceScores
from preftune.types import PackedBatch, Sides, TokenizedGroup

PER_PAIR = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "completions/chosen_length",
    "completions/rejected_length",
)
"""Columns of `pair_metrics`, under TRL's names where TRL has one."""


def pair_metrics(output: LossOutput, policy: Sides) -> Tensor:
    """(N, metrics) float32, detached: one row per pair, columns as in `PER_PAIR`. A tie counts as wrong."""
    margin_N = output.chosen_reward_N - output.rejected_reward_N
    columns = (
        output.chosen_reward_N,
        output.rejected_reward_N,
        margin_N,
        margin_N > 0,
        policy.chosen_N,
        policy.rejected_N,
        policy.chosen_length_N,
        policy.rejected_length_N,
    )
    return torch.stack([column.detach().float() for column in columns], 1)


class MetricWindow:
    """Sums over the pairs since the last log. The sums stay on the device; `drain` makes the one transfer."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Count the rows of `pair_metrics`, (N, metrics)."""
        sums = torch.cat([rows.sum(0), rows.new_tensor([rows.shape[0]])])
        if sums.device.type != "mps":  # which has no float64
            sums = sums.double()
        self._sums = sums if self._sums is None else self._sums + sums

    def drain(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means over all pairs of all ranks since the last call; empty if there were none.

        Args:
            reduce: sums a tensor over ranks.
        """
        if self._sums is None:
            return {}
        *sums, count = reduce(self._sums).tolist()
        self._sums = None
        return {name: value / count for name, value in zip(PER_PAIR, sums, strict=True)}

    def state(self) -> list[float] | None:
        """What a checkpoint must hold so that a resumed run logs the same means."""
        return None if self._sums is None else self._sums.tolist()

    def restore(self, state: list[float] | None, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sums = None if state is None else torch.tensor(state, dtype=dtype, device=device)


class WorkCounter:
    """Tokens and useful FLOPs of the batches since the last log, on the CPU (plain integers)."""

    def __init__(self, model: torch.nn.Module, *, trains_everything: bool) -> None:
        head: Any = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        weight = getattr(head, "weight", None)
        self._head = weight.numel() if isinstance(weight, Tensor) else 0
        embedding: Any = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
        tables = {id(w): w.numel() for w in (weight, getattr(embedding, "weight", None)) if isinstance(w, Tensor)}
        base = getattr(model, "get_base_model", lambda: model)()
        self._trunk = _parameters(base) - sum(tables.values())
        self._passes = 3 if trains_everything else 2
        self._hits = self._misses = 0
        self.reset()

    def reset(self) -> None:
        """Begin counting anew, now."""
        self.pairs = self.packed_tokens = self.separate_tokens = 0
        self.flops = 0.0
        self._since = time.perf_counter()

    def drain(self, reference: ReferenceScores) -> dict[str, float]:
        """Rates and shares since the last call (or since the counter was made)."""
        seconds = max(1e-9, time.perf_counter() - self._since)
        hits, misses = reference.hits - self._hits, reference.misses - self._misses
        self._hits, self._misses = reference.hits, reference.misses
        figures = {
            "tokens_per_second": self.packed_tokens / seconds,
            "pairs_per_second": self.pairs / seconds,
            "useful_tflops": self.flops / seconds / 1e12,
            "tokens_saved_by_sharing": 1 - self.packed_tokens / max(1, self.separate_tokens),
            "reference/cache_hits": hits / max(1, hits + misses),
        }
        self.reset()
        return figures

    @contextmanager
    def paused(self, reference: ReferenceScores) -> Iterator[None]:
        """Leave an evaluation or the writing of a checkpoint out of the rates."""
        began, hits, misses = time.perf_counter(), reference.hits, reference.misses
        try:
            yield
        finally:
            self._since += time.perf_counter() - began
            self._hits += reference.hits - hits
            self._misses += reference.misses - misses

    def add(self, batch: PackedBatch, *, reference_groups: int) -> None:
        """Count one micro-batch, of whose groups `reference_groups` were scored by the reference as well."""
        self.pairs += sum(len(group.pairs) for group in batch.groups)
        for group in batch.groups:
            self.packed_tokens += group.tokens
            self.separate_tokens += _tokens_of_pairs(group)
        self.flops += self.useful_flops(batch)
        if batch.groups:
            self.flops += self.useful_flops(batch, passes=1) * reference_groups / len(batch.groups)

    def useful_flops(self, batch: PackedBatch, *, passes: int | None = None) -> float:
        """`2 passes (N R + d V T)`: N trunk parameters, R tokens of the row, T scored tokens; attention left out.

        Args:
            passes: matrix products per weight; by default those of training, 2 for an adapter, 3 for everything.
        """
        passes = self._passes if passes is None else passes
        scored = batch.target_T.shape[0]
        return 2.0 * passes * (self._trunk * batch.input_ids.shape[1] + self._head * scored)


def _tokens_of_pairs(group: TokenizedGroup) -> int:
    """Tokens if every pair's two sides were computed by themselves: `2P + C + R` each."""
    lengths = [len(group.prompt_ids) + len(completion) for completion in group.completions]
    return sum(lengths[pair.chosen] + lengths[pair.rejected] for pair in group.pairs)


def _parameters(model: torch.nn.Module) -> int:
    """Parameters as they multiply: a 4-bit weight counts with its real shape; adapters do not count."""
    total = 0
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            continue
        state = getattr(parameter, "quant_state", None)
        total += int(state.shape.numel()) if state is not None else parameter.numel()
    return total
