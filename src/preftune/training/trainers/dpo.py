"""`DPOTrainer`: direct preference optimisation, and the other losses of pairs.

A batch is packed groups, the policy is scored by the engine, the reference by `ReferenceScores`, and the loss is a mean
over the pairs of the whole optimiser step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from preftune.data import GroupDataset, load_pairs
from preftune.logps.batch import PackedBatch
from preftune.losses import LossOutput, Objective, RunningMoments
from preftune.training.config.dpo import DPOConfig
from preftune.training.guard.callback import opened_for_guard
from preftune.training.record import model_card
from preftune.training.setup import model as assemble
from preftune.training.setup.advice import check_margins, say_advice
from preftune.training.step.collate import chosen_tokens, gold_tokens
from preftune.training.step.measured import measured
from preftune.training.step.metrics import PER_PAIR, pair_metrics
from preftune.training.step.pair_loss import pair_loss
from preftune.training.step.step_pairs import with_sorted_margins
from preftune.training.trainers.referenced import ReferencedTrainer
from preftune.types import Sides

_HITS = "chosen_hits"
"""Tokens of the chosen side that were the likeliest: of it and the lengths, `mean_token_accuracy` is made."""


class DPOTrainer(ReferencedTrainer):
    """Trains a causal language model on preference pairs.

    Args:
        model: a model (plain, quantised, with or without a PEFT adapter), a hub id or a folder.
        ref_model: usually None: the reference is then the model as received, without a second copy where an adapter
            allows it. An explicit one must agree with the policy before the first step (see
            `DPOConfig.allow_reference_mismatch`).
        args: the configuration.
        train_dataset, eval_dataset: a `datasets.Dataset`, a list of dicts, a path or hub id, a `PairDataset`, or
            tokenised groups; eval_dataset may be a dict of these.
        processing_class: the tokenizer, or its name; loaded from the model's name if left out.
        peft_config: a PEFT configuration for a fresh adapter.
        quantization_config: for a model given by name.
        compute_metrics: gets an `EvalPrediction` whose predictions are the (pairs, 2) rewards of chosen and rejected,
            and returns more metrics.
        callbacks, optimizers, optimizer_cls_and_kwargs: as in `transformers.Trainer`.
    """

    args: DPOConfig
    method = "dpo"
    config_class = DPOConfig
    columns: ClassVar[Sequence[str]] = (*PER_PAIR, _HITS)
    objective: Objective
    _of_beta_dpo: Mapping[str, float] = MappingProxyType({})
    """Metrics of the last step: its beta, and the share of its pairs that is left out."""
    _tokens_per_pair = _gold_per_pair = 1.0
    """Tokens of the chosen completions, and of the gold ones, of the step (or of the held-out set) over its pairs."""

    # --- data and reference ---

    def opened(self, train: Any, held_out: Any, tokenizer: Any, args: Any) -> tuple[Any, Any]:
        return opened_for_guard(train, held_out, args, load_pairs)

    def prepare_data(self, source: Any, tokenizer: Any, args: Any, *, role: str) -> tuple[GroupDataset, Any]:
        objective = args.objective()
        lists, gold = objective.takes_lists, objective.needs_gold
        return assemble.prepare_data(source, tokenizer, args, role=role, lists=lists, gold=gold)

    def placed(self) -> None:
        self.objective, self.moments = self.args.objective(), RunningMoments()
        check_margins(self)
        super().placed()

    # --- the loss ---

    def batch_loss(self, model: nn.Module, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        output, policy, hits_N = self.score(model, batch)
        return output.loss_N, torch.cat([pair_metrics(output, policy), hits_N[:, None]], 1)

    def derived(self, means: dict[str, float]) -> dict[str, float]:
        """`mean_token_accuracy`, under TRL's name: the share of all tokens of the chosen sides."""
        if _HITS in means:
            means["mean_token_accuracy"] = means.pop(_HITS) / max(1.0, means["completions/chosen_length"])
        return means

    def score(self, model: nn.Module, batch: PackedBatch) -> tuple[LossOutput, Sides, Tensor]:
        """Loss and rewards of a batch's pairs, the policy's log-probabilities of both sides, and how many tokens of
        each chosen side were the likeliest, (N,) float32.
        """
        # before the policy: it may exchange weights
        known = self.reference(model, batch) if self.objective.needs_reference else None
        with self.autocast():
            scored = self.engine(model, batch, squares=True) if self.args.use_weighting else self.engine(model, batch)
        assert scored.hit_T is not None
        hits_K = torch.zeros(scored.completions, device=scored.owner_T.device).index_add(
            0, scored.owner_T, scored.hit_T.float()
        )
        output, policy = pair_loss(
            self.args,
            self.objective,
            batch,
            scored=scored,
            known=known,
            tokens_per_pair=self._tokens_per_pair,
            step=self._of_step(training=model.training),
            prepared=model.training,
        )
        return output, policy, hits_K[batch.chosen_N]

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | int | None:
        items = super()._get_num_items_in_batch(batch_samples, device)
        if batch_samples:
            groups = [group for batch in self._step for group in batch.groups]
            counts = [chosen_tokens(groups), gold_tokens(groups), sum(len(group.pairs) for group in groups)]
            totals = torch.tensor(counts, device=device)
            if self.args.world_size > 1:
                totals = self.accelerator.reduce(totals, "sum")
            self._tokens_per_pair, self._gold_per_pair = (totals[:2] / totals[2].clamp(min=1)).tolist()
        return items

    def prepare_step(self, model: nn.Module, batches: Sequence[PackedBatch]) -> Sequence[PackedBatch]:
        if self.objective.gap is not None:
            batches, self._of_beta_dpo = measured(self, self.moments, model, batches)
        return with_sorted_margins(self, model, batches) if self.objective.sorts else batches

    def _of_step(self, *, training: bool) -> dict[str, float | None]:
        """What losses take of the step, of all earlier ones, or in an evaluation of the steps so far."""
        beta = self._of_beta_dpo.get("beta_dpo/beta") if training else None
        moments = {"step_beta": beta, "gap_mean": self.moments.mean, "gap_std": self.moments.std}
        return {"delta": self.reward_mean, "gold_tokens_per_pair": self._gold_per_pair, **moments}

    def figures(self) -> dict[str, float]:
        return {**super().figures(), **self._of_beta_dpo}

    def rewards_of(self, sides_N2: Tensor) -> Tensor:
        return sides_N2.flatten()

    def checkpoint_facts(self) -> dict[str, Any]:
        return {**super().checkpoint_facts(), "moments": asdict(self.moments)}

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self.moments = RunningMoments(**state.get("moments", {}))

    # --- evaluation ---

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        before, rows = (self._tokens_per_pair, self._gold_per_pair), dataloader.dataset
        self._tokens_per_pair, self._gold_per_pair = (
            count(rows) / max(1, rows.pairs) for count in (chosen_tokens, gold_tokens)
        )
        try:
            return super().evaluation_loop(dataloader, *args, **kwargs)
        finally:
            self._tokens_per_pair, self._gold_per_pair = before

    def predictions_of(self, table: Tensor) -> Tensor:
        """Rewards of chosen and rejected for every pair, (pairs, 2)."""
        return table[:, 1:3]

    def say_advice(self) -> None:
        say_advice(self)

    def card(self) -> str:
        return model_card.dpo_card(self)
