"""`preftune ppo`: trains a policy on its own answers, which a reward rates."""

from __future__ import annotations

from functools import partial

from preftune.cli.flags.help_pages import MODEL, HelpPage
from preftune.cli.train.fresh_answers import FRESH, PROMPT_WORDS
from preftune.cli.train.train_command import Method
from preftune.cli.train.train_command import run as run_method

HELP = HelpPage(
    usage="preftune ppo --model SFT --reward_model RM --data PROMPTS [options]",
    about="Proximal policy optimisation: the model answers prompts, a reward rates the answers, and the model is "
    "trained towards higher ratings while it stays close to its start. Every field of PPOConfig and of "
    "transformers' TrainingArguments is a flag (--learning_rate or --learning-rate). A YAML recipe holds the "
    "same names.",
    sections={
        "policy": MODEL,
        "reward": "reward_model reward_ensemble missing_eos_penalty normalize_rewards reward_clip score_threshold "
        "max_disagreement",
        "data": "data columns format as_chat max_prompt_length",
        "rounds": "max_new_tokens temperature total_episodes num_train_epochs max_steps per_device_train_batch_size "
        "gradient_accumulation_steps num_mini_batches num_ppo_epochs generation_batch_size use_vllm",
        "optimisation": "learning_rate kl_coef kl_estimator kl_target kl_horizon gamma lam cliprange cliprange_value "
        "vf_coef value_learning_rate no_whiten_advantages whiten_rewards value_model value_init guard",
    },
    words={
        **PROMPT_WORDS,
        "model": "path or hub id, usually a fine-tuned one (SFT)",
        "use_peft": "train a LoRA adapter: policy, value and reference are then one base in memory, and a reward model "
        "that is an adapter on the same base joins them",
        "reward_model": (
            "a reward model (preftune reward, or any sequence classifier with one label), exact, key-fact, "
            "length:WORDS, format:REGEX, rule:MODULE:FUNCTION, openai:MODEL@URL or local:MODEL (marks from 1 to 10); "
            "several form an ensemble"
        ),
        "learning_rate": "default: 3e-6 for all weights, 3e-5 for LoRA",
        "no_whiten_advantages": "do not whiten the advantages",
    },
)

METHOD = Method(
    name="ppo",
    trainer="preftune.training.ppo:PPOTrainer",
    config="preftune.training.ppo:PPOConfig",
    help=HELP,
    **FRESH,
)
run = partial(run_method, METHOD)
