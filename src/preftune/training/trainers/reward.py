"""`RewardTrainer`: a reward model on preference pairs, on the same packed, prompt-shared groups as DPO.

The model is a sequence classifier with one label; its score is read at the last token of each completion, which the
layout knows. The loss is a mean over the pairs of the whole optimiser step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from preftune.amounts import counted
from preftune.data import GroupDataset, PairDataset, load_pairs
from preftune.data.streams.examples import ExampleStream, open_examples
from preftune.errors import NonFiniteError, SelfCheckError
from preftune.judges.reward_model_input import Form, write_form
from preftune.log import say
from preftune.logps import plain_layers
from preftune.logps.batch import PackedBatch
from preftune.logps.scores import choose_score_engine, naive_scores, score_head
from preftune.logps.states import completion_states, trunk_of
from preftune.losses.reward import bradley_terry
from preftune.models.classifier import (
    HEAD,
    as_regression,
    classifier_of,
    load_classifier,
    name_the_head_alone,
    reward_adapter,
    spare_token,
)
from preftune.reference import inference
from preftune.statistics.calibration import Calibration, calibration
from preftune.training.config.reward import RewardConfig
from preftune.training.record import model_card
from preftune.training.setup import model as assemble
from preftune.training.setup.chat_templates import complete_tokenizer
from preftune.training.setup.streams import is_stream
from preftune.training.trainers.base import PackedTrainer

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
"""Difference between engine and naive path that rounding explains, of the norms of head and state together."""


class RewardTrainer(PackedTrainer):
    """Trains a model to score answers, so that the difference of two scores is the log-odds of the preference.

    Args:
        model: a causal model or a sequence classifier with one label (plain, or with a PEFT adapter; a causal one may
            be quantised), a hub id or a folder. Of a causal model the trunk is taken, without a copy, and a fresh head
            `score` is put on it; the adapter of one (as SFT makes it) is trained further.
        args: the configuration.
        train_dataset, eval_dataset: preference pairs, as `DPOTrainer` takes them.
        processing_class: the tokenizer, or its name; loaded from the model's name if left out. It gets a pad token that
            no text ends with, if it lacks one.
        peft_config: a PEFT configuration for a fresh adapter; the head is trained and saved with it.
        quantization_config: for a causal model given by name.
        compute_metrics: gets an `EvalPrediction` whose predictions are the (pairs, 2) scores of chosen and rejected.
        callbacks, optimizers, optimizer_cls_and_kwargs: as in `transformers.Trainer`.
    """

    args: RewardConfig
    tag = "reward-model"
    method = "reward"
    config_class = RewardConfig
    engine_error_unit = "per score"
    columns: ClassVar[Sequence[str]] = ("rewards/chosen", "rewards/rejected", "margin", "accuracy", "mean_reward")
    calibration: Calibration | None = None
    """Of the last evaluation."""
    _form: Form | None = None

    # --- model and data ---

    def opened(self, train: Any, held_out: Any, tokenizer: Any, args: RewardConfig) -> tuple[Any, Any]:
        complete_tokenizer(tokenizer, eos_token=args.eos_token, chat_template_path=args.chat_template_path)
        if is_stream(train):
            return open_examples(train, "pair"), held_out
        return train if train is None or isinstance(train, GroupDataset) else load_pairs(train), held_out

    def prepare_data(self, source: Any, tokenizer: Any, args: Any, *, role: str) -> tuple[GroupDataset, Any]:
        if role == "train" and isinstance(source, PairDataset) and len(source):
            self._form = "plain" if isinstance(source[0].prompt, str) else "conversations"
        if isinstance(source, ExampleStream) and source.first is not None:
            self._form = "conversations" if source.first.is_chat else "plain"
        return assemble.prepare_data(source, tokenizer, args, role=role)

    def prepare_model(self, model: Any, args: Any, tokenizer: Any, **configs: Any) -> Any:
        if isinstance(model, nn.Module) and not hasattr(_base(model), HEAD):
            model = classifier_of(model)
        if configs["peft_config"] is not None:
            configs["peft_config"] = reward_adapter(configs["peft_config"])
        model = assemble.prepare_model(model, args, load=load_classifier, **configs)
        if hasattr(model, "peft_config"):
            name_the_head_alone(model)
        tokenizer.pad_token = spare_token(tokenizer)
        config = _base(model).config
        as_regression(config)
        config.get_text_config().pad_token_id = config.pad_token_id = tokenizer.pad_token_id
        return model

    def settle_engine(self, model: Any, args: Any) -> tuple[Any, Any]:
        return assemble.logged_engine(model, lambda: choose_score_engine(model, args.engine))

    def called_parts(self, model: Any) -> Sequence[nn.Module]:
        return () if self.engine.name == "naive" else (trunk_of(model), score_head(model))

    # --- the loss ---

    def batch_loss(self, model: nn.Module, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        with self.autocast():
            score_K = self.engine(model, batch)
        output = bradley_terry(
            score_K.index_select(0, batch.chosen_N),  # its backward is deterministic, where indexing's is not
            score_K.index_select(0, batch.rejected_N),
            weight_N=batch.weight_N,
            margin_N=batch.margin_N,
            center_rewards_coefficient=self.args.center_rewards_coefficient,
        )
        chosen_N, rejected_N = output.chosen_reward_N.float(), output.rejected_reward_N.float()
        margin_N = chosen_N - rejected_N
        rows = [chosen_N, rejected_N, margin_N, (margin_N > 0).float(), (chosen_N + rejected_N) / 2]
        return output.loss_N, torch.stack(rows, 1)

    def engine_error(self, batch: PackedBatch) -> float:
        """Largest difference of a score between the engine and the naive path.

        Raises: NonFiniteError, SelfCheckError.
        """
        model: Any = self.model
        with self.autocast(), inference(model):
            scored = self.engine(model, batch)
            with plain_layers():
                naive = naive_scores(model, batch)
                states_KD = completion_states(trunk_of(model), batch, packed=False)
        if not bool(torch.isfinite(naive).all()):
            raise NonFiniteError(
                f"the scores of row {batch.groups[0].id} are not finite before the first step: the weights are "
                "damaged, or overflow in this precision. Nothing was trained. Use bf16 or float32 instead of fp16."
            )
        weight: Any = score_head(model).weight
        scale = float(weight.detach().float().norm() * states_KD.float().norm(dim=1).max())
        error = float((scored - naive).abs().max())
        dtype = self.precision.autocast or states_KD.dtype
        if error > _TOLERANCE.get(dtype, _TOLERANCE[torch.float32]) * max(scale, 1e-6):
            raise SelfCheckError(
                f"the {self.engine.name} engine and the naive path disagree on a real score by {error:.3g}, more than "
                "rounding explains. Nothing was trained. Please report this model; engine='naive' computes it, slowly."
            )
        return error

    # --- evaluation ---

    def predictions_of(self, table: Tensor) -> Tensor:
        return table[:, 1:3]

    def further_metrics(self, table: Tensor) -> dict[str, float]:
        found = calibration(table[:, 1 + self.columns.index("margin")].double().tolist())
        self.calibration = found
        if hasattr(self, "_record"):
            self._record.note(calibration={"step": self.state.global_step, **found.to_dict()})
        return {"calibration_error": found.error}

    # --- what is reported ---

    def say_advice(self) -> None:
        pairs, epochs = self.train_dataset.pairs, float(self.args.num_train_epochs)
        if pairs < 1000:
            say(
                f"advice: {counted(pairs, 'pair')}: this is few for a reward model; check its held-out accuracy and "
                "calibration."
            )
        if self.args.max_steps <= 0 and epochs > 1:
            say(
                f"advice: num_train_epochs={epochs:g}: a reward model is usually trained for one epoch, and overfits "
                "after that."
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if self._form is not None and self.is_world_process_zero():
            write_form(output_dir or str(self.args.output_dir), self._form)

    def card(self) -> str:
        return model_card.reward_card(self, centring=self.args.center_rewards_coefficient)


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model
