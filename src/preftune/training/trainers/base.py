"""`PackedTrainer`: what DPO, SFT and reward models have in common, on transformers' Trainer.

The loop, callbacks, loggers, accelerate, checkpoints and hub upload are transformers'. What is here: a batch is packed
groups, a step is computed whole, in parts within the token budget, and repeated when memory runs out; its loss is a
mean over all that the step holds (pairs, tokens), on all ranks; the run is recorded, checked and can be resumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback

from preftune.data import GroupDataset
from preftune.data.streams.groups import StreamedGroups
from preftune.log import detail, say
from preftune.logps.batch import PackedBatch
from preftune.reference import unwrap
from preftune.storage.run_directory import check_writable, write_json
from preftune.training.config.eval_judge import judged_metrics
from preftune.training.judged.win_rate import JudgedEvaluation, judge_of
from preftune.training.record.run_record import data_facts, parts
from preftune.training.record.same_run import base_of
from preftune.training.setup import model as assemble
from preftune.training.setup.arguments import (
    check_evaluation,
    check_fit,
    check_metrics,
    check_optimizers,
    checked_model,
    own_config,
    refuse_arguments,
    tokenizer_of,
    with_early_stopping,
)
from preftune.training.setup.forecast import announce
from preftune.training.setup.sharding import check_sharding, shard_model, take_from_first_rank
from preftune.training.setup.streams import check_streamed, refuse_buffer, warn_of
from preftune.training.step.collate import (
    BATCH,
    check_one_batch,
    collate,
    with_a_seed_of_its_own,
    without_repeats,
)
from preftune.training.step.metrics import MetricWindow, WorkCounter
from preftune.training.step.optimizer_step import whole_step
from preftune.training.trainers.evaluation import EvaluatedTrainer


class PackedTrainer(EvaluatedTrainer):
    """The common base. A subclass says what is prepared, what the loss of a batch is, and what is counted.

    Args: those of the subclasses, as far as they share them; see `DPOTrainer`.
    """

    config_class: ClassVar[type]
    _window: MetricWindow
    unit: ClassVar[str] = "pairs"
    """What the throughput counts."""
    _stream_state: Mapping[str, Any] | None = None
    """Where a checkpoint left the stream."""

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
        refuse_arguments(type(self), removed, data_collator, preprocess_logits_for_metrics)
        check_metrics(compute_metrics)
        check_optimizers(optimizers, optimizer_cls_and_kwargs)
        model = checked_model(model)
        args = own_config(args, self.config_class, method=self.method)
        if not args.plan_only:
            check_writable(args.output_dir)
        assemble.one_device(args)
        tokenizer = tokenizer_of(processing_class, model, args)
        train_dataset, eval_dataset = self.opened(train_dataset, eval_dataset, tokenizer, args)
        train_groups, eval_groups, self.reports = self._prepared(train_dataset, eval_dataset, tokenizer, args)
        metrics = (*self.columns, *self.further_names, *judged_metrics(args))
        check_evaluation(args, eval_groups, metrics, has_own_metrics=compute_metrics is not None)
        refuse_buffer(args, train_groups)
        check_one_batch(args, len(train_groups))
        configs = {"peft_config": peft_config, "quantization_config": quantization_config}
        self.plan = announce(self, model, args, train_groups, **configs)
        judge = judge_of(args)
        assemble.seed(args)  # decides the adapter's start, which Trainer would seed too late
        model = self.prepare_model(model, args, tokenizer, **configs)
        held_out = eval_groups if isinstance(eval_groups, Mapping) else {"eval": eval_groups}
        check_fit(model, {"train": train_groups, **held_out})
        check_streamed(train_groups, model, args)
        self.settle(model, args, tokenizer)
        self._window, self._policy_changed = MetricWindow(self.columns), False
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
        self.begin_record()
        self.judged = None if judge is None else JudgedEvaluation(self, judge, eval_dataset)
        self.watch(train_dataset, eval_dataset)
        self.say_advice()

    def _prepared(self, train: Any, held_out: Any, tokenizer: Any, args: Any) -> tuple[Any, Any, dict[str, Any]]:
        def prepare(source: Any, role: str) -> tuple[GroupDataset, Any]:
            return self.prepare_data(source, tokenizer, args, role=role)

        return assemble.prepare_all(train, held_out, prepare)

    @classmethod
    def groups_of(cls, source: Any, tokenizer: Any, args: Any, *, held_out: Any = None) -> list[GroupDataset]:
        """The data as this trainer tokenises them, without a model: training data first, then held-out ones."""
        reader = cls.__new__(cls)
        train, held_out = reader.opened(source, held_out, tokenizer, args)
        train_groups, eval_groups, _ = reader._prepared(train, held_out, tokenizer, args)
        return [train_groups, *parts(eval_groups)]

    # --- what a subclass says ---

    def opened(self, train: Any, held_out: Any, tokenizer: Any, args: Any) -> tuple[Any, Any]:
        """The datasets, opened where something else than `prepare_data` needs them too; the tokenizer completed."""
        return train, held_out

    def prepare_model(self, model: Any, args: Any, tokenizer: Any, **configs: Any) -> Any:
        """The model as it will be trained; `configs` are `peft_config` and `quantization_config`."""
        return assemble.prepare_model(model, args, **configs)

    def settle(self, model: Any, args: Any, tokenizer: Any) -> None:
        """Decide how the model is computed, and divide it among the ranks where that is asked for."""
        sharding = args.sharding
        if sharding is not None:
            check_sharding(model, args)
            if sharding.weights_on_first_rank:
                take_from_first_rank(model, args.device)
        super().settle(model, args, tokenizer)
        if sharding is not None:
            model._preftune_base = base_of(model)
            shard_model(model, sharding, args.device, called=self.called_parts(model))

    def called_parts(self, model: Any) -> Sequence[nn.Module]:
        """The parts of the model that the engine calls in its place; empty if it calls the model."""
        return ()

    def placed(self) -> None:
        """The model is where it will be trained, and nothing has started."""

    def watch(self, train: Any, held_out: Any) -> None:
        """Further callbacks."""

    def say_advice(self) -> None:
        """Advice before training."""

    def before_first_step(self, *, resumed: bool) -> None:
        """The check of the first step, and whatever must be done before it."""
        error = max(self._checked(self.engine_error, self.train_dataset))
        detail(f"self-check: the engine agrees with the naive path within {error:.2g} {self.engine_error_unit}.")
        self._record.note(self_check={"engine_error": error})

    def data_facts(self) -> dict[str, Any]:
        held_out = {f"eval_{index}": data_facts(part) for index, part in enumerate(parts(self.eval_dataset))}
        return {"train": data_facts(self.train_dataset), **held_out}

    def prepare_step(self, model: nn.Module, batches: Sequence[PackedBatch]) -> Sequence[PackedBatch]:
        """What must be known of a whole optimiser step before its loss is computed. Returns: the batches to compute."""
        return batches

    def stepped(self, metrics: Tensor) -> None:
        """After a step was computed, with (items, columns) of this rank."""

    @contextmanager
    def counted(self, batches: Sequence[PackedBatch]) -> Iterator[None]:
        """Counts the work of a step that is done inside."""
        yield
        for batch in batches:
            self._work.add(batch)

    # --- training ---

    def create_accelerator_and_postprocess(self) -> None:
        with assemble.compiled_by_us(self.args):
            super().create_accelerator_and_postprocess()

    def begin_training(self, *, resumed: bool) -> None:
        state, self._stream_state = self._stream_state, None
        if isinstance(self.train_dataset, StreamedGroups):
            self.train_dataset.begin(state)
        if self.is_world_process_zero():
            write_json(Path(self.args.output_dir) / "audit.json", self._audit())
            report = self.reports.get("train")
            if not isinstance(self.train_dataset, StreamedGroups):  # those of a stream are known when they are read
                self.keep_prompts(None if report is None else report.prompt_keys, resumed=resumed)
            elif not resumed:
                self.keep_prompts(None, resumed=False)
        if self.judged is not None:
            self.judged.begin(resumed_step=self._resumed_step)
        if not self._policy_changed:
            self.before_first_step(resumed=resumed)
        self._policy_changed = True
        self._work.reset()

    def weights_replaced(self) -> None:
        if self.judged is not None:
            self.judged.draw()  # as long as the model is the one as received
        self._policy_changed = True

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        data = self.train_dataset if train_dataset is None else train_dataset
        return (
            SequentialSampler(data) if isinstance(data, StreamedGroups) else super()._get_train_sampler(train_dataset)
        )

    def get_train_dataloader(self) -> Any:
        return with_a_seed_of_its_own(without_repeats(super().get_train_dataloader()), self.args.seed)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Nothing, until the last micro-batch of an optimiser step comes, and then the whole step."""
        self.go_on()
        batches: Sequence[PackedBatch] = (
            self._step if any(inputs[BATCH] is batch for batch in self._step) else [inputs[BATCH]]
        )
        if inputs[BATCH] is not batches[-1]:
            return torch.zeros((), device=self.args.device)
        # transformers' training_step computes one micro-batch: forward through compute_loss, then backward
        policy, one = unwrap(model), super().training_step
        items = sum(map(self._items, batches)) if num_items_in_batch is None else num_items_in_batch

        def compute(part: PackedBatch) -> tuple[Tensor, Tensor]:
            if part.groups:
                loss, rows = one(policy, {BATCH: part}, items), self._metrics_of_part
            else:
                loss, rows = (torch.zeros(shape, device=self.args.device) for shape in ((), (0, len(self.columns))))
            return loss, rows if self.guard is None else self.guard.marked(part, rows)

        def fill(part: PackedBatch) -> tuple[Tensor, Tensor]:
            nothing = collate([])[BATCH].to(self.args.device)
            # a loss over infinitely many items, and its gradient, are 0
            return one(policy, {BATCH: part}, math.inf), compute(nothing)[1]  # type: ignore[arg-type]

        with self.counted(batches):
            batches = self.prepare_step(policy, batches)
            loss, metrics = whole_step(self, policy, batches, compute, fill=fill)
        self.limits.count(sum(group.tokens for batch in batches for group in batch.groups))
        if self.guard is not None:
            metrics = self.guard.count(loss, metrics, batches)
        self._window.add(metrics)
        self.stepped(metrics)
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

    # --- logging ---

    def figures(self) -> dict[str, float]:
        means = self._window.drain(lambda sums: self.accelerator.reduce(sums, "sum"))
        return self.derived(means) | self.throughput()

    @contextmanager
    def untimed(self) -> Iterator[None]:
        with self._work.paused():
            yield

    def throughput(self) -> dict[str, float]:
        """Rates since the last log."""
        return self._work.drain()

    def restore(self, state: Mapping[str, Any]) -> None:
        self._window.restore(state["window"], self.args.device)
        self._work.restore(state.get("work") or {})

    def checkpoint_facts(self) -> dict[str, Any]:
        facts = {**super().checkpoint_facts(), "work": self._work.state()}
        if isinstance(self.train_dataset, StreamedGroups):
            self._keep_stream()
            facts["stream"] = self.train_dataset.state(self.state.global_step * self.args.rows_per_step)
        return facts

    def check_resumable(self, state: Mapping[str, Any] | None, folder: Path) -> None:
        """The rows of a stream go on where the checkpoint left them; they are compared after this."""
        super().check_resumable(state, folder)
        if isinstance(self.train_dataset, StreamedGroups) and state is not None:
            self._stream_state = state.get("stream")

    def result_facts(self) -> dict[str, Any]:
        if not isinstance(self.train_dataset, StreamedGroups):
            return super().result_facts()
        self._keep_stream()
        say(warn_of(self.train_dataset))
        return {**super().result_facts(), "stream": {"groups": self.train_dataset.read, "audit": "audit.json"}}

    def _keep_stream(self) -> None:
        """Writes what the rows of a stream were so far."""
        assert isinstance(self.train_dataset, StreamedGroups)
        self.train_dataset.unite_prompt_keys()
        self.reports["train"] = self.train_dataset.report
        if self.is_world_process_zero():
            write_json(Path(self.args.output_dir) / "audit.json", self._audit())
            self.keep_prompts(self.reports["train"].prompt_keys, resumed=self._resumed_step is not None)

    # --- inner parts ---

    def _batch_of(self, rows: Sequence[int]) -> PackedBatch:
        """Training rows on the device."""
        return collate([self.train_dataset[row] for row in rows])[BATCH].to(self.args.device)

    def _prepare_input(self, data: Any) -> Any:
        return data.to(self.args.device) if isinstance(data, PackedBatch) else super()._prepare_input(data)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Useful FLOPs of a micro-batch (no recomputation, no padding), attention left out."""
        return int(self._work.useful_flops(inputs[BATCH]))

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        if self.args.include_num_input_tokens_seen != "no":
            tokens = torch.tensor(inputs[BATCH].input_ids.numel(), device=self.args.device)
            self.state.num_input_tokens_seen += int(self.accelerator.gather(tokens).sum())

    def _audit(self) -> dict[str, Any]:
        return {role: report.to_json() for role, report in self.reports.items()}
