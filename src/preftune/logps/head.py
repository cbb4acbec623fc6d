"""The head: log-probabilities of completion tokens from hidden states, never holding T x V at once.

For a frozen head the gradient of each token's log-probability with respect to its own hidden state,

    d logp_t / d h_t = (onehot(y_t) - softmax(z_t)) W        z_t = h_t W^T

is formed chunk by chunk in the forward pass, where the logits are at hand, and only scaled in the backward pass:
two matrix products in all, no recomputation. A trainable head needs the logits again for its own gradient.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from preftune.errors import ModelError

# Logits of one chunk, in elements: what stays in a CPU's cache hierarchy, and what feeds a GPU's matrix units (more
# gains nothing: from a few hundred tokens on, reading the weight no longer counts).
_CHUNK_ELEMENTS_CPU = 2**23
_CHUNK_ELEMENTS_DEVICE = 2**27
# The same logits in half precision, in float32, minus their maximum, exponentiated, and as gradient in half precision.
_BYTES_PER_ELEMENT = 16
_SHARE_OF_DEVICE = 16


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """What a model does to its logits after the head: `softcap * tanh(scale * z / softcap)`."""

    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, config: Any) -> LogitTransform:
        """Read from a model's config: Gemma's `final_logit_softcapping` and its like, Cohere's `logit_scale`, Granite's
        `logits_scaling`, Falcon-H1's `lm_head_multiplier`. `supports` detects a model with another transform by
        comparison with the model's own logits.
        """
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        scale = float(getattr(text, "logit_scale", None) or 1.0) * float(
            getattr(text, "lm_head_multiplier", None) or 1.0
        )
        if divisor := getattr(text, "logits_scaling", None):
            scale /= float(divisor)
        names = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
        return cls(scale=scale, softcap=next((cap for name in names if (cap := getattr(text, name, None))), None))

    def apply_(self, logits: Tensor) -> Tensor:
        """In place on a float tensor."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def backward_(self, grad: Tensor, transformed: Tensor) -> Tensor:
        """Gradient before the transform, from the gradient after it; in place."""
        if self.softcap is not None:
            grad.mul_(1 - (transformed / self.softcap) ** 2)
        if self.scale != 1.0:
            grad.mul_(self.scale)
        return grad


def token_logps(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    target_T: Tensor,
    *,
    bias_V: Tensor | None = None,
    transform: LogitTransform | None = None,
    chunk: int | None = None,
    hit_T: Tensor | None = None,
    square_T: Tensor | None = None,
    entropy_T: Tensor | None = None,
) -> Tensor:
    """`log_softmax(transform(hidden @ weight.T + bias))[t, target_t]` for every token, computed in chunks.

    Args:
        hidden_TD: states that predict the tokens; gradients flow into it.
        weight_VD: the head's weight; gets a gradient if it requires one, in which case the logits are recomputed.
        target_T: int64 token ids.
        bias_V: the head's bias, if it has one.
        transform: what the model does to its logits.
        chunk: number of tokens per chunk; None chooses it from the vocabulary and the device's memory. It does not
            change the result.
        hit_T: an output, (T,) bool: filled with whether no other token was likelier, at no extra cost.
        square_T: an output, (T,), in the dtype of the result: filled with the log of the sum of all tokens' squared
            probabilities, out of the same exponentials.
        entropy_T: an output like `square_T`: filled with the entropy of the distribution of each token, nats.
    Returns: (T,) nats, float32 (float64 for float64 weights). Matrix products run in the weight's dtype (autocast's
        where it is on); everything from the logits on is float32.
    """
    transform = transform or LogitTransform()
    if chunk is None:
        chunk = _default_chunk(hidden_TD.device, weight_VD.shape[0])
    device = hidden_TD.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
    if weight_VD.dtype == torch.float64:
        dtype = torch.float64
    trainable = weight_VD.requires_grad or (bias_V is not None and bias_V.requires_grad)
    function: Any = _TrainableHead if trainable else _FrozenHead
    with torch.autocast(device, enabled=False):
        result: Tensor = function.apply(
            hidden_TD, weight_VD, bias_V, target_T, transform, chunk, dtype, (hit_T, square_T, entropy_T)
        )
    return result


def chunk_for(vocabulary: int, *, total_bytes: int, free_bytes: int) -> int:
    """Number of tokens per chunk on a device with its own memory: a power of two.

    A sixteenth of the device's memory for the logits, so that the same card always gets the same chunk (another size is
    another kernel, and rounds differently from the reference scores cached on disk); less if other programs use the
    card's memory; never more than its matrix units need."""
    per_token = vocabulary * _BYTES_PER_ELEMENT
    fits = min(total_bytes // _SHARE_OF_DEVICE, free_bytes // 2) // per_token
    wanted = max(32, min(_CHUNK_ELEMENTS_DEVICE // vocabulary, fits))
    return 1 << (wanted.bit_length() - 1)


def cpu_chunk(vocabulary: int) -> int:
    """Number of tokens per chunk on a CPU."""
    return max(16, _CHUNK_ELEMENTS_CPU // vocabulary)


@functools.cache
def _default_chunk(device: torch.device, vocabulary: int) -> int:
    """The chunk size, chosen once: policy and reference must use the same kernels, independent of the free memory."""
    if device.type == "cpu":
        return cpu_chunk(vocabulary)
    if device.type != "cuda":
        return max(16, _CHUNK_ELEMENTS_DEVICE // vocabulary)
    free, total = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return chunk_for(vocabulary, total_bytes=total, free_bytes=free)


def _chunk_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: LogitTransform) -> Tensor:
    """Transformed logits of a chunk, float32 or wider."""
    logits = hidden @ weight.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if bias is not None:
        logits += bias
    return transform.apply_(logits)


Outputs = tuple[Tensor | None, Tensor | None, Tensor | None]
"""What is filled besides the log-probabilities of the targets, of a chunk or of all tokens: whether the target has the
largest logit; the log of the sum of the squared probabilities; the entropy.
"""
_NONE: Outputs = (None, None, None)


def _part_of(outputs: Outputs, part: slice) -> Outputs:
    hit, square, entropy = (None if output is None else output[part] for output in outputs)
    return hit, square, entropy


def _logps_(logits: Tensor, target: Tensor, outputs: Outputs = _NONE) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the targets, and the sums (chunk, 1) of the exponentials that the logits turn into: with one
    exponential per logit, and no other tensor of their size (one more for the entropy)."""
    hit, square, entropy = outputs
    picked = logits.gather(-1, target[:, None])
    top = logits.amax(-1, keepdim=True)
    if hit is not None:
        hit.copy_((picked >= top)[:, 0])
    total = logits.sub_(top).exp_().sum(-1, keepdim=True)
    if square is not None:  # the norm needs no tensor of the logits' size
        square.copy_(2 * (torch.linalg.vector_norm(logits, dim=-1).log() - total[:, 0].log()))
    if entropy is not None:
        entropy.copy_(total[:, 0].log() + torch.special.entr(logits).sum(-1) / total[:, 0])
    return (picked - top).sub_(total.log())[:, 0], total


def _logps_and_gradient_(
    logits: Tensor, target: Tensor, transform: LogitTransform, outputs: Outputs = _NONE
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the targets and their gradients with respect to the untransformed logits, in their place."""
    transformed = logits if transform.softcap is None else logits.clone()
    logps, total = _logps_(logits, target, outputs)
    grad = logits.div_(total.neg_())
    grad.scatter_add_(-1, target[:, None], grad.new_ones(target.shape[0], 1))
    return logps, transform.backward_(grad, transformed)


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        transform: LogitTransform,
        chunk: int,
        dtype: torch.dtype,
        outputs: Outputs,
    ) -> Tensor:
        weight = weight.to(dtype)
        wanted = ctx.needs_input_grad[0]
        grad_hidden = torch.empty(hidden.shape, dtype=dtype, device=hidden.device) if wanted else None
        logps = torch.empty(hidden.shape[0], dtype=torch.promote_types(dtype, torch.float32), device=hidden.device)
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            logits = _chunk_logits(hidden[part].to(dtype), weight, bias, transform)
            filled = _part_of(outputs, part)
            if grad_hidden is None:
                logps[part] = _logps_(logits, target[part], filled)[0]
            else:
                logps[part], grad = _logps_and_gradient_(logits, target[part], transform, filled)
                torch.mm(grad.to(dtype), weight, out=grad_hidden[part])
        ctx.save_for_backward(grad_hidden)
        ctx.hidden_dtype = hidden.dtype
        return logps

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (grad_hidden,) = ctx.saved_tensors
        return (grad_hidden * grad[:, None]).to(ctx.hidden_dtype), None, None, None, None, None, None, None


class _TrainableHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        transform: LogitTransform,
        chunk: int,
        dtype: torch.dtype,
        outputs: Outputs,
    ) -> Tensor:
        cast = weight.to(dtype)
        logps = []
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            logits = _chunk_logits(hidden[part].to(dtype), cast, bias, transform)
            filled = _part_of(outputs, part)
            logps.append(_logps_(logits, target[part], filled)[0])
        ctx.save_for_backward(hidden, weight, bias, target)
        ctx.options = (transform, chunk, dtype)
        return torch.cat(logps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        hidden, weight, bias, target = ctx.saved_tensors
        transform, chunk, dtype = ctx.options
        cast = weight.to(dtype)
        wide = torch.promote_types(dtype, torch.float32)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and ctx.needs_input_grad[2] else None
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            states = hidden[part].to(dtype)
            _, grad_logits = _logps_and_gradient_(_chunk_logits(states, cast, bias, transform), target[part], transform)
            grad_logits.mul_(grad[part, None])
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
            grad_logits = grad_logits.to(dtype)
            if grad_hidden is not None:
                grad_hidden[part] = grad_logits @ cast
            if grad_weight is not None:
                grad_weight += grad_logits.T @ states
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        grad_bias = None if grad_bias is None or bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None, None


def head_weight(head: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Dense weight (V, D) and bias (V,) of an output head; a 4-bit head is dequantised.

    Raises:
        ModelError: the head is quantised in a way that has no dense weight.
    """
    weight: Any = head.weight
    bias: Any = getattr(head, "bias", None)
    state = getattr(weight, "quant_state", None)
    if state is not None:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, state), bias
    if not weight.dtype.is_floating_point:
        raise ModelError(
            f"the output head is quantised to {weight.dtype} ({type(head).__name__}), which preftune cannot read. "
            "Load the model with the head left out of quantisation: llm_int8_skip_modules=['lm_head']."
        )
    return weight, bias
