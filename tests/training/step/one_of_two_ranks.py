"""One rank of the runs that test_traps.py starts as two processes. Writes what it saw to FOLDER/rank{n}.pt.

Usage: one_of_two_ranks.py FOLDER CASE..., with the environment that torchrun sets.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[3]))

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from preftune.data import GroupDataset
from preftune.types import Preference, TokenizedGroup
from tests.training.dpo_runs import lora_model, trainer
from tests.training.guard.guard_runs import pay_for_everything
from tiny import rows, tiny_model


def ranked(completions: int, *, start: int) -> TokenizedGroup:
    """One prompt with several completions and all pairs among them."""
    ids = tuple([start, start + i, start + 2 * i][: 1 + i % 3] for i in range(completions))
    pairs = tuple(Preference(i, j) for i in range(completions) for j in range(i))
    return TokenizedGroup([5, start], ids, pairs, id=str(start))


def scored(count: int) -> list[dict[str, Any]]:
    """Lists of three answers."""
    return [
        {"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"], "so"], "scores": [3, 2, 1]}
        for row in rows(count)
    ]


HELD_OUT = {
    "pairs": rows(5, start=40),  # an odd number: accelerate fills the last batch up with rows it has had already
    "groups": GroupDataset.from_groups(ranked(2 + i % 3, start=20 + 9 * i) for i in range(7)),
}
OUT_OF_MEMORY = "one rank out of memory"
GUARDED = "guarded"
UNEVEN = "uneven"
SORTED = "sorted"
JUDGED = "lora"
CASES = {
    "lora": lora_model,
    "full": tiny_model,
    OUT_OF_MEMORY: lora_model,
    "reentrant": lora_model,
    GUARDED: lora_model,
    UNEVEN: lora_model,
    "uneven, split": lora_model,
    SORTED: lora_model,
    "lists": lora_model,
    "beta_dpo": lora_model,
    "streamed": lora_model,
}
PAIRS_PER_STEP = 4
OPTIONS: dict[str, dict[str, Any]] = {
    # what DistributedDataParallel forbids: a parameter whose gradient is ready twice
    "reentrant": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    GUARDED: {"guard": "rollback"},
    # the last step has one row: one rank has none for its first micro-batch, and no rank has any for the second
    UNEVEN: {"data": rows(9), "max_steps": -1, "num_train_epochs": 1},
    "uneven, split": {
        "data": rows(9),
        "max_steps": -1,
        "num_train_epochs": 1,
        "accelerator_config": {"split_batches": True},
        "per_device_train_batch_size": PAIRS_PER_STEP // 2,
    },
    # an evaluation sorts a batch, and ranks have other batches than one process
    SORTED: {"loss_type": "aot_unpaired", "beta": 0.1, "per_device_eval_batch_size": 1},
    JUDGED: {"eval_judge": "longer", "eval_prompts": "3", "eval_strategy": "epoch", "eval_max_new_tokens": 5},
    "beta_dpo": {"loss_type": "beta_dpo", "beta_dpo_filter": 0.5},
    "lists": {"loss_type": "plackett_luce", "data": scored(20)},
    # one row is dropped, and the rows end within the steps
    "streamed": {
        "data": Dataset.from_list([*rows(10), {**rows(1)[0], "chosen": ""}]).to_iterable_dataset(),
        "shuffle_buffer": 4,
    },
}


class TightOnSecondRank:
    """An engine that runs out of memory once: in the backward pass of the second step, on the second of two ranks."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.name = engine, engine.name
        self.forwards = 0

    def __call__(self, model: Any, batch: Any) -> Any:
        answer = self.engine(model, batch)
        if torch.is_grad_enabled() and os.environ.get("RANK") == "1":
            self.forwards += 1
            if self.forwards == 2:
                answer.token_logps_T.register_hook(self.fail)
        return answer

    def fail(self, gradient: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")


class GradientsOfAllRanks(TrainerCallback):
    """The largest difference of any gradient between the ranks, at every step."""

    def __init__(self) -> None:
        self.largest: list[float] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        own = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        everyone = [torch.zeros_like(own) for _ in range(args.world_size)]
        torch.distributed.all_gather(everyone, own)
        self.largest.append(max(float((other - own).abs().max()) for other in everyone))


def run(case: str, folder: Path, *, ranks: int, callbacks: Any = None) -> dict[str, Any]:
    """Train and evaluate; the same updates whatever the number of ranks."""
    accumulation = 1 if case == OUT_OF_MEMORY else 2
    options = {"per_device_train_batch_size": PAIRS_PER_STEP // accumulation // ranks, "max_steps": 3}
    options |= {"gradient_accumulation_steps": accumulation, "per_device_eval_batch_size": 2}
    # Adam divides a gradient by its own size: one that is nothing but rounding would become a step as large as any
    options |= {"adam_epsilon": 1e-4}
    options |= OPTIONS.get(case, {})
    if ranks > 1:
        options |= {"ddp_backend": "gloo", "ddp_timeout": 60}
    options = {"data": rows(20), **options}
    made = trainer(CASES[case](), folder / case, eval_dataset=HELD_OUT, callbacks=callbacks, **options)
    if case == OUT_OF_MEMORY:
        made.engine = TightOnSecondRank(made.engine)
    with pytest.MonkeyPatch.context() as patch:
        if case == GUARDED:
            pay_for_everything(patch)
        made.train()
    return {
        "history": made.state.log_history,
        "evaluated": made.evaluate(),
        "weights": {name: p.detach().clone() for name, p in made.model.named_parameters() if p.requires_grad},
        "misses": made.reference.misses,
        "limit": made.step_limit.tokens,
    }


def main(folder: Path, cases: list[str]) -> None:
    result = {}
    for case in (case for case in CASES if case in cases):
        gradients = GradientsOfAllRanks()
        result[case] = run(case, folder, ranks=2, callbacks=[gradients])
        result[case]["gradient_differences"] = gradients.largest
    torch.save(result, folder / f"rank{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
