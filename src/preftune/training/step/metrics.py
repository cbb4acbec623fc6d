"""Metrics of preference training: means over samples, summed on the device, with one transfer per logging step."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from preftune.logps.batch import PackedBatch
from preftune.losses import LossOutput
from preftune.models.precision import real_size
from preftune.reference import ReferenceScores
from preftune.types import Sides, TokenizedGroup

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
"""Columns of `pair_metrics`, with TRL's names where TRL has the metric."""


def pair_metrics(output: LossOutput, policy: Sides) -> Tensor:
    """Metrics of N pairs, shape (N, metrics), float32, detached; the columns are `PER_PAIR`.

    A tie counts as wrong. For a list, chosen and rejected are its best and worst completions, and the accuracy is over
    all its ordered pairs.
    """
    margin_N = output.chosen_reward_N - output.rejected_reward_N
    columns = (
        output.chosen_reward_N,
        output.rejected_reward_N,
        margin_N,
        margin_N > 0 if output.right_N is None else output.right_N,
        policy.chosen_N,
        policy.rejected_N,
        policy.chosen_length_N,
        policy.rejected_length_N,
    )
    return torch.stack([column.detach().float() for column in columns], 1)


class MetricWindow:
    """Sums over the pairs (or tokens) since the last log. They stay on the device until `drain` transfers them."""

    def __init__(self, names: Sequence[str] = PER_PAIR) -> None:
        """
        Args:
            names: names of the columns.
        """
        self._names = names
        self._sums: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Add rows of shape (N, metrics), such as those of `pair_metrics`."""
        sums = torch.cat([rows.sum(0), rows.new_tensor([rows.shape[0]])])
        if sums.device.type != "mps":  # MPS has no float64
            sums = sums.double()
        self._sums = sums if self._sums is None else self._sums + sums

    def drain(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means over all rows of all ranks since the last call; empty if this rank added no rows.

        Args:
            reduce: sums a tensor over ranks.
        """
        if self._sums is None:
            return {}
        *sums, count = reduce(self._sums).tolist()
        self._sums = None
        return {name: value / count for name, value in zip(self._names, sums, strict=True)}

    def state(self) -> list[float] | None:
        """The sums and the count for a checkpoint, so that a resumed run logs the same means."""
        return None if self._sums is None else self._sums.tolist()

    def restore(self, state: list[float] | None, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sums = None if state is None else torch.tensor(state, dtype=dtype, device=device)


class Averages:
    """Weighted means by name."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor | float, Tensor | float]] = {}

    def add(self, values: Mapping[str, Tensor | float], weight: Tensor | float = 1.0) -> None:
        """Add means, each over `weight` items (answers, tokens)."""
        for name, value in values.items():
            total, count = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (total + value * weight, count + weight)

    def drain(self) -> dict[str, float]:
        """The weighted means since the last call, without those of weight 0."""
        found = {name: float(total) / float(count) for name, (total, count) in self._sums.items() if float(count)}
        self._sums = {}
        return found

    def state(self) -> dict[str, Any]:
        """Sum and weight by name for a checkpoint, so that a resumed run logs the same means."""
        return {name: [float(total), float(count)] for name, (total, count) in self._sums.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._sums = {name: (float(total), float(count)) for name, (total, count) in state.items()}


_COUNTED = ("units", "packed_tokens", "separate_tokens", "flops")


class WorkCounter:
    """Tokens and useful FLOPs of the batches since the last log, as plain numbers on the CPU."""

    def __init__(self, model: torch.nn.Module, *, trains_everything: bool, unit: str = "pairs") -> None:
        """
        Args:
            trains_everything: full fine-tuning, as opposed to an adapter.
            unit: what is counted: "pairs", or, for any other name such as "rows", completions.
        """
        self._unit = unit
        head: Any = getattr(model, "get_output_embeddings", lambda: None)()
        weight = getattr(head, "weight", None)
        self._head = weight.numel() if isinstance(weight, Tensor) else 0
        embedding: Any = getattr(model, "get_input_embeddings", lambda: None)()
        tables = {id(w): w.numel() for w in (weight, getattr(embedding, "weight", None)) if isinstance(w, Tensor)}
        base = getattr(model, "get_base_model", lambda: model)()
        self._trunk = _parameters(base) - sum(tables.values())
        self._passes = 3 if trains_everything else 2
        self._hits = self._misses = 0
        self._is_paused = False
        self.reset()

    def reset(self) -> None:
        """Set the counts to 0 and start the clock."""
        self.units = self.packed_tokens = self.separate_tokens = 0
        self.flops = 0.0
        self._since = time.perf_counter()

    def drain(self, reference: ReferenceScores | None = None) -> dict[str, float]:
        """Rates and shares since the last call (or since the counter was made)."""
        seconds = max(1e-9, time.perf_counter() - self._since)
        figures = {
            "tokens_per_second": self.packed_tokens / seconds,
            f"{self._unit}_per_second": self.units / seconds,
            "useful_tflops": self.flops / seconds / 1e12,
        }
        if self._unit == "pairs":
            figures["tokens_saved_by_sharing"] = 1 - self.packed_tokens / max(1, self.separate_tokens)
        if reference is not None:
            hits, misses = reference.hits - self._hits, reference.misses - self._misses
            self._hits, self._misses = reference.hits, reference.misses
            figures["reference/cache_hits"] = hits / max(1, hits + misses)
        self.reset()
        return figures

    def state(self, reference: ReferenceScores | None = None) -> dict[str, float]:
        """The counts since the last call of `drain`, as JSON, and the seconds since then."""
        counted = {name: getattr(self, name) for name in _COUNTED}
        counted["seconds"] = time.perf_counter() - self._since
        if reference is not None:
            counted |= {"hits": reference.hits - self._hits, "misses": reference.misses - self._misses}
        return counted

    def restore(self, state: Mapping[str, float]) -> None:
        """Add the counts of a checkpoint to the present ones."""
        for name in _COUNTED:
            setattr(self, name, getattr(self, name) + state.get(name, 0))
        self._since -= state.get("seconds", 0.0)
        self._hits, self._misses = self._hits - int(state.get("hits", 0)), self._misses - int(state.get("misses", 0))

    @contextmanager
    def paused(self, reference: ReferenceScores | None = None) -> Iterator[None]:
        """Exclude an evaluation or the writing of a checkpoint from the rates; a nested pause has no effect."""
        if self._is_paused:  # an evaluation of several datasets pauses once for all and once for each
            yield
            return
        self._is_paused = True
        began = time.perf_counter()
        hits, misses = (0, 0) if reference is None else (reference.hits, reference.misses)
        try:
            yield
        finally:
            self._is_paused = False
            self._since += time.perf_counter() - began
            if reference is not None:
                self._hits += reference.hits - hits
                self._misses += reference.misses - misses

    def add(self, batch: PackedBatch, *, reference_groups: int = 0) -> None:
        """Count one micro-batch; the reference scored `reference_groups` of its groups too."""
        paired = self._unit == "pairs"
        self.units += sum(len(group.pairs if paired else group.completions) for group in batch.groups)
        for group in batch.groups:
            self.packed_tokens += group.tokens
            self.separate_tokens += _tokens_of_pairs(group)
        self.flops += self.useful_flops(batch)
        if batch.groups:
            self.flops += self.useful_flops(batch, passes=1) * reference_groups / len(batch.groups)

    def useful_flops(self, batch: PackedBatch, *, passes: int | None = None) -> float:
        """`2 passes (N R + D V T)` FLOPs: N trunk parameters, R tokens of the row, D model width, V vocabulary, T
        scored tokens. The products of attention are not counted.

        Args:
            passes: matrix products per weight; the default is that of training, 2 for an adapter, 3 for full
                fine-tuning.
        """
        passes = self._passes if passes is None else passes
        scored = batch.target_T.shape[0]
        return 2.0 * passes * (self._trunk * batch.input_ids.shape[1] + self._head * scored)


def peak_memory(device: torch.device) -> dict[str, float]:
    """`memory/peak_gb` (of 2^30 bytes), the peak of this process so far: on CUDA torch's `max_memory_allocated`,
    elsewhere the resident set. Empty where the system does not report it.
    """
    if device.type == "cuda":
        return {"memory/peak_gb": torch.cuda.max_memory_allocated(device) / 2**30}
    try:
        import resource
    except ImportError:  # Windows
        return {}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"memory/peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}


def _tokens_of_pairs(group: TokenizedGroup) -> int:
    """Tokens without sharing: prompt and completion for each side of a pair, or for each answer of a list."""
    lengths = [len(group.prompt_ids) + len(completion) for completion in group.completions]
    if group.scores:
        return sum(lengths)
    return sum(lengths[pair.chosen] + lengths[pair.rejected] for pair in group.pairs)


def _parameters(model: torch.nn.Module) -> int:
    """Number of parameters that are multiplied: a 4-bit weight counts with its real shape; LoRA's do not count."""
    return sum(real_size(parameter) for name, parameter in model.named_parameters() if "lora_" not in name)
