"""Out of memory."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn

import preftune
from preftune import DPOTrainer, load_model
from preftune.cli.main import main
from preftune.errors import OutOfMemoryError
from preftune.reference import FrozenCopy
from tiny import rows, save_tiny, tiny_model

from .common_runs import first_loss, lora, make, sft_adapter


class Full:
    """An engine on a device that has no room for a training step, or only for so many tokens of one."""

    def __init__(self, engine: Any, *, always: bool = False, room: int = 0, error: Exception | None = None) -> None:
        self.engine, self.name, self.always, self.room = engine, engine.name, always, room
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        if (self.always or torch.is_grad_enabled()) and batch.input_ids.shape[1] > self.room:
            raise self.error
        return self.engine(model, batch)


def out_of_memory(trainer: DPOTrainer) -> str:
    trainer.engine = Full(trainer.engine)
    with pytest.raises(OutOfMemoryError) as caught:
        trainer.train()
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    return str(caught.value)


CURES = {
    "checkpointing": "gradient_checkpointing=True",
    "adapter": "--use_peft or peft_config=LoraConfig",
    "4 bit": "load_in_4bit=True",
    "length": "max_length below",
    "model": "a smaller model",
}
SITUATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "full": ({}, "checkpointing, adapter, 4 bit, length, model"),
    "full, checkpointing": ({"gradient_checkpointing": True}, "adapter, 4 bit, length, model"),
    "LoRA": ({"peft_config": lora()}, "checkpointing, 4 bit, length, model"),
    "LoRA, one pair": (
        {"peft_config": lora(), "gradient_checkpointing": True, "per_device_train_batch_size": 1},
        "4 bit, length, model",
    ),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_out_of_memory_names_what_this_run_does_not_use_yet(situation, tmp_path):
    options, expected = SITUATIONS[situation]
    message = out_of_memory(make(tiny_model(), tmp_path, **options))
    assert [name for name, fix in CURES.items() if fix in message] == expected.split(", ")
    assert "Tried to allocate" not in message
    assert message.count("saves about") == len(expected.split(", "))


@pytest.mark.parametrize("where", ["self-check", "evaluation"])
def test_out_of_memory_outside_of_a_training_step(where, tmp_path):
    trainer = make(tiny_model(), tmp_path, peft_config=lora(), eval_dataset=rows(4, start=8))
    if where == "evaluation":
        trainer.train()
    trainer.engine = Full(trainer.engine, always=True)
    with pytest.raises(OutOfMemoryError, match=r"a single pair of \d+ tokens"):
        trainer.evaluate() if where == "evaluation" else trainer.train()


def test_out_of_memory_on_a_cpu_has_another_class_and_the_same_fixes(tmp_path):
    trainer = make(tiny_model(), tmp_path)
    with pytest.raises(RuntimeError, match="allocate memory") as caught:
        torch.empty(2**60, dtype=torch.int8)
    trainer.engine = Full(trainer.engine, error=caught.value)
    with pytest.raises(OutOfMemoryError, match="gradient_checkpointing=True"):
        trainer.train()


def test_out_of_memory_of_a_4_bit_model_does_not_advise_4_bit(tmp_path):
    model = load_model(save_tiny(tmp_path / "model", hidden_size=64), load_in_4bit=True)
    message = out_of_memory(make(model, tmp_path / "run", peft_config=lora(), gradient_checkpointing=True))
    assert [name for name, fix in CURES.items() if fix in message] == ["length", "model"]


def test_a_batch_that_does_not_fit_is_no_error(tmp_path, caplog):
    def one_step(folder: str, room: int | None = None) -> tuple[float, torch.Tensor]:
        trainer = make(tiny_model(), tmp_path / folder, per_device_train_batch_size=6)
        if room is not None:
            trainer.engine = Full(trainer.engine, room=room)
        loss = first_loss(trainer)
        return loss, torch.cat([p.detach().flatten() for p in trainer.model.parameters()])

    loss, weights = one_step("whole")
    assert "out of memory" not in caplog.text
    same_loss, same_weights = one_step("parts", room=150)
    assert caplog.text.count("out of memory") == 1
    assert "Set max_tokens_per_batch=" in caplog.text
    assert same_loss == pytest.approx(loss, abs=1e-6)
    torch.testing.assert_close(same_weights, weights, rtol=0, atol=1e-5)


def test_on_the_command_line_it_is_one_paragraph_and_exit_code_1(tmp_path, monkeypatch, capsys):
    engine_of = preftune.training.setup.model.choose_engine
    monkeypatch.setattr("preftune.training.setup.model.choose_engine", _full_engine(engine_of))
    data = tmp_path / "pairs.jsonl"
    Dataset.from_list(rows(8)).to_json(data)
    words = [
        "dpo",
        "--model",
        save_tiny(tmp_path / "model"),
        "--data",
        str(data),
        "--output_dir",
        str(tmp_path / "run"),
    ]
    capsys.readouterr()
    assert main(words) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("preftune: the device ran out of memory")
    assert "In order: gradient_checkpointing=True" in last


def _full_engine(choose: Callable[..., Any]) -> Callable[..., Any]:
    def chosen(*args: Any) -> Any:
        engine, support = choose(*args)
        return Full(engine), support

    return chosen


@pytest.fixture
def no_second_model(monkeypatch) -> None:
    """A copy of a model, by whatever way Python copies, fails the test."""
    deepcopy = copy.deepcopy

    def checked(value: Any, *args: Any, **kwargs: Any) -> Any:
        assert not isinstance(value, nn.Module), f"a {type(value).__name__} was copied"
        return deepcopy(value, *args, **kwargs)

    monkeypatch.setattr(copy, "deepcopy", checked)


def living_parameters() -> dict[int, int]:
    """Elements of every parameter that is alive in this process, each storage once."""
    gc.collect()
    alive = [item for item in gc.get_objects() if issubclass(type(item), nn.Parameter)]
    return {parameter.data_ptr(): parameter.numel() for parameter in alive}


@pytest.mark.usefixtures("no_second_model")
@pytest.mark.parametrize("how", ["LoRA", "SFT adapter", "full"])
def test_no_second_model_is_held(how, tmp_path):
    model = sft_adapter() if how == "SFT adapter" else tiny_model()
    before = living_parameters()
    peft = {"peft_config": lora()} if how == "LoRA" else {}
    trainer = make(model, tmp_path, reference_cache=False, eval_dataset=rows(4, start=8), **peft)
    trainer.train()
    trainer.evaluate()
    new = sum(size for place, size in living_parameters().items() if place not in before)
    adapter = sum(p.numel() for n, p in trainer.model.named_parameters() if "lora_" in n)
    assert new == (adapter if how == "LoRA" else 0)
    if how == "SFT adapter":  # its reference is a copy of the adapter, and of nothing else
        assert isinstance(trainer.reference.source, FrozenCopy)
        assert sum(received.numel() for received in trainer.reference.source._received.values()) == adapter


def test_an_explicit_reference_is_let_go_before_training(tmp_path):
    reference = tiny_model()
    alive = weakref.ref(reference)
    trainer = make(tiny_model(), tmp_path, ref_model=reference)
    del reference
    assert alive() is not None
    trainer.train()
    gc.collect()
    assert alive() is None
