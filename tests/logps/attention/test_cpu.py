"""Attention by blocks equals attention by segments, in values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from preftune.logps.attention import cpu as attention_cpu
from preftune.logps.attention.packed import _by_segment, _fused
from preftune.logps.layout import GroupLayout, plan_layout
from preftune.types import TokenizedGroup

LENGTHS = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(1, 9), min_size=1, max_size=4)), min_size=1, max_size=3
)


def layout_of(lengths: list[tuple[int, list[int]]]) -> GroupLayout:
    groups = [TokenizedGroup([1] * p, tuple([1] * c for c in completions), ()) for p, completions in lengths]
    return plan_layout(groups)


def tensors(layout: GroupLayout, *, heads: int, key_heads: int, memory: str) -> list[Tensor]:
    """Query, key and value as models lay them out in memory: by token, or by head."""
    rows = layout.segments[-1].stop
    generator = torch.Generator().manual_seed(rows)

    def make(count: int) -> Tensor:
        if memory == "by token":
            return torch.randn(1, rows, count, 4, dtype=torch.float64, generator=generator).transpose(1, 2)
        return torch.randn(1, count, rows, 4, dtype=torch.float64, generator=generator)

    return [make(count).requires_grad_() for count in (heads, key_heads, key_heads)]


@given(
    LENGTHS,
    st.sampled_from([(4, 4), (4, 2), (3, 1), (1, 1)]),
    st.sampled_from(["by token", "by head"]),
    st.integers(1, 7),
)
@settings(max_examples=60, deadline=None)
def test_blocks_give_what_segments_give(
    lengths: list[tuple[int, list[int]]], heads: tuple[int, int], memory: str, block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_cpu, "_BLOCK", block)
        layout = layout_of(lengths)
        inputs = tensors(layout, heads=heads[0], key_heads=heads[1], memory=memory)
        before = [t.detach().clone() for t in inputs]
        expected = _by_segment(_fused, *inputs, layout, 0.3, None)
        out = attention_cpu.blocked(*inputs, layout, 0.3)
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
        grad = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
        ours, theirs = (torch.autograd.grad(result, inputs, grad) for result in (out, expected))
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
        for tensor, was in zip(inputs, before, strict=True):
            assert torch.equal(tensor, was)


def test_it_is_used_where_it_applies_and_nowhere_else() -> None:
    layout = layout_of([(5, [3, 4])])
    query, _, value = tensors(layout, heads=4, key_heads=2, memory="by token")
    serves = attention_cpu.serves
    assert serves(query, value, layout, None)
    assert serves(query.float(), value.float(), layout, layout.max_k)
    assert not serves(query, value, layout, layout.max_k - 1)
    assert not serves(query.bfloat16(), value.bfloat16(), layout, None)
    assert not serves(query, value[..., :2], layout, None)


def test_a_packed_forward_goes_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from preftune.logps import make_engine, pack
    from tiny import tiny_model

    calls = []
    blocked = attention_cpu.blocked

    def counted(*args: object) -> Tensor:
        calls.append(1)
        return blocked(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(attention_cpu, "blocked", counted)
    model = tiny_model()
    make_engine(model, "packed")(model, pack([TokenizedGroup([5, 6, 7], ([8, 9], [10]), ())]))
    assert len(calls) == model.config.num_hidden_layers


def test_bfloat16_autocast_over_float32_weights_goes_elsewhere_and_trains() -> None:
    """Rotary leaves queries and keys in float32 there, values are bfloat16."""
    from preftune.logps import make_engine, pack
    from tiny import tiny_model

    model = tiny_model().train()
    engine, batch = make_engine(model, "packed"), pack([TokenizedGroup([5, 6, 7], ([8, 9], [10]), ())])
    with torch.autocast("cpu", torch.bfloat16):
        scores = engine(model, batch).token_logps_T
    scores.sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())
