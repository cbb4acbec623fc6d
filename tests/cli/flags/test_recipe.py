"""YAML recipes: the same fields as the flags, read as the flags are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from preftune.cli.flags.arguments import DataArguments, ModelArguments
from preftune.cli.flags.recipe import read_recipe
from preftune.cli.train.dpo import METHOD, read_request
from preftune.errors import RequestError


def request(*words: str, recipe: str | None = None, tmp_path: Path | None = None):
    read = None
    if recipe is not None:
        path = tmp_path / "recipe.yaml"
        path.write_text(recipe, encoding="utf-8")
        read = read_recipe(str(path))
    return read_request(["--model", "m", "--data", "d.jsonl", *words] if recipe is None else list(words), read)


RECIPE = """\
model: m            # an alias
dataset_name: d.jsonl
learning_rate: 5e-7
eval_strategy: no
bf16: false
max_length: null
report_to: [tensorboard]
loss_type: ipo
use_peft: true
lora_target_modules: [q_proj, v_proj]
columns: {chosen: good, rejected: bad}
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs: {min_lr: 1.0e-8}
max-prompt-length: 64
"""


def test_values_get_their_types(tmp_path) -> None:
    asked = request(recipe=RECIPE, tmp_path=tmp_path)
    assert asked.model.model_name_or_path == "m"
    assert asked.config.learning_rate == 5e-7
    assert asked.config.eval_strategy == "no"
    assert not asked.config.bf16
    assert asked.config.max_length is None
    assert asked.config.report_to == ["tensorboard"]
    assert asked.config.loss_type == ["ipo"]
    assert asked.model.lora_target_modules == ["q_proj", "v_proj"]
    assert asked.data.column_names() == {"chosen": "good", "rejected": "bad"}
    assert asked.config.lr_scheduler_kwargs == {"min_lr": 1e-8}
    assert asked.config.max_prompt_length == 64


def test_flags_override_the_recipe(tmp_path) -> None:
    asked = request(
        "--learning-rate", "1e-6", "--loss_type", "hinge", "--data=e.jsonl", recipe=RECIPE, tmp_path=tmp_path
    )
    assert asked.config.learning_rate == 1e-6
    assert asked.config.loss_type == ["hinge"]
    assert asked.data.dataset_name == ["e.jsonl"]
    assert asked.config.max_prompt_length == 64


def nested_aliases(levels: int) -> Iterator[str]:
    yield "a0: &a0 [x, x, x, x, x, x, x]"
    for n in range(1, levels):
        yield f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 7)}]"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("beta: 0.1\nlearnig_rate: 1e-6", "line 2: there is no field 'learnig_rate'. Did you mean 'learning_rate'?"),
        ("beta: hot", "line 1: Argument --beta: 'hot' is not a number. Give one, or leave it out. See"),
        ("beta: 0.1\nbeta: 0.2", "line 2: beta is already given in line 1"),
        ("model: a\nmodel_name_or_path: b", "line 2: model_name_or_path and model are the same field"),
        ("use_peft: maybe", "line 1: Argument --use_peft: 'maybe' is neither true nor false. Write one of the two"),
        ("use_peft: auto", "line 1: Argument --use_peft: 'auto' is neither true nor false"),
        ("beta: 0.1\nbf16: enabled", "line 2: Argument --bf16: 'enabled' is neither true nor false"),
        ("disable_dropout: none", "'none' is neither true nor false. Write one of the two, or leave it out for the"),
        ("disable_dropout:", "line 1: Argument --disable_dropout: 'null' is neither true nor false"),
        ("max_length: auto", "line 1: Argument --max_length: 'auto' is not a whole number"),
        ("max_steps: 1.5", "line 1: Argument --max_steps: '1.5' is not a whole number. Give one"),
        ("seed: none", "line 1: Argument --seed: 'none' is not a whole number"),
        ("beta: [0.1, 0.2]", "beta takes one value, not a list"),
        ("beta: {a: 1}", "beta takes one value, not a mapping"),
        ("lora_target_modules: {a: b}", "lora_target_modules takes a list of values, such as [a, b], not a mapping"),
        ("lora_r:", "lora_r has no value"),
        (
            "truncation: sometimes",
            "line 1: Argument --truncation: 'sometimes' is not one of its values. Its values are truncate, drop",
        ),
        ("beta: 0.1\n  x: [", "line 2"),
        ("- a\n- b", "holds no 'key: value' lines"),
        ("", "holds no 'key: value' lines"),
        ("datasets:\n  - a.jsonl", "is not an entry with a path"),
        ("beta: 1\na: &a [*a]", "recipe.yaml, line 2: the value contains itself"),
        ("\n".join(nested_aliases(8)), "line 8: the value holds more than 1,000,000 values when its aliases"),
        ("\n".join(nested_aliases(60)), "line 8: the value holds more than 1,000,000 values when its aliases"),
    ],
)
def test_a_wrong_recipe_names_the_line(tmp_path, text: str, says: str) -> None:
    with pytest.raises(RequestError) as error:
        request(recipe=text, tmp_path=tmp_path)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("bf16: auto", None), ("bf16: none", None), ("bf16: 'True'", True), ("bf16: \"'true'\"", True),
        ("bf16: off", False), ("fp16: auto", False), ("fp16: none", False), ("fp16:", False), ("fp16: null", False),
        ("tf32: auto", None), ("learning_rate: auto", None), ("greater_is_better: auto", None),
        ("use_peft: None", False), ("precompute_ref_log_probs: ~", False), ("disable_dropout: 'No'", False),
        ("max_steps: 1e3", 1000), ("max_length: 512.0", 512), ("max_length: '512'", 512), ("beta: '0.2'", 0.2),
    ],
)  # fmt: skip
def test_values_as_people_write_them(tmp_path, line: str, value: object) -> None:
    asked, field = request(recipe=f"model: m\ndata: d\n{line}", tmp_path=tmp_path), line.partition(":")[0]
    found = getattr(asked.model if field == "use_peft" else asked.config, field)
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize("words", [["dpo", "--config"], ["sweep"], ["convert-recipe"]])
def test_a_recipe_that_cannot_be_read_is_named_without_a_flag(preftune, tmp_path, words: list[str]) -> None:
    """Some commands take it as a flag and some as an argument."""
    path = tmp_path / "r.yaml"
    path.write_text("beta: 0.1\nbeta: 0.2\n")
    for name, says in ((path, f"The recipe {path}, line 2: beta is already given"), (tmp_path, "is a folder")):
        result = preftune(*words, name)
        assert (result.code, says in result.message, "--config" in result.message) == (2, True, False)


def test_missing_recipe(preftune, tmp_path) -> None:
    assert "cannot be read: No such file" in preftune("dpo", "--config", tmp_path / "no.yaml").err
    assert "is a folder" in preftune("dpo", "--config", tmp_path).err
    assert "needs the name of a YAML file" in preftune("dpo", "--config").err
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00\x80")
    assert "not text in UTF-8" in preftune("dpo", "--config", tmp_path / "b.yaml").err


def test_environment_block(preftune, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_NOTES", "before")
    (tmp_path / "r.yaml").write_text("env: {WANDB_NOTES: 7}\nbeta: -1\nmodel: m\ndata: d\n", encoding="utf-8")
    assert preftune("dpo", "--config", tmp_path / "r.yaml").code == 2
    import os

    assert os.environ["WANDB_NOTES"] == "7"


@pytest.mark.parametrize("flag", ["--learning_rate", "--learning-rate"])
def test_dashes_and_underscores(flag: str) -> None:
    assert request(flag, "2e-6").config.learning_rate == 2e-6


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--bf16", "false"], "bf16", False),
        (["--no_bf16"], "bf16", False),
        (["--gradient_checkpointing"], "gradient_checkpointing", True),
        (["--no-gradient-checkpointing"], "gradient_checkpointing", False),
        (["--no_disable_dropout"], "disable_dropout", False),
        (["--no_remove_unused_columns"], "remove_unused_columns", False),
    ],
)
def test_booleans_stand_alone(words: list[str], field: str, value: bool) -> None:
    assert getattr(request(*words).config, field) is value


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--learnig_rate", "1"], "There is no flag --learnig_rate. Did you mean --learning_rate?"),
        (["--learning-rat=1"], "Did you mean --learning_rate?"),
        (["--zzzz"], "--help-all lists them all"),
        (["--beta", "0.1", "stray"], "'stray' does not belong to a flag"),
        (["--lora_r", "8"], "--lora_r has no effect without --use_peft"),
        (["--use_peft", "--bnb_4bit_quant_type", "fp4"], "has no effect without --load_in_4bit"),
        (["--use_peft", "--lora_r", "0"], "at least 1"),
        (["--use_peft", "--lora_task_type", "SEQ_CLS"], "CAUSAL_LM"),
        (["--load_in_4bit", "--load_in_8bit"], "exclude each other"),
        (["--columns", "chosen"], "canonical=yours"),
        (["--eval_fraction", "1.5"], "between 0 and 1"),
        (["--eval_strategy", "sometimes"], "sometimes"),
        (["--beta"], "Argument --beta: expected one argument"),
    ],
)
def test_wrong_flags(words: list[str], says: str) -> None:
    with pytest.raises(RequestError) as error:
        request(*words)
    assert says in str(error.value)


def test_prefixes_are_not_guessed() -> None:
    with pytest.raises(RequestError, match="There is no flag --learning"):
        request("--learning", "1e-6")


def test_lora_config_honours_every_flag() -> None:
    words = (
        "--use_peft --lora_r 4 --lora_alpha 8 --lora_dropout 0.1 --use_rslora --use_dora --lora_modules_to_save lm_head"
    )
    config = request(*words.split()).model.lora_config()
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 8, 0.1)
    assert (config.use_rslora, config.use_dora, config.modules_to_save) == (True, True, ["lm_head"])
    assert config.target_modules == "all-linear"
    chosen = request("--use_peft", "--lora_target_modules", "q_proj", "v_proj").model.lora_config()
    assert chosen.target_modules == {"q_proj", "v_proj"}


@pytest.mark.parametrize("one", ["q_proj,v_proj", "q_proj v_proj", "q_proj, v_proj"])
def test_one_text_that_names_two_layers(one: str) -> None:
    assert request("--use_peft", "--lora_target_modules", one).model.lora_config().target_modules == {
        "q_proj",
        "v_proj",
    }


def test_a_pattern_of_layers_stays_one() -> None:
    pattern = r".*\.(q|v)_proj"
    assert request("--use_peft", "--lora_target_modules", pattern).model.lora_config().target_modules == pattern


def test_quantised_base_implies_an_adapter() -> None:
    assert request("--load_in_4bit").model.lora_config() is not None
    assert request().model.lora_config() is None


def test_every_flag_on_the_help_page_exists() -> None:
    import re

    from preftune.cli.train.dpo import parser

    known = set(parser().names()) | {"help-all", "traceback"}
    shown = set(re.findall(r"--([a-z0-9_-]+)", METHOD.help_text()))
    assert shown <= known
    assert max(map(len, METHOD.help_text().splitlines())) <= 80


def test_defaults_on_the_help_page_are_true() -> None:
    asked = request()
    config, model = asked.config, asked.model
    assert (config.beta, config.max_length, config.num_train_epochs, config.loss_type) == (0.1, 1024, 3, ["sigmoid"])
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps) == (8, 1)
    assert (config.truncation, config.output_dir) == ("truncate", "runs/dpo")
    assert (model.lora_r, model.lora_alpha) == (16, 32)


def test_every_field_of_trl_is_a_flag() -> None:
    """Script, model and DPO configs of TRL 1.16: each name is known here, so none is an unknown flag."""
    import dataclasses

    from trl import DatasetMixtureConfig, DPOConfig, ModelConfig, ScriptArguments

    from preftune.cli.train.dpo import parser

    names = parser().names()
    for kind in (ScriptArguments, ModelConfig, DPOConfig, DatasetMixtureConfig):
        missing = [field.name for field in dataclasses.fields(kind) if field.name not in names]
        assert not missing, f"{kind.__name__}: {missing}"


def test_no_argument_class_declares_a_name_twice() -> None:
    import dataclasses

    from preftune.training import DPOConfig

    names = [f.name for kind in (DataArguments, ModelArguments, DPOConfig) for f in dataclasses.fields(kind)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "name",
    ["HF_ENDPOINT", "LD_PRELOAD", "PATH", "PYTHONPATH", "https_proxy", "OPENAI_BASE_URL", "SSL_CERT_FILE", "HF_HOME",
     "CUDA_INJECTION64_PATH", "TORCHINDUCTOR_CACHE_DIR", "LOCAL_KERNELS", "RAY_ADDRESS", "WANDB_API_KEY",
     "NCCL_NET_PLUGIN", "MASTER_ADDR", "PREFTUNE_CACHE", "a_variable_of_tomorrow"],
)  # fmt: skip
def test_a_recipe_moves_no_token_and_loads_no_library_unless_that_is_accepted(name, preftune, tmp_path, monkeypatch):
    before = os.environ.get(name)
    monkeypatch.setenv(name, before or "")
    (tmp_path / "r.yaml").write_text(f"env: {{{name}: /elsewhere}}\nbeta: -1\nmodel: m\ndata: d\n", encoding="utf-8")
    refused = preftune("dpo", "--config", tmp_path / "r.yaml")
    assert refused.code == 2
    assert f"env: {name} may decide where tokens and results are sent" in refused.message
    assert os.environ[name] == (before or "")
    accepted = preftune("dpo", "--config", tmp_path / "r.yaml", "--allow_env")
    assert "--beta -1" in accepted.message
    assert os.environ[name] == "/elsewhere"


def test_a_recipe_says_what_it_sets_and_that_code_of_the_model_will_run(preftune, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_PROJECT", "x")
    monkeypatch.setenv("WANDB_API_KEY", "x")
    text = "env: {WANDB_PROJECT: mine, WANDB_API_KEY: secret-of-mine}\ntrust_remote_code: true\n"
    text += "beta: -1\nmodel: m\ndata: d\n"
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    preftune("dpo", "--config", tmp_path / "r.yaml", "--allow_env")
    assert "sets in the environment: WANDB_PROJECT=mine, WANDB_API_KEY=***" in caplog.text
    assert "line 2: trust_remote_code lets the model's own Python code run" in caplog.text


@pytest.mark.parametrize("block", ['{"": x}', '{"A=B": x}', '{A: "x\\0y"}'])
def test_a_variable_that_cannot_be_is_named(block, preftune, tmp_path):
    (tmp_path / "r.yaml").write_text(f"env: {block}\nmodel: m\ndata: d\n", encoding="utf-8")
    result = preftune("dpo", "--config", tmp_path / "r.yaml")
    assert result.code == 2
    assert "cannot be set" in result.message


def test_a_recipe_does_not_accept_itself(preftune, tmp_path):
    (tmp_path / "r.yaml").write_text("allow_env: true\nmodel: m\ndata: d\n", encoding="utf-8")
    assert "there is no field 'allow_env'" in preftune("dpo", "--config", tmp_path / "r.yaml").message


def test_a_value_that_yaml_cannot_read_is_named(preftune, tmp_path):
    """In YAML it is octal, and no octal number has an 8."""
    (tmp_path / "r.yaml").write_text("max_length: 0128\n")
    result = preftune("dpo", "--config", tmp_path / "r.yaml", "--model", "m", "--data", "d.jsonl")
    assert result.code == 2
    assert "a value cannot be read as YAML reads it" in result.message
