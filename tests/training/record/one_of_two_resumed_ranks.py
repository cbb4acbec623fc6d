"""One rank of the run that test_ranks_resume.py starts as two processes: stopped by a signal to one of them, resumed.

Usage: one_of_two_resumed_ranks.py FOLDER, with RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[3]))

import torch
from transformers import TrainerCallback

from preftune.errors import ConfigError
from preftune.training.record.stopping import StoppedError
from tests.training.dpo_runs import logged, lora_model, trainer
from tiny import rows

OPTIONS: dict[str, Any] = {
    "per_device_train_batch_size": 1,
    "max_steps": 6,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 2,
    "disable_dropout": False,
    "train_sampling_strategy": "random",
    "lr_scheduler_type": "linear",
}


class ToOneRank(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 4 and args.process_index == 1:
            signal.raise_signal(signal.SIGTERM)


def run(folder: Path, *callbacks: Any, resume: Any = None, **options: Any) -> Any:
    options = {"data": rows(12), **OPTIONS, **options}
    model = lora_model(lora_dropout=0.2)
    made = trainer(model, folder, callbacks=callbacks, ddp_backend="gloo", ddp_timeout=60, **options)
    made.train(resume_from_checkpoint=resume)
    return made


def weights(made: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in made.model.named_parameters() if p.requires_grad}


def main(folder: Path) -> None:
    whole = run(folder / "whole")
    code = 0
    try:
        run(folder / "cut", ToOneRank())
    except StoppedError as stop:
        code = stop.exit_code
    resumed = run(folder / "cut", resume="auto")
    refused = ""
    try:
        run(folder / "cut", resume=True, beta=0.9)
    except ConfigError as error:  # on both ranks, or one would wait for the other
        refused = str(error)
    result = {
        "code": code,
        "whole": weights(whole),
        "resumed": weights(resumed),
        "losses": (logged(whole), logged(resumed)),
        "refused": refused,
    }
    torch.save(result, folder / f"rank{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
