"""`KTOTrainer`: single answers with a label, good or bad, on the reference and the engine that DPO has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from preftune.amounts import counted
from preftune.data import GroupDataset, load_labelled
from preftune.errors import ConfigError
from preftune.log import say
from preftune.logps.batch import PackedBatch
from preftune.losses.unpaired import UNPAIRED
from preftune.training.config.kto import BCOConfig, KTOConfig
from preftune.training.guard.callback import opened_for_guard
from preftune.training.record import model_card
from preftune.training.setup.advice import about_beta, about_rate
from preftune.training.setup.model import tokenize
from preftune.training.setup.streams import held, is_stream, streamed_groups
from preftune.training.step.kl_baseline import kl_baseline
from preftune.training.trainers.referenced import ReferencedTrainer
from preftune.types import TokenizedGroup

_SIDES = ("chosen", "rejected")
_OF_SIDES = tuple(f"{what}/{side}" for what in ("rewards", "logps") for side in _SIDES)
_LENGTHS = tuple(f"completions/{side}_length" for side in _SIDES)
_GOOD, _HITS = "completions/desirable", "good_hits"

LEAST, MOST = 1.0, 4 / 3
"""The authors' range of desirable_weight x good answers over undesirable_weight x bad ones."""


class KTOTrainer(ReferencedTrainer):
    """Trains a causal language model on answers that are good or bad by themselves.

    Args:
        model: a model (plain, quantised, with or without a PEFT adapter), a hub id or a folder.
        ref_model: usually None; see `DPOTrainer`.
        args: the configuration.
        train_dataset, eval_dataset: rows of `prompt`, `completion` and `label` (or a conversation and `label`), or
            preferences, whose sides are a good and a bad answer each: a `datasets.Dataset`, a list of dicts, a path or
            hub id, a `LabelledDataset`, or tokenised groups; eval_dataset may be a dict of these.
        processing_class: the tokenizer, or its name; loaded from the model's name if left out.
        peft_config, quantization_config, callbacks, optimizers, optimizer_cls_and_kwargs: as for `DPOTrainer`.
        compute_metrics: gets an `EvalPrediction` whose predictions are the (answers, columns) numbers of every answer.
    """

    args: KTOConfig
    method = "kto"
    config_class = KTOConfig
    columns: ClassVar[Sequence[str]] = (*_OF_SIDES, *_LENGTHS, "rewards/accuracies", "kl", _GOOD, _HITS)
    unit = "answers"
    _baseline = 0.0
    """Nats: z of the step, or of the held-out set."""

    def opened(self, train: Any, held_out: Any, tokenizer: Any, args: Any) -> tuple[Any, Any]:
        rows = args.rows_per_step
        if args.loss_type == "kto" and rows < 2:
            raise ConfigError(
                "KTO compares prompts with the answers to others, but an optimiser step has only one row. Raise "
                "per_device_train_batch_size or gradient_accumulation_steps."
            )
        return opened_for_guard(train, held_out, args, load_labelled)

    def prepare_data(self, source: Any, tokenizer: Any, args: Any, *, role: str) -> tuple[GroupDataset, Any]:
        if isinstance(source, GroupDataset):
            return source, None
        limits = {name: getattr(args, name) for name in ("max_length", "max_prompt_length", "truncation")}
        if is_stream(source) and role == "train":
            return streamed_groups(source, "answer", tokenizer, args, **limits)
        return tokenize(load_labelled(held(source, role)), tokenizer, role=role, **limits)

    def placed(self) -> None:
        self.objective = self.args.objective()
        super().placed()

    @property
    def needs_live_reference(self) -> bool:
        """KTO's baseline is of answers to other prompts."""
        return super().needs_live_reference or self.args.loss_type == "kto"

    def items(self, group: TokenizedGroup) -> int:
        return len(group.labels)

    # --- the loss ---

    def prepare_step(self, model: nn.Module, batches: Sequence[PackedBatch]) -> Sequence[PackedBatch]:
        self._measure(model, [batch.groups for batch in batches])
        return batches

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        before, rows = self._baseline, dataloader.dataset
        share = range(self.args.process_index, len(rows), self.args.world_size)
        self._measure(self.model, [[rows[row]] for row in share])
        try:
            return super().evaluation_loop(dataloader, *args, **kwargs)
        finally:
            self._baseline = before

    def _measure(self, model: nn.Module, batches: Sequence[Sequence[TokenizedGroup]]) -> None:
        if self.args.loss_type == "kto":
            self._baseline = kl_baseline(self, model, batches)

    def rewards_of(self, sides_N2: Tensor) -> Tensor:
        return sides_N2.sum(1)  # an answer has one side, and 0 at the other

    @property
    def _zero(self) -> float:
        """Log-ratio, nats, that good answers should be above and bad ones below."""
        return self.reward_mean / self.args.beta if self.args.loss_type == "bco" else self._baseline

    def batch_loss(self, model: nn.Module, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        reference_K = self.reference(model, batch).sum_K  # before the policy: it may exchange weights
        with self.autocast():
            scored = self.engine(model, batch)
        assert scored.hit_T is not None
        policy_K, length_K = scored.sum_K, scored.length_K
        hits_K = torch.zeros_like(length_K).index_add(0, scored.owner_T, scored.hit_T.to(length_K.dtype))
        args, good_K, ratio_K = self.args, batch.good_K, policy_K - reference_K
        loss_K = UNPAIRED[args.loss_type](ratio_K, good_K, beta=args.beta, baseline=self._zero)
        side_K = torch.where(good_K, args.desirable_weight, args.undesirable_weight)
        return batch.label_weight_K * side_K * loss_K, self._rows(good_K, ratio_K, policy_K, length_K, hits_K)

    def _rows(self, good_K: Tensor, ratio_K: Tensor, policy_K: Tensor, length_K: Tensor, hits_K: Tensor) -> Tensor:
        good, bad, reward_K = good_K.float(), (~good_K).float(), self.args.beta * ratio_K
        right_K = (reward_K > self.args.beta * self._zero) == good_K
        columns = [value * side for value in (reward_K, policy_K, length_K) for side in (good, bad)]
        columns += [right_K, torch.full_like(good, self._zero), good, hits_K * good]
        return torch.stack([column.detach().float() for column in columns], 1)

    def derived(self, means: dict[str, float]) -> dict[str, float]:
        """Means over good and over bad answers, of means over all."""
        good = means.pop(_GOOD, 0.0)
        hits = means.pop(_HITS, 0.0)
        shares = {"chosen": good, "rejected": 1.0 - good}
        for name in (*_OF_SIDES, *_LENGTHS):
            side = "chosen" if "chosen" in name else "rejected"
            value = means.pop(name, 0.0)
            if shares[side] > 0:
                means[name] = value / shares[side]
        if self.args.loss_type == "bco" and "kl" in means:
            means["delta"] = self.args.beta * means.pop("kl")
        if "rewards/chosen" in means and "rewards/rejected" in means:
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
        if "completions/chosen_length" in means:
            means["mean_token_accuracy"] = hits / good / max(1.0, means["completions/chosen_length"])
        return means

    def predictions_of(self, table: Tensor) -> Tensor:
        return table[:, 1:]

    # --- what is reported ---

    def say_advice(self) -> None:
        args, good, bad = self.args, *self.train_dataset.labels
        title = {"kto": "KTO", "bco": "BCO"}.get(args.loss_type, "APO-zero")
        lines = about_beta(args.beta, title=title, usual=0.1, low=0.05, high=0.5)
        lines += about_rate(args.learning_rate, args.full_learning_rate, full=self.full, few=good + bad < 1000)
        for line in lines:
            say(f"advice: {line}")
        if not good or not bad:
            say(f"advice: all answers ({good + bad:,}) are {'bad' if bad else 'good'}. KTO learns from both kinds.")
            return
        ratio = args.desirable_weight * good / (args.undesirable_weight * bad)
        if args.loss_type == "kto" and not LEAST - 0.01 <= ratio <= MOST + 0.01:
            wanted = (
                f"desirable_weight={args.undesirable_weight * bad / good:.3g}"
                if good < bad
                else f"undesirable_weight={args.desirable_weight * good / bad:.3g}"
            )
            say(
                f"advice: {good:,} good and {bad:,} bad answers, with weights {args.desirable_weight:g} and "
                f"{args.undesirable_weight:g}: the ratio {ratio:.2f} is outside 1 to 1.33, the authors' range. "
                f"{wanted} makes it 1."
            )
        if good + bad < 1000:
            say(
                f"advice: {counted(good + bad, 'answer')}: this is few; judge the result by win rate, not by the "
                "training accuracy."
            )

    def card(self) -> str:
        return model_card.kto_card(self)


class BCOTrainer(KTOTrainer):
    """`KTOTrainer` with BCO: good and bad answers are pulled to both sides of a running mean of their rewards.

    Args: those of `KTOTrainer`.
    """

    args: BCOConfig
    method = "bco"
    config_class = BCOConfig
