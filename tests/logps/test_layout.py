"""Packed rows: positions, predicting states, segments; and the traps of gathering from them."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.attention.varlen as varlen
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface, AttentionMaskInterface

from models_zoo import random_model
from preftune.logps import make_engine, pack
from preftune.logps.attention import cuda as attention_cuda
from preftune.logps.attention import packed as attention
from preftune.logps.attention.packed import _by_segment, _fused
from preftune.logps.batch import GroupLogps
from preftune.types import Preference, TokenizedGroup

from .groups import random_groups


def test_a_row_by_hand():
    group = TokenizedGroup([10, 11], ([20, 21, 22], [30]), (Preference(0, 1, 2.0, 0.5),), id="a")
    other = TokenizedGroup([12], ([23], [31, 32]), (Preference(1, 0),), id="b")
    batch = pack([group, other])
    assert batch.input_ids.tolist() == [[10, 11, 20, 21, 22, 30, 12, 23, 31, 32]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 0, 1, 1, 2]]
    assert batch.predict_T.tolist() == [1, 2, 3, 1, 6, 6, 8]
    assert batch.target_T.tolist() == [20, 21, 22, 30, 23, 31, 32]
    assert batch.owner_T.tolist() == [0, 0, 0, 1, 2, 3, 3]
    assert (batch.chosen_N.tolist(), batch.rejected_N.tolist()) == ([0, 3], [1, 2])
    assert (batch.weight_N.tolist(), batch.margin_N.tolist()) == ([2.0, 1.0], [0.5, 0.0])
    assert [tuple(s) for s in batch.layout.segments] == [(0, 5, 0, 0), (5, 6, 0, 2), (6, 8, 6, 6), (8, 10, 6, 7)]
    assert batch.layout.cu_seq_q.tolist() == [0, 5, 6, 8, 10]
    assert batch.layout.cu_seq_k.tolist() == [0, 5, 8, 10, 13]
    assert batch.layout.key_index.tolist() == [0, 1, 2, 3, 4, 0, 1, 5, 6, 7, 6, 8, 9]
    assert (batch.completions, batch.pairs, group.tokens) == (4, 2, 6)


@pytest.mark.parametrize("group", [TokenizedGroup([], ([1],), ()), TokenizedGroup([1], ([1], []), ())])
def test_empty_parts_are_refused(group):
    with pytest.raises(ValueError, match="empty"):
        pack([group])


def test_the_shared_last_prompt_state_adds_the_gradients_of_all_completions():
    """The first token of every completion is predicted by one and the same state: the gather repeats its index."""
    model = random_model("llama", dtype=torch.float64)
    engine = make_engine(model, "packed")
    three = random_groups(((3, (1, 1, 1)),))
    engine(model, pack(three)).token_logps_T.sum().backward()
    together = model.model.norm.weight.grad.clone()
    model.zero_grad()
    for completion in three[0].completions:
        engine(model, pack([TokenizedGroup(three[0].prompt_ids, (completion,), ())])).token_logps_T.sum().backward()
    torch.testing.assert_close(together, model.model.norm.weight.grad, rtol=1e-6, atol=1e-9)


def test_sums_and_lengths_of_completions():
    logps = GroupLogps(torch.tensor([-1.0, -2.0, -4.0]), torch.tensor([0, 0, 1]), 3)
    assert logps.sum_K.tolist() == [-3.0, -4.0, 0.0]
    assert logps.length_K.tolist() == [2.0, 1.0, 0.0]


def by_documentation(q, k, v, cu_q, cu_k, max_q, max_k, scale, window_size):
    """What torch documents of varlen_attn, in plain Python: bottom-right causal, `left` keys beside the own one."""
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert (int(cu_q[0]), int(cu_k[0])) == (0, 0)
    assert (int(cu_q[-1]), int(cu_k[-1])) == (len(q), len(k))
    assert (max_q, max_k) == (int(cu_q.diff().max()), int(cu_k.diff().max()))
    outputs = []
    for i in range(len(cu_q) - 1):
        queries, keys, values = q[cu_q[i] : cu_q[i + 1]], k[cu_k[i] : cu_k[i + 1]], v[cu_k[i] : cu_k[i + 1]]
        scores = torch.einsum("qhd,khd->hqk", queries, keys) * scale
        at = torch.arange(len(keys) - len(queries), len(keys))[:, None]
        distance = at - torch.arange(len(keys))[None]
        left, right = window_size
        allowed = (distance >= -right) if right >= 0 else torch.ones_like(distance, dtype=torch.bool)
        if left >= 0:
            allowed &= distance <= left
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~allowed, -torch.inf).softmax(-1), values))
    return torch.cat(outputs)


def varlen_2_11(q, k, v, cu_q, cu_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)):
    assert q.shape[1] == k.shape[1] == v.shape[1]  # "(T_k, H, D)"
    return by_documentation(q, k, v, cu_q, cu_k, max_q, max_k, scale, window_size)


def varlen_2_13(
    q,
    k,
    v,
    cu_q,
    cu_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
    seqused_k=None,
    block_table=None,
    num_splits=None,
):
    assert enable_gqa or q.shape[1] == k.shape[1]
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    return by_documentation(q, k, v, cu_q, cu_k, max_q, max_k, scale, window_size)


SIGNATURES = [varlen_2_11, varlen_2_13]


def test_the_emulation_has_the_signature_of_the_torch_in_use():
    theirs = inspect.signature(varlen.varlen_attn).parameters
    assert any(list(inspect.signature(f).parameters)[7:] == list(theirs)[7:] for f in SIGNATURES)


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(
        st.tuples(st.integers(1, 12), st.lists(st.integers(1, 9), min_size=1, max_size=5)), min_size=1, max_size=4
    ),
    window=st.none() | st.integers(1, 25),
    key_heads=st.sampled_from([4, 2, 1]),
    signature=st.sampled_from(SIGNATURES),
)
def test_the_variable_length_path_says_the_same_as_segments(sizes, window, key_heads, signature):
    """The CUDA kernel cannot run here; what is handed to it can be checked against its documented meaning, and what
    comes back through the gathered prompts against the gradients of attention by segment.
    """
    layout = pack(random_groups(sizes)).layout
    generator = torch.Generator().manual_seed(0)
    rows = int(layout.cu_seq_q[-1])
    q = torch.randn(1, 4, rows, 8, generator=generator, dtype=torch.float64).requires_grad_()
    k, v = (torch.randn(1, key_heads, rows, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    k.requires_grad_()
    v.requires_grad_()
    upstream = torch.randn(1, rows, 4, 8, generator=generator, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen, "varlen_attn", signature)
        ours = attention_cuda.varlen(q, k, v, layout, 0.3, window)
    segments = _by_segment(_fused, q, k, v, layout, 0.3, window)
    torch.testing.assert_close(ours, segments, rtol=1e-10, atol=1e-10)
    for actual, expected in zip(
        torch.autograd.grad(ours, (q, k, v), upstream), torch.autograd.grad(segments, (q, k, v), upstream), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["llama", "smollm3", "mistral", "gemma3"])
@pytest.mark.parametrize("signature", SIGNATURES)
def test_whole_models_by_the_variable_length_path_agree_with_the_oracle(monkeypatch, name, signature):
    """Values, and the gradient of every weight: as on a GPU, but for the kernel."""
    calls = []

    def counted(*arguments, **options):
        calls.append(options["window_size"])
        return signature(*arguments, **options)

    counted.__signature__ = inspect.signature(signature)
    monkeypatch.setattr(varlen, "varlen_attn", counted)
    monkeypatch.setattr(attention.cuda, "serves", lambda query, value: True)
    groups = random_groups(((4, (3, 9)), (12, (7, 2)), (6, (8, 1, 5)), (1, (1, 2))))
    results = []
    for engine in ("naive", "packed"):
        model = random_model(name, dtype=torch.float64)
        model.set_attn_implementation("eager")
        scores = make_engine(model, engine)(model, pack(groups)).token_logps_T
        (scores * torch.linspace(-1, 2, len(scores), dtype=torch.float64)).sum().backward()
        results.append((scores.detach(), {key: p.grad for key, p in model.named_parameters()}))
    (expected, expected_grads), (scored, grads) = results
    assert len(calls) == model.config.num_hidden_layers
    assert ((4, 0) in calls) == (name in ("mistral", "gemma3"))  # a window of 5: the own key and 4 before it
    torch.testing.assert_close(
        scored, expected, rtol=1e-5, atol=2e-5
    )  # norms and rotary are float32 in a float64 model
    for key, expected_grad in expected_grads.items():
        scale = expected_grad.abs().max().clamp_min(1e-3)
        torch.testing.assert_close(grads[key] / scale, expected_grad / scale, rtol=1e-4, atol=1e-4, msg=key)


A100, RTX4090, H200, T4 = (8, 0), (8, 9), (9, 0), (7, 5)


@pytest.mark.parametrize(
    ("dtype", "head", "value", "capability", "takes"),
    [
        (torch.bfloat16, 64, 64, A100, True),
        (torch.float16, 128, 128, RTX4090, True),
        (torch.bfloat16, 256, 256, H200, True),
        (torch.bfloat16, 256, 256, RTX4090, False),  # no backward pass
        (torch.bfloat16, 512, 512, H200, False),
        (torch.bfloat16, 192, 128, H200, False),  # DeepSeek: keys and values of different sizes
        (torch.bfloat16, 20, 20, H200, False),
        (torch.float32, 64, 64, H200, False),
        (torch.float16, 64, 64, T4, False),
    ],
)
def test_what_flash_kernels_take(dtype, head, value, capability, takes):
    assert attention_cuda.flash_takes(dtype, head, value, capability) is takes


def test_nothing_is_handed_to_a_cuda_kernel_on_a_cpu():
    query = torch.zeros(1, 2, 3, 64, dtype=torch.bfloat16)
    assert not attention_cuda.serves(query, query)


def test_under_autocast_queries_and_keys_get_the_dtype_of_the_values():
    """With float32 weights the rotary embedding returns float32, which kernels unknown to autocast must not see."""
    model = random_model("llama")
    seen = []

    def look(module, query, key, value, mask, **kwargs):
        seen.append((query.dtype, key.dtype, value.dtype))
        seen.append(tuple(t.dtype for t in attention.in_autocast_dtype(query, key, value)))
        return query.transpose(1, 2), None

    AttentionInterface.register("look", look)
    AttentionMaskInterface.register("look", lambda *a, **k: None)
    model.set_attn_implementation("look")
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        model(torch.tensor([[5, 6, 7]]), use_cache=False)
    assert seen[0] == (torch.float32, torch.float32, torch.bfloat16)  # were this not so, nothing would be to do
    assert seen[1] == (torch.bfloat16,) * 3
    plain = torch.zeros(1, 1, 1, 8)
    assert all(a is plain for a in attention.in_autocast_dtype(plain, plain, plain))
