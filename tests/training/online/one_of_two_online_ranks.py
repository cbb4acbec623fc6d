"""One rank of the runs that test_online_ranks.py starts as two processes, and the same run in one process.

Usage: one_of_two_online_ranks.py FOLDER CASE..., with the environment that torchrun sets. Writes FOLDER/rank{n}.pt.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[3]))

import torch

import preftune
from tests.training.ppo.ppo_runs import PROMPTS, letters_and_noise, lora
from tests.training.two_ranks import OVER_GLOO, SETTINGS, leave
from tiny import tiny_model, tiny_tokenizer

CALLS: list[int] = []


def letters(prompts: Any, completions: Any, **_: Any) -> list[float]:
    """A reward function, which says how many answers it was given."""
    CALLS.append(len(completions))
    return [sum(ord(letter) % 7 for letter in text) / 7 for text in completions]


def by_letters(prompt: Any, answer_a: str, answer_b: str, row: Any) -> str:
    return "a" if letters_and_noise(prompt, answer_a, row) > letters_and_noise(prompt, answer_b, row) else "b"


GROUPS = {"num_generations": 2, "beta": 0.1}
CASES: dict[str, tuple[str, int, dict[str, Any], dict[str, Any]]] = {
    # trainer, answers or prompts of a step, its own arguments, options
    "grpo": ("GRPO", 8, {"reward_funcs": letters}, {**GROUPS, "num_iterations": 2, "eval_strategy": "steps"}),
    "grpo, three prompts": ("GRPO", 6, {"reward_funcs": letters}, {**GROUPS, "max_steps": 2}),
    "rloo": ("RLOO", 8, {"reward_funcs": letters}, {**GROUPS, "normalize_advantages": True}),
    "online": ("OnlineDPO", 4, {"judge": by_letters}, {}),
    "xpo": ("XPO", 4, {"judge": by_letters}, {}),
    "nash_md": ("NashMD", 4, {"judge": by_letters}, {}),
    "ppo": ("PPO", 4, {"reward": letters_and_noise}, {"num_mini_batches": 2, "kl_target": 1.0, "whiten_rewards": True}),
}


def made(case: str, folder: Path, *, ranks: int) -> Any:
    """The trainer of a case: the same updates whatever the number of ranks."""
    kind, size, arguments, options = CASES[case]
    settings: dict[str, Any] = {
        "output_dir": str(folder / case),
        "per_device_train_batch_size": size // ranks,
        "max_steps": 4,
        "max_new_tokens": 6,
        **SETTINGS,
        **options,
    }
    if ranks > 1:
        settings |= OVER_GLOO
    if "eval_strategy" in options:
        settings["eval_steps"], arguments = 2, {**arguments, "eval_dataset": PROMPTS[:3]}
    torch.manual_seed(0)
    return getattr(preftune, f"{kind}Trainer")(
        model=tiny_model(),
        args=getattr(preftune, f"{kind}Config")(**settings),
        train_dataset=PROMPTS,
        processing_class=tiny_tokenizer(),
        peft_config=lora(),
        **arguments,
    )


def run(case: str, folder: Path, *, ranks: int) -> dict[str, Any]:
    CALLS.clear()
    trainer = made(case, folder, ranks=ranks)
    trainer.train()
    return {
        "history": trainer.state.log_history,
        "sampled": trainer.sampled,
        "rewarded": sum(CALLS),
        "weights": {n: p.detach().clone() for n, p in trainer.trained.named_parameters() if p.requires_grad},
    }


def failing(folder: Path) -> str:
    """What this rank raises when a reward fails on the second one."""

    def reward(prompts: Any, completions: Any, **_: Any) -> list[float]:
        if os.environ["RANK"] == "1":
            raise ValueError("no connection")
        return [0.0] * len(completions)

    trainer = made("rloo", folder / "failing", ranks=2)
    trainer.rewards.scorers[0]._function = reward
    try:
        trainer.train()
    except preftune.errors.RequestError as error:
        return str(error)
    return ""


def main(folder: Path, cases: list[str]) -> None:
    result: dict[str, Any] = {case: run(case, folder, ranks=2) for case in cases}
    result["failing"] = failing(folder)
    leave(folder, result)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
