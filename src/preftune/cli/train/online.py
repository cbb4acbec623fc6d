"""`preftune online`, and the common part of `preftune xpo` and `preftune nash-md`: train on the policy's own answers,
compared by a judge.
"""

from __future__ import annotations

from functools import partial

from preftune.cli.flags.help_pages import MODEL, HelpPage
from preftune.cli.train.fresh_answers import FRESH, PROMPT_WORDS
from preftune.cli.train.train_command import Method
from preftune.cli.train.train_command import run as run_method

_TRAINING = "max_new_tokens temperature beta"
_STEPS = (
    "learning_rate per_device_train_batch_size gradient_accumulation_steps total_episodes num_train_epochs max_steps "
    "generation_batch_size"
)
_WORDS = {
    **PROMPT_WORDS,
    "model": "path or hub id, usually a fine-tuned one (SFT)",
    "judge": (
        "openai:MODEL@URL, local:MODEL, reward:MODEL, rule:MODULE:FUNCTION, shorter, longer, key-fact, exact; called "
        "in both orders if the order matters"
    ),
    "reward_model": (
        "instead of a judge: a reward that rates single answers, as in preftune ppo; several form an ensemble"
    ),
    "learning_rate": "default: 5e-7 for all weights, 5e-6 for LoRA",
}


def _method(command: str, trainer: str, about: str, training: str) -> Method:
    help_page = HelpPage(
        usage=f"preftune {command} --model SFT --judge JUDGE --data PROMPTS [options]",
        about=f"{about} Every field of {trainer}Config and of transformers' TrainingArguments is a flag.",
        sections={
            "policy": MODEL,
            "judge": "judge reward_model reward_ensemble missing_eos_penalty",
            "data": "data columns format as_chat max_prompt_length",
            "training": training,
        },
        words=_WORDS,
    )
    needs = {
        "needs": ("judge", "reward_model"),
        "needs_what": (
            "name the judge that compares the answers with --judge JUDGE, or the reward that rates them with "
            "--reward_model RM"
        ),
    }
    return Method(
        name=command,
        trainer=f"preftune.training.online:{trainer}Trainer",
        config=f"preftune.training.online:{trainer}Config",
        help=help_page,
        **FRESH | needs,
    )


METHOD = _method(
    "online",
    "OnlineDPO",
    "Online preference optimisation: the model gives several answers to each prompt, a judge says which is better, "
    "and the model takes a DPO step on these new pairs.",
    f"num_generations which_pairs {_TRAINING} loss_type {_STEPS} use_vllm guard",
)
XPO = _method(
    "xpo",
    "XPO",
    "Exploratory preference optimisation: works as preftune online, with pairs of an answer of the model and one of "
    "the reference, and a term that makes the reference's answers less likely.",
    f"{_TRAINING} alpha loss_type {_STEPS} guard",
)
NASH_MD = _method(
    "nash-md",
    "NashMD",
    "Nash-MD: the model's answer is compared with an answer of the geometric mixture of model and reference, and "
    "answers that win become more likely.",
    f"{_TRAINING} mixture_coef {_STEPS} guard",
)
run = partial(run_method, METHOD)
