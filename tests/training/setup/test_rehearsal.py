"""Values that only torch or transformers can refuse are reported before a model is loaded, with their field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from preftune import GRPOConfig, GRPOTrainer
from preftune.errors import ConfigError
from preftune.training.setup.rehearsal import rehearse
from tests.training.dpo_runs import config, trainer


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"adam_beta1": 2}, r"^adam_beta1=2: the optimiser cannot be made \(ValueError: Invalid beta"),
        ({"optim": "galore_adamw"}, "^optim='galore_adamw': the optimiser"),
        ({"optim_args": "x"}, r"^optim_args='x': the optimiser .*write name=value"),
        ({"optim": "sgd", "optim_args": "momentum=much"}, r"^optim='sgd', optim_args='momentum=much': the optimiser"),
        (
            {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cyc": 3}},
            r"^lr_scheduler_type='cosine', lr_scheduler_kwargs=\{'num_cyc': 3\}.*: the schedule .*'num_cyc'",
        ),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": "x"}}, "'num_cycles': 'x'.*the sched"),
        ({"lr_scheduler_type": "linear", "warmup_steps": float("nan")}, "^warmup_steps=nan.*: the schedule"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 0.1}}, "'lr_end': 0.1.*: the schedule"),
        ({"dataloader_num_workers": -1}, "^dataloader_num_workers=-1: the data loader"),
        ({"dataloader_persistent_workers": True}, "^dataloader_persistent_workers=True: the data loader"),
        ({"dataloader_num_workers": 1, "dataloader_prefetch_factor": -1}, "prefetch_factor=-1: the data loader"),
        (
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"reentrant": True}},
            r"^gradient_checkpointing_kwargs=\{'reentrant': True\}: activation checkpointing",
        ),
        ({"torch_compile": True, "torch_compile_backend": "x"}, "^torch_compile_backend='x': the compiler"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_named(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        trainer("no-such-model", tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_online_trainers_rehearse_too(tmp_path: Path) -> None:
    args = GRPOConfig(output_dir=str(tmp_path / "run"), use_cpu=True, report_to="none", adam_beta2=1.0)
    with pytest.raises(ConfigError, match=r"^adam_beta2=1.0: the optimiser"):
        GRPOTrainer("no-such-model", lambda completions, **_: [0.0], args, [{"prompt": "a"}])


@pytest.mark.parametrize(
    "options",
    [
        {"optim": "sgd", "optim_args": "momentum=0.9,nesterov=True"},
        {"optim": "adafactor"},
        {"optim": "adamw_torch_fused"},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 10}},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1e-9}, "learning_rate": None},
        {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 4},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"torch_compile": True, "torch_compile_backend": "aot_eager"},
    ],
)
def test_what_can_be_made_passes_and_leaves_no_trace(options: dict[str, Any], tmp_path: Path) -> None:
    args, random = config(tmp_path, **options), torch.get_rng_state()
    before = dict(args.__dict__)
    rehearse(args)
    assert args.__dict__ == before
    assert torch.equal(torch.get_rng_state(), random)
