"""One rank of the runs that test_sft_reward_ranks.py starts as two processes. Writes what it saw to FOLDER/rank{n}.pt.

Usage: one_of_two_sft_reward_ranks.py FOLDER, with the environment that torchrun sets.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[3]))


from preftune import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from tests.training.two_ranks import OVER_GLOO, SETTINGS, leave
from tiny import chat_rows, tiny_model, tiny_tokenizer

ROWS_PER_STEP = 4


def demonstrations(count: int, *, start: int = 0) -> list[dict[str, Any]]:
    """Of very different lengths, so that the ranks' shares of a step's tokens differ."""
    rows = chat_rows(count, start=start)
    long = [{"role": "user", "content": "and"}, {"role": "assistant", "content": "more words " * 6}]
    return [{"messages": [*row["prompt"], *row["chosen"], *(long if i % 2 else [])]} for i, row in enumerate(rows)]


def weighted(count: int, *, start: int = 0) -> list[dict[str, Any]]:
    return [{**row, "weight": 1 + i % 3, "margin": 0.1 * i} for i, row in enumerate(chat_rows(count, start=start))]


UNEVEN: dict[str, Any] = {"rows": 9, "max_steps": -1, "num_train_epochs": 1}
"""The last step has one row, and one rank none."""

CASES: dict[str, Any] = {
    "sft": (SFTTrainer, SFTConfig, demonstrations, {}),
    "reward": (RewardTrainer, RewardConfig, weighted, {"center_rewards_coefficient": 0.01}),
    "sft, uneven": (SFTTrainer, SFTConfig, demonstrations, UNEVEN),
    "reward, uneven": (RewardTrainer, RewardConfig, weighted, {"center_rewards_coefficient": 0.01, **UNEVEN}),
}


def run(case: str, folder: Path, *, ranks: int) -> dict[str, Any]:
    """Train, evaluate and save; the same updates whatever the number of ranks."""
    trainer_class, config, rows, more = CASES[case]
    more = dict(more)
    count = more.pop("rows", 20)
    options: dict[str, Any] = {
        "output_dir": str(folder / case),
        "per_device_train_batch_size": ROWS_PER_STEP // 2 // ranks,
        "gradient_accumulation_steps": 2,
        "per_device_eval_batch_size": 2,
        "max_steps": 3,
        "train_sampling_strategy": "sequential",
        **SETTINGS,
        **more,
    }
    if ranks > 1:
        options |= OVER_GLOO
    made = trainer_class(
        model=tiny_model(),
        args=config(**options),
        train_dataset=rows(count),
        eval_dataset=rows(5, start=40),  # an odd number: accelerate fills the last batch up with rows it has had
        processing_class=tiny_tokenizer(),
    )
    made.train()
    evaluated = made.evaluate()
    made.save_model()
    return {
        "history": made.state.log_history,
        "evaluated": evaluated,
        "weights": {name: p.detach().clone() for name, p in made.model.named_parameters()},
    }


def main(folder: Path) -> None:
    result = {case: run(case, folder, ranks=2) for case in CASES}
    leave(folder, result)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
