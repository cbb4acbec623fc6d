"""`supports` tries the model as it will be trained: with its adapter, its quantisation, and beyond every limit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from models_zoo import VOCABULARY, random_model
from preftune.logps import choose_engine, make_engine, naive_logps, pack, support, supports
from preftune.logps.engine import LayersNotReachedError
from preftune.logps.scores import choose_score_engine, naive_scores
from preftune.logps.states import token_states, trunk_of
from preftune.logps.support import neighbours_in_quantisation

from .groups import random_groups

SIZES = ((4, (3, 9)), (12, (7, 2)), (6, (8, 1, 5)), (20, (9, 12)))
DYNAMIC = {"max_position_embeddings": 16, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}


def adapted(config, name: str = "llama", **options):
    from peft import get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(random_model(name, **options), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.ndim >= 2:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def virtual_tokens(kind: str):
    import peft

    options = {"encoder_hidden_size": 16} if kind == "PromptEncoderConfig" else {}
    return getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=4, **options)


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PromptEncoderConfig"])
def test_with_virtual_tokens_in_front_every_token_is_scored_where_it_stands(kind):
    model = adapted(virtual_tokens(kind))
    engine, support = choose_engine(model)
    assert "virtual tokens" in support.reason
    batch = pack(random_groups(SIZES))
    base, expected = model.get_base_model(), []
    with torch.no_grad():
        virtual = model.get_prompt(batch_size=1)
        for group in batch.groups:
            for completion in group.completions:
                ids = torch.tensor([[*group.prompt_ids, *completion]])
                embedded = torch.cat([virtual, base.get_input_embeddings()(ids)], 1)
                logits = base(inputs_embeds=embedded).logits[0, 4:]  # of the real tokens
                predicting = logits[len(group.prompt_ids) - 1 : -1].log_softmax(-1)
                expected.append(predicting.gather(-1, torch.tensor(completion)[:, None])[:, 0])
        expected = torch.cat(expected)
        torch.testing.assert_close(naive_logps(model, batch), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(engine(model, batch).token_logps_T, expected, rtol=1e-5, atol=1e-5)


def test_a_classifier_with_virtual_tokens_is_scored_through_the_whole_model():
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.for_model(
        "llama", vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_labels=1, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    plain = AutoModelForSequenceClassification.from_config(config).eval()
    batch = pack(random_groups(SIZES))
    without = naive_scores(plain, batch)
    model = get_peft_model(plain, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4)).eval()
    engine, support = choose_score_engine(model)
    assert engine.name == "naive" == support.fallback
    with torch.no_grad():
        scores = engine(model, batch)
    assert (scores - without).abs().max() > 1e-4  # the virtual tokens are part of it


def test_alora_is_not_packed_because_it_begins_once_in_every_row():
    from peft import LoraConfig

    groups = [replace(group, prompt_ids=[*group.prompt_ids, 7, 8]) for group in random_groups(SIZES)]
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", alora_invocation_tokens=[7, 8])
    model = adapted(config)
    engine, support = choose_engine(model)
    assert "aLoRA" in support.reason
    with torch.no_grad():
        torch.testing.assert_close(
            engine(model, pack(groups)).token_logps_T, naive_logps(model, pack(groups)), rtol=1e-5, atol=1e-5
        )


def test_replicated_layers_are_not_packed_and_a_forward_that_misses_layers_is_refused():
    from peft import LoraConfig

    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], layer_replication=[[0, 2], [1, 2]])
    model, batch = adapted(config), pack(random_groups(SIZES))
    engine, support = choose_engine(model)
    assert engine.name == "separate"
    assert "layer_replication" in support.reason
    with torch.no_grad():
        torch.testing.assert_close(engine(model, batch).token_logps_T, naive_logps(model, batch), rtol=1e-5, atol=1e-5)
        with pytest.raises(LayersNotReachedError, match="in a model with 3 layers"):
            make_engine(model, "packed")(model, batch)
        with pytest.raises(LayersNotReachedError):
            token_states(trunk_of(model), batch, packed=True)


def test_dynamic_rope_is_not_packed_and_a_score_does_not_depend_on_what_came_before():
    model, batch = random_model("llama", **DYNAMIC), pack(random_groups(SIZES))
    engine, support = choose_engine(model)
    assert engine.name == "separate"
    assert "packing changes its scores" in support.reason
    expected = []
    with torch.no_grad():
        for group in batch.groups:
            for completion in group.completions:
                ids = torch.tensor([[*group.prompt_ids, *completion]])
                fresh = random_model("llama", **DYNAMIC)  # no longer sequence went before
                of_all = fresh(input_ids=ids).logits[0, len(group.prompt_ids) - 1 : -1].log_softmax(-1)
                expected.append(of_all.gather(-1, torch.tensor(completion)[:, None])[:, 0])
        expected = torch.cat(expected)
        for _ in range(2):
            torch.testing.assert_close(engine(model, batch).token_logps_T, expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(naive_logps(model, batch), expected, rtol=1e-5, atol=1e-5)


def test_an_adapter_is_tried_on_the_twin_even_if_it_names_layers_that_the_twin_lacks():
    from peft import LoraConfig

    for target in (
        {"target_modules": r".*layers\.3\..*q_proj"},
        {"target_modules": ["q_proj"], "layers_to_transform": [3]},
    ):
        model = adapted(LoraConfig(task_type="CAUSAL_LM", **target), "llama", num_hidden_layers=4)
        assert supports(model).exact


class Int8(nn.Linear):
    """A layer that quantises its input by the largest number of all rows."""

    def forward(self, x):
        scale = x.abs().max() / 127
        return nn.functional.linear((x / scale).round() * scale, self.weight)


class Int8ByRow(nn.Linear):
    def forward(self, x):
        scale = x.abs().amax(-1, keepdim=True) / 127
        return nn.functional.linear((x / scale).round() * scale, self.weight)


@pytest.mark.parametrize(("kind", "exact"), [(Int8, False), (Int8ByRow, True)])
def test_a_quantised_layer_that_sees_its_neighbours_is_not_packed(kind, exact):
    model = random_model("llama")
    linear = model.model.layers[0].mlp.down_proj
    layer = kind(linear.in_features, linear.out_features, bias=False)
    layer.weight = linear.weight
    model.model.layers[0].mlp.down_proj = layer
    model.is_quantized = True
    assert (neighbours_in_quantisation(model) == "") == exact
    assert supports(model).exact == exact


def test_llm_int8_is_not_packed_and_trains_with_the_kernel_that_it_generates_with(tmp_path):
    pytest.importorskip("bitsandbytes")
    from preftune.models import load_model
    from preftune.models.precision import apply_precision, decide_precision
    from tiny import save_tiny

    folder = save_tiny(tmp_path / "model", hidden_size=64, intermediate_size=128)
    model = load_model(folder, load_in_8bit=True)
    assert "Linear8bitLt" in supports(model).reason
    apply_precision(model, decide_precision())
    batch = pack(random_groups(SIZES))
    engine = make_engine(model, "separate")
    scores = []
    for training in (True, False):
        model.train(training)
        with torch.no_grad():
            scores.append(engine(model, batch).token_logps_T)
    assert torch.equal(*scores)


def test_a_kind_of_model_is_tried_once_and_whatever_the_trial_reads_makes_another_kind(monkeypatch):
    from peft import LoraConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    tried: list[str] = []
    twin_of = support.random_twin
    monkeypatch.setattr(support, "_EXACT", set())
    monkeypatch.setattr(support, "random_twin", lambda model, **options: tried.append("") or twin_of(model, **options))

    def trials(model) -> int:
        tried.clear()
        assert supports(model).exact
        return len(tried)

    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    changed = {
        "plain": lambda: random_model("llama"),
        "config": lambda: random_model("llama", rope_parameters={"rope_type": "linear", "factor": 2.0}),
        "adapter": lambda: adapted(lora, "llama"),
        "rank": lambda: adapted(LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=2), "llama"),
        "layers": lambda: adapted(LoraConfig(task_type="CAUSAL_LM", target_modules=["v_proj"]), "llama"),
    }
    for name, make in changed.items():
        assert (name, trials(make()), trials(make())) == (name, 1, 0)
    forward = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: forward(self, x))
    assert trials(random_model("llama")) == 1
