"""4-bit LoRA: a run that learns, is saved, reloaded and merged; mixed dtypes on purpose."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from preftune import DPOConfig, DPOTrainer, load_model, load_tokenizer, merge
from preftune.logps import make_engine, pack
from tiny import chat_rows, save_tiny, tiny_tokenizer


def lora(**options) -> LoraConfig:
    return LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", **options)


def config(folder, **options) -> DPOConfig:
    options = {"max_steps": 8, "learning_rate": 2e-3, "logging_steps": 1, "save_strategy": "no", **options}
    return DPOConfig(output_dir=str(folder), per_device_train_batch_size=4, disable_tqdm=True, **options)


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.sample(1)
@pytest.mark.parametrize("bf16", [None, True], ids=["float32", "bfloat16"])
def test_four_bit_lora_learns_is_saved_reloaded_and_merged(tmp_path, bf16):
    base = save_tiny(tmp_path / "base", hidden_size=64, intermediate_size=128)
    trainer = DPOTrainer(
        load_model(base, load_in_4bit=True),
        args=config(tmp_path / "run", bf16=bf16),
        train_dataset=chat_rows(32),
        processing_class=tiny_tokenizer(),
        peft_config=lora(),
    )
    assert trainer.engine.name == "packed"
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(0.6931, abs=2e-3)
    assert losses(trainer)[-1] < 0.62
    adapters = [p for n, p in trainer.model.named_parameters() if "lora_" in n]
    assert {p.dtype for p in adapters} == {torch.float32}
    trainer.save_model()

    again = load_model(tmp_path / "run", load_in_4bit=True)
    batch = pack([trainer.train_dataset[i] for i in range(4)])
    trained = trainer.model.eval()
    with torch.no_grad():
        expected = make_engine(trained, "packed")(trained, batch).token_logps_T
        reloaded = make_engine(again, "packed")(again, batch).token_logps_T
    torch.testing.assert_close(reloaded, expected, rtol=0, atol=0.3 if bf16 else 2e-3)

    merged = merge(tmp_path / "run", tmp_path / "merged")
    folder = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        in_memory = make_engine(merged.float(), "packed")(merged, batch).token_logps_T
        from_disk = make_engine(folder, "packed")(folder, batch).token_logps_T
        untrained = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        before = make_engine(untrained, "packed")(untrained, batch).token_logps_T
    torch.testing.assert_close(from_disk, in_memory, rtol=0, atol=1e-3)
    # the full-precision base with the adapter is nearer to the trained 4-bit model than without it
    assert (from_disk - expected).abs().mean() < (before - expected).abs().mean()


def test_a_model_the_user_quantised(tmp_path):
    base = save_tiny(tmp_path / "base", hidden_size=64)
    quantised = AutoModelForCausalLM.from_pretrained(
        base,
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16),
        dtype=torch.bfloat16,
    )
    trainer = DPOTrainer(
        quantised,
        args=config(tmp_path / "run", max_steps=2),
        train_dataset=chat_rows(8),
        processing_class=tiny_tokenizer(),
        peft_config=lora(),
    )
    trainer.train()
    assert losses(trainer)[1] != losses(trainer)[0]


def test_a_quantised_model_without_adapter_is_refused(tmp_path):
    base = save_tiny(tmp_path / "base", hidden_size=64)
    with pytest.raises(Exception, match="use_peft"):
        DPOTrainer(
            load_model(base, load_in_4bit=True),
            args=config(tmp_path / "run"),
            train_dataset=chat_rows(8),
            processing_class=tiny_tokenizer(),
        )


@pytest.mark.sample(0)
@pytest.mark.slow
def test_four_bit_lora_on_layers_of_the_real_small_model(tmp_path):
    from preftune.models import convert_smollm2

    whole = str(convert_smollm2())
    base = str(tmp_path / "base")
    model = load_model(whole, num_hidden_layers=2)  # of thirty: 4-bit products are slow on a CPU
    model.save_pretrained(base)
    load_tokenizer(whole).save_pretrained(base)
    lines = files("preftune.demo").joinpath("pairs.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in lines][:4]
    trainer = DPOTrainer(
        load_model(base, load_in_4bit=True),
        args=config(tmp_path / "run", max_steps=3, learning_rate=1e-3, max_length=64),
        train_dataset=[{side: row[side] for side in ("prompt", "chosen", "rejected")} for row in pairs],
        processing_class=load_tokenizer(base),
        peft_config=lora(),
    )
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(0.6931, abs=1e-3)
    assert losses(trainer)[-1] < 0.68
    trainer.save_model()
    batch = pack([trainer.train_dataset[0]])
    again = load_model(tmp_path / "run", load_in_4bit=True)
    with torch.no_grad():
        trained = trainer.model.eval()
        expected = make_engine(trained, "packed")(trained, batch).token_logps_T
        reloaded = make_engine(again, "packed")(again.float(), batch).token_logps_T
    assert (reloaded - expected).abs().mean() < 0.02 * expected.abs().mean()
    merged = merge(tmp_path / "run", tmp_path / "merged")
    assert not hasattr(merged, "peft_config")
    assert (tmp_path / "merged" / "model.safetensors").exists()
