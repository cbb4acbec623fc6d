"""`preftune online`: the policy answers, a judge compares, DPO steps on the fresh pairs."""

from __future__ import annotations

from functools import partial

from preftune.cli.flags.help_pages import MODEL, HelpPage
from preftune.cli.train.fresh_answers import FRESH, PROMPT_WORDS
from preftune.cli.train.train_command import Method
from preftune.cli.train.train_command import run as run_method

HELP = HelpPage(
    usage="preftune online --model SFT --judge JUDGE --data PROMPTS [options]",
    about="Online preference optimisation: the model gives several answers to each prompt, a judge says which is "
    "better, and a DPO step is made of these fresh pairs. Every field of OnlineDPOConfig and of transformers' "
    "TrainingArguments is a flag.",
    sections={
        "policy": MODEL,
        "judge": "judge reward_model reward_ensemble missing_eos_penalty",
        "data": "data columns format as_chat max_prompt_length",
        "training": "num_generations which_pairs max_new_tokens temperature beta loss_type learning_rate "
        "per_device_train_batch_size gradient_accumulation_steps total_episodes num_train_epochs max_steps "
        "generation_batch_size use_vllm guard",
    },
    words={
        **PROMPT_WORDS,
        "model": "path or hub id, usually a fine-tuned one (SFT)",
        "judge": "openai:MODEL@URL, local:MODEL, reward:MODEL, rule:MODULE:FUNCTION, shorter, longer, key-fact, exact; "
        "asked in both orders where order matters",
        "reward_model": "instead of a judge: what rates single answers, as in preftune ppo; several are an ensemble",
        "learning_rate": "by default 5e-7 for all weights, 5e-6 for LoRA",
    },
)

_NEEDS = {
    "needs": ("judge", "reward_model"),
    "needs_what": "name who compares them with --judge JUDGE, or what rates them with --reward_model RM",
}
METHOD = Method(
    name="online",
    trainer="preftune.training.online:OnlineDPOTrainer",
    config="preftune.training.online:OnlineDPOConfig",
    help=HELP,
    **FRESH | _NEEDS,
)
run = partial(run_method, METHOD)
