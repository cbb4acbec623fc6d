"""Evaluation on preference pairs: per-pair numbers gathered over all ranks, then means over pairs."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, denumpify_detensorize

from preftune.logps import pack
from preftune.training.batches import BATCH
from preftune.training.memory import score_in_parts
from preftune.training.metrics import PER_PAIR, pair_metrics
from preftune.types import PackedBatch, TokenizedGroup


def evaluate_pairs(trainer: Any, dataloader: Any, *, prefix: str, loss_only: bool) -> EvalLoopOutput:
    """The loss and all metrics of a held-out set as means over its pairs, whatever the batch size or rank count."""
    model = trainer._wrap_model(trainer.model, training=False, dataloader=dataloader)
    was_training = model.training
    model.eval()
    if callable(getattr(trainer.optimizer, "eval", None)):
        trainer.optimizer.eval()  # schedule-free optimisers keep other weights for evaluation
    handler = trainer.callback_handler
    handler.eval_dataloader = dataloader
    rows: list[Tensor] = []
    with torch.no_grad():
        for inputs in dataloader:
            batch = trainer._prepare_inputs(inputs)[BATCH]
            rows.append(_gather(trainer.accelerator, pair_rows(trainer, model, batch), batch).cpu())
            trainer.control = handler.on_prediction_step(trainer.args, trainer.state, trainer.control)
    model.train(was_training)
    table = torch.cat(rows)
    rewards = table[:, 1:3].numpy()
    labels = np.zeros(len(rewards), dtype=np.int64)  # index of the chosen side
    metrics = dict(zip(("loss", *PER_PAIR), table.double().mean(0).tolist(), strict=True))
    if trainer.compute_metrics is not None and not loss_only:
        more = trainer.compute_metrics(EvalPrediction(predictions=rewards, label_ids=labels))
        metrics |= denumpify_detensorize(more)
    named = {key if key.startswith(f"{prefix}_") else f"{prefix}_{key}": value for key, value in metrics.items()}
    return EvalLoopOutput(predictions=rewards, label_ids=labels, metrics=named, num_samples=len(table))


def pair_rows(trainer: Any, model: nn.Module, batch: PackedBatch) -> Tensor:
    """(pairs, 1 + metrics) float32, in the batch's order: each pair's loss, and the columns of `pair_metrics`.

    Scored within the limits of memory; the caller forbids gradients and switches dropout off.
    """

    def score(groups: Sequence[TokenizedGroup]) -> Sequence[Tensor]:
        whole = len(groups) == len(batch.groups) and all(map(operator.is_, groups, batch.groups))
        part = batch if whole else pack(groups).to(trainer.args.device)
        output, policy = trainer.score(model, part)
        columns = torch.cat([output.loss_N.detach().float()[:, None], pair_metrics(output, policy)], 1)
        return columns.split([len(group.pairs) for group in groups])

    parts = score_in_parts(trainer, batch.groups, score, work="evaluation")
    return torch.cat([rows for of_group in parts for rows in of_group])


def _gather(accelerator: Any, rows: Tensor, batch: PackedBatch) -> Tensor:
    """The rows of all ranks' pairs, (pairs, columns), without the groups that only filled up the last batch.

    What ranks hold equally many of are groups, so rows are gathered by group, padded to the largest one.
    """
    if accelerator.num_processes == 1:
        return rows
    sizes = [len(group.pairs) for group in batch.groups]
    padded = torch.nn.utils.rnn.pad_sequence(rows.split(sizes), batch_first=True, padding_value=torch.nan)
    padded = accelerator.pad_across_processes(padded, dim=1, pad_index=torch.nan)
    gathered = accelerator.gather_for_metrics(padded).flatten(0, 1)
    return gathered[~gathered.isnan().all(1)]
