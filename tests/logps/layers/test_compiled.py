"""Compiled norms and MLPs: the same numbers, a fixed number of graphs whatever the layouts, never a silent retreat."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from models_zoo import random_model
from preftune.logps import make_engine, pack
from preftune.logps.layers.compiled import compile_layers
from tests.logps.groups import random_groups

# the compiler asks every tensor for its .grad, and hides the warning from everyone but pytest
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

LAYOUTS = [
    ((4, (3, 5)), (9, (6, 2))),
    ((20, (6, 7)),),
    ((5, (2, 2)), (6, (3, 1)), (3, (4, 4))),
    ((7, (1, 9, 4)),),
    ((40, (30, 20)), (3, (2, 2))),
    ((2, (2, 2)),),
    ((11, (12, 13)),),
    ((8, (8, 8)), (8, (8, 8))),
    ((30, (3, 3)),),
    ((17, (5, 6)), (4, (4, 1))),
]


@pytest.fixture(autouse=True)
def compiler():
    torch.compiler.reset()
    counters.clear()
    limit = torch._dynamo.config.recompile_limit
    yield
    torch._dynamo.config.recompile_limit = limit
    torch.compiler.reset()


def lora_model(name: str, *, checkpointing: bool = False, trained: bool = True):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(random_model(name, num_hidden_layers=4), LoraConfig(r=4, target_modules="all-linear"))
    if trained:
        torch.manual_seed(1)
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.data.normal_(0, 0.05)
    if checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return model.train()


def everything(model, engine, batch):
    """Reference, policy without gradients, policy, and the gradients."""
    model.zero_grad()
    with torch.no_grad():
        with model.disable_adapter():
            reference = engine(model, batch).token_logps_T
        silent = engine(model, batch).token_logps_T
    policy = engine(model, batch).token_logps_T
    policy.sum().backward()
    gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    return [reference, silent, policy.detach()], gradients


@pytest.mark.sample(1)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("name", "pieces"), [("smollm3", 12), ("qwen3", 20), ("gemma2", 20)])
def test_the_same_numbers_and_no_new_graph_for_ten_layouts(name, pieces, checkpointing):
    plain, model = (lora_model(name, checkpointing=checkpointing) for _ in range(2))
    plain_engine, engine = make_engine(plain, "packed"), make_engine(model, "packed")
    counter = CompileCounterWithBackend("aot_eager")
    # two norms (or four) and an MLP for each of four layers, norms of queries and keys; the final one
    assert compile_layers(model, backend=counter) == pieces + 1
    graphs = []
    for index, sizes in enumerate(LAYOUTS):
        batch = pack(random_groups(sizes, seed=index))
        (scores, gradients), (expected, expected_gradients) = (
            everything(m, e, batch) for m, e in ((model, engine), (plain, plain_engine))
        )
        for actual, wanted in zip(scores, expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)
        assert torch.equal(scores[1], scores[2])
        assert gradients.keys() == expected_gradients.keys()
        for key, wanted in expected_gradients.items():
            torch.testing.assert_close(gradients[key], wanted, rtol=1e-4, atol=1e-4, msg=key)
        graphs.append(counter.frame_count)
    # an MLP: adapters off, on, on with gradients; a norm: with and without gradients, of a row or of heads
    assert graphs[0] <= 9
    assert graphs[1:] == graphs[:1] * 9
    assert not counters["graph_break"]


def test_a_fresh_adapter_and_its_reference_give_the_same_bits():
    """Both go through compiled layers: margins at the start are exactly zero."""
    model = lora_model("smollm3", trained=False)
    engine = make_engine(model, "packed")
    compile_layers(model, backend="aot_eager")
    (reference, silent, policy), _ = everything(model, engine, pack(random_groups(LAYOUTS[0])))
    assert torch.equal(reference, policy)
    assert torch.equal(silent, policy)


def test_experts_quantised_layers_and_pytorch_s_own_norms_are_left_alone():
    assert compile_layers(random_model("gpt2"), backend="eager") == 2  # its MLPs; its norms are one kernel already
    experts = random_model("qwen3_moe")
    compile_layers(experts, backend="eager")
    compiled = {name for name, m in experts.named_modules() if m._compiled_call_impl is not None}
    assert compiled
    assert all("norm" in name for name in compiled)
    quantised = random_model("llama")
    mlp = quantised.model.layers[0].mlp
    mlp.up_proj.weight = torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    compile_layers(quantised, backend="eager")
    assert mlp._compiled_call_impl is None
    assert quantised.model.layers[1].mlp._compiled_call_impl is not None


def test_compiling_twice_is_compiling_once():
    model = random_model("llama")
    assert compile_layers(model, backend="eager") == 2 * 3 + 1
    assert compile_layers(model, backend="eager") == 0


def test_the_recompile_limit_is_an_error_with_its_name():
    from torch._dynamo.exc import FailOnRecompileLimitHit

    model = lora_model("llama")
    engine = make_engine(model, "packed")
    compile_layers(model, backend="eager")
    torch._dynamo.config.recompile_limit = 1
    with pytest.raises(FailOnRecompileLimitHit):
        everything(model, engine, pack(random_groups(LAYOUTS[0])))
