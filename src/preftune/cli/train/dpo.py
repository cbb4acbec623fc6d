"""`preftune dpo`: pairs and a model in, an aligned model and its run directory out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.cli.flags.recipe import Recipe
from preftune.cli.flags.short_help import MODEL, HelpPage
from preftune.cli.train import train_command
from preftune.cli.train.train_command import Method, Request

if TYPE_CHECKING:
    from preftune.training.trainers.recorded import RecordedTrainer

HELP = HelpPage(
    usage="preftune dpo --model NAME_OR_PATH --data FILE_OR_HUB_ID [options]",
    about="Direct Preference Optimization. Every field of DPOConfig and of transformers' TrainingArguments is a flag "
    "(--learning_rate or --learning-rate). A YAML recipe holds the same names; flags override it.",
    sections={
        "model": f"{MODEL} lora_target_modules",
        "data": "data format columns as_chat dataset_train_split eval_fraction eval_dataset_name max_length "
        "max_prompt_length truncation",
        "training": "beta loss_type learning_rate num_train_epochs max_steps per_device_train_batch_size "
        "gradient_accumulation_steps max_tokens_per_batch group_by_prompt eval_strategy early_stopping_patience guard "
        "guard_budget guard_prompts",
    },
    words={
        "beta": "KL penalty (0.1); higher stays near the reference",
        "learning_rate": "by default 5e-7 for all weights, 5e-6 for LoRA",
        "guard": "off, warn, stop or rollback when the run goes wrong (warn)",
        "guard_prompts": "how many prompts it asks (8), or a file of them",
    },
)


def run(argv: Sequence[str]) -> int:
    """Runs `preftune dpo` and returns its exit code."""
    return train_command.run(METHOD, argv)


def read_request(argv: Sequence[str], recipe: Recipe | None = None) -> Request:
    """Flags and recipe as checked settings. Raises: what `train_command.read_request` raises."""
    return train_command.read_request(METHOD, argv, recipe)


def parser() -> Any:
    """All flags of the command."""
    return train_command.parser_of(METHOD)


def _open(request: Request) -> tuple[Any, Any]:
    from preftune.cli.train.datasets import open_datasets

    return open_datasets(request.data, evaluate=request.evaluates, seed=request.data_seed)


def _report(trainer: RecordedTrainer, request: Request, metrics: Mapping[str, float] | None) -> list[str]:
    output = str(request.config.output_dir)
    place, lines = shlex.quote(output), []
    adapter = request.model.adapter or (Path(output) / "adapter_config.json").is_file()
    margin, accuracy = ((metrics or {}).get(f"eval_rewards/{name}") for name in ("margins", "accuracies"))
    if margin is not None and accuracy is not None:
        lines.append(f"Held out: margin {margin:.3f}, accuracy {accuracy:.1%}.")
    base = "" if adapter else f" --baseline {shlex.quote(str(request.model.model_name_or_path))}"
    lines.append(f"Talk to it:   preftune chat --model {place}{base}")
    if adapter:
        lines.append(f"Fold it in:   preftune merge {place} -o {shlex.quote(output.rstrip('/') + '-merged')}")
    return lines


METHOD = Method(
    name="dpo",
    trainer="preftune.training:DPOTrainer",
    config="preftune.training:DPOConfig",
    help=HELP,
    aim="align",
    wanted="preference pairs to train on",
    open_data=_open,
    report=_report,
    guarded=True,
)
