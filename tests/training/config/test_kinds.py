"""A value of the wrong type is reported with its field, by every configuration, before anything is computed with it."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from transformers.trainer_pt_utils import AcceleratorConfig

import preftune
from preftune.errors import ConfigError

CONFIGS = sorted(name for name in preftune.__all__ if name.endswith("Config"))


def made(kind: str, folder: Path, **options: Any) -> Any:
    return getattr(preftune, kind)(**{"output_dir": str(folder), "use_cpu": True, "report_to": "none", **options})


def fields_of(kind: str, *, many: bool = False) -> list[str]:
    """The fields of numbers, or of lists of numbers, that a configuration honours."""
    config, found = getattr(preftune, kind), []
    hints = get_type_hints(config)
    for one in fields(config):
        hint = hints[one.name]
        parts = {*get_args(hint)} if get_origin(hint) in (Union, UnionType) else {hint}
        wanted = {list[float]} if many else {int, float}
        if one.init and one.name not in config.refused and parts - {type(None)} <= wanted:
            found.append(one.name)
    return found


@pytest.mark.parametrize("kind", CONFIGS)
def test_no_number_is_text_or_an_object(kind: str, tmp_path: Path) -> None:
    names = fields_of(kind)
    assert {"seed", "num_train_epochs", "learning_rate"} <= set(names)
    for name in names:
        for value, says in (("4", r"'4' is text, but must be a number\. Leave"), ({"a": 1}, ".* is a dict, but must")):
            with pytest.raises(ConfigError, match=rf"^{name}={says}"):
                made(kind, tmp_path, **{name: value})


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if fields_of(kind, many=True)])
def test_no_weight_is_text(kind: str, tmp_path: Path) -> None:
    for name in fields_of(kind, many=True):
        with pytest.raises(ConfigError, match=rf"^{name}\[0\]='x' is text, but must be a number"):
            made(kind, tmp_path, **{name: ["x"]})
        with pytest.raises(ConfigError, match=rf"^{name}='x' is text, but must be a number"):
            made(kind, tmp_path, **{name: "x"})


@pytest.mark.parametrize("kind", CONFIGS)
def test_none_is_not_a_number(kind: str, tmp_path: Path) -> None:
    for name in ("seed", "max_steps", "num_train_epochs", "per_device_train_batch_size", "max_grad_norm"):
        with pytest.raises(ConfigError, match=rf"^{name}=None: give a value, or leave it out for the default \(-?\d"):
            made(kind, tmp_path, **{name: None})


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("DPOConfig", {"beta": [0.1, 0.2]}, r"beta=\[0.1, 0.2\] is a list, but must be one number"),
        ("DPOConfig", {"beta": 10**400}, r"beta=1000+\.\.\. \(401 characters\) is beyond all limits"),
        ("DPOConfig", {"max_steps": 10**5000}, "max_steps=an int .* is beyond all limits"),
        ("DPOConfig", {"loss_type": 5}, "loss_type=5 is an int, but must be text"),
        ("DPOConfig", {"loss_type": ["sigmoid", 5]}, r"loss_type\[1\]=5 is an int, but must be text"),
        ("DPOConfig", {"loss_type": None}, r"loss_type=None: give a value, or leave it out .*sigmoid"),
        ("DPOConfig", {"report_to": 5}, "report_to=5 is an int, but must be text"),
        ("DPOConfig", {"report_to": ["none", 5]}, r"report_to\[1\]=5 is an int"),
        ("DPOConfig", {"output_dir": 5}, "output_dir=5 is an int, but must be text"),
        ("DPOConfig", {"metric_for_best_model": 5}, "metric_for_best_model=5 is an int, but must be text"),
        ("DPOConfig", {"optim_args": {"momentum": 0.9}}, "optim_args=.* is a dict, but must be text"),
        ("DPOConfig", {"disable_dropout": None}, r"disable_dropout=None: give a value, .* \(True\)"),
        ("DPOConfig", {"gradient_accumulation_steps": None}, "gradient_accumulation_steps=None"),
        ("DPOConfig", {"gradient_checkpointing_kwargs": 5}, "gradient_checkpointing_kwargs=5 is not a mapping"),
        ("DPOConfig", {"lr_scheduler_kwargs": "5"}, "lr_scheduler_kwargs='5' is not a mapping"),
        ("DPOConfig", {"lr_scheduler_kwargs": "num_cycles=1"}, "lr_scheduler_kwargs='num_cycles=1' cannot be read"),
        ("DPOConfig", {"model_init_kwargs": ["dtype"]}, r"model_init_kwargs=\['dtype'\] is not a mapping"),
        ("DPOConfig", {"accelerator_config": "nofile"}, "accelerator_config='nofile' cannot be read .*JSON file"),
        ("DPOConfig", {"accelerator_config": AcceleratorConfig}, "accelerator_config=.* is not a mapping"),
        ("DPOConfig", {"accelerator_config": {"even_batch": True}}, "no setting 'even_batch'. Did you mean 'even_bat"),
        ("DPOConfig", {"eval_strategy": None}, "eval_strategy=None: give a value, or leave it out .*no"),
        ("DPOConfig", {"data_seed": -1}, "data_seed=-1 must be between 0 and"),
        ("DPOConfig", {"adam_epsilon": float("inf")}, "adam_epsilon=inf must be a finite number"),
        ("KTOConfig", {"beta": None}, "beta=None: give a value"),
        ("KTOConfig", {"desirable_weight": None}, "desirable_weight=None: give a value"),
        ("GRPOConfig", {"num_generations": None}, r"num_generations=None: .* \(8\)"),
        ("GRPOConfig", {"scale_rewards": ["group", "batch"]}, "scale_rewards=.* is unknown"),
        ("GRPOConfig", {"max_completion_length": 0}, "max_completion_length=0 must be at least 1"),
        ("GRPOConfig", {"beta": float("inf")}, "beta=inf must be a finite number"),
        ("GRPOConfig", {"missing_eos_penalty": float("inf")}, "missing_eos_penalty=inf must be a finite number"),
        ("GRPOConfig", {"reward_model": 5}, "reward_model=5 is an int, but must be text"),
        ("OnlineDPOConfig", {"reward_weights": [1.0, float("nan")]}, r"reward_weights=\[1.0, nan\] must be finite"),
        *(("GRPOConfig", {"reward_weights": [1.0, bad]}, "must be finite numbers") for bad in (float("inf"), np.nan)),
        ("RLOOConfig", {"reward_weights": [0.0, 0]}, "and not all 0"),
    ],
)  # fmt: skip
def test_the_field_is_named(kind: str, options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        made(kind, tmp_path, **options)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("DPOConfig", {"beta": [0.2]}, 0.2),
        ("DPOConfig", {"learning_rate": np.array([1e-6])}, 1e-6),
        ("DPOConfig", {"max_steps": np.int64(5)}, 5),
        ("DPOConfig", {"max_grad_norm": torch.tensor(0.5)}, 0.5),
        ("DPOConfig", {"loss_weights": 5}, [5]),
        ("DPOConfig", {"loss_type": ("sigmoid",)}, ["sigmoid"]),
        ("DPOConfig", {"warmup_steps": None}, 0),
        ("DPOConfig", {"run_name": Path("runs/a")}, "runs/a"),
        ("DPOConfig", {"lr_scheduler_kwargs": ' {"num_cycles": 2}'}, {"num_cycles": 2}),
        ("DPOConfig", {"guard_prompts": 9}, 9),
        ("GRPOConfig", {"reward_weights": np.array([1.0, 0.5])}, [1.0, 0.5]),
        ("GRPOConfig", {"reward_weights": 2}, [2]),
        ("GRPOConfig", {"scale_rewards": False}, "none"),
        ("GRPOConfig", {"reward_model": Path("rm")}, ["rm"]),
        ("XPOConfig", {"alpha": 0.5}, [0.5]),
        ("NashMDConfig", {"beta": [0.3]}, 0.3),
    ],
)  # fmt: skip
def test_other_ways_to_write_a_value_are_settled(kind: str, options: Any, expected: Any, tmp_path: Path) -> None:
    config = made(kind, tmp_path, **options)
    (name,) = options
    assert getattr(config, name) == expected
    assert type(getattr(config, name)) is type(expected)


def test_trls_name_of_the_length_of_answers(tmp_path: Path) -> None:
    config = made("GRPOConfig", tmp_path, max_completion_length=7)
    assert (config.max_new_tokens, config.max_completion_length) == (7, None)


def test_a_file_with_accelerators_settings(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"even_batches": False}))
    for given in (str(tmp_path / "a.json"), '{"even_batches": false}', AcceleratorConfig(even_batches=False)):
        assert made("DPOConfig", tmp_path, accelerator_config=given).accelerator_config.even_batches is False
