"""One rank of the sharded runs that test_sharded_ranks.py starts as two processes, and the same run in one process.

Usage: one_of_two_sharded_ranks.py FOLDER CASE..., with the environment that torchrun sets. Writes FOLDER/rank{n}.pt.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[3]))

import pytest
import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

import preftune
from preftune.models.shards import local, whole
from preftune.storage.jsonl import read_lines
from tests.training.dpo_runs import lora_model
from tests.training.guard.guard_runs import looks, pay_for_everything
from tests.training.trainers.one_of_two_kto_ranks import answers
from tests.training.trainers.one_of_two_sft_reward_ranks import demonstrations, weighted
from tests.training.two_ranks import OVER_GLOO, SETTINGS, leave
from tiny import rows, tiny_model, tiny_tokenizer

ROWS_PER_STEP = 4
UNEVEN = {"count": 9, "max_steps": -1, "num_train_epochs": 1}
"""The last step has one row: one rank has none for its first micro-batch, and no rank has any for the second."""


def tied_model() -> Any:
    return tiny_model(tie_word_embeddings=True)


def half_model() -> Any:
    return tiny_model().to(torch.bfloat16)


def deep_model() -> Any:
    return tiny_model(num_hidden_layers=8)


class Held(TrainerCallback):
    """How many numbers this rank holds before an update."""

    def __init__(self) -> None:
        self.weights = self.gradients = 0

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.weights = sum(local(p).numel() for p in model.parameters())
        self.gradients = sum(local(p.grad).numel() for p in model.parameters() if p.grad is not None)


CASES: dict[str, tuple[str, Any, Any, dict[str, Any]]] = {
    "lora": ("DPO", lora_model, rows, {}),
    "full": ("DPO", tiny_model, rows, {}),
    "eight layers": ("DPO", deep_model, rows, {}),
    "tied": ("DPO", tied_model, rows, {}),
    "uneven": ("DPO", lora_model, rows, UNEVEN),
    "uneven, full": ("DPO", tiny_model, rows, UNEVEN),
    "kept whole": ("DPO", tiny_model, rows, {"fsdp": "shard_grad_op"}),
    "checkpointing": ("DPO", tiny_model, rows, {"gradient_checkpointing": True}),
    "bfloat16": ("DPO", tiny_model, rows, {"bf16": True}),
    "received in bfloat16": ("DPO", half_model, rows, {}),
    "explicit": ("DPO", tiny_model, rows, {"ref_model": True, "allow_reference_mismatch": True}),
    "moving": ("DPO", tiny_model, rows, {"sync_ref_model": True, "ref_model_sync_steps": 1, "beta": 0.2}),
    "sorted": ("DPO", lora_model, rows, {"loss_type": "aot_unpaired", **UNEVEN}),
    "beta_dpo": ("DPO", lora_model, rows, {"loss_type": "beta_dpo", "beta_dpo_filter": 0.5}),
    "simpo": ("CPO", tiny_model, rows, {"loss_type": "simpo"}),
    "guarded": ("DPO", lora_model, rows, {"guard": "rollback"}),
    "kto": ("KTO", lora_model, answers, {}),
    "kto, uneven": ("KTO", tiny_model, answers, UNEVEN),
    "sft": ("SFT", tiny_model, demonstrations, {}),
    "reward": ("Reward", tiny_model, weighted, {"center_rewards_coefficient": 0.01}),
}


def made(case: str, folder: Path, *, ranks: int, **more: Any) -> Any:
    """The trainer of a case: the same updates whatever the number of ranks."""
    method, model, data, options = CASES[case]
    options = {**options, **more}
    count = options.pop("count", 20)
    settings: dict[str, Any] = {
        "output_dir": str(folder / case),
        "per_device_train_batch_size": ROWS_PER_STEP // 2 // ranks,
        "gradient_accumulation_steps": 2,
        "per_device_eval_batch_size": 2,
        "max_steps": 3,
        "train_sampling_strategy": "sequential",
        **SETTINGS,
    }
    arguments: dict[str, Any] = {}
    if options.pop("ref_model", False):
        arguments["ref_model"] = tiny_model(seed=5)
    if ranks > 1:
        settings |= {**OVER_GLOO, "fsdp": "full_shard"}
    else:
        options.pop("fsdp", None)
    return getattr(preftune, f"{method}Trainer")(
        model=model(),
        args=getattr(preftune, f"{method}Config")(**{**settings, **options}),
        train_dataset=data(count),
        eval_dataset=data(5),  # an odd number: accelerate fills the last batch up with rows it has had
        processing_class=tiny_tokenizer(),
        **arguments,
    )


def run(case: str, folder: Path, *, ranks: int) -> dict[str, Any]:
    """Train, evaluate and save."""
    trainer = made(case, folder, ranks=ranks)
    sharded = [isinstance(parameter, DTensor) for parameter in trainer.model.parameters()]
    held = Held()
    trainer.add_callback(held)
    trainer.train()
    evaluated = trainer.evaluate()
    trainer.save_model()
    reference = json.loads(Path(folder, case, "run.json").read_text()).get("reference") or {}
    states = [v for values in trainer.optimizer.state.values() for v in values.values() if v.numel() > 1]
    return {
        "sharded": all(sharded) if ranks > 1 else any(sharded),
        "history": trainer.state.log_history,
        "evaluated": evaluated,
        "fingerprint": reference.get("fingerprint"),
        "weights": {name: whole(p.detach()).clone() for name, p in trainer.model.named_parameters() if p.requires_grad},
        "held": {
            "weights": held.weights,
            "gradients": held.gradients,
            "optimiser": sum(local(v).numel() for v in states),
        },
    }


JUDGED = ("lora", "full")
JUDGING = {"eval_judge": "shorter", "eval_prompts": "4", "eval_max_new_tokens": 8, "eval_strategy": "steps"}


def answering(case: str, folder: Path, *, ranks: int) -> dict[str, Any]:
    """What guard and judge see of the answers at each step, and again when the run is continued."""
    seen: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        pay_for_everything(patch)
        for steps, resume in ((2, None), (3, "checkpoint-2")):
            options = {**JUDGING, "eval_steps": 1, "guard": "warn", "save_strategy": "steps", "save_steps": 1}
            trainer = made(case, folder / "answers", ranks=ranks, max_steps=steps, allow_changed=True, **options)
            output = Path(trainer.args.output_dir)
            trainer.train(resume_from_checkpoint=resume and str(output / resume))
            seen[f"{steps} steps"] = {
                name: [{k: v for k, v in line.items() if "seconds" not in k and k != "time"} for line in found]
                for name in ("samples.jsonl", "eval_answers.jsonl")
                if (found := list(read_lines(output / name)))
            }
            seen[f"{steps} looks"] = looks(output)
            seen[f"{steps} on"] = json.loads((output / "run.json").read_text())["guard"]["on"]
    return seen


def out_of_memory(folder: Path) -> str:
    """What a run says whose first forward pass that trains does not fit, on both ranks."""
    trainer = made("full", folder / "tight", ranks=2, per_device_train_batch_size=2)
    engine = trainer.engine

    def tight(model: Any, batch: Any) -> Any:
        if torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return engine(model, batch)

    tight.name = engine.name  # type: ignore[attr-defined]
    trainer.engine = tight
    try:
        trainer.train()
    except preftune.errors.OutOfMemoryError as error:
        return str(error)
    return ""


def in_parts(case: str, folder: Path) -> dict[str, Any]:
    """Two ranks continue a checkpoint of one process, write their parts of the next, and continue that one."""
    options = {**IN_PARTS, "save_strategy": "steps", "save_steps": 1}
    first = made(case, folder / "in parts", ranks=2, allow_changed=True, **options)
    first.train(resume_from_checkpoint=str(folder / "alone" / case / "checkpoint-2"))
    checkpoint = folder / "in parts" / case / "checkpoint-3"
    second = made(case, folder / "further in parts", ranks=2, max_steps=4, allow_changed=True, **options)
    second.train(resume_from_checkpoint=str(checkpoint))
    return {name: whole(p.detach()).clone() for name, p in second.model.named_parameters() if p.requires_grad}


def best(case: str, folder: Path, *, ranks: int, **more: Any) -> Any:
    """A run that ends with the weights of its first step: the largest loss counts as the best here."""
    options = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, **more}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    trainer = made(case, folder, ranks=ranks, **options)
    trainer.train()
    assert str(trainer.state.best_model_checkpoint).endswith("checkpoint-1")
    return {name: whole(p.detach()).clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


IN_PARTS = {"fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}}


def main(folder: Path, cases: list[str]) -> None:
    result: dict[str, Any] = {case: run(case, folder, ranks=2) for case in CASES if case in cases}
    for case in (case for case in CASES if f"{case}, resumed" in cases):  # a checkpoint of one process, by two
        trainer = made(case, folder / "continued", ranks=2, save_strategy="steps", save_steps=1, allow_changed=True)
        trainer.train(resume_from_checkpoint=str(folder / "alone" / case / "checkpoint-2"))
        result[f"{case}, continued"] = {
            name: whole(p.detach()).clone() for name, p in trainer.model.named_parameters() if p.requires_grad
        }
        result[f"{case}, in parts"] = in_parts(case, folder)
        result[f"{case}, best"] = best(case, folder / "best", ranks=2)
        result[f"{case}, best in parts"] = best(case, folder / "best in parts", ranks=2, **IN_PARTS)
        if case in JUDGED:
            result[f"{case}, answers"] = answering(case, folder, ranks=2)
    result["out of memory"] = out_of_memory(folder)
    leave(folder, result)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
