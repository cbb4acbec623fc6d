"""FlexAttention over packed rows, run uncompiled on the CPU: values and gradients against attention by segment."""

from __future__ import annotations

import logging
from functools import partial

import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex
from hypothesis import given, settings
from hypothesis import strategies as st

from models_zoo import random_model
from preftune.logps import make_engine, naive_logps, pack
from preftune.logps.attention import flex as attention_flex
from preftune.logps.attention import packed as attention
from preftune.logps.attention.flex import attend, explicit, flex, masks_of, plain
from preftune.logps.attention.packed import _by_segment, _fused
from tests.logps.groups import random_groups

CPU = torch.device("cpu")
# the second row is longer than three blocks, with completions that begin and end inside blocks; the last one fills one
SHORT = ((4, (3, 5)), (9, (6, 2, 4)), (1, (1,)))
LONG = ((90, (60, 200, 40)), (1, (1, 2)), (130, (20, 150)), (7, (3,)))
WINDOWS = [None, 3, 70, 130, 1000]

pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning"),
    # the compiler asks every tensor for its .grad, and hides the warning from everyone but pytest
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


@pytest.fixture(autouse=True)
def backward_on_the_cpu(monkeypatch):
    """torch refuses gradients of FlexAttention on a CPU in its entrance only: the plain form behind it has them."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *tensors: None)
    torch.compiler.reset()


def inputs(rows, *, heads=(4, 2), sizes=(8, 8), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads[0], rows, sizes[0]), (1, heads[1], rows, sizes[0]), (1, heads[1], rows, sizes[1]), (heads[0],)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def value_and_gradients(compute, tensors):
    out = compute(*tensors)
    upstream = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad(out, tensors, upstream, allow_unused=True)]


@pytest.mark.sample(4)
@pytest.mark.parametrize("window", [None, 3, 130])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_flex_equals_attention_by_segment_in_values_and_gradients(window, softcap, with_sinks):
    for sizes in (SHORT, LONG):
        layout = pack(random_groups(sizes)).layout
        tensors = inputs(int(layout.cu_seq_q[-1]))

        def by_flex(q, k, v, s, layout=layout):
            sinks = s if with_sinks else None
            return attend(q, k, v, layout, 0.3, window, softcap=softcap, sinks=sinks, kernel=flex)

        def by_segment(q, k, v, s, layout=layout):
            by_scores = partial(explicit, softcap=softcap, sinks=s if with_sinks else None)
            return _by_segment(by_scores, q, k, v, layout, 0.3, window)

        for actual, expected in zip(*(value_and_gradients(f, tensors) for f in (by_flex, by_segment)), strict=True):
            assert (actual is None) == (expected is None)
            if expected is not None:
                torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("heads", "sizes"), [((4, 4), (8, 8)), ((6, 1), (8, 8)), ((2, 2), (12, 8)), ((4, 2), (20, 20))]
)
def test_grouped_heads_and_sizes_that_flash_kernels_do_not_take(heads, sizes):
    layout = pack(random_groups(LONG)).layout
    tensors = inputs(int(layout.cu_seq_q[-1]), heads=heads, sizes=sizes)[:3]

    def by_flex(q, k, v):
        return attend(q, k, v, layout, 0.3, 70, kernel=flex)

    def by_segment(q, k, v):
        return _by_segment(_fused, q, k, v, layout, 0.3, 70)

    for actual, expected in zip(*(value_and_gradients(f, tensors) for f in (by_flex, by_segment)), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


SIZES = st.lists(
    st.tuples(st.integers(1, 150), st.lists(st.integers(1, 90), min_size=1, max_size=5)), min_size=1, max_size=4
)


@settings(deadline=None, max_examples=40)
@given(sizes=SIZES, window=st.none() | st.integers(1, 300))
def test_the_masks_say_what_the_segments_say(sizes, window):
    """By query, by block, and by block transposed (which the backward pass reads)."""
    layout = pack(random_groups(sizes)).layout
    seen, blocks = masks_of(layout, window, CPU)
    row = len(seen.own_from)
    at = torch.arange(row)
    own = (at >= seen.own_from[:, None]) & (at <= at[:, None])
    allowed = own | ((at >= seen.prompt_from[:, None]) & (at < seen.prompt_to[:, None]))
    expected = torch.zeros(row, row, dtype=torch.bool)
    for segment in layout.segments:
        keys = torch.tensor([*range(segment.prefix_start, segment.prefix_stop), *range(segment.start, segment.stop)])
        mask = layout.mask(segment, window, CPU)
        if mask is None:
            mask = torch.ones(segment.queries, len(keys), dtype=torch.bool).tril()
        expected[torch.arange(segment.start, segment.stop)[:, None], keys] = mask
    assert torch.equal(allowed, expected)

    def mask_mod(b, h, q, k):
        return allowed[q, k]

    theirs = torch_flex.create_block_mask(mask_mod, 1, 1, row, row, "cpu")
    for name, ours in blocks._asdict().items():
        other = getattr(theirs, name)
        if name.endswith("num_blocks"):
            assert torch.equal(ours, other), name
        else:  # what stands behind the counted entries means nothing
            counts = getattr(blocks, name.replace("indices", "num_blocks"))
            counted = torch.arange(ours.shape[-1]) < counts[..., None]
            assert torch.equal(ours[counted], other[counted]), name


def test_masks_are_made_once_per_layout_and_window():
    layout = pack(random_groups(SHORT)).layout
    assert masks_of(layout, 3, CPU) is masks_of(layout, 3, CPU)
    assert masks_of(layout, 3, CPU) is not masks_of(layout, 4, CPU)
    assert masks_of(layout, 10_000, CPU) is masks_of(layout, None, CPU)


def test_new_layouts_and_windows_compile_nothing_new():
    """Two graphs: one with gradients, one without. Counted with the compiler's front, which needs no GPU."""
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("eager")
    kernel = torch.compile(flex, dynamic=True, fullgraph=True, backend=counter)
    for index in range(10):
        layout = pack(random_groups([*[*LONG, *SHORT][index % 4 :], (120 + 30 * index, (9, 70))])).layout
        # sizes unlike any number of blocks, or the compiler takes the two for one
        tensors = inputs(int(layout.cu_seq_q[-1]), sizes=(24, 24), dtype=torch.float32)
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                window = WINDOWS[index % 5]
                out = attend(*tensors[:3], layout, 0.3, window, softcap=2.0, sinks=tensors[3], kernel=kernel)
                expected = plain(*tensors[:3], layout, 0.3, window, softcap=2.0, sinks=tensors[3])
            torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 2


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss", "deepseek_v3"])
def test_whole_models_agree_with_the_oracle(monkeypatch, name):
    """As on a GPU, but for the kernel: soft caps, sinks and windows of one model, gradients of every weight."""
    calls = []

    def here(*tensors, **options):
        calls.append(options)
        return attend(*tensors, kernel=flex, **options)

    monkeypatch.setattr(attention.flex, "serves", lambda *a, **k: True)
    monkeypatch.setattr(attention.flex, "attend", here)
    groups = random_groups(((4, (3, 9)), (12, (7, 2)), (6, (8, 1, 5))))
    results = []
    for engine in ("naive", "packed"):
        model = random_model(name, dtype=torch.float64)
        model.set_attn_implementation("eager")
        batch = pack(groups)
        scores = (
            naive_logps(model, batch) if engine == "naive" else make_engine(model, engine)(model, batch).token_logps_T
        )
        (scores * torch.linspace(-1, 2, len(scores), dtype=scores.dtype)).sum().backward()
        results.append((scores.detach(), {key: p.grad for key, p in model.named_parameters() if p.grad is not None}))
    (expected, expected_grads), (scored, grads) = results
    assert len(calls) == 2
    torch.testing.assert_close(scored, expected, rtol=1e-5, atol=2e-5)
    for key, expected_grad in expected_grads.items():
        scale = expected_grad.abs().max().clamp_min(1e-3)
        torch.testing.assert_close(grads[key] / scale, expected_grad / scale, rtol=1e-4, atol=1e-4, msg=key)


class TestTrying:
    """The kernel is tried before it is trusted."""

    HEADS = (4, 2, 8, 8)

    def tried(self, monkeypatch, kernel, caplog):
        monkeypatch.setattr(attention_flex, "_compiled", lambda: kernel)
        attention_flex._tried.cache_clear()
        with caplog.at_level(logging.WARNING, logger="preftune"):
            answers = [attention_flex._tried(CPU, torch.bfloat16, self.HEADS, 2.0, True) for _ in range(2)]
        attention_flex._tried.cache_clear()
        assert answers[0] == answers[1]
        return answers[0], [record.getMessage() for record in caplog.records]

    def test_a_right_kernel_serves_and_nothing_is_said(self, monkeypatch, caplog):
        with torch.no_grad():  # as in a reference pass: the trial has gradients all the same
            assert self.tried(monkeypatch, flex, caplog) == (True, [])

    def test_a_kernel_that_does_not_compile_is_reported_once(self, monkeypatch, caplog):
        def fails(*arguments):
            raise RuntimeError("Cannot find a working triton installation\nmore")

        serves, said = self.tried(monkeypatch, fails, caplog)
        assert not serves
        assert len(said) == 1
        assert "does not compile on this machine (RuntimeError: Cannot find a working triton installation)" in said[0]

    def test_a_kernel_that_is_wrong_is_reported_once(self, monkeypatch, caplog):
        def sees_one_key_less(query, key, value, seen, *rest):
            return flex(query, key, value, seen._replace(prompt_to=seen.prompt_to - 1), *rest)

        serves, said = self.tried(monkeypatch, sees_one_key_less, caplog)
        assert not serves
        assert len(said) == 1
        assert "deviates by" in said[0]

    def test_running_out_of_memory_is_not_taken_for_a_missing_kernel(self, monkeypatch, caplog):
        def fails(*arguments):
            raise torch.OutOfMemoryError("CUDA out of memory")

        with pytest.raises(torch.OutOfMemoryError):
            self.tried(monkeypatch, fails, caplog)


def test_flex_does_not_serve_on_a_cpu():
    q = torch.randn(1, 2, 3, 8, dtype=torch.bfloat16)
    assert not attention_flex.serves(q, q, q, softcap=1.0, sinks=None)
