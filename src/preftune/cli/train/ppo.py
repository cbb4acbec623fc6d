"""`preftune ppo`: prompts, a policy and a reward in, a policy that is rated higher out."""

from __future__ import annotations

from collections.abc import Sequence

from preftune.cli.train.fresh_answers import PromptArguments, open_prompts_of, report
from preftune.cli.train.train_command import Method
from preftune.cli.train.train_command import run as run_method

HELP = """\
usage: preftune ppo --model SFT --reward_model RM --data PROMPTS [options]

Proximal policy optimisation: the model answers prompts, a reward rates the
answers, and the model is trained towards higher ratings, near where it began.
Every field of PPOConfig and of transformers' TrainingArguments is a flag
(--learning_rate or --learning-rate). A YAML recipe holds the same names.

policy
  --model NAME               path or hub id, usually a fine-tuned one (SFT)
  --dtype TYPE               auto, bfloat16, float16, float32 (as stored)
  --use_peft                 train a LoRA adapter: policy, value and reference
                             are then one base in memory, and a reward model
                             that is an adapter on the same base joins them
  --lora_r, --lora_alpha     its rank and scale (16, 32)
  --load_in_4bit             the frozen base in 4 bits

reward
  --reward_model NAME ...    a reward model (preftune reward, or any sequence
                             classifier with one label), rule:MODULE:FUNCTION,
                             openai:MODEL@URL or local:MODEL (marks from 1 to
                             10); several are an ensemble
  --reward_ensemble          mean, min or mean-std (mean)
  --missing_eos_penalty      points taken from answers without an end (none)
  --normalize_rewards        scores in running deviations from their mean
  --reward_clip              scores within plus and minus this (none)
  --score_threshold          answers rated lower are not trained on (none)
  --max_disagreement         nor those on which the ensemble deviates more

data
  --data NAME                rows with a prompt or messages, a .txt with one
                             prompt a line, or pairs, whose prompts are taken
  --columns, --format        renames (prompt=question); the format, if need be
  --as_chat                  plain prompts become chat messages
  --max_prompt_length        longer prompts are left out (512)

rounds
  --max_new_tokens           longest answer (64)
  --temperature              of sampling (1); nothing is cut off
  --total_episodes           answers in all; or --num_train_epochs (1), or
                             --max_steps
  --per_device_train_batch_size, --gradient_accumulation_steps
                             answers per optimiser step (8 x 1)
  --num_mini_batches         steps per pass over a round of answers (4)
  --num_ppo_epochs           passes over a round (4)
  --generation_batch_size    answers sampled at a time (16)
  --use_vllm                 sample with vLLM (a GPU where it is installed)

optimisation
  --learning_rate            if left out: 3e-6 full, 3e-5 LoRA
  --kl_coef                  penalty per nat of KL to the reference (0.05)
  --kl_estimator             k1 or k3 (k1)
  --kl_target, --kl_horizon  nats per answer that it is adapted to (none, 10000)
  --gamma, --lam             discount and GAE's lambda (1, 0.95)
  --cliprange                of the policy's ratio (0.2)
  --cliprange_value          of the value's move (0.2; in a recipe null: none)
  --vf_coef                  weight of the value loss (0.1)
  --value_learning_rate      of the value function (as --learning_rate)
  --no_whiten_advantages     advantages as they are
  --whiten_rewards           token rewards with variance 1
  --value_model, --value_init
                             a model of its own for the value; what its adapter
                             begins as: zeros, reward, auto (auto)
  --guard                    off, warn, stop or rollback when the run goes
                             wrong (warn)

output
  --output_dir FOLDER        the run directory (runs/ppo): adapter or model,
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
    name="ppo",
    trainer="preftune.training.ppo:PPOTrainer",
    config="preftune.training.ppo:PPOConfig",
    help=HELP,
    aim="align",
    wanted="prompts to train on",
    open_data=open_prompts_of,
    report=report,
    data_arguments=PromptArguments,
    needs=("reward_model",),
    needs_what="name what rates them with --reward_model RM (or rule:MODULE:FUNCTION, openai:MODEL@URL)",
    holds_out=False,
    guarded=True,
)


def run(argv: Sequence[str]) -> int:
    """Runs `preftune ppo` and returns its exit code."""
    return run_method(METHOD, argv)
