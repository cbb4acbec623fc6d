"""Names of flags and of a recipe's keys: told before anything heavy is imported, with their history."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from preftune.cli.flags.field_names import (
    FRESH_HISTORY,
    HISTORY,
    _enum_values,
    check_choices,
    check_names,
    names_of,
    spoken_as_flags,
)
from preftune.cli.flags.plain_parser import PlainParser
from preftune.cli.flags.recipe import read_recipe
from preftune.cli.main import COMMANDS
from preftune.cli.train import dpo, grpo, online, ppo, reward, sft
from preftune.cli.train.train_command import Method, parser_of
from preftune.errors import ConfigError, RequestError

METHODS: list[Method] = [module.METHOD for module in (dpo, sft, reward, ppo, online)]


def names(method: Method) -> frozenset[str]:
    found = names_of(method.data_arguments, method.model_arguments, method.config)
    assert found is not None
    return found


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_names_read_from_the_source_are_those_of_the_parser(method: Method) -> None:
    real = {name.replace("-", "_") for name in parser_of(method).names()}
    assert real <= names(method)
    assert {name for name in names(method) - real if not name.startswith("no_")} <= {"help_all"}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_help_all_has_every_flag_breaks_no_word_and_imports_nothing_heavy(method: Method) -> None:
    code = f"import sys; from preftune.cli.main import main; main([{method.name!r}, '--help-all'])\n"
    code += "print('HEAVY', [name for name in ('torch', 'transformers', 'peft', 'datasets') if name in sys.modules])"
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    shown, _, heavy = done.stdout.partition("HEAVY")
    assert heavy.strip() == "[]"
    real = {name.replace("-", "_") for name in parser_of(method).names()}
    assert real <= {name.replace("-", "_") for name in re.findall(r"--([\w-]+)", shown)}
    for action in parser_of(method)._actions:
        if action.dest in ("beta", "learning_rate", "num_train_epochs", "lora_r", "optim_args", "output_dir"):
            assert " ".join(str(action.help).replace("%%", "%").split()) in " ".join(shown.split()), action.dest
    assert all(len(line) <= 80 for line in shown.splitlines() if " " in line.strip())


def test_history_names_what_is_gone_and_leads_to_what_is_there() -> None:
    known = names(dpo.METHOD)
    assert not set(HISTORY) & known
    for old, words in HISTORY.items():
        if found := re.fullmatch(r"it is (?:now )?called (\S+)", words):
            assert found[1] in known, old


RECIPE = """model: nowhere
data: pairs.jsonl
torch_dtype: bfloat16
evaluation_strategy: no
learning_rat: 1e-5
beta: 0.1
group_by_length: true
"""


def test_all_unknown_keys_at_once_and_nothing_heavy_imported(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE, encoding="utf-8")
    code = (
        "import sys; from preftune.cli.main import main\n"
        f"assert main(['dpo', '--config', {str(tmp_path / 'r.yaml')!r}]) == 2\n"
        "assert main(['sft', '--learning_rat', '1']) == 2\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = done.stderr.splitlines()
    assert "r.yaml has 4 unknown keys. line 3: there is no field 'torch_dtype': it is now called dtype." in told[0]
    assert "line 4: there is no field 'evaluation_strategy': it is now called eval_strategy." in told[0]
    assert "line 5: there is no field 'learning_rat'. Did you mean 'learning_rate'?" in told[0]
    assert "line 7: there is no field 'group_by_length': sequences are packed" in told[0]
    assert told[1] == "preftune: There is no flag --learning_rat. Did you mean --learning_rate?"


def test_a_recipe_of_axolotl_says_which_model_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("base_model: m\ndatasets:\n  - path: d.jsonl\n", encoding="utf-8")
    with pytest.raises(
        RequestError, match=r"There is no model to align .base_model 'm' is only the base of an adapter.. Name it"
    ):
        dpo.read_request(["--config", str(path)], read_recipe(str(path)))


@pytest.mark.parametrize("flag", ["--use_mps_device", "--use-mps-device", "--no_cuda=true", "--max-seq-length"])
def test_flags_of_other_times_and_tools_are_answered(flag: str) -> None:
    with pytest.raises(RequestError, match=f"There is no flag {flag.partition('=')[0]}: "):
        check_names(names(dpo.METHOD), [flag], None, prog="preftune dpo")


@pytest.mark.parametrize("method", [grpo.METHOD, ppo.METHOD, online.METHOD], ids=lambda method: method.name)
def test_names_of_trls_scripts_lead_to_those_of_fresh_answers(method: Method) -> None:
    """`--reward_funcs` was answered with "Did you mean --reward_ensemble?"."""
    known = names(method)
    for old, words in FRESH_HISTORY.items():
        if found := re.fullmatch(r"it is called (\S+)", words):
            assert found[1] in known, old
    with pytest.raises(RequestError, match=r"no flag --reward_funcs: rewards are named with reward_model: .*rule:FILE"):
        check_names(known, ["--reward_funcs", "f"], None, prog="preftune grpo")
    with pytest.raises(RequestError, match="use_vllm runs vLLM within the training"):
        check_names(known, ["--vllm_mode", "server"], None, prog="preftune grpo")
    assert "reward_model" not in names(dpo.METHOD)


def values(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "r.yaml"
    path.write_text(f"model: m\ndata: d.jsonl\noutput_dir: {tmp_path}\n{text}", encoding="utf-8")
    return dpo.read_request(["--config", str(path)], read_recipe(str(path))).config


def test_numbers_in_mappings_at_any_depth(tmp_path: Path) -> None:
    text = """lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs:
  min_lr: 1e-6
  words: "1e-6"
  inner: {a: 5e-7, b: [1E3, 2, .5, -3., +4], c: None, d: ~, e: null, f: off, g: 1:30, h: 2024-01-01, i: yes}
"""
    assert values(tmp_path, text).lr_scheduler_kwargs == {
        "min_lr": 1e-6,
        "words": "1e-6",
        "inner": {
            "a": 5e-7,
            "b": [1000.0, 2, 0.5, -3.0, 4],
            "c": None,
            "d": None,
            "e": None,
            "f": False,
            "g": "1:30",
            "h": "2024-01-01",
            "i": True,
        },
    }


@pytest.mark.parametrize("nothing", ["None", "null", "~", "none", ""])
def test_nothing_where_it_means_something(tmp_path: Path, nothing: str) -> None:
    config = values(tmp_path, f"max_length: {nothing}\nmax_prompt_length: {nothing}\neval_strategy: {nothing}\n")
    assert (config.max_length, config.max_prompt_length, str(config.eval_strategy.value)) == (None, None, "no")


@pytest.mark.parametrize("off", ["no", "off", "false", "None", "~", "none"])
def test_what_is_off_by_any_word(tmp_path: Path, off: str) -> None:
    config = values(tmp_path, f"report_to: {off}\nguard: {off}\nsave_strategy: {off}\neval_strategy: {off}\n")
    assert config.report_to == []
    assert config.guard == "off"
    assert config.save_strategy.value == config.eval_strategy.value == "no"


@pytest.mark.parametrize(("word", "value"), [("on", True), ("off", False), ("yes", True), ("no", False)])
def test_switches(tmp_path: Path, word: str, value: bool) -> None:
    config = values(tmp_path, f"gradient_checkpointing: {word}\nbf16: {'off' if value else word}\n")
    assert config.gradient_checkpointing is value
    assert config.bf16 is False


def test_a_recipe_nested_too_deeply(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("a: " + "[" * 5000 + "]" * 5000, encoding="utf-8")
    with pytest.raises(RequestError, match="is nested too deeply"):
        read_recipe(str(path))


def test_messages_speak_flags() -> None:
    known = names(dpo.METHOD)

    def spoken(text: str) -> str:
        return str(spoken_as_flags(ConfigError(text), known))

    assert spoken("max_length=8 leaves no room; set max_prompt_length=4.") == (
        "--max_length 8 leaves no room; set --max_prompt_length 4."
    )
    assert spoken("max_length is 1; it must be 2.") == "--max_length is 1; it must be 2."
    assert spoken("--columns prompt= (columns={'prompt': None})") == "--columns prompt= (columns={'prompt': None})"
    assert spoken("load_pairs(data, as_chat=True) and 'beta=2'") == "load_pairs(data, as_chat=True) and 'beta=2'"
    assert isinstance(spoken_as_flags(ConfigError("beta=0"), known), ConfigError)


def parsers() -> list[tuple[str, argparse.ArgumentParser]]:
    found = []
    for name, command in COMMANDS.items():
        module = importlib.import_module(command.module)
        made = getattr(module, "_parser", None)
        if made is not None:
            found.append((name, made()))
    return found


def test_dashes_and_underscores_in_every_command() -> None:
    seen = 0
    for name, parser in parsers():
        for action in parser._actions:
            for option in action.option_strings:
                if option.startswith("--"):
                    plain = option.removeprefix("--")
                    both = {f"--{plain.replace('-', '_')}", f"--{plain.replace('_', '-')}"}
                    assert both <= set(action.option_strings), (name, option)
                    seen += 1
    assert seen > 200


@pytest.mark.parametrize("value", ["-1e1", "-10", "-.5", "-2.5E-3"])
def test_a_negative_number_is_a_value_and_no_flag(value: str) -> None:
    """argparse takes -1e1 for a flag, and says that --score_threshold expects one argument."""
    assert parser_of(ppo.METHOD).parse(["--score_threshold", value], None).score_threshold == float(value)
    small = PlainParser(prog="x")
    small.add_argument("--score", type=float)
    assert small.read(["--score", value]).score == float(value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--optim adamw_torh", "Argument --optim: 'adamw_torh' is not one of its values. Did you mean 'adamw_torch'?"),
        ("--lr-scheduler-type=Cosin", "--lr_scheduler_type: 'Cosin' is not one of its values. Did you mean 'cosine'?"),
        ("--eval_strategy step", "--eval_strategy: 'step' is not one of its values. Did you mean 'steps'?"),
        ("--save_strategy epohc", "--save_strategy: 'epohc' is not one of its values. Did you mean 'epoch'?"),
        ("--truncation x", "--truncation: 'x' is not one of its values. Its values are truncate, drop, error."),
    ],
)
def test_a_misspelt_value_gets_the_near_one_without_torch(words, says) -> None:
    program = (
        "import sys; from preftune.cli.main import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'transformers'} & set(sys.modules); sys.exit(code)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, "dpo", "--model", "x", "--data", "y", *words.split()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2, found.stderr
    assert says in " ".join(found.stderr.split())


def test_a_misspelt_value_of_a_recipe_names_its_line(tmp_path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("beta: 0.1\noptim: adamw_torh\neval_strategy: no\nlr_scheduler_type: cosine\n")
    with pytest.raises(RequestError, match=r"line 2: Argument --optim: 'adamw_torh' is not one of its values"):
        check_choices(dpo.METHOD.fields() or (), ["--save_strategy", "epoch"], read_recipe(str(recipe)))


def test_the_values_read_from_the_source_are_those_of_transformers() -> None:
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    kinds = {field.name: field.kind for field in dpo.METHOD.fields() or ()}
    assert _enum_values(kinds["lr_scheduler_type"]) == tuple(one.value for one in SchedulerType)
    assert _enum_values(kinds["optim"]) == tuple(one.value for one in OptimizerNames)


def test_a_value_that_contains_itself_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("beta: 0.1\na: &a [*a]\n", encoding="utf-8")
    with pytest.raises(RequestError, match="line 2: the value contains itself"):
        read_recipe(str(path))
    path.write_text("a: &a [1]\nb: [*a, *a]\n", encoding="utf-8")
    assert len(read_recipe(str(path)).entries) == 2
