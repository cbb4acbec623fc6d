"""The same per-step losses as TRL 1.16 on the same rows in the same order. Never skipped: TRL is in the test extra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trl
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, set_seed

import preftune
from tiny import chat_rows, rows, save_tiny, tiny_tokenizer

STEPS = 20


def losses(library: Any, folder: Path, dataset: Any, *, lora: bool, **options: Any) -> list[float]:
    config = library.DPOConfig(
        output_dir=str(folder / library.__name__),
        per_device_train_batch_size=4,
        max_steps=STEPS,
        logging_steps=1,
        learning_rate=1e-3,
        bf16=False,
        use_cpu=True,
        activation_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=3,
        **{"gradient_accumulation_steps": 2, **options},
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    if lora:
        set_seed(11)
        model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    trainer = library.DPOTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(dataset),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def exchanged(count: int) -> list[dict[str, str]]:
    """Rows whose chosen side is the longer one in every second row."""
    return [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if place % 2 else row
        for place, row in enumerate(rows(count))
    ]


CASES = {
    "lora": ({"lora": True}, chat_rows),
    "full": ({"lora": False}, chat_rows),
    "standard rows, shuffled": ({"lora": True}, rows),
    "ipo": ({"lora": True, "loss_type": ["ipo"]}, chat_rows),
    "hinge": ({"lora": True, "loss_type": ["hinge"], "beta": 0.1}, chat_rows),
    "sigmoid_norm": ({"lora": True, "loss_type": ["sigmoid_norm"], "beta": 5.0}, chat_rows),
    "exo_pair": ({"lora": True, "loss_type": ["exo_pair"], "beta": 0.1, "label_smoothing": 1e-3}, chat_rows),
    "nca_pair": ({"lora": True, "loss_type": ["nca_pair"], "beta": 0.1}, chat_rows),
    "sppo_hard": ({"lora": True, "loss_type": ["sppo_hard"], "beta": 0.1}, chat_rows),
    "apo_zero": ({"lora": True, "loss_type": ["apo_zero"], "beta": 0.1}, chat_rows),
    "apo_down": ({"lora": True, "loss_type": ["apo_down"], "beta": 0.1}, chat_rows),
    "discopop": ({"lora": True, "loss_type": ["discopop"], "beta": 0.1}, chat_rows),
    "bco_pair": ({"lora": True, "loss_type": ["bco_pair"], "beta": 0.1}, chat_rows),
    "aot": ({"lora": True, "loss_type": ["aot"], "beta": 0.1, "gradient_accumulation_steps": 1}, chat_rows),
    "aot_unpaired": (
        {"lora": True, "loss_type": ["aot_unpaired"], "beta": 0.1, "gradient_accumulation_steps": 1},
        chat_rows,
    ),
    "wpo": ({"lora": True, "use_weighting": True}, chat_rows),
    "forward_kl": ({"lora": True, "f_divergence_type": "forward_kl"}, chat_rows),
    "js_divergence": ({"lora": True, "f_divergence_type": "js_divergence"}, chat_rows),
    "alpha_divergence": (
        {"lora": True, "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3},
        chat_rows,
    ),
    "forward_kl per token": (
        {"lora": True, "f_divergence_type": "forward_kl", "loss_type": ["sigmoid_norm"], "beta": 1.0},
        exchanged,
    ),
    "ld_alpha with the likelihood": (
        {"lora": True, "ld_alpha": 0.5, "loss_type": ["sigmoid", "sft"], "gradient_accumulation_steps": 1},
        exchanged,
    ),
    "ld_alpha": ({"lora": True, "ld_alpha": 0.5}, chat_rows),
    "several": (
        {
            "lora": True,
            "loss_type": ["sigmoid", "apo_zero", "sft"],
            "loss_weights": [0.8, 0.2, 1.0],
            "gradient_accumulation_steps": 1,
        },
        rows,
    ),  # TRL's likelihood is a mean over one micro-batch
    "robust": ({"lora": True, "loss_type": ["robust"], "label_smoothing": 0.1}, chat_rows),
    "truncated": ({"lora": True, "max_length": 50}, chat_rows),
}


@pytest.mark.sample(4)
@pytest.mark.filterwarnings("ignore:::trl")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_losses_agree_with_trl(case, tmp_path):
    options, make_rows = CASES[case]
    dataset = make_rows(96)
    if "shuffled" not in case:
        options = {**options, "train_sampling_strategy": "sequential"}
    save_tiny(tmp_path)  # TRL loads a full model's reference from where the model came from
    theirs = losses(trl, tmp_path, dataset, **options)
    as_in_trl = {"bco_running_mean": False} if case == "bco_pair" else {}
    ours = losses(preftune, tmp_path, dataset, **options, **as_in_trl)
    assert len(ours) == STEPS
    assert ours[-1] != pytest.approx(ours[0], abs=1e-2)  # it learned, so that the steps differ
    assert ours == pytest.approx(theirs, abs=1e-4, rel=1e-5)
