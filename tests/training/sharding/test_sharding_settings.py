"""What `fsdp`, `fsdp_config` and the environment of `accelerate launch` ask for, and what they are refused with."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from preftune import DPOConfig, KTOConfig, OnlineDPOConfig, PPOConfig
from preftune.errors import ConfigError
from preftune.training.config.sharding import Sharding, sharding_of
from preftune.training.setup.sharding import layers_of
from preftune.zero_stages import as_fsdp
from tiny import rows, tiny_model, tiny_tokenizer


def asked(fsdp: Any = None, config: Any = None, deepspeed: Any = None, **environment: str) -> Sharding | None:
    return sharding_of(fsdp, config, deepspeed, environment)[0]


@pytest.mark.parametrize("nothing", [None, "", False, [], "none"])
def test_nothing_is_sharded_unless_it_is_asked_for(nothing):
    assert asked(nothing) is None
    assert asked(nothing, {"reshard_after_forward": False}) is None, "a setting without --fsdp, as transformers has it"


@pytest.mark.parametrize(
    ("fsdp", "config", "expected"),
    [
        (True, None, Sharding()),
        ("true", None, Sharding()),
        ("full_shard auto_wrap", None, Sharding()),
        (["shard_grad_op", "offload"], None, Sharding(reshard_after_forward=False, cpu_offload=True)),
        ("hybrid_shard", {"replicas": 2}, Sharding(hybrid=True, replicas=2)),
        ("hybrid_shard", {"replicas": 1, "reshard_after_forward": None}, Sharding(hybrid=True, replicas=1)),
        ("hybrid_shard_zero2", None, Sharding(hybrid=True, reshard_after_forward=False)),
        ("full_shard", {"reshard_after_forward": False}, Sharding(reshard_after_forward=False)),
        (True, {"fsdp_transformer_layer_cls_to_wrap": "A,B"}, Sharding(layer_classes=("A", "B"))),
        (True, {"fsdp_transformer_layer_cls_to_wrap": ["A"]}, Sharding(layer_classes=("A",))),
        (True, {"fsdp_activation_checkpointing": "true"}, Sharding(activation_checkpointing=True)),
        (True, {"fsdp_state_dict_type": "SHARDED_STATE_DICT"}, Sharding(divided_checkpoints=True)),
        (True, {"state_dict_type": "FULL_STATE_DICT"}, Sharding()),
        (True, '{"cpu_ram_efficient_loading": true}', Sharding(weights_on_first_rank=True)),
        # alignment-handbook's and accelerate's own files, as accelerate passes them on
        (True, {"fsdp_sharding_strategy": "FULL_SHARD", "fsdp_use_orig_params": False, "xla": False}, Sharding()),
    ],
)
def test_words_and_settings(fsdp, config, expected):
    assert asked(fsdp, config) == expected


def test_a_file_of_settings(tmp_path):
    file = tmp_path / "fsdp.json"
    file.write_text(json.dumps({"fsdp_reshard_after_forward": False}))
    assert asked(True, str(file)) == Sharding(reshard_after_forward=False)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_SHARDING_STRATEGY": "1"}, Sharding()),
        ({"FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "false"}, Sharding(reshard_after_forward=False)),
        ({"FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, Sharding(divided_checkpoints=True)),
        ({"FSDP_VERSION": "1", "FSDP_SHARDING_STRATEGY": "2"}, Sharding(reshard_after_forward=False)),
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true", "FSDP_MIN_NUM_PARAMS": "100000000"},
         Sharding(cpu_offload=True)),
    ],
)  # fmt: skip
def test_what_accelerate_launch_passes_on(environment, expected):
    assert asked(ACCELERATE_USE_FSDP="true", **environment) == expected
    assert asked(**environment) is None


def test_the_program_has_priority_over_the_launcher():
    environment = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
    assert asked("shard_grad_op", **environment) == Sharding(reshard_after_forward=False)


@pytest.mark.parametrize(
    ("fsdp", "config", "message"),
    [
        ("full_shrad", None, "Did you mean 'full_shard'"),
        (True, {"reshard_after_forwrd": True}, "Did you mean 'reshard_after_forward'"),
        (True, {"auto_wrap_policy": "SIZE_BASED_WRAP"}, "TRANSFORMER_BASED_WRAP"),
        (True, {"xla": True}, "TPU"),
        (True, {"cpu_offload": "maybe"}, "true or false"),
        (True, {"replicas": "two"}, "not a number of copies"),
        (True, {"state_dict_type": "LOCAL_STATE_DICT"}, "FULL_STATE_DICT"),
        (True, {"activation_checkpointing_offload": True}, "computed again"),
        (True, "missing.json", "cannot be read"),
        (True, ["a"], "not a mapping"),
    ],
)
def test_what_is_not_honoured_is_refused(fsdp, config, message):
    with pytest.raises(ConfigError, match=message):
        asked(fsdp, config)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"zero_optimization": {"stage": 3}}, "full_shard"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, "shard_grad_op offload"),
        ({"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "none"}}}, "shard_grad_op"),
        ({"zero_optimization": {"stage": 0}}, ""),
        ("deepspeed_configs/zero3_bf16.json", "full_shard"),
        ("examples/deepspeed/ds_z3_offload_config.json", "full_shard offload"),
        ("ds_config.json", None),
        ({"train_batch_size": 1}, None),
    ],
)
def test_deepspeed_configs_in_the_words_of_fsdp(config, words):
    assert as_fsdp(config) == words
    with pytest.raises(ConfigError, match=words or "ZeRO-3 is --fsdp full_shard|divides nothing"):
        asked(deepspeed=config)


def test_a_deepspeed_launcher_is_answered():
    with pytest.raises(ConfigError, match="--fsdp 'full_shard offload' does the same"):
        asked(
            ACCELERATE_USE_DEEPSPEED="true",
            ACCELERATE_DEEPSPEED_ZERO_STAGE="3",
            ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE="cpu",
        )


def test_a_config_keeps_what_it_was_asked(tmp_path):
    import dataclasses

    config = DPOConfig(output_dir=str(tmp_path), fsdp="shard_grad_op", report_to="none")
    assert config.sharding == Sharding(reshard_after_forward=False)
    assert dataclasses.replace(config, beta=0.2).sharding == config.sharding
    assert KTOConfig(output_dir=str(tmp_path), report_to="none").sharding is None


def test_one_process_is_reported_how_to_start_several(tmp_path):
    from preftune import DPOTrainer

    config = DPOConfig(output_dir=str(tmp_path), fsdp="full_shard", report_to="none", use_cpu=True)
    with pytest.raises((ConfigError, ValueError), match="torchrun --nproc_per_node"):
        DPOTrainer(tiny_model(), args=config, train_dataset=rows(4), processing_class=tiny_tokenizer())


@pytest.mark.parametrize("config", [PPOConfig, OnlineDPOConfig])
def test_methods_that_sample_are_not_sharded(config, tmp_path):
    with pytest.raises(ConfigError, match="sample answers are not sharded yet"):
        config(output_dir=str(tmp_path), fsdp="full_shard", report_to="none")


def test_layers_are_found_and_may_be_named():
    model = tiny_model()
    assert layers_of(model) == list(model.model.layers)
    assert layers_of(model, ("LlamaMLP",)) == [layer.mlp for layer in model.model.layers]
    model._no_split_modules = None
    assert layers_of(model) == list(model.model.layers)
    with pytest.raises(ConfigError, match="LlamaDecoderLayer"):
        layers_of(model, ("NoSuchLayer",))


def test_whole_and_divided_are_the_same_without_a_mesh():
    from preftune.models.shards import divided_state, like, local, whole, whole_state

    tensor = torch.arange(4.0)
    assert whole(tensor) is tensor
    assert local(tensor) is tensor
    assert like(tensor, tensor) is tensor
    state = {"state": {0: {"exp_avg": tensor, "step": torch.tensor(3.0)}}, "param_groups": [{"params": [0]}]}
    back = divided_state(whole_state(state, keep=True), [torch.nn.Parameter(torch.zeros(4))])
    assert torch.equal(back["state"][0]["exp_avg"], tensor)
    assert whole_state(state, keep=False)["state"] == {}
