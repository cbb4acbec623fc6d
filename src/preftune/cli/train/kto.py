"""`preftune kto`: answers that are good or bad and a model in, an aligned model and its run directory out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.cli.flags.short_help import MODEL, HelpPage
from preftune.cli.train.train_command import Method, Request
from preftune.cli.train.train_command import run as run_method

if TYPE_CHECKING:
    from preftune.training.trainers.recorded import RecordedTrainer

HELP = HelpPage(
    usage="preftune kto --model NAME_OR_PATH --data FILE_OR_HUB_ID [options]",
    about="Kahneman-Tversky optimisation: single answers with a label, good or bad, instead of pairs. Preference pairs "
    "are two such answers each. Every field of KTOConfig and of transformers' TrainingArguments is a flag "
    "(--learning_rate or --learning-rate). A YAML recipe holds the same names; flags override it.",
    sections={
        "model": f"{MODEL} lora_target_modules",
        "data": "data format columns as_chat dataset_train_split eval_fraction eval_dataset_name max_length "
        "max_prompt_length truncation",
        "training": "loss_type beta desirable_weight undesirable_weight learning_rate num_train_epochs max_steps "
        "per_device_train_batch_size gradient_accumulation_steps max_tokens_per_batch eval_strategy "
        "early_stopping_patience",
    },
    words={
        "beta": "KL penalty (0.1); higher stays near the reference",
        "learning_rate": "by default 5e-7 for all weights, 5e-6 for LoRA",
        "data": "jsonl, json, csv, parquet (also .gz), a folder, a hub id, - for stdin; with labels, or pairs",
        "format": "kto, thumbs, or a format of pairs, where the shape does not tell",
        "columns": "renames: prompt=question completion=answer label=good",
    },
)


def run(argv: Sequence[str]) -> int:
    """Runs `preftune kto` and returns its exit code."""
    return run_method(METHOD, argv)


def _open(request: Request) -> tuple[Any, Any]:
    from preftune.cli.train.datasets import open_labelled

    return open_labelled(request.data, evaluate=request.evaluates, seed=request.data_seed)


def _report(trainer: RecordedTrainer, request: Request, metrics: Mapping[str, float] | None) -> list[str]:
    output = str(request.config.output_dir)
    place, lines = shlex.quote(output), []
    accuracy = (metrics or {}).get("eval_rewards/accuracies")
    if accuracy is not None:
        lines.append(f"Held out: {accuracy:.1%} of the answers are on the right side of the baseline.")
    lines.append(f"Talk to it:   preftune chat --model {place}")
    lines.append(f"Judge it:     preftune eval --model {place} --judge JUDGE")
    if request.model.adapter or (Path(output) / "adapter_config.json").is_file():
        lines.append(f"Fold it in:   preftune merge {place} -o {shlex.quote(output.rstrip('/') + '-merged')}")
    return lines


METHOD = Method(
    name="kto",
    trainer="preftune.training:KTOTrainer",
    config="preftune.training.config.kto:KTOConfig",
    help=HELP,
    aim="align",
    wanted="answers with labels to train on",
    open_data=_open,
    report=_report,
)
