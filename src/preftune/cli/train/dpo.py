"""`preftune dpo`: trains a model on preference pairs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from preftune.cli.flags.help_pages import MODEL, HelpPage
from preftune.cli.train import datasets, train_command
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
        "gradient_accumulation_steps max_tokens_per_batch group_by_prompt eval_strategy eval_judge eval_prompts "
        "early_stopping_patience guard guard_budget guard_prompts",
    },
    words={
        "eval_judge": "at every evaluation, compare answers with the reference's by this judge (reward:MODEL, ...)",
        "eval_prompts": "number of prompts for it (32), or a file with prompts",
        "beta": "KL penalty (0.1); a higher value keeps the policy closer to the reference",
        "learning_rate": "default: 5e-7 for all weights, 5e-6 for LoRA",
        "guard": "reaction to a run that goes wrong: off, warn, stop or rollback (warn)",
        "guard_prompts": "number of the guard's prompts (8), or a file with prompts",
    },
)


def _report(trainer: RecordedTrainer, request: Request, metrics: Mapping[str, float] | None) -> list[str]:
    margin, accuracy = ((metrics or {}).get(f"eval_rewards/{name}") for name in ("margins", "accuracies"))
    if margin is not None and accuracy is not None:
        return [f"Held out: margin {margin:.3f}, accuracy {accuracy:.1%}.", *request.next_steps()]
    return request.next_steps()


METHOD = Method(
    name="dpo",
    trainer="preftune.training:DPOTrainer",
    config="preftune.training:DPOConfig",
    help=HELP,
    aim="align",
    wanted="preference pairs to train on",
    open_data=lambda request: datasets.open_datasets(request.data, **request.splitting),
    report=_report,
    guarded=True,
)
run = partial(train_command.run, METHOD)
read_request = partial(train_command.read_request, METHOD)
parser = partial(train_command.parser_of, METHOD)
