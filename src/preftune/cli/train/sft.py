"""`preftune sft`: demonstrations and a model in, a model that imitates them and its run directory out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preftune.cli.train.train_command import Method, Request
from preftune.cli.train.train_command import run as run_method

HELP = """\
usage: preftune sft --model NAME_OR_PATH --data FILE_OR_HUB_ID [options]

Supervised fine-tuning: the model learns to give the answers it is shown. Every
field of SFTConfig and of transformers' TrainingArguments is a flag
(--learning_rate or --learning-rate). A YAML recipe holds the same names; flags
override it. The result feeds preftune dpo and preftune reward: --model FOLDER.

model
  --model NAME               path or hub id (also --model_name_or_path)
  --dtype TYPE               auto, bfloat16, float16, float32 (as stored)
  --use_peft                 train a LoRA adapter instead of all weights
  --lora_r, --lora_alpha     its rank and scale (16, 32)
  --load_in_4bit             QLoRA: the frozen base in 4 bits
  --chat_template_path       a Jinja file, or a model whose chat template is
                             taken over

data
  --data NAME                jsonl, json, csv, parquet (also .gz), a folder, a
                             hub id, - for stdin; preferences too, whose chosen
                             side is imitated
  --format                   messages, sharegpt, alpaca, prompt-completion, text
                             where the shape does not tell
  --columns                  renames: prompt=question completion=answer, or
                             messages=..., or text=...
  --as_chat                  plain prompts and answers become chat messages
  --dataset_train_split      which split (train); slices too: 'train[:1000]'
  --eval_fraction            hold out this share of the prompts, such as 0.05
  --eval_dataset_name        or evaluate on these rows
  --max_length               longest row, in tokens (1024)
  --truncation               longer rows: truncate, drop, error (truncate)

training
  --completion_only_loss     train what follows the prompt alone (where there is
                             a prompt); false: everything
  --assistant_only_loss      in conversations, the assistant's turns alone
                             (yes); false: everything
  --learning_rate            if left out: 2e-5 full, 2e-4 LoRA
  --num_train_epochs         how long (3), or --max_steps
  --per_device_train_batch_size, --gradient_accumulation_steps
                             rows per optimiser step (8 x 1), always packed
  --max_tokens_per_batch     most tokens computed at a time; the same update.
                             Out of memory, it is halved by itself
  --neftune_noise_alpha      noise on the embeddings (5 is usual; none)
  --eval_strategy            no, steps (with --eval_steps), epoch (no)
  --early_stopping_patience  evaluations without improvement before it stops

output
  --output_dir FOLDER        the run directory (runs/sft): adapter or model,
                             run.json, metrics.jsonl, checkpoints
  --resume [CHECKPOINT]      go on from the last checkpoint, or from this one;
                             auto: start if there is none
  --no_report                without report.html at the end
  --push_to_hub              upload the result, to --hub_model_id
  --report_to                wandb, tensorboard, trackio, ... (none)

  --config RECIPE.yaml       fields from a file
  --verbose                  all notes, which run.json has anyway
  --help-all                 every flag
  --traceback                the whole traceback of an error
"""


def run(argv: Sequence[str]) -> int:
    """Runs `preftune sft` and returns its exit code."""
    return run_method(METHOD, argv)


def _open(request: Request) -> tuple[Any, Any]:
    from preftune.cli.train.demonstration_sets import open_demonstrations

    return open_demonstrations(request.data, evaluate=request.evaluates, seed=request.data_seed)


def _report(trainer: Any, request: Request, metrics: Mapping[str, float] | None) -> list[str]:
    output = str(request.config.output_dir)
    place, lines = shlex.quote(output), []
    if metrics is not None:
        loss, accuracy = metrics["eval_loss"], metrics["eval_mean_token_accuracy"]
        lines.append(f"Held out: loss {loss:.3f} nats per token, {accuracy:.1%} of the tokens were the likeliest.")
    lines.append(f"Talk to it:   preftune chat --model {place}")
    lines.append(f"Align it:     preftune dpo --model {place} --data PAIRS")
    if (Path(output) / "adapter_config.json").is_file():
        lines.append(f"Fold it in:   preftune merge {place} -o {shlex.quote(output.rstrip('/') + '-merged')}")
    return lines


METHOD = Method(
    name="sft",
    trainer="preftune.training.trainers.sft:SFTTrainer",
    config="preftune.training.config.sft:SFTConfig",
    help=HELP,
    wanted="demonstrations to train on",
    open_data=_open,
    report=_report,
)
