"""`preftune grpo` and the common part of `preftune rloo`: trains a policy on several rewarded answers to each
prompt.
"""

from __future__ import annotations

from functools import partial

from preftune.cli.flags.help_pages import MODEL, HelpPage
from preftune.cli.train.fresh_answers import FRESH, PROMPT_WORDS, GroupPromptArguments
from preftune.cli.train.train_command import Method
from preftune.cli.train.train_command import run as run_method

_SECTIONS = {
    "policy": MODEL,
    "reward": "reward_model reward_weights missing_eos_penalty",
    "data": "data columns format as_chat max_prompt_length eval_dataset_name eval_strategy",
    "rounds": "num_generations max_new_tokens temperature total_episodes num_train_epochs max_steps "
    "per_device_train_batch_size gradient_accumulation_steps num_iterations dynamic_sampling "
    "mask_truncated_completions generation_batch_size use_vllm",
}
_WORDS = {
    **PROMPT_WORDS,
    "model": "path or hub id, usually a fine-tuned one (SFT)",
    "reward_model": (
        "a reward model (preftune reward, or any sequence classifier with one label), exact, key-fact, length:WORDS, "
        "format:REGEX, rule:MODULE:FUNCTION, openai:MODEL@URL or local:MODEL (marks from 1 to 10); of several "
        "rewards the weighted sum"
    ),
    "learning_rate": "default: 1e-6 for all weights, 1e-5 for LoRA",
}
_GRPO = HelpPage(
    usage="preftune grpo --model SFT --reward_model RM --data PROMPTS [options]",
    about="Group relative policy optimisation: the model gives several answers to each prompt, a reward rates them, "
    "and each is compared with the other answers to its prompt; no value model is needed. Every field of "
    "GRPOConfig and of transformers' TrainingArguments is a flag. With --loss_type dr_grpo --scale_rewards "
    "none it is Dr. GRPO, with --epsilon_high 0.28 --dynamic_sampling DAPO, with --importance_sampling_level "
    "sequence GSPO.",
    sections={
        **_SECTIONS,
        "optimisation": "learning_rate beta epsilon epsilon_high loss_type scale_rewards "
        "importance_sampling_level guard",
    },
    words=_WORDS,
)
_RLOO = HelpPage(
    usage="preftune rloo --model SFT --reward_model RM --data PROMPTS [options]",
    about="REINFORCE leave-one-out: works as preftune grpo, with the mean reward of the other answers as the "
    "baseline and the KL to the reference in the reward. Every field of RLOOConfig and of TrainingArguments is "
    "a flag.",
    sections={**_SECTIONS, "optimisation": "learning_rate beta epsilon normalize_advantages guard"},
    words=_WORDS,
)


def _method(name: str, title: str, help_page: HelpPage) -> Method:
    return Method(
        name=name,
        trainer=f"preftune.training.online:{title}Trainer",
        config=f"preftune.training.online.grpo_config:{title}Config",
        help=help_page,
        **{**FRESH, "data_arguments": GroupPromptArguments, "holds_out": True},
    )


METHOD = _method("grpo", "GRPO", _GRPO)
RLOO = _method("rloo", "RLOO", _RLOO)
run = partial(run_method, METHOD)
