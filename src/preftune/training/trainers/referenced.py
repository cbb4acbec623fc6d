"""`ReferencedTrainer`: what trainers share whose loss compares the policy with a reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from preftune.data.streams.groups import StreamedGroups
from preftune.log import detail
from preftune.logps.batch import PackedBatch
from preftune.reference import AsReceived, ExplicitModel, ReferenceScores
from preftune.reference.sources import Source
from preftune.training.config.referenced import ReferencedConfig
from preftune.training.guard.callback import attach_guard
from preftune.training.protocol import ObjectiveView
from preftune.training.record.run_record import parts
from preftune.training.setup.reference import make_reference, score_everything, settle_reference
from preftune.training.setup.self_check import FirstStep, check_before_training, worst
from preftune.training.setup.streams import about_guard
from preftune.training.step import memory
from preftune.training.trainers.base import PackedTrainer


class ReferencedTrainer(PackedTrainer):
    """The common base of DPO and KTO. A subclass says what its loss is.

    Args: those of `DPOTrainer`.
    """

    args: ReferencedConfig
    reference: ReferenceScores
    objective: ObjectiveView
    _rewards = (0.0, 0.0)
    """Count and sum of the rewards of all steps so far, nats."""

    def __init__(
        self,
        model: Any = None,
        ref_model: Any = None,
        args: ReferencedConfig | None = None,
        *rest: Any,
        **options: Any,
    ) -> None:
        self._asked_reference = ref_model
        super().__init__(model, args, *rest, **options)

    @property
    def needs_live_reference(self) -> bool:
        """Whether it scores with the reference what is not known before the first step."""
        return isinstance(self.train_dataset, StreamedGroups)

    def rewards_of(self, sides_N2: Tensor) -> Tensor:
        """(answers,) the rewards of a step's rows, nats.

        Args:
            sides_N2: the columns `rewards/chosen` and `rewards/rejected`.
        """
        raise NotImplementedError

    def placed(self) -> None:
        ref_model, self._asked_reference = self._asked_reference, None
        self.reference = make_reference(self, ref_model, trained=lambda: self._policy_changed)

    def watch(self, train: Any, held_out: Any) -> None:
        held_out = None if held_out is None else about_guard(held_out, self.eval_dataset or {})
        self.guard = attach_guard(self, about_guard(train, self.train_dataset), held_out)

    @property
    def ref_model(self) -> nn.Module | None:
        """The explicit reference; None where the model as received is the reference, or after it was let go."""
        source = self.reference.source
        return source.model if isinstance(source, ExplicitModel) else None

    @property
    def reference_source(self) -> Source:
        return self.reference.source

    @contextmanager
    def counted(self, batches: Sequence[PackedBatch]) -> Iterator[None]:
        misses = self.reference.misses
        yield
        missed = (self.reference.misses - misses) / max(1, sum(batch.completions for batch in batches))
        for batch in batches:
            self._work.add(batch, reference_groups=round(min(1.0, missed) * len(batch.groups)))

    # --- the mean of the rewards of all steps so far, for losses that need it ---

    @property
    def reward_mean(self) -> float:
        """Nats; 0 before the first step."""
        count, total = self._rewards
        return total / count if count else 0.0

    def stepped(self, metrics: Tensor) -> None:
        if not self.objective.needs_running_mean:
            return
        sides = [self.columns.index(f"rewards/{side}") for side in ("chosen", "rejected")]
        rewards = self.rewards_of(metrics[:, sides])
        seen = torch.stack([rewards.new_tensor(float(len(rewards))), rewards.sum()])
        count, total = (self.accelerator.reduce(seen, "sum") if self.args.world_size > 1 else seen).tolist()
        self._rewards = self._rewards[0] + count, self._rewards[1] + total

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        count, total = state.get("rewards", (0.0, 0.0))
        self._rewards = count, total

    def result_facts(self) -> dict[str, Any]:
        """How many completions the reference scored in this process, and how many scores were known."""
        counts = {"computed": self.reference.misses + self.reference.beforehand, "from_cache": self.reference.hits}
        return {**super().result_facts(), **({"reference_scores": counts} if self.objective.needs_reference else {})}

    # --- evaluation ---

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        try:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            if isinstance(self.reference.source, AsReceived):
                self.reference.source.let_go()

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        settle_reference(self)
        return super().evaluation_loop(dataloader, *args, **kwargs)

    # --- the run ---

    def before_first_step(self, *, resumed: bool) -> None:
        """Score what the reference must say beforehand, and check the first step."""
        settle_reference(self)
        compares = self.objective.needs_reference

        def check(batch: PackedBatch) -> FirstStep:
            return check_before_training(
                self.model,
                batch,
                self.engine,
                self.reference,
                autocast=self.precision.autocast,
                resumed=resumed or not compares,
                allow_mismatch=self.args.allow_reference_mismatch,
            )

        with memory.explained(self, self.train_dataset[int(self.train_dataset.lengths.argmax())]):
            result = worst(self._checked(check, self.train_dataset))
        detail(result.describe())
        self._record.note(self_check=asdict(result))
        if compares and (not self.reference.source.live or self.args.precompute_ref_log_probs):
            known = [part for part in parts(self.train_dataset) if not isinstance(part, StreamedGroups)]
            score_everything(self, [*known, *parts(self.eval_dataset)])
        if self.guard is not None and not resumed:
            self.guard.draw()

    def check_resumable(self, state: Mapping[str, Any] | None, folder: Path) -> None:
        settle_reference(self)
        super().check_resumable(state, folder)

    def weights_replaced(self) -> None:
        settle_reference(self)
        super().weights_replaced()

    @contextmanager
    def untimed(self) -> Iterator[None]:
        with self._work.paused(self.reference):
            yield

    def checkpoint_facts(self) -> dict[str, Any]:
        facts = super().checkpoint_facts()
        return {**facts, "work": self._work.state(self.reference), "rewards": list(self._rewards)}

    def throughput(self) -> dict[str, float]:
        return self._work.drain(self.reference)
