"""The chunked head against log_softmax in float64: values, gradients, and independence of the chunk size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.logps import LogitTransform, token_logps
from preftune.logps.head import chunk_for


def naive(hidden, weight, target, bias, transform):
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + bias
    logits = logits * transform.scale
    if transform.softcap is not None:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    return logits.log_softmax(-1).gather(-1, target[:, None])[:, 0]


def example(tokens=7, width=5, vocabulary=11, *, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    target = torch.randint(0, vocabulary, (tokens,), generator=generator)
    return normal(tokens, width), normal(vocabulary, width), normal(vocabulary), target, normal(tokens)


TRANSFORMS = [LogitTransform(), LogitTransform(scale=0.3), LogitTransform(softcap=1.5), LogitTransform(0.7, 2.0)]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_equals_log_softmax_in_value_and_gradient(transform, with_bias, trainable, chunk):
    hidden, weight, bias, target, upstream = example()
    results = []
    for compute in (naive, lambda h, w, t, b, f: token_logps(h, w, t, bias_V=b, transform=f, chunk=chunk)):
        h = hidden.clone().requires_grad_()
        w = weight.clone().requires_grad_(trainable)
        b = bias.clone().requires_grad_(trainable) if with_bias else None
        value = compute(h, w, target, b, transform)
        (value * upstream).sum().backward()
        results.append([value.detach(), h.grad, w.grad, b.grad if b is not None else None])
    for expected, actual in zip(*results, strict=True):
        if expected is None:
            assert actual is None
        else:
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=30)
@given(tokens=st.integers(1, 20), chunk=st.integers(1, 25), seed=st.integers(0, 99))
def test_chunk_size_changes_nothing(tokens, chunk, seed):
    hidden, weight, _, target, _ = example(tokens, seed=seed)
    whole = token_logps(hidden, weight, target, chunk=tokens)
    torch.testing.assert_close(token_logps(hidden, weight, target, chunk=chunk), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_within_the_error_of_its_inputs(dtype):
    """Error budget: no further from float64 than log_softmax on half-precision logits, which TRL's old path took."""
    hidden, weight, _, target, _ = example(200, 32, 500, seed=3)
    exact = naive(hidden.to(dtype).double(), weight.to(dtype).double(), target, None, LogitTransform())
    ours = token_logps(hidden.to(dtype), weight.to(dtype), target)
    rough = (hidden.to(dtype) @ weight.to(dtype).T).log_softmax(-1).gather(-1, target[:, None])[:, 0]
    assert ours.dtype == torch.float32
    assert (ours.double() - exact).abs().mean() < 0.6 * (rough.double() - exact).abs().mean()


def test_autocast_runs_the_product_in_half_and_keeps_the_rest_wide():
    hidden, weight, _, target, _ = example(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = token_logps(hidden, weight, target)
    by_hand = token_logps(hidden.bfloat16(), weight.bfloat16(), target)
    assert autocast.dtype == torch.float32
    torch.testing.assert_close(autocast, by_hand, rtol=0, atol=0)


def test_no_gradient_is_formed_for_a_reference_pass():
    hidden, weight, _, target, _ = example()
    with torch.no_grad():
        assert not token_logps(hidden, weight, target).requires_grad


GIB = 2**30


@pytest.mark.parametrize(
    ("vocabulary", "total", "free", "chunk"),
    [
        (128_256, 141, 120, 1024),  # H200: as much as feeds it
        (128_256, 16, 11, 512),  # T4: a sixteenth of it
        (128_256, 10, 8, 256),
        (128_256, 80, 1, 256),  # a card that others have filled: half of what is left
        (256_000, 80, 60, 512),
        (49_152, 80, 60, 2048),
        (128_256, 80, 0, 32),  # it may still fit; and if not, the error says what to change
    ],
)
def test_the_chunk_on_a_device_follows_its_memory_and_the_vocabulary(vocabulary, total, free, chunk):
    assert chunk_for(vocabulary, total_bytes=total * GIB, free_bytes=free * GIB) == chunk


@given(vocabulary=st.integers(100, 300_000), total=st.integers(4, 200), used=st.floats(0, 0.75))
def test_the_chunk_does_not_depend_on_how_full_the_device_is_until_it_must(vocabulary, total, used):
    total *= GIB
    chunk = chunk_for(vocabulary, total_bytes=total, free_bytes=int(total * (1 - used)))
    assert chunk == chunk_for(vocabulary, total_bytes=total, free_bytes=total)
    assert chunk == 32 or chunk * vocabulary * 16 <= total / 16


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("transform", [LogitTransform(), LogitTransform(0.5, 3.0)])
def test_squared_probabilities_and_entropy_come_out_of_the_same_logits(transform, grad, trainable):
    """Chunks of 3 of 7 tokens; logits up to some hundreds, where the sum is of a single probability."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 5, generator=generator, dtype=torch.float64) * torch.logspace(-1, 2, 7)[:, None].double()
    weight = torch.randn(11, 5, generator=generator, dtype=torch.float64).requires_grad_(trainable)
    target = torch.randint(0, 11, (7,), generator=generator)
    square, entropy = torch.empty(7, dtype=torch.float64), torch.empty(7, dtype=torch.float64)
    found = token_logps(
        hidden.requires_grad_(grad), weight, target, transform=transform, chunk=3, square_T=square, entropy_T=entropy
    )
    logps = transform.apply_((hidden @ weight.T).detach().clone()).log_softmax(-1)
    torch.testing.assert_close(square, (2 * logps).logsumexp(-1))
    torch.testing.assert_close(entropy, torch.special.entr(logps.exp()).sum(-1))
    torch.testing.assert_close(found.detach(), logps.gather(-1, target[:, None])[:, 0])
    if grad or trainable:
        found.sum().backward()
        assert square.grad_fn is None
