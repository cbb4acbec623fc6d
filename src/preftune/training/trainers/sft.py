"""`SFTTrainer`: supervised fine-tuning on demonstrations, on the same engine as DPO.

A row is a group of one completion, so rows are packed without padding and never see each other; the loss is the mean
over the trained tokens of the whole optimiser step, on all ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.trainer_utils import TrainOutput

from preftune.amounts import counted
from preftune.data import DIALOGUE_TEMPLATE, DemonstrationDataset, GroupDataset, load_demonstrations
from preftune.data.demonstrations.mixture import mix_demonstrations
from preftune.data.pairs.mixture import is_mixture, parse_sources
from preftune.data.streams.examples import ExampleStream, open_examples
from preftune.log import say
from preftune.logps.batch import PackedBatch
from preftune.training.config.sft import SFTConfig
from preftune.training.record import model_card
from preftune.training.setup.chat_templates import complete_tokenizer
from preftune.training.setup.model import tokenize
from preftune.training.setup.neftune import noisy_embeddings
from preftune.training.setup.streams import held, is_stream, streamed_groups
from preftune.training.trainers.base import PackedTrainer
from preftune.types import TokenizedGroup


class SFTTrainer(PackedTrainer):
    """Trains a causal language model to give the answers it is shown.

    Args:
        model: a model (plain, quantised, with or without a PEFT adapter), a hub id or a folder.
        args: the configuration.
        train_dataset, eval_dataset: demonstrations: a `datasets.Dataset`, a list of dicts, a path or hub id, a
            `DemonstrationDataset`, preferences (whose chosen side is imitated), or tokenised groups; eval_dataset may
            be a dict of these.
        processing_class: the tokenizer, or its name; loaded from the model's name if left out.
        peft_config: a PEFT configuration for a fresh adapter.
        quantization_config: for a model given by name.
        compute_metrics: gets an `EvalPrediction` whose predictions are (trained tokens, 1): 1 where the token was the
            likeliest.
        callbacks, optimizers, optimizer_cls_and_kwargs: as in `transformers.Trainer`.
    """

    args: SFTConfig
    method = "sft"
    config_class = SFTConfig
    columns: ClassVar[Sequence[str]] = ("mean_token_accuracy",)
    unit = "rows"

    # --- data ---

    def opened(self, train: Any, held_out: Any, tokenizer: Any, args: SFTConfig) -> tuple[Any, Any]:
        complete_tokenizer(tokenizer, eos_token=args.eos_token, chat_template_path=args.chat_template_path)
        train = None if train is None else _opened(train, args, "train")
        if isinstance(held_out, Mapping):
            held_out = {name: _opened(part, args, f"eval ({name})") for name, part in held_out.items()}
        elif held_out is not None:
            held_out = _opened(held_out, args, "eval")
        if not getattr(tokenizer, "chat_template", None) and _has_turns(train):
            tokenizer.chat_template = DIALOGUE_TEMPLATE
            say(
                "the tokenizer has no chat template: conversations are written as 'Human: ... Assistant: ...', and "
                "the template is saved with the model (chat_template_path gives another)."
            )
        return train, held_out

    def prepare_data(self, source: Any, tokenizer: Any, args: SFTConfig, *, role: str) -> tuple[GroupDataset, Any]:
        rows = _opened(source, args, role)
        if isinstance(rows, GroupDataset):
            return rows, None
        names = ("max_length", "truncation", "completion_only_loss", "assistant_only_loss")
        settings = {name: getattr(args, name) for name in names}
        if isinstance(rows, ExampleStream):
            return streamed_groups(rows, "demonstration", tokenizer, args, **settings)
        return tokenize(rows, tokenizer, role=role, **settings)

    # --- the loss ---

    def items(self, group: TokenizedGroup) -> int:
        return sum(group.scored_lengths)

    def batch_loss(self, model: nn.Module, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        with self.autocast():
            scored = self.engine(model, batch)
        hits = scored.hit_T
        assert hits is not None
        return -scored.token_logps_T, hits.float()[:, None]

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        alpha, self.neftune_noise_alpha = self.args.neftune_noise_alpha, None  # transformers' own knows no packed rows
        with noisy_embeddings(self.model, alpha):
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    # --- what is reported ---

    def say_advice(self) -> None:
        args, rows = self.args, len(self.train_dataset)
        rate = args.learning_rate or 0.0
        if self.full and rate > 1e-4:
            say(f"advice: learning_rate={rate:g} is high for full fine-tuning (1e-5 to 5e-5 is usual).")
        if not self.full and 0 < rate < 2e-5:
            say(f"advice: learning_rate={rate:g} is low for an adapter (1e-4 to 3e-4 is usual).")
        if rows < 100:
            say(f"advice: {counted(rows, 'row')} can teach at most a format. A thousand good rows make a difference.")

    def card(self) -> str:
        return model_card.sft_card(self)


def _opened(source: Any, args: SFTConfig, role: str) -> Any:
    """Demonstrations of any kind of source, opened; groups as they are."""
    if isinstance(source, GroupDataset | DemonstrationDataset):
        return source
    field = args.dataset_text_field
    columns = None if field == "text" else {"text": field}
    if is_stream(source) and role == "train":
        return open_examples(source, "demonstration", columns=columns)
    source = held(source, role)
    if is_mixture(source):
        named = parse_sources(source)
        parts = [load_demonstrations(part, columns=columns) for part, _ in named]
        return mix_demonstrations(parts, [proportion for _, proportion in named])
    return load_demonstrations(source, columns=columns)


def _has_turns(rows: Any) -> bool:
    if isinstance(rows, ExampleStream):
        return rows.first is not None and rows.first.is_chat
    return isinstance(rows, DemonstrationDataset) and any(row.is_chat for row in rows[:100])
