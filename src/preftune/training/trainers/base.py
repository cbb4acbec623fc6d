"""`PackedTrainer`: what DPO, SFT and reward models have in common, on transformers' Trainer.

The loop, callbacks, loggers, accelerate, checkpoints and hub upload are transformers'. What is here: a batch is packed
groups, a step is computed whole, in parts within the token budget, and begun again when memory runs out; its loss is a
mean over all that the step holds (pairs, tokens), on all ranks; the run is recorded, checked and can be resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from preftune.logps.batch import PackedBatch
from preftune.reference import unwrap
from preftune.storage.run_directory import check_writable, write_json
from preftune.training.record.run_record import data_facts, facts_of, parts
from preftune.training.record.saved_model import end_answers
from preftune.training.setup import model as assemble
from preftune.training.setup.arguments import (
    check_evaluation,
    own_config,
    refuse_arguments,
    tokenizer_of,
    with_early_stopping,
)
from preftune.training.step import memory
from preftune.training.step.collate import (
    BATCH,
    check_one_batch,
    collate,
    probes,
    with_a_seed_of_its_own,
    without_repeats,
)
from preftune.training.step.metrics import MetricWindow, WorkCounter, peak_memory
from preftune.training.step.micro_batches import cost_of, token_budget
from preftune.training.step.optimizer_step import non_finite, whole_step
from preftune.training.trainers.evaluation import EvaluatedTrainer
from preftune.types import TokenizedGroup

Checked = TypeVar("Checked")


class PackedTrainer(EvaluatedTrainer):
    """The common base. A subclass says what is prepared, what the loss of a batch is, and what is counted.

    Args: those of the subclasses, as far as they share them; see `DPOTrainer`.
    """

    loss_is_scaled_for_ga = True  # the loss is divided by what the whole step holds
    _tag_names: ClassVar[Sequence[str]]
    method: ClassVar[str]
    """In run.json, and the folder of a run that names none."""
    config_class: ClassVar[type]
    unit: ClassVar[str] = "pairs"
    """What the throughput counts."""

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_metrics: Callable[[Any], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Any = None,
        peft_config: Any = None,
        quantization_config: Any = None,
        **removed: Any,
    ) -> None:
        refuse_arguments(removed, data_collator, preprocess_logits_for_metrics, trainer=type(self).__name__)
        args = own_config(args, self.config_class, method=self.method)
        check_writable(args.output_dir)
        assemble.one_device(args)
        tokenizer = processing_class if processing_class is not None else tokenizer_of(model, args)
        train_dataset, eval_dataset = self.opened(train_dataset, eval_dataset, tokenizer, args)
        train_groups, eval_groups, self.reports = assemble.prepare_all(
            train_dataset, eval_dataset, lambda source, role: self.prepare_data(source, tokenizer, args, role=role)
        )
        metrics = (*self.columns, *self.further_names)
        check_evaluation(args, eval_groups, metrics, has_own_metrics=compute_metrics is not None)
        check_one_batch(args, len(train_groups))
        assemble.seed(args)  # decides the adapter's start, which Trainer would seed too late
        model = self.prepare_model(
            model, args, tokenizer, peft_config=peft_config, quantization_config=quantization_config
        )
        end_answers(model, tokenizer)
        self.full = not hasattr(model, "peft_config")
        assemble.settle_learning_rate(args, full=self.full)
        self.precision = assemble.settle_precision(model, args)
        self.engine, self.support = self.settle_engine(model, args)
        assemble.settle_compilation(model, args)
        self._prepare_steps(args)
        super().__init__(
            model=model,
            args=args,
            data_collator=collate,
            train_dataset=train_groups,
            eval_dataset=eval_groups,
            processing_class=tokenizer,
            compute_metrics=compute_metrics,
            callbacks=with_early_stopping(callbacks, args),
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )
        self._work = WorkCounter(self.model, trains_everything=self.full, unit=self.unit)
        self.placed()
        self.attach_record(facts_of(self))
        self.watch(train_dataset, eval_dataset)
        if hasattr(self.model, "add_model_tags"):
            self.model.add_model_tags(list(self._tag_names))
        self.say_advice()

    def _prepare_steps(self, args: Any) -> None:
        """What the first optimiser step starts from."""
        self.cost, budget = cost_of(self.engine), token_budget(args, args.device)
        self.step_limit, self.scoring_limit = memory.TokenLimit(budget), memory.TokenLimit(budget)
        self._window, self._policy_changed = MetricWindow(self.columns), False
        self._step: list[PackedBatch] = []
        self.step_has_weight = True

    # --- what a subclass says ---

    def opened(self, train: Any, held_out: Any, tokenizer: Any, args: Any) -> tuple[Any, Any]:
        """The datasets, opened where something else than `prepare_data` needs them too; the tokenizer completed."""
        return train, held_out

    def prepare_model(self, model: Any, args: Any, tokenizer: Any, **configs: Any) -> Any:
        """The model as it will be trained; `configs` are `peft_config` and `quantization_config`."""
        return assemble.prepare_model(model, args, **configs)

    def settle_engine(self, model: Any, args: Any) -> tuple[Any, Any]:
        """The engine, and whether it is exact."""
        return assemble.settle_engine(model, args)

    def placed(self) -> None:
        """The model is where it will be trained, and nothing has begun."""

    def watch(self, train: Any, held_out: Any) -> None:
        """Further callbacks."""

    def say_advice(self) -> None:
        """Advice before training."""

    def before_first_step(self, *, resumed: bool) -> None:
        """The check of the first step, and whatever must be done before it."""

    def data_facts(self) -> dict[str, Any]:
        """What run.json says of the data."""
        held_out = {f"eval_{index}": data_facts(part) for index, part in enumerate(parts(self.eval_dataset))}
        return {"train": data_facts(self.train_dataset), **held_out}

    def record_facts(self) -> dict[str, Any]:
        """What run.json says besides the facts of every run."""
        return {}

    @contextmanager
    def counted(self, batches: Sequence[PackedBatch]) -> Iterator[None]:
        """Counts the work of a step that is done inside."""
        yield
        for batch in batches:
            self._work.add(batch)

    def card(self) -> str:
        """README.md of the output directory."""
        raise NotImplementedError

    # --- training ---

    def create_accelerator_and_postprocess(self) -> None:
        with assemble.compiled_by_us(self.args):
            super().create_accelerator_and_postprocess()

    def begin_training(self, *, resumed: bool) -> None:
        if self.is_world_process_zero():
            write_json(Path(self.args.output_dir) / "audit.json", self._audit())
        if not self._policy_changed:
            self.before_first_step(resumed=resumed)
        self._policy_changed = True
        self._work.reset()

    def get_train_dataloader(self) -> Any:
        return with_a_seed_of_its_own(without_repeats(super().get_train_dataloader()), self.args.seed)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Nothing, until the last micro-batch of an optimiser step comes, and then the whole step."""
        if self._resume_state is not None:
            self._restore(self._resume_state)
        batches = self._step if any(inputs[BATCH] is batch for batch in self._step) else [inputs[BATCH]]
        if inputs[BATCH] is not batches[-1]:
            return torch.zeros((), device=self.args.device)
        policy, one = unwrap(model), super().training_step
        items = sum(map(self._items, batches)) if num_items_in_batch is None else num_items_in_batch

        def compute(part: PackedBatch) -> tuple[Tensor, Tensor]:
            if part.groups:
                loss, rows = one(policy, {BATCH: part}, items), self._metrics_of_part
            else:
                loss, rows = (torch.zeros(shape, device=self.args.device) for shape in ((), (0, len(self.columns))))
            return loss, rows if self.guard is None else self.guard.marked(part, rows)

        with self.counted(batches):
            loss, metrics = whole_step(self, policy, batches, compute)
        self.limits.count(sum(group.tokens for batch in batches for group in batch.groups))
        if self.guard is not None:
            metrics = self.guard.count(loss, metrics, batches)
        self._window.add(metrics)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Sum of the micro-batch's losses over the items of the whole step, times the number of ranks (which
        averaging the gradients divides out again).
        """
        batch: PackedBatch = inputs[BATCH]
        losses, rows = self.batch_loss(model, batch)
        items = self._items(batch) if num_items_in_batch is None else num_items_in_batch
        loss = losses.sum() * self.accelerator.num_processes / items
        if self.model.training:
            self._metrics_of_part = rows
        return (loss, {"losses": losses.detach(), "metrics": rows}) if return_outputs else loss

    def _items(self, batch: PackedBatch) -> int:
        return sum(map(self.items, batch.groups))

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | int | None:
        """Items of the whole optimiser step, over all its micro-batches and all ranks."""
        if not batch_samples:
            return None
        self._step = [inputs[BATCH] for inputs in batch_samples]
        pairs = [pair for batch in self._step for group in batch.groups for pair in group.pairs]
        self.step_has_weight = not pairs or any(pair.weight for pair in pairs)
        items = torch.tensor(sum(map(self._items, self._step)), device=device)
        return self.accelerator.gather(items).sum() if self.args.world_size > 1 else items

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Called once per optimiser step, before it: the place for the one finite check."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        watched = self._tr_loss if norm is None or self.precision.grad_scaling else self._tr_loss + norm
        if not bool(torch.isfinite(torch.as_tensor(watched))):
            raise non_finite(self, self._step)
        return norm

    # --- logging ---

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.model.training:
            logs |= self.derived(self._window.drain(lambda sums: self.accelerator.reduce(sums, "sum")))
            logs |= self.throughput() | peak_memory(self.args.device)
        super().log(logs, start_time)

    @contextmanager
    def untimed(self) -> Iterator[None]:
        with self._work.paused():
            yield

    def throughput(self) -> dict[str, float]:
        """Rates since the last log."""
        return self._work.drain()

    # --- saving ---

    def checkpoint_facts(self) -> dict[str, Any]:
        return {"window": self._window.state(), "step_limit": self.step_limit.fell_to}

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._resume_state = None
        self._window.restore(state["window"], self.args.device)
        self.step_limit.resume(state.get("step_limit"))
        self._restore_sums(state)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """README.md of the output directory: what was trained, on what, with which measured result."""
        if self.is_world_process_zero():
            Path(self.args.output_dir, "README.md").write_text(self.card(), encoding="utf-8")

    # --- inner parts ---

    def _batch_of(self, rows: Sequence[int]) -> PackedBatch:
        """Training rows on the device."""
        return collate([self.train_dataset[row] for row in rows])[BATCH].to(self.args.device)

    def _checked(self, check: Callable[[PackedBatch], Checked]) -> list[Checked]:
        """What the check of the first step says of a few rows, packed together as far as memory allows."""

        def together(groups: Sequence[TokenizedGroup]) -> list[Checked]:
            return [check(collate(groups)[BATCH].to(self.args.device))] * len(groups)

        groups = [self.train_dataset[row] for row in probes(self.train_dataset.lengths)]
        results = memory.score_in_parts(self, groups, together, work="reference")
        return [result for of_group in results for result in of_group]

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        dtype = self.precision.autocast
        with torch.autocast(self.args.device.type, dtype, enabled=dtype is not None):
            yield

    def _prepare_input(self, data: Any) -> Any:
        return data.to(self.args.device) if isinstance(data, PackedBatch) else super()._prepare_input(data)

    def floating_point_ops(self, inputs: dict[str, Any]) -> float:
        """Useful FLOPs of a micro-batch (no recomputation, no padding), attention left out."""
        return self._work.useful_flops(inputs[BATCH])

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        if self.args.include_num_input_tokens_seen != "no":
            tokens = torch.tensor(inputs[BATCH].input_ids.numel(), device=self.args.device)
            self.state.num_input_tokens_seen += int(self.accelerator.gather(tokens).sum())

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        return data_collator  # groups have no columns to remove

    def _audit(self) -> dict[str, Any]:
        return {role: report.to_json() for role, report in self.reports.items()}
