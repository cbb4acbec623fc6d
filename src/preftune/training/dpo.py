"""`DPOTrainer`: direct preference optimisation on transformers' Trainer.

The loop, callbacks, loggers, accelerate, checkpoints and hub upload are transformers'. What is here: a batch is packed
groups, the policy is scored by the engine, the reference by `ReferenceScores`, and the loss is a mean over the pairs of
the whole optimiser step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from preftune.log import say
from preftune.losses import LossOutput, get_loss
from preftune.reference import AsReceived, ReferenceScores, unwrap
from preftune.training import assemble, checkpoint, memory, model_card
from preftune.training.advice import say_advice
from preftune.training.arguments import (
    check_evaluation,
    checkpoint_folder,
    own_config,
    parts,
    refuse_arguments,
    step_of,
    tokenizer_of,
    with_early_stopping,
)
from preftune.training.batches import BATCH, check_one_batch, collate, shortest
from preftune.training.config import DPOConfig
from preftune.training.evaluation_loop import evaluate_pairs
from preftune.training.guard.attach import attach_guard, opened_for_guard
from preftune.training.metrics import MetricWindow, WorkCounter, pair_metrics, peak_memory
from preftune.training.micro_batches import cost_of, token_budget
from preftune.training.optimizer_step import non_finite, whole_step
from preftune.training.reference_setup import make_reference, score_everything
from preftune.training.run_directory import check_writable, write_json
from preftune.training.run_record import RunRecord, facts_of, reference_facts
from preftune.training.self_check import FirstStepCallback, check_before_training
from preftune.training.trackers import TrackedFacts
from preftune.types import PackedBatch, Sides


class DPOTrainer(Trainer):  # type: ignore[misc]
    """Trains a causal language model on preference pairs.

    Args:
        model: a model (plain, quantised, with or without a PEFT adapter), a hub id or a folder.
        ref_model: usually None: the reference is then the model as received, without a second copy where an adapter
            allows it. An explicit one must agree with the policy before the first step (see
            `DPOConfig.allow_reference_mismatch`).
        args: the configuration.
        train_dataset, eval_dataset: a `datasets.Dataset`, a list of dicts, a path or hub id, a `PairDataset`, or
            tokenised groups; eval_dataset may be a dict of these.
        processing_class: the tokenizer; loaded from the model's name if left out.
        peft_config: a PEFT configuration for a fresh adapter.
        quantization_config: for a model given by name.
        compute_metrics: gets an `EvalPrediction` whose predictions are the (pairs, 2) rewards of chosen and rejected,
            and returns more metrics.
        callbacks, optimizers, optimizer_cls_and_kwargs: as in `transformers.Trainer`.
    """

    loss_is_scaled_for_ga = True  # the loss is divided by the pairs of the whole step
    _tag_names = ("preftune", "dpo")

    def __init__(
        self,
        model: Any = None,
        ref_model: Any = None,
        args: DPOConfig | None = None,
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
        refuse_arguments(removed, data_collator, preprocess_logits_for_metrics)
        args = own_config(args)
        check_writable(args.output_dir)
        assemble.one_device(args)
        tokenizer = processing_class if processing_class is not None else tokenizer_of(model, args)
        train_dataset, eval_dataset = opened_for_guard(train_dataset, eval_dataset, args)
        train_groups, eval_groups, self.reports = assemble.prepare_all_data(
            train_dataset, eval_dataset, tokenizer, args
        )
        check_evaluation(args, eval_groups)
        check_one_batch(args, len(train_groups))
        assemble.seed(args)  # decides the adapter's start, which Trainer would seed too late
        model = assemble.prepare_model(model, args, peft_config=peft_config, quantization_config=quantization_config)
        self.full = not hasattr(model, "peft_config")
        assemble.settle_learning_rate(args, full=self.full)
        self.precision = assemble.settle_precision(model, args)
        self.engine, self.support = assemble.settle_engine(model, args)
        assemble.settle_compilation(model, args)
        self.loss_function = get_loss(args.loss)
        self.cost, budget = cost_of(self.engine), token_budget(args, args.device)
        self.step_limit, self.scoring_limit = memory.TokenLimit(budget), memory.TokenLimit(budget)
        self._window, self._policy_changed = MetricWindow(), False
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
        self._work = WorkCounter(self.model, trains_everything=self.full)
        self.reference = self._make_reference(ref_model)
        self._record = RunRecord(args.output_dir, facts_of(self))
        self.add_callback(self._record)
        self.add_callback(TrackedFacts(self, lambda: self._record.facts))
        self.add_callback(FirstStepCallback(self))
        self.guard = attach_guard(self, train_dataset, eval_dataset)
        if hasattr(self.model, "add_model_tags"):
            self.model.add_model_tags(list(self._tag_names))
        say_advice(self)

    def create_accelerator_and_postprocess(self) -> None:
        with assemble.compiled_by_us(self.args):
            super().create_accelerator_and_postprocess()

    # --- training ---

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Score what the reference must say beforehand, check the first step, train, and record the outcome.

        Args:
            resume_from_checkpoint: a checkpoint folder, or True for the last one in output_dir.
        """
        folder = checkpoint_folder(resume_from_checkpoint, self.args.output_dir)
        state = checkpoint.load_state(folder, rank=self.args.process_index) if folder else None
        if folder is not None:
            checkpoint.check_same_reference(state, self.reference.source.fingerprint, folder)
        if self.is_world_process_zero():
            self._record.begin(resumed_step=step_of(folder))
            write_json(Path(self.args.output_dir) / "audit.json", self._audit())
        try:
            if not self._policy_changed:
                self._before_first_step(resumed=folder is not None)
            if self.guard is not None:
                self.guard.begin(resumed_step=step_of(folder))
            self._policy_changed, self._resume_state, self._sums_carried_over = True, state, False
            self._work.reset()
            with memory.explained(self):
                result = super().train(resume_from_checkpoint=str(folder) if folder else None, **kwargs)
        except KeyboardInterrupt:
            self._end("interrupted")
            raise
        except BaseException as error:
            self._end("failed", error=f"{type(error).__name__}: {error}")
            raise
        self._end("finished", result=result.metrics)
        return result._replace(training_loss=result.metrics["train_loss"])

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Nothing, until the last micro-batch of an optimiser step comes, and then the whole step."""
        if self._resume_state is not None:
            self._restore_window(self._resume_state)
        batches = self._step if any(inputs[BATCH] is batch for batch in self._step) else [inputs[BATCH]]
        if inputs[BATCH] is not batches[-1]:
            return torch.zeros((), device=self.args.device)
        policy, one = unwrap(model), super().training_step
        pairs = sum(batch.pairs for batch in batches) if num_items_in_batch is None else num_items_in_batch

        def compute(part: PackedBatch) -> tuple[Tensor, Tensor]:
            loss, rows = one(policy, {BATCH: part}, pairs), self._metrics_of_part
            return loss, rows if self.guard is None else self.guard.marked(part, rows)

        misses = self.reference.misses
        loss, metrics = whole_step(self, policy, batches, compute)
        if self.guard is not None:
            metrics = self.guard.count(loss, metrics, batches)
        self._window.add(metrics)
        missed = (self.reference.misses - misses) / sum(batch.completions for batch in batches)
        for batch in batches:
            self._work.add(batch, reference_groups=round(min(1.0, missed) * len(batch.groups)))
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Sum of the micro-batch's pair losses over the pairs of the whole step, times the number of ranks (which
        averaging the gradients divides out again).
        """
        batch: PackedBatch = inputs[BATCH]
        output, policy = self.score(model, batch)
        pairs = batch.pairs if num_items_in_batch is None else num_items_in_batch
        loss = output.loss_N.sum() * self.accelerator.num_processes / pairs
        if self.model.training:
            self._metrics_of_part = pair_metrics(output, policy)
        return (loss, {"output": output, "policy": policy}) if return_outputs else loss

    def score(self, model: nn.Module, batch: PackedBatch) -> tuple[LossOutput, Sides]:
        """Loss and rewards of a batch's pairs, and the policy's log-probabilities of both sides."""
        reference = self.reference(model, batch).sides(batch)  # before the policy: it may exchange weights
        with self._autocast():
            policy = self.engine(model, batch).sides(batch)
        options = {} if self.loss_function.smoothing_limit is None else {"label_smoothing": self.args.label_smoothing}
        output = self.loss_function.function(
            policy,
            reference,
            beta=self.args.beta,
            weight_N=batch.weight_N,
            margin_N=batch.margin_N,
            **options,
        )
        return output, policy

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | int | None:
        """Pairs of the whole optimiser step, over all its micro-batches and all ranks."""
        if not batch_samples:
            return None
        self._step = [inputs[BATCH] for inputs in batch_samples]
        self.step_has_weight = any(pair.weight for b in self._step for group in b.groups for pair in group.pairs)
        pairs = torch.tensor(sum(batch.pairs for batch in self._step), device=device)
        return self.accelerator.gather(pairs).sum() if self.args.world_size > 1 else pairs

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Called once per optimiser step, before it: the place for the one finite check."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        watched = self._tr_loss if norm is None or self.precision.grad_scaling else self._tr_loss + norm
        if not bool(torch.isfinite(torch.as_tensor(watched))):
            raise non_finite(self, self._step)
        return norm

    # --- evaluation ---

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """As `Trainer.evaluate`; raw datasets are tokenised first. Metrics are means over pairs, whatever the batch."""
        named = (
            isinstance(self.eval_dataset, dict) and isinstance(eval_dataset, str) and eval_dataset in self.eval_dataset
        )
        cached = getattr(self, "_eval_dataloaders", {})
        if eval_dataset is not None and not named:
            eval_dataset, _ = assemble.prepare_eval_data(eval_dataset, self.processing_class, self.args)
            cached.clear()  # transformers keeps persistent loaders by name, and every new dataset is called "eval"
        try:
            with self._work.paused(self.reference):
                return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            if eval_dataset is not None and not named:
                cached.clear()
            if isinstance(self.reference.source, AsReceived):
                self.reference.source.let_go()

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        loss_only = self.args.prediction_loss_only if prediction_loss_only is None else prediction_loss_only
        return evaluate_pairs(self, dataloader, prefix=metric_key_prefix, loss_only=loss_only)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Evaluation never drops the last, smaller batch: its numbers are about all pairs."""
        wanted, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = wanted

    def predict(self, test_dataset: Any, ignore_keys: Any = None, metric_key_prefix: str = "test") -> Any:
        """Rewards of chosen and rejected for every pair, (pairs, 2), and the metrics."""
        groups, _ = assemble.prepare_data(test_dataset, self.processing_class, self.args, role="test")
        return super().predict(groups, ignore_keys, metric_key_prefix)  # type: ignore[arg-type]

    # --- logging ---

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.model.training:
            logs |= self._window.drain(lambda sums: self.accelerator.reduce(sums, "sum"))
            logs |= self._work.drain(self.reference) | peak_memory(self.args.device)
        if "train_loss" in logs and self._sums_carried_over:  # transformers divides by the steps of this call alone
            logs["train_loss"] = self._total_loss_scalar / max(1, self.state.global_step)
        super().log(logs, start_time)

    # --- saving ---

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self._work.paused(self.reference):
            super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        content = {
            "reference": reference_facts(self),
            "window": self._window.state(),
            "loss": float(self._tr_loss),
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "step_limit": self.step_limit.fell_to,
        }
        checkpoint.save_state(folder, content, rank=self.args.process_index)

    def _restore_window(self, state: dict[str, Any]) -> None:
        self._resume_state = None
        self._window.restore(state["window"], self.args.device)
        self._tr_loss += state["loss"]
        self._total_loss_scalar, self._sums_carried_over = state["total_loss"], True
        self._globalstep_last_logged = state["last_logged"]
        self.step_limit.resume(state.get("step_limit"))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """README.md of the output directory: what was trained, on what, with which measured result."""
        if self.is_world_process_zero():
            model_card.write(self)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if not _internal_call and output_dir in (None, self.args.output_dir):
            self.create_model_card()

    # --- inner parts ---

    def _before_first_step(self, *, resumed: bool) -> None:
        probe = self._batch_of([0])
        with memory.explained(self, probe.groups[0]):
            result = check_before_training(
                self.model,
                probe,
                self.engine,
                self.reference,
                autocast=self.precision.autocast,
                resumed=resumed,
                allow_mismatch=self.args.allow_reference_mismatch,
            )
        say(result.describe())
        if self.is_world_process_zero():
            self._record.note(
                self_check={
                    "engine_error": result.engine_error,
                    "reference_distance": result.reference_distance,
                    "noise_floor": result.noise_floor,
                }
            )
        if not self.reference.source.live or self.args.precompute_ref_log_probs:
            score_everything(self, [self.train_dataset, *parts(self.eval_dataset)])
        if self.guard is not None and not resumed:
            self.guard.draw()

    def _make_reference(self, ref_model: Any) -> ReferenceScores:
        self._resume_state: dict[str, Any] | None = None
        self._step: list[PackedBatch] = []
        self.step_has_weight = True
        probe = self._batch_of(shortest(self.train_dataset.lengths, 4))
        return make_reference(self, ref_model, probe, trained=lambda: self._policy_changed)

    def _batch_of(self, rows: Sequence[int]) -> PackedBatch:
        """Training rows on the device."""
        return collate([self.train_dataset[row] for row in rows])[BATCH].to(self.args.device)

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

    def _end(self, outcome: str, **more: Any) -> None:
        if self.is_world_process_zero():
            self._record.end(outcome, steps=self.state.global_step, **more)
