"""`preftune online`: the policy answers, a judge compares, DPO steps on the fresh pairs."""

from __future__ import annotations

from collections.abc import Sequence

from preftune.cli.train.fresh_answers import PromptArguments, open_prompts_of, report
from preftune.cli.train.train_command import Method
from preftune.cli.train.train_command import run as run_method

HELP = """\
usage: preftune online --model SFT --judge JUDGE --data PROMPTS [options]

Online preference optimisation: the model gives several answers to each prompt,
a judge says which is better, and a DPO step is made of these fresh pairs.
Every field of OnlineDPOConfig and of transformers' TrainingArguments is a flag.

policy
  --model NAME               path or hub id, usually a fine-tuned one (SFT)
  --use_peft                 train a LoRA adapter instead of all weights
  --lora_r, --lora_alpha     its rank and scale (16, 32)
  --load_in_4bit             the frozen base in 4 bits

judge
  --judge JUDGE              openai:MODEL@URL, local:MODEL, reward:MODEL,
                             rule:MODULE:FUNCTION, shorter, longer, key-fact,
                             exact; asked in both orders where order matters
  --reward_model NAME ...    instead: what rates single answers, as in preftune
                             ppo; several are an ensemble (--reward_ensemble)
  --missing_eos_penalty      points taken from answers without an end (none)

data
  --data NAME                rows with a prompt or messages, a .txt with one
                             prompt a line, or pairs, whose prompts are taken
  --columns, --format        renames (prompt=question); the format, if need be
  --as_chat                  plain prompts become chat messages
  --max_prompt_length        longer prompts are left out (512)

training
  --num_generations          answers to each prompt, K (2)
  --which_pairs              best-worst, all or adjacent ones (best-worst)
  --max_new_tokens           longest answer (64)
  --temperature              of sampling (1); nothing is cut off
  --beta, --loss_type        as in preftune dpo (0.1, sigmoid)
  --learning_rate            if left out: 5e-7 full, 5e-6 LoRA
  --per_device_train_batch_size, --gradient_accumulation_steps
                             prompts per optimiser step (8 x 1)
  --total_episodes           answers in all; or --num_train_epochs (1), or
                             --max_steps
  --generation_batch_size    answers sampled at a time (16)
  --use_vllm                 sample with vLLM (a GPU where it is installed)
  --guard                    off, warn, stop or rollback when the run goes
                             wrong (warn)

output
  --output_dir FOLDER        the run directory (runs/online): adapter or model,
                             run.json, metrics.jsonl, checkpoints
  --resume [CHECKPOINT]      go on from the last checkpoint, or from this one;
                             auto: start if there is none
  --no_report                without report.html at the end
  --report_to                wandb, tensorboard, trackio, ... (none)

  --config RECIPE.yaml       fields from a file
  --verbose                  all notes, which run.json has anyway
  --help-all                 every flag
  --traceback                the whole traceback of an error
"""

METHOD = Method(
    name="online",
    trainer="preftune.training.online:OnlineDPOTrainer",
    config="preftune.training.online:OnlineDPOConfig",
    help=HELP,
    aim="align",
    wanted="prompts to train on",
    open_data=open_prompts_of,
    report=report,
    data_arguments=PromptArguments,
    needs=("judge", "reward_model"),
    needs_what="name who compares them with --judge JUDGE, or what rates them with --reward_model RM",
    holds_out=False,
    guarded=True,
)


def run(argv: Sequence[str]) -> int:
    """Runs `preftune online` and returns its exit code."""
    return run_method(METHOD, argv)
