"""Evaluation on preference pairs: per-pair numbers gathered over all ranks, then means over pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, denumpify_detensorize

from preftune.training.batches import BATCH
from preftune.training.memory import explained
from preftune.training.metrics import PER_PAIR, pair_metrics


def evaluate_pairs(trainer: Any, dataloader: Any, *, prefix: str, loss_only: bool) -> EvalLoopOutput:
    """The loss and all metrics of a held-out set as means over its pairs, whatever the batch size or rank count."""
    model = trainer._wrap_model(trainer.model, training=False, dataloader=dataloader)
    was_training = model.training
    model.eval()
    handler = trainer.callback_handler
    handler.eval_dataloader = dataloader
    rows: list[Tensor] = []
    with torch.no_grad():
        for inputs in dataloader:
            batch = trainer._prepare_inputs(inputs)[BATCH]
            with explained(trainer, batch, size="per_device_eval_batch_size"):
                output, policy = trainer.score(model, batch)
            columns = torch.cat([output.loss_N.detach().float()[:, None], pair_metrics(output, policy)], 1)
            rows.append(trainer.accelerator.gather_for_metrics(columns).cpu())
            trainer.control = handler.on_prediction_step(trainer.args, trainer.state, trainer.control)
    model.train(was_training)
    table = torch.cat(rows)
    metrics = dict(zip(("loss", *PER_PAIR), table.double().mean(0).tolist(), strict=True))
    if trainer.compute_metrics is not None and not loss_only:
        rewards = table[:, 1:3].numpy()
        labels = np.zeros(len(rewards), dtype=np.int64)  # index of the chosen side
        more = trainer.compute_metrics(EvalPrediction(predictions=rewards, label_ids=labels))
        metrics |= denumpify_detensorize(more)
    named = {key if key.startswith(f"{prefix}_") else f"{prefix}_{key}": value for key, value in metrics.items()}
    return EvalLoopOutput(predictions=None, label_ids=None, metrics=named, num_samples=len(table))
