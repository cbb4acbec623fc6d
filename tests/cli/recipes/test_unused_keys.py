"""Keys of other tools' recipes that have no counterpart, or none with their value, are named; none is dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from preftune.cli.recipes.convert_recipe import run

FACTORY = "stage: dpo\nmodel_name_or_path: some/model\ntemplate: qwen\n"
AXOLOTL = "base_model: some/model\nrl: dpo\nadapter: lora\n"


def converted(folder: Path, text: str, capsys: Any) -> tuple[dict[str, Any], list[str]]:
    """The settings, and the keys that are named with their reasons."""
    (folder / "theirs.yaml").write_text(text)
    assert run([str(folder / "theirs.yaml")]) == 0
    out = capsys.readouterr().out
    lost = "# not carried over: "
    return yaml.safe_load(out), [line.removeprefix(lost) for line in out.splitlines() if line.startswith(lost)]


@pytest.mark.parametrize(("text", "key"), [(FACTORY, "val_size"), (AXOLOTL, "val_set_size")])
def test_a_number_of_rows_to_hold_out_is_no_share(text: str, key: str, tmp_path: Path, capsys: Any) -> None:
    settings, lost = converted(tmp_path, f"{text}{key}: 10\n", capsys)
    assert "eval_fraction" not in settings
    (line,) = [line for line in lost if line.startswith(key)]
    assert line.startswith(f"{key}: 10: It is a number of rows")
    assert "--eval_fraction" in line
    settings, lost = converted(tmp_path, f"{text}{key}: 0.05\n", capsys)
    assert settings["eval_fraction"] == 0.05
    assert not [line for line in lost if line.startswith(key)]


@pytest.mark.parametrize(
    ("more", "settings"),
    [
        (AXOLOTL + "batch_size: 16\nmicro_batch_size: 2\n", {"gradient_accumulation_steps": 8}),
        (AXOLOTL + "batch_size: 8\n", {"gradient_accumulation_steps": 8}),
        (AXOLOTL + "batch_size: 8\nmicro_batch_size: 2\ngradient_accumulation_steps: 4\n", {}),
        (FACTORY + "additional_target: embed_tokens, lm_head\n", {"lora_modules_to_save": ["embed_tokens", "lm_head"]}),
        (FACTORY + "warmup_steps: 0\nwarmup_ratio: 0.1\n", {"warmup_steps": 0.1}),
        (FACTORY + "do_train: true\nflash_attn: auto\nwarmup_ratio: 0.1\n", {"warmup_steps": 0.1}),
    ],
)
def test_keys_with_a_counterpart_are_not_named(
    more: str, settings: dict[str, Any], tmp_path: Path, capsys: Any
) -> None:
    found, lost = converted(tmp_path, more, capsys)
    assert {name: found[name] for name in settings} == settings
    assert [line.partition(":")[0] for line in lost] == ["template"] * ("stage" in more)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (
            AXOLOTL + "batch_size: 15\nmicro_batch_size: 2\n",
            "batch_size: 15: It is no multiple of micro_batch_size (2)",
        ),
        (AXOLOTL + "batch_size: 8\ngradient_accumulation_steps: 2\n", "batch_size: 8: gradient_accumulation_steps is"),
        (AXOLOTL + "bf16: auto\n", "bf16: auto: The precision policy chooses"),
        (AXOLOTL + "fp16: full\n", "fp16: full: The precision policy chooses"),
        (AXOLOTL + "cpo_alpha: 0.5\n", "cpo_alpha: It has no effect without rl: simpo"),
        (AXOLOTL + "warmup_steps: 5\nwarmup_ratio: 0.2\n", "warmup_ratio: warmup_steps is given too"),
        (AXOLOTL + "fsdp_version: 1\n", "fsdp_version: 1: FSDP2 is used"),
        (AXOLOTL + "deepspeed: zero0.json\n", "deepspeed: Stage 0 divides nothing"),
        (AXOLOTL + "datasets: [some/pairs]\n", "datasets: some/pairs: An entry is a mapping"),
        (AXOLOTL.replace("lora", "llama-adapter"), "adapter: llama-adapter: Only lora and qlora"),
        ("base_model: m\nrl: dpo\nlora_r: 8\n", "lora_r: It has no effect without adapter"),
        (AXOLOTL + "lora_model_dir: a\npeft_use_dora: true\n", "peft_use_dora: a keeps what it was saved with"),
        (FACTORY + "flash_attn: fa2\n", "flash_attn: The packed engine"),
        (FACTORY + "do_train: false\n", "do_train: preftune dpo trains"),
        (FACTORY + "simpo_gamma: 1.0\n", "simpo_gamma: It has no effect with pref_loss: sigmoid"),
        (FACTORY.replace("dpo", "kto") + "pref_loss: ipo\n", "pref_loss: It has no effect with stage: kto"),
        (FACTORY + "finetuning_type: full\nlora_rank: 8\n", "lora_rank: It has no effect with finetuning_type: full"),
        (FACTORY + "warmup_steps: 5\nwarmup_ratio: 0.2\n", "warmup_ratio: warmup_steps is given too"),
        (FACTORY + "quantization_bit: 3\n", "quantization_bit: 3: bitsandbytes quantises"),
        (FACTORY + "pref_beta: 0.2\nbeta: 0.3\n", "beta: Other keys of the recipe make it 0.2"),
    ],
)
def test_a_key_that_is_read_and_not_used_is_named(more: str, named: str, tmp_path: Path, capsys: Any) -> None:
    _, lost = converted(tmp_path, more, capsys)
    assert [line for line in lost if line.startswith(named)], lost


@pytest.mark.parametrize("text", [FACTORY, AXOLOTL])
def test_the_steps_of_warming_up_count_before_a_share(text: str, tmp_path: Path, capsys: Any) -> None:
    settings, _ = converted(tmp_path, text + "warmup_steps: 5\nwarmup_ratio: 0.2\n", capsys)
    assert settings["warmup_steps"] == 5
