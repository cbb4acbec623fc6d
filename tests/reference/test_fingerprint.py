"""A model is what it is: weights, adapters, quantisation and the config entries that change a score. Not its name."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from peft import (
    FourierFTConfig,
    HRAConfig,
    LoraConfig,
    PeftModel,
    TrainableTokensConfig,
    VBLoRAConfig,
    get_peft_model,
)
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from logps.groups import random_groups
from models_zoo import random_model
from preftune.reference import Numerics, fingerprint
from preftune.reference.fingerprint import FINGERPRINT_VERSION


def with_lora(model, *, seed: int = 0, trained: bool = False, **options):
    torch.manual_seed(seed)
    model = get_peft_model(model, LoraConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj"], **options}))
    if trained:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.1)
    return model


def of(model, *, adapters: bool = True) -> str:
    return fingerprint(model, adapters=adapters)


def test_the_same_weights_have_the_same_fingerprint_wherever_they_came_from(tmp_path):
    model = random_model()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config._name_or_path != model.config._name_or_path
    assert of(loaded) == of(model) == of(copy.deepcopy(model))


def test_another_rule_is_another_version():
    """If this digest changes, raise FINGERPRINT_VERSION: fingerprints of checkpoints cannot be compared with the new
    ones.
    """
    model = nn.Sequential(OrderedDict(embed=nn.Embedding(3, 2), act_fn=nn.SiLU(), norm=nn.LayerNorm(2, eps=1e-6)))
    model.config = LlamaConfig()
    model.config.to_dict = lambda: {"hidden_size": 2, "torch_dtype": "float32", "rope": {"theta": 1e4}}
    model.register_buffer("scale", torch.tensor([0.5]), persistent=False)
    with torch.no_grad():
        model.embed.weight.copy_(torch.arange(6.0).view(3, 2))
    assert (FINGERPRINT_VERSION, of(model)) == (8, "b76b517ade96bed5d717bee91c8e36b2")


@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["lm_head"]}, {"use_dora": True}, {"bias": "all"}])
def test_adapters_that_are_off_do_not_count(options):
    plain = of(random_model(attention_bias=True))
    adapted = with_lora(random_model(attention_bias=True), trained=True, **options)
    assert of(adapted, adapters=False) == plain
    assert of(adapted, adapters=True) != plain


def test_every_single_weight_counts():
    model = random_model(attention_bias=True)
    seen = {of(model)}
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-3
        seen.add(of(model))
    assert len(seen) == 1 + len(list(model.parameters()))


def test_the_same_numbers_in_other_places_are_another_model():
    model = random_model()
    before = of(model)
    first, second = model.model.layers
    first.self_attn.q_proj.weight, second.self_attn.q_proj.weight = (
        second.self_attn.q_proj.weight,
        first.self_attn.q_proj.weight,
    )
    assert of(model) != before


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama", lambda c: c.rope_parameters.update(rope_theta=5e5)),
        ("llama", lambda c: c.rope_parameters.update(rope_type="linear", factor=2.0)),
        ("llama", lambda c: setattr(c, "rms_norm_eps", 1e-3)),
        ("mistral", lambda c: setattr(c, "sliding_window", 9)),
        ("gemma2", lambda c: setattr(c, "final_logit_softcapping", 9.0)),
        ("gemma2", lambda c: setattr(c, "attn_logit_softcapping", 9.0)),
        ("granite", lambda c: setattr(c, "logits_scaling", 9.0)),
    ],
)
def test_what_the_config_does_to_a_score_counts(name, change):
    model = random_model(name)
    before = of(model)
    change(model.config)
    assert of(model) != before


@pytest.mark.parametrize(
    ("key", "value"),
    [("_name_or_path", "a/b"), ("use_cache", False), ("dtype", torch.bfloat16), ("eos_token_id", [1, 2])],
)
def test_names_and_what_only_generation_reads_do_not_count(key, value):
    model = random_model()
    before = of(model)
    setattr(model.config, key, value)
    assert of(model) == before


def test_hooks_that_can_change_what_a_module_gives_count():
    model = random_model()
    plain = of(model)

    def louder(module, inputs, output):
        return output * 2

    handle = model.model.layers[0].mlp.register_forward_hook(louder)
    hooked = of(model)
    assert hooked == of(model) != plain
    handle.remove()
    assert of(model) == plain
    model.model.norm.register_forward_pre_hook(lambda module, inputs: inputs[0] * 2)
    assert of(model) not in (plain, hooked)
    other = random_model()
    other.model.layers[0].mlp.register_forward_hook(louder)
    assert of(other) == hooked, "the same function on the same weights"


def test_hooks_of_the_libraries_that_load_and_train_do_not_count():
    model = random_model()
    plain = of(model)
    model.enable_input_require_grads()
    assert model.get_input_embeddings()._forward_hooks
    assert of(model) == plain


def test_making_a_model_ready_for_scoring_changes_nothing():
    from preftune.logps import choose_engine

    for name in ("llama", "qwen3_moe"):
        model = random_model(name)
        before = of(model)
        choose_engine(model)
        model.train().activation_checkpointing_enable()
        assert of(model) == before


def test_a_tied_head_is_one_weight_and_counts():
    model = random_model(tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    before = of(model)
    assert of(copy.deepcopy(model)) == before
    with torch.no_grad():
        model.lm_head.weight[5, 5] += 1e-3
    assert of(model) != before


def test_which_layers_share_their_weights_counts():
    """One set of tensors, two models: their scores differed, and one was given those of the other."""

    def made(*layers: int):
        model = random_model()
        model.model.layers = nn.ModuleList([model.model.layers[place] for place in layers])
        return model

    assert of(made(0, 1, 0)) != of(made(0, 1, 1))
    assert of(with_lora(made(0, 1, 0)), adapters=False) == of(made(0, 1, 0))


def test_what_an_adapter_is_counts():
    seen = {
        "fresh": of(with_lora(random_model())),
        "another seed": of(with_lora(random_model(), seed=1)),
        "trained": of(with_lora(random_model(), trained=True)),
        "scaled": of(with_lora(random_model(), trained=True, lora_alpha=99)),
        "rank stabilised": of(with_lora(random_model(), trained=True, use_rslora=True)),
    }
    assert len(set(seen.values())) == len(seen)


def test_which_adapter_is_active_counts():
    model = with_lora(random_model(), trained=True)
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    before = of(model)
    model.set_adapter("other")
    assert of(model) != before


def set_scale(model):
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", 0.25)


def set_one_scale(model):
    model.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"] = 0.5


LORA_B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"
STATES = {
    "adapter off": lambda m: m.base_model.disable_adapter_layers(),
    "adapter off in one layer": lambda m: m.base_model.model.model.layers[0].self_attn.q_proj.enable_adapters(False),
    "scaled": set_scale,
    "scaled in one layer": set_one_scale,
    "merged": lambda m: m.merge_adapter(),
    "a weight of the adapter": lambda m: m.get_parameter(LORA_B).data.add_(1),
    "rope": lambda m: m.get_base_model().model.rotary_emb.inv_freq.mul_(0.25),
    "rope's scale": lambda m: setattr(m.get_base_model().model.rotary_emb, "attention_scaling", 1.1),
    "scale of attention": lambda m: setattr(m.get_base_model().model.layers[1].self_attn, "scaling", 0.3),
    "activation": lambda m: setattr(m.get_base_model().model.layers[1].mlp, "act_fn", torch.nn.GELU()),
    "attention to later tokens": lambda m: setattr(m.get_base_model().model.layers[1].self_attn, "is_causal", False),
    "epsilon": lambda m: setattr(m.get_base_model().model.norm, "variance_epsilon", 1e-3),
}


@pytest.mark.parametrize(("name", "value"), [("top_k", 1), ("norm_topk_prob", True)])
def test_how_many_experts_are_asked_counts_where_the_module_says_it(name, value):
    model = random_model("qwen3_moe").eval()
    before = of(model)
    assert of(copy.deepcopy(model)) == before
    for module in model.modules():
        if name in vars(module):
            setattr(module, name, value)
    assert of(model) != before


def test_the_form_of_an_activation_and_a_layer_without_rope_count():
    model = random_model("smollm3").eval()
    seen = {of(model)}
    for form in ("none", "tanh"):
        model.model.layers[0].mlp.act_fn = torch.nn.GELU(approximate=form)
        seen.add(of(model))
    model.model.layers[0].self_attn.use_rope = 1 - model.model.layers[0].self_attn.use_rope
    assert len(seen | {of(model)}) == 4


def test_where_a_sparse_adapters_numbers_stand_counts():
    from peft import ShiraConfig

    model = get_peft_model(random_model(), ShiraConfig(r=2, target_modules=["q_proj"], random_seed=1))
    before = of(model)
    assert of(copy.deepcopy(model)) == before
    indices = model.base_model.model.model.layers[0].self_attn.q_proj.shira_indices
    indices["default"] = (indices["default"] + 1) % 8
    assert of(model) != before


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        (FourierFTConfig(n_frequency=4, target_modules=["q_proj"]), "fourierft_scaling", 7.0),
        (VBLoRAConfig(r=2, num_vectors=8, vector_length=8, topk=2, target_modules=["q_proj"]), "topk", 3),
        (HRAConfig(r=2, target_modules=["q_proj"]), "hra_apply_GS", True),
        (TrainableTokensConfig(token_indices=[3]), "token_indices", [4]),
    ],
)
def test_numbers_of_other_adapters_count_where_the_layer_says_them(config, name, value):
    model = get_peft_model(random_model(), config)
    before = of(model)
    assert of(copy.deepcopy(model)) == before
    next(getattr(module, name) for module in model.modules() if hasattr(module, name))["default"] = value
    assert of(model) != before


@pytest.mark.parametrize("change", STATES)
def test_the_state_of_the_module_counts_not_only_its_weights(change):
    """Each changes scores, and each is a miss."""
    from preftune.logps import naive_logps, pack

    model = with_lora(random_model(), trained=True).eval()
    batch = pack(random_groups())
    with torch.no_grad():
        scores = naive_logps(model, batch)
    before = of(model)
    assert of(copy.deepcopy(model)) == before
    STATES[change](model)
    assert of(model) != before
    with torch.no_grad():
        changed = not torch.equal(naive_logps(model, batch), scores)
    assert changed or change == "merged"  # which rounds only


@pytest.mark.parametrize("name", ["llama", "phi3_longrope"])
def test_what_was_scored_before_does_not_count(name):
    from preftune.logps import naive_logps, pack

    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    model = random_model(name, **({"max_position_embeddings": 4, "rope_parameters": rope} if name == "llama" else {}))
    before = of(model)
    with torch.no_grad():
        naive_logps(model, pack(random_groups(((40, (30, 5)),))))
    assert of(model) == before


def test_an_adapters_paths_and_training_options_do_not_count(tmp_path):
    model = with_lora(random_model(), trained=True)
    model.save_pretrained(tmp_path / "adapter")
    random_model().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True)
    assert of(loaded) == of(model)
    for key, value in {"base_model_name_or_path": "x", "lora_dropout": 0.1, "inference_mode": True}.items():
        setattr(loaded.peft_config["default"], key, value)
    assert of(loaded) == of(model)


def test_quantisation_counts(tmp_path):
    from preftune import load_model

    random_model(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path)
    plain, four_bit = load_model(tmp_path), load_model(tmp_path, load_in_4bit=True)
    other = load_model(tmp_path, load_in_4bit=True, bnb_4bit_quant_type="fp4")
    assert len({of(plain), of(four_bit), of(other)}) == 3
    assert of(load_model(tmp_path, load_in_4bit=True)) == of(four_bit)
    before = of(four_bit)
    state = four_bit.model.layers[0].self_attn.q_proj.weight.quant_state
    state.absmax[0] *= 1.5  # the codes are the same, the weights are not
    assert of(four_bit) != before


def test_another_dtype_of_the_same_weights_is_another_model():
    assert of(random_model(dtype=torch.bfloat16)) != of(random_model())


def numerics(model=None, **options) -> str:
    defaults = {"engine": "packed", "device": torch.device("cpu"), "autocast": None}
    return Numerics.of(model or random_model(), **{**defaults, **options}).digest()


def test_how_scores_are_computed_is_part_of_their_address():
    seen = [
        numerics(),
        numerics(engine="naive"),
        numerics(engine="separate"),
        numerics(autocast=torch.bfloat16),
        numerics(autocast=torch.float16),
        numerics(random_model(dtype=torch.bfloat16)),
        numerics(device=torch.device("meta")),
    ]
    assert len(set(seen)) == len(seen)
    assert numerics() == numerics()
