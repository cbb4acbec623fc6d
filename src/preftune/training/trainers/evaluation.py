"""Evaluation: the numbers of every item (pair, token) gathered over all ranks, then means over items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, denumpify_detensorize

from preftune.data import GroupDataset
from preftune.errors import ConfigError
from preftune.logps.batch import PackedBatch
from preftune.training.judged.win_rate import JudgedEvaluation
from preftune.training.setup.model import prepare_held_out
from preftune.training.setup.self_check import check_engine
from preftune.training.step.collate import BATCH, collate, probes, with_a_seed_of_its_own
from preftune.training.step.memory import item_rows, score_in_parts
from preftune.training.trainers.recorded import RecordedTrainer
from preftune.types import TokenizedGroup

Checked = TypeVar("Checked")


class EvaluatedTrainer(RecordedTrainer):
    """Evaluation of a trainer on packed groups; the other half of `PackedTrainer`, which has what is asked for here."""

    train_dataset: GroupDataset
    eval_dataset: GroupDataset | dict[str, GroupDataset] | None
    engine_error_unit: ClassVar[str] = "nat per token"
    """What `engine_error` is measured in."""
    _engine_checked = False
    columns: ClassVar[Sequence[str]]
    """Names of the columns of what `batch_loss` gives for the metrics."""
    further_names: ClassVar[Sequence[str]] = ()
    """What `further_metrics` gives."""
    judged: JudgedEvaluation | None = None
    """Compares answers at every evaluation."""
    evaluates_at_end = False
    """The caller evaluates after training, so that no hint is needed if nothing else does."""

    def items(self, group: TokenizedGroup) -> int:
        """What the loss is a mean over: how many of them a group holds."""
        return len(group.pairs)

    def batch_loss(self, model: nn.Module, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """The loss of each item of a batch, (items,), with gradient; and (items, columns) float32 without one.

        The items are those of the first group, then those of the second, and so on.
        """
        raise NotImplementedError

    def prepare_data(self, source: Any, tokenizer: Any, args: Any, *, role: str) -> tuple[GroupDataset, Any]:
        """Tokenised groups of any kind of source and the report of it (None for groups), with what is to be reported.

        Args:
            role: "train", "eval", "eval (NAME)" or "test".
        """
        raise NotImplementedError

    def predictions_of(self, table: Tensor) -> Tensor:
        """Of (items, 1 + columns), loss first: what `predict` gives and `compute_metrics` gets."""
        return table[:, 1:]

    def engine_error(self, batch: PackedBatch) -> float:
        """Largest difference between the engine and the naive path. Raises as `check_engine` does."""
        return check_engine(self.model, batch, self.engine, autocast=self.precision.autocast)[1]

    def check_before_evaluation(self, dataset: GroupDataset) -> None:
        """Checks the engine on a few rows, unless it was checked already. Raises as `engine_error`."""
        if not self._engine_checked:
            self._checked(self.engine_error, dataset)

    def _checked(self, check: Callable[[PackedBatch], Checked], dataset: GroupDataset) -> list[Checked]:
        """What the check of the engine says of a few rows, packed together as far as memory allows."""

        def together(groups: Sequence[TokenizedGroup]) -> list[Checked]:
            return [check(collate(groups)[BATCH].to(self.args.device))] * len(groups)

        groups = [dataset[row] for row in probes(dataset.lengths)]
        results = score_in_parts(self, groups, together, work="reference")
        self._engine_checked = True
        return [result for of_group in results for result in of_group]

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """As `Trainer.evaluate`; raw datasets are tokenised first. Metrics are means over items, whatever the batch."""
        named = (
            isinstance(self.eval_dataset, dict) and isinstance(eval_dataset, str) and eval_dataset in self.eval_dataset
        )
        cached = getattr(self, "_eval_dataloaders", {})
        if eval_dataset is not None and not named:
            eval_dataset, _ = prepare_held_out(eval_dataset, self._prepare)
            cached.clear()  # transformers keeps persistent loaders by name, and every new dataset is called "eval"
        try:
            with self.untimed():
                return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            if eval_dataset is not None and not named:
                cached.clear()

    def _prepare(self, source: Any, role: str) -> tuple[GroupDataset, Any]:
        return self.prepare_data(source, self.processing_class, self.args, role=role)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        self.check_before_evaluation(dataloader.dataset)
        loss_only = self.args.prediction_loss_only if prediction_loss_only is None else prediction_loss_only
        output = evaluate_groups(self, dataloader, prefix=metric_key_prefix, loss_only=loss_only)
        if self.judged is not None and output.metrics is not None:
            found = self.judged.metrics(metric_key_prefix)
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found.items()})
        return output

    def derived(self, means: dict[str, float]) -> dict[str, float]:
        """The means of the columns as they are reported: ratios of two of them are computed here."""
        return means

    def further_metrics(self, table: Tensor) -> dict[str, float]:
        """What an evaluation says besides the means of the columns, of (items, 1 + columns), loss first."""
        return {}

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Evaluation never drops the last, smaller batch: its numbers are about all rows."""
        with self._all_rows():
            return with_a_seed_of_its_own(super().get_eval_dataloader(eval_dataset), self.args.seed)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """So does prediction: it answers for every row."""
        with self._all_rows():
            return with_a_seed_of_its_own(super().get_test_dataloader(test_dataset), self.args.seed)

    @contextmanager
    def _all_rows(self) -> Iterator[None]:
        wanted, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = wanted

    def predict(self, test_dataset: Any, ignore_keys: Any = None, metric_key_prefix: str = "test") -> Any:
        """What `predictions_of` says of every item, in the order of the rows, and the metrics."""
        groups, _ = self._prepare(test_dataset, "test")
        return super().predict(groups, ignore_keys, metric_key_prefix)  # type: ignore[arg-type]


def evaluate_groups(trainer: EvaluatedTrainer, dataloader: Any, *, prefix: str, loss_only: bool) -> EvalLoopOutput:
    """The loss and all metrics of a held-out set as means over its items, whatever the batch size or rank count."""
    model = trainer._wrap_model(trainer.model, training=False, dataloader=dataloader)
    was_training = model.training
    model.eval()
    # schedule-free optimisers keep other weights for evaluation
    getattr(trainer.optimizer, "eval", lambda: None)()
    handler = trainer.callback_handler
    handler.eval_dataloader = dataloader
    rows: list[Tensor] = []
    with torch.no_grad():
        for inputs in dataloader:
            prepared: Any = trainer._prepare_inputs(inputs)
            batch: PackedBatch = prepared[BATCH]
            rows.append(_gather(trainer, item_rows(trainer, model, batch), batch).cpu())
            trainer.control = handler.on_prediction_step(trainer.args, trainer.state, trainer.control)
    model.train(was_training)
    table = torch.cat(rows)
    predictions = trainer.predictions_of(table).numpy()
    labels = np.zeros(len(predictions), dtype=np.int64)  # of pairs the index of the chosen side
    metrics = dict(zip(("loss", *trainer.columns), table.double().mean(0).tolist(), strict=True))
    metrics = trainer.derived(metrics) | trainer.further_metrics(table)
    if trainer.compute_metrics is not None and not loss_only:
        metrics |= _own_metrics(trainer.compute_metrics, predictions, labels)
    named = {key if key.startswith(f"{prefix}_") else f"{prefix}_{key}": value for key, value in metrics.items()}
    return EvalLoopOutput(predictions=predictions, label_ids=labels, metrics=named, num_samples=len(table))


def _own_metrics(compute_metrics: Any, predictions: Any, labels: Any) -> dict[str, float]:
    """What a user's function makes of an evaluation. Raises: ConfigError where it fails, or gives no numbers."""
    try:
        more = compute_metrics(EvalPrediction(predictions=predictions, label_ids=labels))
    except Exception as error:
        raise ConfigError(
            f"compute_metrics raised {type(error).__name__}: {error}. It is called with one EvalPrediction, whose "
            f"predictions have the shape {predictions.shape}; correct it, or leave it out."
        ) from error
    plain: dict[str, float] | None = denumpify_detensorize(dict(more)) if isinstance(more, Mapping) else None
    if plain is None or not all(isinstance(value, int | float) for value in plain.values()):
        raise ConfigError(f"compute_metrics returned {more!r:.80}: return a dict of numbers by name, or leave it out.")
    return plain


def _gather(trainer: EvaluatedTrainer, rows: Tensor, batch: PackedBatch) -> Tensor:
    """The rows of all ranks' items, (items, columns), without the groups that only filled up the last batch.

    What ranks hold equally many of are groups, so rows are gathered by group, padded to the largest one.
    """
    accelerator = trainer.accelerator
    if accelerator.num_processes == 1:
        return rows
    sizes = [trainer.items(group) for group in batch.groups]
    padded = torch.nn.utils.rnn.pad_sequence(rows.split(sizes), batch_first=True, padding_value=torch.nan)
    padded = accelerator.pad_across_processes(padded, dim=1, pad_index=torch.nan)
    gathered: Tensor = accelerator.gather_for_metrics(padded).flatten(0, 1)
    return gathered[~gathered.isnan().all(1)]
