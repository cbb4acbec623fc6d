"""What callbacks, guards, records, memory advice and model cards may read of a trainer.

`TrainerView` fits every trainer, `GroupTrainerView` one with a loss per item, `DPOTrainerView` and `OnlineTrainerView`
one kind of trainer. Attributes are read only: a trainer narrows their types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol, TypeVar

from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerControl, TrainerState
from transformers.trainer_callback import CallbackHandler

from preftune.data import GroupDataset
from preftune.logps import Support
from preftune.logps.batch import PackedBatch
from preftune.losses import Objective
from preftune.models.precision import Precision
from preftune.reference import ReferenceScores
from preftune.reference.sources import Source
from preftune.training.config.base import PackedConfig
from preftune.training.config.dpo import DPOConfig
from preftune.training.config.referenced import ReferencedConfig
from preftune.types import TokenizedGroup

Decided = TypeVar("Decided")
HeldOut = GroupDataset | dict[str, GroupDataset] | None


class Rows(Protocol):
    """Training data: groups, or prompts."""

    def __len__(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...


class SpentView(Protocol):
    """What a run has used; see `record.limits.Limits`."""

    reached: str | None

    def state(self) -> dict[str, float]: ...
    def count(self, tokens: int) -> None: ...


class RecordView(Protocol):
    """run.json; see `record.run_record.RunRecord`."""

    def note(self, **facts: Any) -> None: ...


class TokenLimitView(Protocol):
    """The most tokens computed at a time; see `step.memory.TokenLimit`."""

    tokens: int | None

    def follow(self, tokens: int | None) -> None: ...
    def halve(
        self, trainer: TrainerView, groups: Sequence[TokenizedGroup], cost: Callable[[TokenizedGroup], int],
        error: Exception, work: Any,
    ) -> None: ...  # fmt: skip


class TrainerView(Protocol):
    """Every trainer."""

    method: ClassVar[str]
    model: PreTrainedModel
    state: TrainerState
    control: TrainerControl
    accelerator: Accelerator
    callback_handler: CallbackHandler
    full: bool
    """Whether all weights train, and not an adapter."""
    precision: Precision
    support: Support
    engine: Any
    """An `Engine`; of a reward model a score engine."""
    cost: Callable[[TokenizedGroup], int]
    step_has_weight: bool
    processing_class: Any
    _tr_loss: Tensor

    @property
    def args(self) -> PackedConfig: ...
    @property
    def train_dataset(self) -> Rows: ...
    @property
    def eval_dataset(self) -> Any: ...
    @property
    def step_limit(self) -> TokenLimitView: ...
    @property
    def scoring_limit(self) -> TokenLimitView: ...
    @property
    def limits(self) -> SpentView: ...
    @property
    def _record(self) -> RecordView: ...
    @property
    def guard(self) -> Any: ...
    def is_world_process_zero(self) -> bool: ...
    def is_local_process_zero(self) -> bool: ...
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None: ...


class RecordedTrainerView(TrainerView, Protocol):
    """A trainer whose model is ready."""

    def autocast(self) -> AbstractContextManager[None]: ...
    def data_facts(self) -> dict[str, Any]: ...
    def record_facts(self) -> dict[str, Any]: ...


class GroupTrainerView(RecordedTrainerView, Protocol):
    """A trainer on packed groups."""

    columns: ClassVar[Sequence[str]]

    @property
    def train_dataset(self) -> GroupDataset: ...
    @property
    def eval_dataset(self) -> HeldOut: ...
    def items(self, group: TokenizedGroup) -> int: ...
    def batch_loss(self, model: nn.Module, batch: PackedBatch) -> tuple[Tensor, Tensor]: ...
    def untimed(self) -> AbstractContextManager[None]: ...
    def _on_first_rank(self, decide: Callable[[], Decided]) -> Decided: ...


class ObjectiveView(Protocol):
    """What a trainer with a reference minimises."""

    @property
    def needs_reference(self) -> bool: ...
    @property
    def needs_running_mean(self) -> bool: ...
    @property
    def has_usual_beta(self) -> bool: ...


class ReferencedTrainerView(GroupTrainerView, Protocol):
    """A trainer with a reference."""

    reference: ReferenceScores

    @property
    def needs_live_reference(self) -> bool: ...

    _policy_changed: bool
    _resume_state: dict[str, Any] | None

    @property
    def objective(self) -> ObjectiveView: ...
    @property
    def args(self) -> ReferencedConfig: ...
    def add_callback(self, callback: Any) -> None: ...
    def _batch_of(self, rows: Sequence[int]) -> PackedBatch: ...


class WatchedTrainerView(ReferencedTrainerView, Protocol):
    """`DPOTrainer` and `KTOTrainer`, as the guard sees them."""

    @property
    def args(self) -> ReferencedConfig: ...


class DPOTrainerView(ReferencedTrainerView, Protocol):
    """`DPOTrainer`."""

    @property
    def objective(self) -> Objective: ...
    @property
    def args(self) -> DPOConfig: ...


class OnlineTrainerView(TrainerView, Protocol):
    """`OnlineTrainer`."""

    reference: Source
    holds_back: ClassVar[str]
    repeats: ClassVar[str]
    trained: nn.Module
    rated_by: str

    @property
    def prompts(self) -> Rows: ...
    @property
    def sampled(self) -> int: ...
