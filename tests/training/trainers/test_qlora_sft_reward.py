"""SFT and reward models on a 4-bit base: they learn, are saved, and reload as what they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig

from preftune import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer, load_model, merge
from preftune.judges.reward_model import open_reward_model
from preftune.logps import make_engine, pack
from tiny import chat_rows, save_tiny, tiny_tokenizer


def options(folder: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "max_steps": 12,
        "learning_rate": 5e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def packed_bytes(model: Any) -> int:
    return sum(type(p).__name__ == "Params4bit" for p in model.parameters())


def lora() -> LoraConfig:
    return LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")


def test_sft_on_a_four_bit_base(tmp_path):
    base = save_tiny(tmp_path / "base", hidden_size=64, intermediate_size=128)
    trainer = SFTTrainer(
        load_model(base, load_in_4bit=True),
        args=SFTConfig(**options(tmp_path / "run")),
        train_dataset=[{"messages": [*row["prompt"], *row["chosen"]]} for row in chat_rows(32)],
        processing_class=tiny_tokenizer(),
        peft_config=lora(),
    )
    assert packed_bytes(trainer.model) > 0
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0] - 0.5
    trainer.save_model()
    again = load_model(tmp_path / "run", load_in_4bit=True)
    batch = pack([trainer.train_dataset[i] for i in range(4)])
    trained = trainer.model.eval()
    with torch.no_grad():
        expected = make_engine(trained, "packed")(trained, batch).token_logps_T
        reloaded = make_engine(again, "packed")(again, batch).token_logps_T
    torch.testing.assert_close(reloaded, expected, rtol=0, atol=2e-3)


def test_a_reward_model_on_a_four_bit_base(tmp_path):
    base = save_tiny(tmp_path / "base", hidden_size=64, intermediate_size=128)
    trainer = RewardTrainer(
        load_model(base, load_in_4bit=True),
        args=RewardConfig(**options(tmp_path / "run")),
        train_dataset=chat_rows(32),
        processing_class=tiny_tokenizer(),
        peft_config=lora(),
    )
    assert packed_bytes(trainer.model) > 0
    assert trainer.engine.name == "packed"
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(0.693, abs=0.02)
    assert losses(trainer)[-1] < 0.4
    trainer.save_model()
    held_out = chat_rows(6, start=32)
    expected = trainer.predict(held_out).predictions
    answers = [(row["prompt"], row[side][0]["content"], {}) for side in ("chosen", "rejected") for row in held_out]
    for folder in ("run", "merged"):
        if folder == "merged":
            merge(tmp_path / "run", tmp_path / "merged")
        scores = torch.tensor(open_reward_model(str(tmp_path / folder)).load().score_all(answers)).view(2, -1)
        # the whole base instead of its 4-bit form: nearly the same scores, and the same preferences
        torch.testing.assert_close(scores.T, torch.tensor(expected), rtol=0, atol=0.3)
        assert bool((scores[0] > scores[1]).all())


def test_a_four_bit_reward_model_in_memory_is_not_merged_without_its_head(tmp_path):
    base = save_tiny(tmp_path / "base", hidden_size=64, intermediate_size=128)
    trainer = RewardTrainer(
        load_model(base, load_in_4bit=True),
        args=RewardConfig(**options(tmp_path / "run")),
        train_dataset=chat_rows(8),
        processing_class=tiny_tokenizer(),
        peft_config=lora(),
    )
    with pytest.raises(Exception, match="Save it, and merge its folder"):
        merge(trainer.model)
