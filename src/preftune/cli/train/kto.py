"""`preftune kto`: trains a model on answers labelled as good or bad."""

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
    usage="preftune kto --model NAME_OR_PATH --data FILE_OR_HUB_ID [options]",
    about="Kahneman-Tversky optimisation: trains on single answers with a label, good or bad, instead of pairs. A "
    "preference pair counts as two such answers. Every field of KTOConfig and of transformers' "
    "TrainingArguments is a flag (--learning_rate or --learning-rate). A YAML recipe holds the same names; "
    "flags override it.",
    sections={
        "model": f"{MODEL} lora_target_modules",
        "data": "data format columns as_chat dataset_train_split eval_fraction eval_dataset_name max_length "
        "max_prompt_length truncation",
        "training": "loss_type beta desirable_weight undesirable_weight learning_rate num_train_epochs max_steps "
        "per_device_train_batch_size gradient_accumulation_steps max_tokens_per_batch eval_strategy "
        "eval_judge eval_prompts early_stopping_patience guard",
    },
    words={
        "eval_judge": "at every evaluation, compare answers with the reference's by this judge (reward:MODEL, ...)",
        "eval_prompts": "number of prompts for it (32), or a file with prompts",
        "guard": "off, warn, stop or rollback when the run goes wrong (warn)",
        "beta": "KL penalty (0.1); a higher value keeps the policy closer to the reference",
        "learning_rate": "learning rate; default 5e-7 for all weights, 5e-6 for LoRA",
        "data": "jsonl, json, csv, parquet (also .gz), a folder, a hub id, - for stdin; with labels, or pairs",
        "format": "kto, thumbs, or a format of pairs, if it cannot be recognised",
        "columns": "renames: prompt=question completion=answer label=good",
    },
)


def _report(trainer: RecordedTrainer, request: Request, metrics: Mapping[str, float] | None) -> list[str]:
    lines = []
    accuracy = (metrics or {}).get("eval_rewards/accuracies")
    if accuracy is not None:
        lines.append(f"Held out: {accuracy:.1%} of the answers are on the right side of the baseline.")
    return lines + request.next_steps()


METHOD = Method(
    name="kto",
    trainer="preftune.training:KTOTrainer",
    config="preftune.training.config.kto:KTOConfig",
    help=HELP,
    aim="align",
    wanted="answers with labels to train on",
    open_data=lambda request: datasets.open_labelled(request.data, **request.splitting),
    report=_report,
    guarded=True,
)
run = partial(run_method, METHOD)
