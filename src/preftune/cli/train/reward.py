"""`preftune reward`: pairs and a model in, a reward model and its run directory out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preftune.cli.flags.arguments import RewardModelArguments
from preftune.cli.train.train_command import Method, Request
from preftune.cli.train.train_command import run as run_method

HELP = """\
usage: preftune reward --model NAME_OR_PATH --data FILE_OR_HUB_ID [options]

A reward model: one score per answer, trained on preference pairs. Every field
of RewardConfig and of transformers' TrainingArguments is a flag. The result is
a sequence classifier with one label, as transformers has it; it judges with
preftune eval --judge reward:FOLDER, and rewards with preftune ppo.

model
  --model NAME               a causal model (its SFT, best) or a classifier with
                             one label: path or hub id
  --dtype TYPE               auto, bfloat16, float16, float32 (as stored)
  --use_peft                 train a LoRA adapter and the head, not all weights
  --lora_r, --lora_alpha     its rank and scale (16, 32)
  --load_in_4bit             the frozen base in 4 bits

data
  --data NAME                jsonl, json, csv, parquet (also .gz), a folder, a
                             hub id, - for stdin (also --dataset_name)
  --format, --columns        where the shape does not tell; renames:
                             chosen=good rejected=bad
  --as_chat                  plain prompts and answers become chat messages
  --eval_fraction            hold out this share of the prompts, such as 0.05
  --eval_dataset_name        or evaluate on these pairs
  --max_length               longest prompt plus completion, in tokens (1024)
  --truncation               longer rows: truncate, drop, error (truncate)

training
  --center_rewards_coefficient
                             pull of a pair's mean score to 0 (none; 0.01)
  --learning_rate            if left out: 1e-5 full, 1e-4 LoRA
  --num_train_epochs         how long (3; one is usual), or --max_steps
  --per_device_train_batch_size, --gradient_accumulation_steps
                             pairs per optimiser step (8 x 1)
  --max_tokens_per_batch     most tokens computed at a time; the same update
  --group_by_prompt          pairs of one prompt train as one group
  --eval_strategy            no, steps (with --eval_steps), epoch (no)

output
  --output_dir FOLDER        the run directory (runs/reward)
  --resume [CHECKPOINT]      go on from the last checkpoint, or from this one;
                             auto: start if there is none
  --no_report                without report.html at the end
  --push_to_hub              upload the result, to --hub_model_id

  --config RECIPE.yaml       fields from a file
  --verbose                  all notes, which run.json has anyway
  --help-all                 every flag
  --traceback                the whole traceback of an error
"""


def run(argv: Sequence[str]) -> int:
    """Runs `preftune reward` and returns its exit code."""
    return run_method(METHOD, argv)


def _open(request: Request) -> tuple[Any, Any]:
    from preftune.cli.train.datasets import open_datasets

    return open_datasets(request.data, evaluate=request.evaluates, seed=request.data_seed)


def _report(trainer: Any, request: Request, metrics: Mapping[str, float] | None) -> list[str]:
    place, lines = shlex.quote(str(request.config.output_dir)), []
    if metrics is not None:
        lines.append(f"Held out: accuracy {metrics['eval_accuracy']:.1%}, margin {metrics['eval_margin']:.3f}.")
    if trainer.calibration is not None:
        lines.append(trainer.calibration.sentence())
    lines.append(f"Judge with it:  preftune eval --judge reward:{place} ...")
    lines.append(f"Train on it:    preftune ppo --reward_model {place} ...")
    output = str(request.config.output_dir)
    if (Path(output) / "adapter_config.json").is_file():
        merged = shlex.quote(output.rstrip("/") + "-merged")
        lines.append(f"Fold it in:     preftune merge {place} -o {merged}   (for transformers' pipeline)")
    return lines


METHOD = Method(
    name="reward",
    trainer="preftune.training.trainers.reward:RewardTrainer",
    config="preftune.training.config.reward:RewardConfig",
    model_arguments=RewardModelArguments,
    help=HELP,
    wanted="preference pairs to train on",
    open_data=_open,
    report=_report,
)
