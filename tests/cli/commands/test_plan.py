"""`preftune plan` as it is typed, its refusals, and the plan with which every training on given data begins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig

from preftune.cli.display.plan_table import text
from tests.cli.command import write_rows

LENGTHS = ("--prompt_tokens", 20, "--completion_tokens", 30)


@pytest.fixture
def config_alone(tiny_model, tmp_path):
    """A folder with a config and no weights."""
    folder = tmp_path / "config"
    folder.mkdir()
    shutil.copy(Path(tiny_model) / "config.json", folder)
    return str(folder)


@pytest.fixture
def seven_billion(tmp_path):
    """Llama 2 7B's config."""
    folder = tmp_path / "7b"
    AutoConfig.for_model(
        "llama", vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
        num_attention_heads=32, max_position_embeddings=4096, dtype="bfloat16", tie_word_embeddings=False,
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


def test_a_config_and_lengths_are_enough(preftune, config_alone):
    found = preftune("plan", "--model", config_alone, *LENGTHS, "--device", "t4")
    assert found.code == 0, found.err
    assert "1,000 pairs, 80,000 tokens, 20% fewer than without sharing prompts" in found.out
    assert "of 15.6 GB: it fits" in found.out


@pytest.mark.parametrize("command", ["dpo", "sft", "kto", "reward"])
def test_lengths_are_read_with_the_tokenizer(preftune, tiny_model, pairs_file, command):
    found = preftune("plan", command, "--model", tiny_model, "--data", pairs_file, "--device", "l4", "--json")
    assert found.code == 0, found.err
    plan = json.loads(found.out)
    assert plan["data"]["rows"] in (8, 16, 32)
    assert plan["data"]["tokens_per_epoch"] > 8 * 20
    assert (plan["data"]["tokens_saved_by_sharing"] > 0) == (command in ("dpo", "reward"))


def test_the_tokens_are_those_of_the_training(preftune, tiny_model, pairs_file, tmp_path):
    plan = json.loads(preftune("plan", "--model", tiny_model, "--data", pairs_file, "--device", "cpu", "--json").out)
    output = tmp_path / "run"
    words = ("--output_dir", output, "--max_steps", 2, "--guard", "off", "--no_report", "--save_strategy", "no")
    trained = preftune("dpo", "--model", tiny_model, "--data", pairs_file, *words)
    assert trained.code == 0, trained.err
    notes = json.loads((output / "run.json").read_text())["notes"]
    *_, line = [note for note in notes if note.startswith("plan: ")]  # earlier ones are of other tests
    assert f"plan: 16 pairs in 2 steps, {plan['data']['tokens_per_epoch']:,} tokens" in line


@pytest.mark.parametrize("command", ["dpo", "sft", "kto", "reward"])
def test_plan_only_leaves_nothing_behind(preftune, tiny_model, pairs_file, tmp_path, monkeypatch, caplog, command):
    def loaded(*args, **kwargs):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("preftune.training.setup.model.prepare_model", loaded)
    caplog.set_level("INFO", "preftune")
    output = tmp_path / "never"
    found = preftune(command, "--model", tiny_model, "--data", pairs_file, "--plan_only", "--output_dir", output)
    assert found.code == 0, found.err
    assert [record for record in caplog.records if record.getMessage().startswith("plan: ")]
    assert not output.exists()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("has_weights", [True, False])
def test_this_machine_is_measured_with_two_steps(preftune, tiny_model, config_alone, has_weights):
    model = tiny_model if has_weights else config_alone
    found = preftune("plan", "--model", model, *LENGTHS, "--rows", 16, "--use_peft", "--json")
    assert found.code == 0, found.err
    time = json.loads(found.out)["time"]
    assert time["rate_from"].startswith("measured here: 2 steps of 8 rows")
    assert time["seconds"] == pytest.approx(time["useful_flops"] / time["useful_flops_per_second_and_rank"])


def test_ddp_and_fsdp(preftune, seven_billion):
    words = ("plan", "--model", seven_billion, *LENGTHS, "--device", "h100", "--gpus", 8, "--json")
    whole = json.loads(preftune(*words).out)
    sharded = json.loads(preftune(*words, "--fsdp", "full_shard").out)
    assert not whole["memory"]["fits"]
    assert whole["fixes"][0]["flags"] == ["--fsdp full_shard"]
    assert sharded["memory"]["fits"]
    assert sharded["memory"]["per_rank"]["weights"] == whole["memory"]["per_rank"]["weights"] / 8
    assert sharded["memory"]["total_bytes"] == whole["fixes"][0]["total_bytes"]


def test_what_makes_it_fit_is_a_command(preftune, seven_billion):
    found = preftune("plan", "--model", seven_billion, *LENGTHS, "--device", "h100", "--price_per_hour", 2)
    assert found.code == 1
    assert "it does not fit" in found.out
    assert f"    preftune dpo --model {seven_billion} --data FILE --load_in_4bit\n" in found.out
    assert "torchrun --nproc_per_node 2 --no-python preftune dpo" in found.out
    assert "at the given price" in found.out
    four_bit = preftune("plan", "--model", seven_billion, *LENGTHS, "--device", "t4", "--load_in_4bit")
    assert four_bit.code == 0, four_bit.out


def test_a_second_model_of_7b_is_the_28_gb_of_the_tutorials(preftune, seven_billion):
    found = preftune("plan", "--model", seven_billion, *LENGTHS, "--use_peft", "--device", "a100-80")
    line = " ".join(found.out.split())
    assert "would add 13.5 GB: 27.0 GB for both in half precision (of a 7B model the well-known 28 GB)" in line


def test_only_methods_with_a_reference_speak_of_a_second_model(preftune, config_alone):
    sft, kto, dpo = (
        " ".join(preftune("plan", name, "--model", config_alone, *LENGTHS, "--device", "l4").out.split())
        for name in ("sft", "kto", "dpo")
    )
    assert "second model" not in sft
    assert "preftune holds a copy of what is trained" in kto
    assert "preftune holds none" in dpo


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ppo",), "preftune plan does not cover ppo, only dpo, sft, kto and reward, which train on given data"),
        (("--gpus", 0), "--gpus 0: give 1 or more"),
        (("--prompt_tokens", 5), "belong together"),
        (("--data", "x.jsonl", "--rows", 5), "--rows has no effect with --data"),
        (("--model", "there", "--device", "cpu", "--gpus", 2, *LENGTHS), "--device cpu is one machine without cards"),
        (
            ("--model", "there", "--device", "this", "--nodes", 2, *LENGTHS),
            "--device this is one machine without cards",
        ),
        (LENGTHS, "There is no model to plan for"),
        (("--model", "there"), "There are no lengths"),
        (("--model", "there", *LENGTHS, "--learning_rte", 1), "learning_rate"),
        (("--model", "there", *LENGTHS, "--fsdp", "full_shrd"), "full_shard"),
        (("--price_per_hour", -1), "--price_per_hour -1: give 0 or more."),
    ],
)
def test_refusals(preftune, words, message):
    found = preftune("plan", *words)
    assert found.code == 2
    assert message in found.message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--use_peft", "--load_in_4bit"), "cannot be combined with a quantised model"),
        (("--fp16", "true"), "cannot be combined with fp16"),
        (("--torch_compile", "true"), "cannot be combined with torch_compile"),
        (("--optim", "adafactor"), "cannot be combined with optim='adafactor'"),
        (("--optim", "adamw_bnb_8bit"), "cannot be combined with optim='adamw_bnb_8bit'"),
    ],
)
def test_sharding_that_the_training_refuses_has_no_plan(preftune, config_alone, words, message):
    found = preftune(
        "plan", "--model", config_alone, *LENGTHS, "--device", "h100", "--gpus", 2, "--fsdp", "full_shard", *words
    )
    assert found.code == 2
    assert f"fsdp='full_shard' {message}" in found.message


@pytest.mark.parametrize(
    ("device", "words", "message"),
    [
        ("t4", ("--bf16", "true"), "bf16=True, but t4 has no bfloat16"),
        ("h100", ("--bf16", "true", "--fp16", "true"), "exclude each other"),
        ("cpu", ("--fp16", "true"), "fp16=True needs a graphics card"),
    ],
)
def test_a_precision_that_the_training_refuses_has_no_plan(preftune, config_alone, device, words, message):
    found = preftune("plan", "--model", config_alone, *LENGTHS, "--device", device, *words)
    assert found.code == 2
    assert message in found.message


@pytest.mark.parametrize(
    ("asked", "words", "expected"),
    [
        ("true", (), "with"),
        ("true", ("--gradient_checkpointing", "false"), "with"),
        ("false", (), "without"),
        ("false", ("--gradient_checkpointing", "true"), "with"),
    ],
)
def test_checkpointing_may_come_from_fsdp_config(preftune, config_alone, asked, words, expected):
    """As in a training. On a CPU it is off by default."""
    fsdp = ("--fsdp", "full_shard", "--fsdp_config", f'{{"activation_checkpointing": {asked}}}')
    found = preftune("plan", "--model", config_alone, *LENGTHS, "--device", "cpu", *fsdp, *words)
    assert f" {expected} activation checkpointing." in " ".join(found.out.split()), found.err


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_one_process_measures_for_a_sharded_plan(preftune, tiny_model, monkeypatch):
    from preftune.plan.devices import CARDS

    monkeypatch.setattr("preftune.plan.devices.device_named", lambda name: CARDS["h100"])
    words = ("--gpus", 2, "--fsdp", "full_shard", "--use_peft", "--json", "--rows", 32)
    found = preftune("plan", "--model", tiny_model, *LENGTHS, *words)
    assert found.code == 0, found.err
    plan = json.loads(found.out)
    assert plan["time"]["rate_from"].startswith("measured here")
    assert plan["device"]["fsdp"] == ["full_shard"]


def test_a_training_on_the_cpu_is_planned_for_the_cpu_beside_a_card(preftune, config_alone, monkeypatch):
    from preftune.plan.devices import CARDS, device_named

    monkeypatch.setattr(
        "preftune.plan.devices.device_named",
        lambda name: {**CARDS, "this": CARDS["h100"]}.get(name) or device_named(name),
    )
    found = preftune("plan", "--model", config_alone, *LENGTHS, "--use_cpu", "--json")
    assert json.loads(found.out)["device"]["name"] == "cpu", found.err


def test_methods_that_sample_have_no_plan_only(preftune, tiny_model, pairs_file):
    found = preftune(
        "online", "--model", tiny_model, "--data", pairs_file, "--judge", "shorter", "--plan_only", "--max_steps", 1
    )
    assert found.code == 2
    assert "--plan_only True: the lengths of answers that are still to be sampled are not known" in found.message


@pytest.mark.parametrize("width", [40, 80])
def test_nothing_is_wider_than_the_terminal(seven_billion, width):
    from dataclasses import replace

    from preftune.plan.devices import CARDS
    from preftune.plan.forecast import Plan
    from preftune.plan.shape import shape_of
    from tests.plan.cases import model, settings, workload

    plan = Plan(shape_of(model(lora=False)), settings(replace(CARDS["t4"], memory=10**8), bf16=True), workload())
    lines = text(plan, ["--model", "m"], width=width).splitlines()
    assert max(len(line) for line in lines if not line.startswith("    ")) <= width
    assert len(lines) > 10


def test_rows_of_a_file_with_a_recipe(preftune, tiny_model, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 4)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model_name_or_path: {tiny_model}\ndataset_name: {data}\nuse_peft: true\nfsdp: full_shard\n")
    found = preftune("plan", "--config", recipe, "--device", "h200", "--gpus", 2, "--json")
    plan = json.loads(found.out)
    assert plan["device"]["fsdp"] == ["full_shard"]
    assert plan["model"]["trainable"] < plan["model"]["parameters"]
