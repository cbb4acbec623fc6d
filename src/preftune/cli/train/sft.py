"""`preftune sft`: trains a model to imitate demonstrations."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from preftune.cli.flags.help_pages import MODEL, HelpPage
from preftune.cli.train import datasets
from preftune.cli.train.train_command import Method, Request
from preftune.cli.train.train_command import run as run_method

if TYPE_CHECKING:
    from preftune.training.trainers.recorded import RecordedTrainer

HELP = HelpPage(
    usage="preftune sft --model NAME_OR_PATH --data FILE_OR_HUB_ID [options]",
    about="Supervised fine-tuning: the model learns to give the answers it is shown. Every field of SFTConfig and of "
    "transformers' TrainingArguments is a flag (--learning_rate or --learning-rate). A YAML recipe holds the same "
    "names; flags override it. The result feeds preftune dpo and preftune reward: --model FOLDER.",
    sections={
        "model": f"{MODEL} chat_template_path",
        "data": "data format columns as_chat dataset_train_split eval_fraction eval_dataset_name max_length truncation",
        "training": "completion_only_loss assistant_only_loss learning_rate num_train_epochs max_steps "
        "per_device_train_batch_size gradient_accumulation_steps max_tokens_per_batch neftune_noise_alpha "
        "eval_strategy eval_judge eval_prompts early_stopping_patience",
    },
    words={
        "eval_judge": "at every evaluation, compare answers with the reference's by this judge (reward:MODEL, ...)",
        "eval_prompts": "number of prompts for it (32), or a file with prompts",
        "learning_rate": "default: 2e-5 for all weights, 2e-4 for LoRA",
        "data": (
            "jsonl, json, csv, parquet (also .gz), a folder, a hub id, - for stdin; of pairs, the chosen side is used"
        ),
        "format": "messages, sharegpt, alpaca, prompt-completion or text, if it cannot be recognised",
        "columns": "renames: prompt=question completion=answer, or messages=..., or text=...",
    },
)


def _report(trainer: RecordedTrainer, request: Request, metrics: Mapping[str, float] | None) -> list[str]:
    lines = []
    if metrics is not None:
        loss, accuracy = metrics["eval_loss"], metrics["eval_mean_token_accuracy"]
        lines.append(f"Held out: loss {loss:.3f} nats per token, {accuracy:.1%} of the tokens were the likeliest.")
    lines.append(f"Talk to it:   preftune chat --model {request.place}")
    lines.append(f"Align it:     preftune dpo --model {request.place} --data PAIRS")
    return lines + [f"Fold it in:   {command}" for command in request.merging()]


METHOD = Method(
    name="sft",
    trainer="preftune.training.trainers.sft:SFTTrainer",
    config="preftune.training.config.sft:SFTConfig",
    help=HELP,
    wanted="demonstrations to train on",
    open_data=lambda request: datasets.open_demonstrations(request.data, **request.splitting),
    report=_report,
)
run = partial(run_method, METHOD)
