"""`torch_compile` in the trainer: our pieces and nothing else, the same losses, a reference cache of its own."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from preftune.errors import ConfigError
from preftune.training.setup.model import settle_compilation
from tests.training.dpo_runs import config, lora_config, trainer
from tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.fixture(autouse=True)
def compiler():
    torch.compiler.reset()
    limit = torch._dynamo.config.recompile_limit
    yield
    torch._dynamo.config.recompile_limit = limit
    torch.compiler.reset()


def losses(run) -> list[float]:
    run.train()
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


@pytest.mark.sample(1)
@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_losses_are_those_of_an_uncompiled_run(tmp_path: Path, lora: bool, checkpointing: bool) -> None:
    runs = []
    for backend in (None, "aot_eager"):
        options = {"peft_config": lora_config()} if lora else {}
        options |= {"torch_compile_backend": backend, "gradient_checkpointing": checkpointing}
        run = trainer(tiny_model(), tmp_path / str(backend), **options)
        runs.append((run, losses(run)))
    (_, expected), (run, compiled) = runs
    assert compiled == pytest.approx(expected, abs=1e-4)
    pieces = [m for m in run.model.modules() if m._compiled_call_impl is not None]
    assert len(pieces) == 2 * 3 + 1
    # accelerate would have wrapped the model, whole, around the hooks
    assert not isinstance(run.model_wrapped, torch._dynamo.OptimizedModule)
    assert run.accelerator.state.dynamo_plugin.backend.value == "NO"
    assert "ACCELERATE_DYNAMO_BACKEND" not in os.environ


@pytest.mark.sample(0)
def test_scores_of_an_uncompiled_run_are_not_looked_up(tmp_path: Path) -> None:
    hits = []
    for backend in (None, "aot_eager", "aot_eager"):
        run = trainer(tiny_model(), tmp_path, peft_config=lora_config(), torch_compile_backend=backend)
        run.train()
        hits.append(run.reference.hits)
    assert hits[0] == hits[1] == 0
    assert hits[2] > 0


def test_the_configuration_keeps_what_was_asked(tmp_path: Path) -> None:
    args = config(tmp_path, torch_compile_backend="aot_eager", torch_compile_mode="default")
    again = dataclasses.replace(args)
    for one in (args, again):
        asked = (one.torch_compile, one.torch_compile_backend, one.torch_compile_mode)
        assert asked == (True, "aot_eager", "default")
    assert not config(tmp_path).torch_compile


def test_a_model_without_anything_to_compile_is_reported(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    with pytest.raises(ConfigError, match="no norms or MLPs"):
        settle_compilation(model, config(tmp_path, torch_compile=True))
