"""The kernels themselves: flash attention with different queries and keys, FlexAttention, the chunked head.

Error budget: each is compared with the formula in float64, and must be no further from it than the formula computed
plainly in the same low precision on the same GPU is, times a small factor for another order of summation.
"""

from __future__ import annotations

import pytest
import torch

from logps.groups import random_groups
from preftune.logps import LogitTransform, pack, token_logps
from preftune.logps.attention import cuda as attention_cuda
from preftune.logps.attention import flex as attention_flex
from preftune.logps.attention.flex import attend, difference_from_plain, plain

CUDA = torch.device("cuda", 0)
SIZES = ((90, (60, 200, 40)), (1, (1, 2)), (130, (20, 150)), (7, (3,)), (300, (5, 5)))
WINDOWS = [None, 1, 70, 4096]
BUDGET = 2.0


def inputs(rows, heads, sizes, dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads[0], rows, sizes[0]), (1, heads[1], rows, sizes[0]), (1, heads[1], rows, sizes[1]), (heads[0],)]
    return [torch.randn(shape, generator=generator).to(CUDA, dtype) for shape in shapes]


def value_and_gradients(compute, tensors, dtype):
    leaves = [t.to(dtype).detach().requires_grad_() for t in tensors]
    out = compute(*leaves)
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(out.shape, generator=generator).to(out.device, out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def assert_within_budget(ours, formula, tensors, dtype):
    exact = value_and_gradients(formula, tensors, torch.float64)
    rough = value_and_gradients(formula, tensors, dtype)
    actual = value_and_gradients(ours, tensors, dtype)
    largest = max(e.norm() for e in exact)
    for index, (a, r, e) in enumerate(zip(actual, rough, exact, strict=True)):
        # a query that sees one key has no gradient: its rounding is compared with the largest of the others
        size = e.norm() if e.any() else largest
        error, baseline = ((t.double() - e).norm() / size for t in (a, r))
        assert error <= BUDGET * baseline + torch.finfo(dtype).eps, (index, float(error), float(baseline))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("heads", "size"), [((4, 4), 64), ((16, 4), 128), ((9, 3), 64), ((2, 1), 256), ((2, 2), 40)])
def test_varlen(dtype, window, heads, size):
    layout = pack(random_groups(SIZES)).layout.to(CUDA)
    tensors = inputs(int(layout.cu_seq_q[-1]), heads, (size, size), dtype)[:3]
    if not attention_cuda.serves(tensors[0], tensors[2]):
        pytest.skip("no flash kernel for these heads on this card")
    scale = size**-0.5
    assert_within_budget(
        lambda q, k, v: attention_cuda.varlen(q, k, v, layout, scale, window),
        lambda q, k, v: plain(q, k, v, layout, scale, window),
        tensors,
        dtype,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(
    ("heads", "sizes", "softcap", "with_sinks"),
    [
        ((8, 4), (256, 256), 50.0, False),  # Gemma 2
        ((64, 8), (64, 64), None, True),  # gpt-oss
        ((4, 4), (192, 128), None, False),  # DeepSeek
        ((4, 2), (32, 32), 2.0, True),
    ],
)
def test_flex(dtype, window, heads, sizes, softcap, with_sinks):
    layout = pack(random_groups(SIZES)).layout.to(CUDA)
    tensors = inputs(int(layout.cu_seq_q[-1]), heads, sizes, dtype)[: 4 if with_sinks else 3]
    sinks = tensors[3] if with_sinks else None
    if not attention_flex.serves(*tensors[:3], softcap=softcap, sinks=sinks):
        pytest.skip("FlexAttention does not serve on this card; the warning says why")
    scale = sizes[0] ** -0.5
    assert_within_budget(
        lambda q, k, v, s=None: attend(q, k, v, layout, scale, window, softcap=softcap, sinks=s),
        lambda q, k, v, s=None: plain(q, k, v, layout, scale, window, softcap=softcap, sinks=s),
        tensors,
        dtype,
    )


def test_flex_compiles_and_is_right_for_the_models_that_need_it():
    """A fallback would hide a kernel that does not compile: here it must, on cards that FlexAttention is for."""
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("older than compute capability 8.0: by segment")
    for heads, softcap, sinks in (((8, 4, 128, 128), 50.0, False), ((64, 8, 64, 64), None, True)):
        assert difference_from_plain(CUDA, torch.bfloat16, heads, softcap, sinks) < 0.03


def test_new_layouts_do_not_compile_again():
    from torch._dynamo.utils import counters

    counters.clear()
    for index in range(8):
        layout = pack(random_groups([*SIZES[index % 3 :], (100 + 40 * index, (30, 60))])).layout.to(CUDA)
        q, k, v, _ = inputs(int(layout.cu_seq_q[-1]), (4, 2), (64, 64), torch.bfloat16)
        attend(q.requires_grad_(), k, v, layout, 0.125, WINDOWS[index % 4], softcap=50.0).sum().backward()
    # a first layout whose number of blocks happens to equal another size costs one more
    assert counters["stats"]["unique_graphs"] <= 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("chunk", [None, 37])
def test_head(dtype, trainable, chunk):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 64, generator=generator).to(CUDA, dtype)
    weight = torch.randn(5000, 64, generator=generator).to(CUDA, dtype) / 8
    target = torch.randint(0, 5000, (300,), generator=generator).to(CUDA)

    def head(h, w):
        return token_logps(h, w if trainable else w.detach(), target, transform=LogitTransform(), chunk=chunk)

    def formula(h, w):
        logits = h @ (w if trainable else w.detach()).T
        return logits.log_softmax(-1).gather(-1, target[:, None])[:, 0]

    results = []
    for compute, kind in ((head, dtype), (formula, dtype), (formula, torch.float64)):
        leaves = [hidden.to(kind).detach().requires_grad_(), weight.to(kind).detach().requires_grad_()]
        value = compute(*leaves)
        wanted = leaves if trainable else leaves[:1]
        results.append([value.detach(), *torch.autograd.grad(value.sum(), wanted)])
    for actual, rough, exact in zip(*results, strict=True):
        error, baseline = ((t.double() - exact).norm() / exact.norm() for t in (actual, rough))
        assert error <= BUDGET * baseline + torch.finfo(dtype).eps
