"""Recipes of other tools: what is carried over is read by preftune's own commands, what is not is named."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from preftune.cli.flags.recipe import read_recipe
from preftune.cli.recipes.convert_recipe import run
from preftune.cli.train.train_command import read_request
from preftune.errors import RequestError

LLAMA_FACTORY_DPO = """\
model_name_or_path: some/model-1B-Instruct
trust_remote_code: true
stage: dpo
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
pref_beta: 0.1
pref_loss: sigmoid
pref_ftx: 0.2
dataset: my_pairs
template: llama3
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
output_dir: saves/dpo
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 5.0e-6
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
ddp_timeout: 180000000
val_size: 0.1
eval_strategy: steps
eval_steps: 500
"""
LLAMA_FACTORY_KTO = """\
model_name_or_path: some/model
stage: kto
finetuning_type: full
dataset: kto_data
cutoff_len: 1024
kto_chosen_weight: 1.5
pref_beta: 0.2
learning_rate: 1e-6
deepspeed: ds_z3.json
"""
LLAMA_FACTORY_SIMPO = """\
model_name_or_path: some/model
stage: dpo
finetuning_type: lora
quantization_bit: 4
pref_loss: simpo
simpo_gamma: 1.2
pref_beta: 2.0
dataset: some/pairs
template: qwen
"""
AXOLOTL_DPO = """\
base_model: some/model-8B
load_in_8bit: true
chat_template: llama3
rl: dpo
rl_beta: 0.05
datasets:
  - path: some/pairs
    type: chat_template.default
    field_messages: conversation
    split: train
val_set_size: 0.05
output_dir: ./outputs/out
sequence_len: 4096
sample_packing: false
pad_to_sequence_len: false
adapter: lora
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
wandb_project: mine
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
tf32: false
gradient_checkpointing: true
flash_attention: true
warmup_steps: 10
evals_per_epoch: 4
weight_decay: 0.0
special_tokens:
  pad_token: <|end_of_text|>
"""
AXOLOTL_KTO = """\
base_model: some/model
rl: kto
kto_undesirable_weight: 0.2
adapter: qlora
load_in_4bit: true
datasets:
  - path: some/answers
    type: llama3.ultra
sequence_len: 512
micro_batch_size: 2
"""


def converted(folder: Path, text: str, capsys: Any) -> tuple[str, dict[str, Any], str]:
    """The command, the settings and what was said."""
    (folder / "theirs.yaml").write_text(text)
    assert run([str(folder / "theirs.yaml"), "-o", str(folder / "ours.yaml")]) == 0
    said = capsys.readouterr().out
    command = said.split("preftune ")[-1].split()[0]
    return command, yaml.safe_load((folder / "ours.yaml").read_text()), said


@pytest.mark.parametrize(
    ("text", "command", "expected", "lost"),
    [
        (
            LLAMA_FACTORY_DPO,
            "dpo",
            {
                "loss_type": "sigmoid", "beta": 0.1, "rpo_alpha": 0.2, "sft_mean": "completions", "use_peft": True,
                "lora_r": 8, "lora_alpha": 16, "max_length": 2048, "dataset_train_split": "train[:1000]",
                "eval_fraction": 0.1, "warmup_steps": 0.1, "learning_rate": 5e-6, "overwrite": True,
            },
            ["template", "plot_loss", "overwrite_cache", "ddp_timeout", "dataset my_pairs"],
        ),
        (
            LLAMA_FACTORY_KTO,
            "kto",
            {"desirable_weight": 1.5, "beta": 0.2, "learning_rate": 1e-6, "fsdp": "full_shard"},
            ["dataset kto_data"],
        ),
        (
            LLAMA_FACTORY_SIMPO,
            "dpo",
            {"loss_type": "simpo", "simpo_gamma": 1.2, "beta": 2.0, "load_in_4bit": True, "use_peft": True},
            ["template"],
        ),
        (
            AXOLOTL_DPO,
            "dpo",
            {
                "beta": 0.05, "lora_r": 32, "load_in_8bit": True, "max_length": 4096, "num_train_epochs": 4,
                "per_device_train_batch_size": 2, "eval_fraction": 0.05, "dataset_name": ["some/pairs"],
                "columns": ["prompt=conversation"], "dataset_train_split": "train",
            },
            ["chat_template", "flash_attention", "evals_per_epoch", "special_tokens", "datasets: type"],
        ),
        (AXOLOTL_KTO, "kto", {"undesirable_weight": 0.2, "load_in_4bit": True, "use_peft": True}, ["datasets: type"]),
    ],
)  # fmt: skip
def test_recipes_of_other_tools(text, command, expected, lost, tmp_path, capsys):
    found, settings, said = converted(tmp_path, text, capsys)
    assert found == command
    assert {name: settings.get(name) for name in expected} == expected
    for key in lost:
        assert f"Not carried over: {key}" in said
    assert "lora_target_modules" not in settings
    method = importlib.import_module(f"preftune.cli.train.{command}").METHOD
    request = read_request(method, [], read_recipe(str(tmp_path / "ours.yaml")))  # every key is read, every value fits
    assert request.model.model_name_or_path.startswith("some/model")
    assert request.config.beta == expected.get("beta", 0.1)


@pytest.mark.parametrize(("alpha", "likelihood"), [("", 1.0), ("cpo_alpha: 0.5\n", 0.5), ("cpo_alpha: 0\n", None)])
def test_simpo_of_axolotl_has_the_likelihood_of_cpo(alpha, likelihood, tmp_path, capsys):
    text = f"base_model: some/model\nrl: simpo\nsequence_len: 512\nrl_beta: 2.0\n{alpha}"
    found, settings, _ = converted(tmp_path, text, capsys)
    assert (found, settings["loss_type"], settings.get("rpo_alpha")) == ("dpo", "simpo", likelihood)
    method = importlib.import_module("preftune.cli.train.dpo").METHOD
    request = read_request(method, ["--data", "x"], read_recipe(str(tmp_path / "ours.yaml")))
    assert len(request.config.objective().terms) == (2 if likelihood else 1)


def test_defaults_of_llama_factory_are_written_out(tmp_path, capsys):
    _, settings, _ = converted(tmp_path, "stage: dpo\nmodel_name_or_path: some/model\ntemplate: qwen\n", capsys)
    assert (settings["learning_rate"], settings["max_length"], settings["lora_r"]) == (5e-5, 2048, 8)


def test_defaults_of_axolotl_are_written_out(tmp_path, capsys):
    """Without them a recipe of one epoch with steps of one row trained three epochs with steps of eight."""
    _, settings, _ = converted(tmp_path, "base_model: some/model\nrl: dpo\nadapter: lora\n", capsys)
    names = ("num_train_epochs", "per_device_train_batch_size", "max_length", "lr_scheduler_type", "warmup_steps")
    assert [settings[name] for name in names] == [1.0, 1, 512, "cosine", 0.03]
    text = "base_model: some/model\nrl: dpo\nnum_epochs: 4\nwarmup_steps: 0\nwarmup_ratio: 0.5\n"
    _, settings, _ = converted(tmp_path, text, capsys)
    assert (settings["num_train_epochs"], settings["warmup_steps"]) == (4, 0)


def test_a_reward_model_of_axolotl_is_one(tmp_path, capsys):
    text = "base_model: some/model\nreward_model: true\nsequence_len: 512\ndatasets: [{path: some/pairs}]\n"
    command, settings, said = converted(tmp_path, text, capsys)
    assert (command, settings["dataset_name"]) == ("reward", ["some/pairs"])
    assert "Not carried over" not in said
    (tmp_path / "theirs.yaml").write_text("base_model: m\nprocess_reward_model: true\nsequence_len: 512\n")
    with pytest.raises(RequestError, match="no rewards of single steps"):
        run([str(tmp_path / "theirs.yaml")])


def test_of_two_keys_for_one_setting_the_one_that_is_not_used_is_named(tmp_path, capsys):
    text = "base_model: some/model\nrl: dpo\nsequence_len: 512\nrl_beta: 0.15\ndpo_beta: 0.3\n"
    _, settings, said = converted(tmp_path, text, capsys)
    assert settings["beta"] == 0.15
    assert "Not carried over: dpo_beta. rl_beta sets beta too" in said


def test_datasets_are_looked_up_by_name(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    entry = {"file_name": "pairs.json", "ranking": True, "columns": {"prompt": "instruction", "chosen": "good"}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps({"my_pairs": entry}))
    _, settings, said = converted(tmp_path, LLAMA_FACTORY_DPO, capsys)
    assert settings["dataset_name"] == [str(tmp_path / "data" / "pairs.json")]
    assert settings["columns"] == ["prompt=instruction", "chosen=good"]
    assert "my_pairs" not in said


def test_a_recipe_without_output_is_printed(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(LLAMA_FACTORY_SIMPO + "no_such_thing: 3\n")
    run([str(tmp_path / "r.yaml")])
    said = capsys.readouterr().out
    assert "# r.yaml for: preftune dpo --config THIS_FILE" in said
    assert "# not carried over: no_such_thing: preftune has no option of this name." in said
    assert yaml.safe_load(said)["loss_type"] == "simpo"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("beta: 0.1\n", "TRL's recipes need no conversion"),
        ("stage: pt\ntemplate: x\n", "stage: pt has no counterpart"),
        ("base_model: m\nrl: grpo\nsequence_len: 5\n", "rl: grpo has no counterpart"),
    ],
)
def test_what_is_no_recipe_of_theirs(text, words, tmp_path):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RequestError, match=words):
        run([str(tmp_path / "r.yaml")])


@pytest.mark.parametrize(
    ("recipe", "lost"),
    [
        (LLAMA_FACTORY_KTO + "pref_ftx: 0.2\n", "pref_ftx"),
        (LLAMA_FACTORY_KTO + "eval_dataset: one,two\n", "eval_dataset: two"),
        (
            "base_model: m\nrl: dpo\ndatasets:\n  - {path: a}\ntest_datasets:\n  - {path: b, name: c}\n",
            "test_datasets: name c",
        ),
        (
            "base_model: m\nrl: dpo\ndatasets:\n  - {path: a}\ntest_datasets:\n  - {path: b}\n  - {path: c}\n",
            "test_datasets: c",
        ),
    ],
)
def test_what_a_recipe_has_more_of_is_named(tmp_path, capsys, recipe, lost):
    (tmp_path / "theirs.yaml").write_text(recipe)
    assert run([str(tmp_path / "theirs.yaml")]) == 0
    assert f"# not carried over: {lost}:" in capsys.readouterr().out


def test_a_token_stays_out_of_the_file(tmp_path: Path, capsys: Any) -> None:
    _, settings, said = converted(tmp_path, LLAMA_FACTORY_DPO + "hub_token: hf_abcdefghijklmnop1234\n", capsys)
    assert "hub_token" not in settings
    assert "hf_abc" not in said + (tmp_path / "ours.yaml").read_text()
    assert "HF_TOKEN" in said
