"""4-bit layers on a CPU whose instructions make bitsandbytes rewrite them: what was loaded is what is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bitsandbytes.functional import _convert_weight_packed_for_cpu, dequantize_4bit
from bitsandbytes.nn import Linear4bit

from preftune.models.four_bit import keep_as_loaded
from preftune.models.precision import apply_precision, decide_precision


@pytest.fixture
def layer() -> Any:
    """A quantised layer of a width that bitsandbytes' other layout can hold."""
    torch.manual_seed(0)
    made = Linear4bit(128, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    made.weight.data = torch.randn(64, 128)
    return made.to("cpu")


def rewrite(layer: Any) -> None:
    """What bitsandbytes does at a forward in evaluation mode where the processor has AVX512-BF16."""
    layer.weight.data, layer.weight.quant_state = _convert_weight_packed_for_cpu(
        layer.weight.data, layer.weight.quant_state
    )


def dense(layer: Any) -> torch.Tensor:
    return dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def test_evaluation_leaves_the_weights_as_they_are(layer):
    layer.support_avx512bf16_for_cpu = True
    before, bits = dense(layer), layer.weight.data.clone()
    assert keep_as_loaded(torch.nn.Sequential(layer)) == 0
    with torch.no_grad():
        layer.eval()(torch.randn(3, 128))
    assert torch.equal(layer.weight.data, bits)
    assert torch.equal(dense(layer), before)


def test_training_and_evaluation_compute_the_same_and_gradients_flow(layer):
    keep_as_loaded(layer)
    x = torch.randn(5, 128)
    with torch.no_grad():
        evaluated = layer.eval()(x)
    x.requires_grad_()
    trained = layer.train()(x)
    assert torch.equal(trained, evaluated)
    trained.sum().backward()
    torch.testing.assert_close(x.grad, dense(layer).sum(0).expand(5, -1), rtol=1e-4, atol=1e-4)


def test_a_rewritten_layer_is_written_back_and_it_is_reported(layer):
    before = dense(layer)
    rewrite(layer)
    said = apply_precision(torch.nn.Sequential(layer), decide_precision(bf16=False))
    assert [line for line in said if "for inference" in line]
    torch.testing.assert_close(dense(layer).float(), before, rtol=2**-7, atol=0)  # bfloat16 has eight bits of mantissa
    x = torch.randn(5, 128, requires_grad=True)
    layer.train()(x).sum().backward()
    torch.testing.assert_close(x.grad, dense(layer).float().sum(0).expand(5, -1), rtol=1e-4, atol=1e-4)
