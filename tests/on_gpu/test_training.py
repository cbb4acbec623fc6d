"""A few steps of `DPOTrainer` on a GPU, LoRA and full, with what a GPU chooses by default. Without datasets and TRL."""

from __future__ import annotations

import math

import pytest

from preftune import DPOConfig, DPOTrainer
from tiny import rows, tiny_model, tiny_tokenizer

from .conftest import can

WIDE = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 2, "num_key_value_heads": 1}


def run(folder, *, lora, model="llama", **options):
    from peft import LoraConfig

    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "logging_steps": 1,
        "learning_rate": 3e-3 if lora else 3e-4,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "reference_cache": False,
    }
    extra = {"head_dim": 64, "query_pre_attn_scalar": 64} if model == "gemma2" else {}
    trainer = DPOTrainer(
        tiny_model(model, **WIDE, **extra),
        args=DPOConfig(**{**settings, **options}),
        train_dataset=rows(8),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None,
    )
    trainer.train()
    return trainer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("model", ["llama", "gemma2"])
@pytest.mark.parametrize("precision", [{}, {"bf16": True}, {"fp16": True}, {"bf16": False}], ids=str)
def test_a_run_begins_at_ln_2_and_learns(tmp_path, lora, model, precision):
    if precision.get("bf16") and not can((8, 0)):
        pytest.skip("this card has no bfloat16")
    trainer, losses = run(tmp_path, lora=lora, model=model, **precision)
    assert losses[0] == pytest.approx(math.log(2), abs=5e-3)
    assert losses[-1] < losses[0] - 0.02
    assert trainer.args.activation_checkpointing  # the default on a GPU
    assert next(trainer.model.parameters()).device.type == "cuda"


def test_compiled_pieces_give_the_same_losses(tmp_path):
    options = {"lora": True, "bf16": False}
    plain, compiled = (run(tmp_path / str(on), torch_compile=on, **options)[1] for on in (False, True))
    assert compiled == pytest.approx(plain, abs=1e-3)


def test_checkpointing_changes_no_loss(tmp_path):
    losses = [run(tmp_path / str(on), lora=True, bf16=False, gradient_checkpointing=on)[1] for on in (False, True)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
