"""`preftune reward`: trains a reward model on preference pairs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from preftune.cli.flags.arguments import RewardModelArguments
from preftune.cli.flags.help_pages import MODEL, HelpPage
from preftune.cli.train import datasets
from preftune.cli.train.train_command import Method, Request
from preftune.cli.train.train_command import run as run_method

if TYPE_CHECKING:
    from preftune.statistics.calibration import Calibration
    from preftune.training.trainers.recorded import RecordedTrainer

HELP = HelpPage(
    usage="preftune reward --model NAME_OR_PATH --data FILE_OR_HUB_ID [options]",
    about="Train a reward model on preference pairs. It gives each answer one score. Every field of RewardConfig and "
    "of transformers' TrainingArguments is a flag. The result is a sequence classifier with one label, as "
    "transformers has it; it judges with preftune eval --judge reward:FOLDER, and rewards with preftune ppo.",
    sections={
        "model": MODEL,
        "data": "data format columns as_chat eval_fraction eval_dataset_name max_length truncation",
        "training": "center_rewards_coefficient learning_rate num_train_epochs max_steps per_device_train_batch_size "
        "gradient_accumulation_steps max_tokens_per_batch group_by_prompt eval_strategy",
        "output": "output_dir resume no_report push_to_hub",
    },
    words={
        "model": "a causal model (best a fine-tuned one, SFT) or a classifier with one label: path or hub id",
        "learning_rate": "default: 1e-5 for all weights, 1e-4 for LoRA",
        "use_peft": "train a LoRA adapter and the head, not all weights",
    },
)


def _report(trainer: RecordedTrainer, request: Request, metrics: Mapping[str, float] | None) -> list[str]:
    lines = []
    if metrics is not None:
        lines.append(f"Held out: accuracy {metrics['eval_accuracy']:.1%}, margin {metrics['eval_margin']:.3f}.")
    calibration: Calibration | None = getattr(trainer, "calibration", None)
    if calibration is not None:
        lines.append(calibration.sentence())
    lines.append(f"Judge with it:  preftune eval --judge reward:{request.place} ...")
    lines.append(f"Train on it:    preftune ppo --reward_model {request.place} ...")
    return lines + [f"Fold it in:     {command}   (for transformers' pipeline)" for command in request.merging()]


METHOD = Method(
    name="reward",
    trainer="preftune.training.trainers.reward:RewardTrainer",
    config="preftune.training.config.reward:RewardConfig",
    model_arguments=RewardModelArguments,
    help=HELP,
    wanted="preference pairs to train on",
    open_data=lambda request: datasets.open_datasets(request.data, **request.splitting),
    report=_report,
)
run = partial(run_method, METHOD)
