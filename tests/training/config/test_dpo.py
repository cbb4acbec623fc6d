"""DPOConfig: every field of TRL's is honoured or refused by name; impossible values are told at once."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import trl
from transformers import TrainingArguments

from preftune import BCOConfig, DPOConfig, KTOConfig, OnlineDPOConfig
from preftune.errors import ConfigError
from preftune.training.config.refused import REFUSED

OWN_OF_TRL = sorted(
    {f.name for f in dataclasses.fields(trl.DPOConfig)} - {f.name for f in dataclasses.fields(TrainingArguments)}
)

# What each honoured field of TRL's does here, and where that is tested.
HONOURED = {
    "beta": "losses; tests/losses",
    "loss_type": "losses; test_trl_parity",
    "label_smoothing": "losses; test_trl_parity",
    "max_length": "data; test_trl_parity",
    "dataset_num_proc": "data; tests/data",
    "disable_dropout": "assemble; test_traps",
    "model_init_kwargs": "assemble; below",
    "trust_remote_code": "assemble, models",
    "precompute_ref_log_probs": "reference_setup; test_reference_table",
    "precompute_ref_batch_size": "reference_setup; below",
    "loss_weights": "losses; test_trl_parity",
    "ld_alpha": "losses; test_trl_parity",
    "f_divergence_type": "losses; test_trl_parity",
    "f_alpha_divergence_coef": "losses; test_trl_parity",
    "use_weighting": "training/trainers/test_wpo; test_trl_parity",
    "discopop_tau": "losses; test_trl_parity",
    "sync_ref_model": "reference/moving; test_moving_reference",
    "ref_model_mixup_alpha": "reference/moving; test_moving_reference",
    "ref_model_sync_steps": "reference/moving; test_moving_reference",
    "padding_free": "always so: nothing is ever padded",
}

# A value for every refused field that would change something if it were honoured.
MEANINGFUL: dict[str, Any] = {
    "router_aux_loss_coef": 0.01,
    "truncation_mode": "keep_end",
    "max_completion_length": 128,
    "pad_to_multiple_of": 8,
    "pad_token": "<pad>",
    "activation_offloading": True,
    "reference_free": True,
    "generate_during_eval": True,
    "label_smoothing_factor": 0.1,
    "use_liger_kernel": True,
    "liger_kernel_config": {"rope": True},
    "auto_find_batch_size": True,
    "logging_nan_inf_filter": True,
    "bf16_full_eval": True,
    "fp16_full_eval": True,
    "batch_eval_metrics": True,
    "average_tokens_across_devices": False,
    "include_for_metrics": ["loss"],
    "label_names": ["labels"],
    "length_column_name": "lengths",
    "train_sampling_strategy": "group_by_length",
    "eval_do_concat_batches": False,
    "eval_use_gather_object": True,
    "parallelism_config": object(),
    "ddp_broadcast_buffers": True,
    "ddp_static_graph": True,
    "neftune_noise_alpha": 5.0,
    "fsdp": "full_shard",
    "deepspeed": "zero2.json",
}


def config(**options: Any) -> DPOConfig:
    return DPOConfig(output_dir="unused", **options)


@pytest.mark.parametrize("name", OWN_OF_TRL)
def test_every_field_of_trl_is_honoured_or_refused(name):
    assert name in {f.name for f in dataclasses.fields(DPOConfig)}
    assert (name in HONOURED) != (name in REFUSED)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_refused_field_says_so_with_a_reason(name):
    with pytest.raises(ConfigError, match=name):
        config(**{name: MEANINGFUL[name]})


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_harmless_value_of_a_refused_field_passes(name):
    for value in REFUSED[name].harmless:
        if (name, value) != ("pad_to_multiple_of", 1):
            config(**{name: value})


def test_trl_s_defaults_are_accepted_whole():
    """A YAML that spells out every default of TRL's must load."""
    values = {
        f.name: f.default if f.default is not dataclasses.MISSING else f.default_factory()  # type: ignore[misc]
        for f in dataclasses.fields(trl.DPOConfig)
        if f.name in OWN_OF_TRL
    }
    config(**values)


def test_the_defaults_that_differ_are_the_documented_ones():
    """TRL's defaults, but for the learning rate, bf16 and activation checkpointing, which depend on model and hardware
    here, and for the moments at which checkpoints are written."""
    ours, theirs = config(), trl.DPOConfig(output_dir="unused", bf16=False, use_cpu=True, activation_checkpointing=True)
    differing = {
        f.name
        for f in dataclasses.fields(trl.DPOConfig)
        if getattr(ours, f.name) != getattr(theirs, f.name) and f.name not in ("run_name", "logging_dir")
    }
    assert differing <= {
        "learning_rate",
        "save_strategy",
        "save_total_limit",
        "gradient_checkpointing",
        "activation_checkpointing",
        "logging_nan_inf_filter",
        "bf16",
        "use_cpu",
        "accelerator_config",
        "_n_gpu",
        "local_rank",
        "pad_to_multiple_of",  # TRL resolves "auto" to None
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beta": -1}, "beta=-1 must be"),
        ({"beta": 0}, "beta=0 must be"),
        ({"beta": math.nan}, "beta=nan must be"),
        ({"beta": math.inf}, "beta=inf must be"),
        ({"learning_rate": -1e-6}, "learning_rate=-1e-06"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
        ({"loss_type": "sigmod"}, "Did you mean 'sigmoid'"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "1 weight for 2 losses"),
        ({"loss_type": []}, "loss_type is empty"),
        ({"loss_type": "exo_pair"}, "EXO's authors use about 0.001"),
        ({"discopop_tau": 0.1}, "no effect with loss_type=sigmoid. Leave it at 0.05, or use discopop"),
        ({"simpo_gamma": 1.0}, "or use alpha_dpo or simpo or alphapo"),
        ({"f_alpha_divergence_coef": 0.3}, "belongs to f_divergence_type='alpha_divergence'"),
        ({"loss_type": ["sigmoid", "aot"]}, "aot replaces the margins, which sigmoid would use too"),
        ({"loss_type": "aot", "ld_alpha": 0.5}, "ld_alpha=0.5 is not honoured with aot"),
        ({"ld_policy_only": True}, "ld_policy_only belongs to ld_alpha"),
        ({"sft_mean": "completions"}, "no effect without a likelihood term"),
        ({"rpo_alpha": math.nan}, "rpo_alpha=nan must be a finite number"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, math.nan]}, "loss_weights=[1.0, nan]"),
        ({"loss_weights": [0.0]}, "not all 0"),
        ({"ld_alpha": 1.5}, "ld_alpha=1.5 must be between 0 and 1"),
        ({"loss_type": "hinge", "label_smoothing": 0.1}, "no effect with loss_type=hinge"),
        ({"loss_type": "robust", "label_smoothing": 0.5}, "label_smoothing=0.5"),
        ({"label_smoothing": -0.1}, "label_smoothing=-0.1"),
        ({"max_length": 0}, "max_length=0"),
        ({"max_tokens_per_batch": 0}, "max_tokens_per_batch=0"),
        ({"optim": "adalomo"}, "during the backward pass"),
        ({"optim": "galore_adamw_layerwise"}, "during the backward pass"),
        ({"max_length": 100, "max_prompt_length": 100}, "no room for a completion"),
        ({"truncation": "cut"}, "truncation='cut'"),
        ({"engine": "fast"}, "engine='fast'"),
        ({"early_stopping_patience": 3}, "needs evaluations"),
        ({"eval_strategy": "sometimes"}, "sometimes"),
        ({"fp16": True}, "fp16=True needs a CUDA device"),
    ],
)
def test_an_impossible_value_is_reported_with_its_name(options, words):
    with pytest.raises(ConfigError) as caught:
        config(**options)
    assert words in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_program_for_a_gpu_runs_on_a_cpu():
    made = config(bf16=True, gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False})
    assert made.use_cpu
    assert made.activation_checkpointing
    assert made.activation_checkpointing_kwargs == {"use_reentrant": False}


def test_early_stopping_is_a_field():
    made = config(early_stopping_patience=2, eval_strategy="steps", eval_steps=5)
    assert (made.metric_for_best_model, made.greater_is_better) == ("loss", False)


def test_batches_that_the_first_process_would_send_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="dispatch_batches"):
        DPOConfig(output_dir=str(tmp_path), accelerator_config={"dispatch_batches": True})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size=0 must be at least 1"),
        ({"per_device_eval_batch_size": -1}, "per_device_eval_batch_size=-1 must be at least 1"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0 must be at least 1"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must be a finite number"),
        ({"max_grad_norm": math.nan}, "max_grad_norm=nan must be a finite number"),
        ({"seed": 2**32}, "seed=4294967296 must be between 0 and 4294967295"),
        ({"bf16": "auto"}, "bf16='auto' is text, but must be True or False, without quotes, or left out"),
        ({"disable_dropout": "false"}, "disable_dropout='false' is text, but must be True or False"),
        ({"push_to_hub": 2}, "push_to_hub=2 must be True or False"),
        ({"max_steps": 1.5}, "max_steps=1.5 must be a whole number"),
        ({"num_train_epochs": 0}, "num_train_epochs=0.* must be a finite number above 0"),
        ({"num_train_epochs": -3}, "num_train_epochs=-3.* must be a finite number above 0"),
        ({"max_steps": 0}, "max_steps=0 is not a number of steps"),
        ({"max_steps": -5}, "max_steps=-5 is not a number of steps"),
        ({"report_to": "foo"}, "report_to='foo' is not a tracker. Give "),
        ({"report_to": ["tensorbord"]}, "Did you mean 'tensorboard'"),
        ({"max_steps": math.inf}, "max_steps=inf must be a whole number"),
        ({"max_length": True}, "max_length=True is true or false, but must be a number"),
        ({"beta": "0.1"}, "beta='0.1' is text, but must be a number"),
        ({"learning_rate": "1e-5"}, "learning_rate='1e-5' is text, but must be a number"),
        ({"save_steps": "10"}, "save_steps='10' is text, but must be a number"),
        ({"save_steps": 0}, "save_steps=0: give a number of steps, .* save_strategy='no' writes none"),
        ({"save_steps": -2, "save_strategy": "steps"}, "save_steps=-2: give a number of steps"),
        ({"eval_steps": 0, "eval_strategy": "steps"}, "eval_steps=0: give a number of steps"),
        ({"save_total_limit": 0}, "save_total_limit=0 must be at least 1. To keep all checkpoints"),
        ({"save_total_limit": -1}, "save_total_limit=-1 must be at least 1"),
        ({"output_dir": " "}, "output_dir=' ' is not a folder"),
        ({"output_dir": ""}, "output_dir='' is not a folder"),
    ],
)
def test_numbers_that_no_run_can_have_are_refused_before_a_model_is_loaded(options, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        DPOConfig(**{"output_dir": str(tmp_path), "use_cpu": True, **options})


@pytest.mark.parametrize(
    ("field", "value", "near"),
    [
        ("lr_scheduler_type", "cosin", "cosine"),
        ("lr_scheduler_type", "Cosine", "cosine"),
        ("optim", "adamw_torh", "adamw_torch"),
        ("eval_strategy", "step", "steps"),
        ("logging_strategy", "epohc", "epoch"),
        ("save_strategy", "epcoh", "epoch"),
        ("hub_strategy", "every_safe", "every_save"),
        ("log_level", "warn", "warning"),
    ],
)
def test_a_misspelt_word_gets_the_near_one(tmp_path, field, value, near):
    with pytest.raises(ConfigError, match=f"{field}='{value}' is unknown. Did you mean '{near}'"):
        DPOConfig(output_dir=str(tmp_path), use_cpu=True, **{field: value})


@pytest.mark.parametrize(
    ("config", "options", "says"),
    [
        (DPOConfig, {"engine": None}, "engine=None: give a value, or leave it out for the default .auto"),
        (DPOConfig, {"engine": "fast"}, "engine=.fast. is unknown. Its values are auto, packed, separate, naive"),
        (DPOConfig, {"f_divergence_type": "reverse"}, "f_divergence_type='reverse' is unknown. Did you mean"),
        (DPOConfig, {"save_dtype": "float61"}, "save_dtype='float61' is unknown. Did you mean 'float16'"),
        (KTOConfig, {"loss_type": ["kto", "bco"]}, "loss_type=.* is unknown. Its values are kto"),
        (BCOConfig, {"loss_type": "kto"}, "loss_type='kto' is unknown. Its values are bco"),
        (OnlineDPOConfig, {"which_pairs": "some"}, "which_pairs='some' is unknown. Its values are best-worst"),
        (OnlineDPOConfig, {"reward_ensemble": "median"}, "reward_ensemble='median' is unknown. "),
    ],
)
def test_every_field_with_a_list_of_values_is_checked_in_one_way(config, options, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        config(output_dir=str(tmp_path), use_cpu=True, **options)


def test_a_list_of_one_word_is_that_word(tmp_path):
    assert KTOConfig(output_dir=str(tmp_path), use_cpu=True, loss_type=["bco"]).loss == "bco"
