"""One dtype policy for a run, chosen once, printed, and applied to the model.

Trainable weights and optimiser state are always float32: at the learning rates of preference tuning an update is
smaller than half a bfloat16 step, so a pure bfloat16 weight would never move. Frozen weights are kept in the dtype that
the matrix products run in. Under autocast every product then sees one dtype, so that the error "expected scalar type
BFloat16 but found Float" cannot occur."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from preftune.amounts import counted
from preftune.errors import ConfigError
from preftune.models.four_bit import keep_as_loaded

_PLAIN_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Precision:
    """The policy. `autocast` is None if everything runs in float32."""

    autocast: torch.dtype | None
    frozen: torch.dtype
    grad_scaling: bool
    reason: str
    trainable: torch.dtype = field(default=torch.float32)

    @property
    def bf16(self) -> bool:
        """The value of `TrainingArguments.bf16`."""
        return self.autocast == torch.bfloat16

    @property
    def fp16(self) -> bool:
        """The value of `TrainingArguments.fp16`."""
        return self.autocast == torch.float16

    @property
    def compute(self) -> torch.dtype:
        """The dtype of matrix products, and of 4-bit weights when they are unpacked."""
        return self.autocast or torch.float32

    @property
    def plain(self) -> bool:
        """Whether a model in float32 is computed in float32, because the device has nothing better."""
        return self.reason in ("CPU", "MPS")

    def describe(self) -> str:
        """One line for the log."""
        products = "no autocast" if self.autocast is None else f"autocast {_name(self.autocast)}"
        scaling = ", loss scaling" if self.grad_scaling else ""
        return (
            f"precision: {products}{scaling}, frozen weights {_name(self.frozen)}, trainable weights and optimiser "
            f"{_name(self.trainable)} ({self.reason})"
        )


def decide_precision(
    *,
    bf16: bool | None = None,
    fp16: bool | None = None,
    model_dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Precision:
    """The policy for a device and a model whose weights are in `model_dtype` (`weights_dtype(model)`).

    True requests that autocast; `bf16=False` without `fp16=True` requests float32; `fp16=False` only excludes float16.
    None chooses by hardware: bfloat16 on CUDA from sm80 on and other cards that have it; float16 with loss scaling on
    older CUDA cards; on a CPU bfloat16 if the weights are in it and the processor has the instructions (without them it
    is several times *slower* than float32), else float32; float32 on MPS.

    Raises: ConfigError if both are True, or if the device does not support the request.
    """
    place = torch.device(device)
    if bf16 and fp16:
        raise ConfigError("bf16=True and fp16=True exclude each other. Set one; leave both out to let preftune choose.")
    if bf16:
        if place.type == "cuda" and not _cuda_has_bf16(place):
            raise ConfigError(
                f"bf16=True, but this card ({_card(place)}) has no bfloat16. Use fp16=True (loss scaling is added), or "
                "leave both out."
            )
        return Precision(torch.bfloat16, torch.bfloat16, False, "bf16=True")
    if fp16:
        if place.type == "cpu":
            raise ConfigError("fp16=True needs a graphics card; on a CPU use bf16=True, or leave both out.")
        return Precision(torch.float16, torch.float16, True, "fp16=True")
    if bf16 is False:
        return Precision(None, torch.float32, False, "bf16=False")
    return _automatic(place, model_dtype, fp16_allowed=fp16 is None)


def _automatic(place: torch.device, model_dtype: torch.dtype, *, fp16_allowed: bool) -> Precision:
    single = partial(Precision, None, torch.float32, False)
    if place.type == "cpu":
        if model_dtype == torch.bfloat16 and cpu_has_bf16() is not False:
            return Precision(torch.bfloat16, torch.bfloat16, False, "CPU, and the weights are in bfloat16")
        if model_dtype == torch.float32:
            return single("CPU")
        cause = "has no bfloat16 instructions" if model_dtype == torch.bfloat16 else "computes best in float32"
        return single(f"the weights are in {_name(model_dtype)}, but this CPU {cause}")
    if place.type == "mps":
        return single("MPS")
    if place.type != "cuda":
        backend = getattr(torch, place.type, None)
        supported = getattr(backend, "is_bf16_supported", None)
        if supported is not None and supported():
            return Precision(torch.bfloat16, torch.bfloat16, False, f"{place.type} has bfloat16")
        return single(f"{place.type} without bfloat16")
    if _cuda_has_bf16(place):
        return Precision(torch.bfloat16, torch.bfloat16, False, f"{_card(place)} has bfloat16")
    if fp16_allowed:
        return Precision(torch.float16, torch.float16, True, f"{_card(place)} has no bfloat16")
    return single(f"{_card(place)} has no bfloat16, and fp16=False")


def _cuda_has_bf16(device: torch.device) -> bool:
    """Whether the hardware has bfloat16: sm80 or newer (torch's own test is also true if bfloat16 is emulated); on ROCm
    torch's test.
    """
    if torch.version.hip is not None:
        return bool(torch.cuda.is_bf16_supported())
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _card(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)}, sm{major}{minor}"


def cpu_has_bf16() -> bool | None:
    """Whether this processor multiplies bfloat16 matrices in hardware; None if torch cannot detect it."""
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    flags = [bool(value) for name, value in known.items() if "bf16" in name]
    return any(flags) if flags else None


def weights_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of most of the model's plain floating weights, without adapters; float32 if there are none."""
    sizes: Counter[torch.dtype] = Counter()
    for name, parameter in model.named_parameters():
        adapter = _is_lora(name) or ".modules_to_save." in name
        if parameter.dtype in _PLAIN_FLOATS and not is_quantized_weight(parameter) and not adapter:
            sizes[parameter.dtype] += parameter.numel()
    return sizes.most_common(1)[0][0] if sizes else torch.float32


def mixed_dtype(model: nn.Module) -> torch.dtype | None:
    """The half precision for autocast if the model mixes weights of several dtypes outside of a Trainer; otherwise
    None.

    LoRA layers do not count: PEFT casts around them.
    """
    dtypes = {
        p.dtype
        for name, p in model.named_parameters()
        if p.dtype in _PLAIN_FLOATS and not is_quantized_weight(p) and not _is_lora(name)
    }
    halves = [dtype for dtype in _HALVES if dtype in dtypes]
    return halves[-1] if halves and len(dtypes) > 1 else None


def is_quantized_weight(parameter: nn.Parameter) -> bool:
    """Whether a weight is packed by bitsandbytes, or of a dtype that is not a plain float; such a weight is never
    cast.
    """
    return is_packed(parameter) or parameter.dtype not in _PLAIN_FLOATS


def is_packed(parameter: nn.Parameter) -> bool:
    """Whether bitsandbytes holds the weight in 4 or 8 bits."""
    return type(parameter).__name__ in ("Params4bit", "Int8Params")


def real_size(parameter: nn.Parameter) -> int:
    """The number of weights in a parameter; a 4-bit one counts with its real shape."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(state.shape.numel())


def _is_lora(name: str) -> bool:
    return "lora_" in name


def apply_precision(model: nn.Module, precision: Precision) -> list[str]:
    """Applies the policy to the model's weights, in place, and describes the changes in sentences.

    Trainable weights become float32. Frozen ones become `precision.frozen`, except quantised weights, weights that the
    architecture keeps in float32, and a weight that would overflow. 4-bit layers compute in the policy's dtype. Each
    parameter stays the same object, so tied weights stay tied and adapters attached. Call it before the optimiser is
    made; for a frozen reference of a fully trained policy use `dataclasses.replace(precision, frozen=torch.float32)`,
    so that both go through the same kernels."""
    foreign = _foreign_quantisation(model)
    keep = _kept_in_float32(model, precision)
    changed: Counter[tuple[str, torch.dtype, torch.dtype]] = Counter()
    overflowing: list[str] = []
    for name, parameter in model.named_parameters():  # each tied weight once
        if is_quantized_weight(parameter) or (foreign and not parameter.requires_grad):
            continue
        kind = "trainable" if parameter.requires_grad else "frozen"
        target = precision.trainable if parameter.requires_grad else precision.frozen
        if kind == "frozen" and any(part in name for part in keep):
            target = torch.float32
        before = parameter.dtype
        if before == target:
            continue
        if not _cast(parameter, target):
            overflowing.append(name)
            target = torch.float32
            _cast(parameter, target)
        if before != target:
            changed[kind, before, target] += 1
    sentences = [_sentence(kind, before, after, count) for (kind, before, after), count in changed.items()]
    if overflowing:
        sentences.append(
            f"{len(overflowing)} frozen {_weights(len(overflowing))} would overflow in {_name(precision.frozen)} and "
            f"stay in float32: {', '.join(overflowing[:3])}{', ...' if len(overflowing) > 3 else ''}."
        )
    if foreign:
        sentences.append(f"The weights are quantised with {foreign}; frozen weights were not changed.")
    sentences.extend(_set_compute_dtype(model, precision))
    _one_kernel_in_8bit(model)
    rewritten = keep_as_loaded(model)
    if rewritten:
        sentences.append(
            f"bitsandbytes had rewritten {counted(rewritten, '4-bit layer')} for inference, with scales rounded to "
            "bfloat16 (this does not happen to models loaded with preftune.load_model); they are trained in that "
            "state."
        )
    return sentences


def _cast(parameter: nn.Parameter, target: torch.dtype) -> bool:
    """Replaces the parameter's data; returns False, without a change, if finite values would become infinite."""
    data = parameter.data.to(target)
    if target == torch.float16 and not data.is_meta and bool((data.isinf() & ~parameter.data.isinf()).any()):
        return False
    parameter.data = data
    parameter.grad = None  # of the old dtype
    return True


def _kept_in_float32(model: nn.Module, precision: Precision) -> set[str]:
    """Parts of the names of parameters that, according to transformers, must stay in float32 for this half
    precision.
    """
    if precision.frozen not in _HALVES:
        return set()
    keep: set[str] = set()
    for module in model.modules():
        keep |= set(getattr(module, "_keep_in_fp32_modules_strict", None) or ())
        if precision.frozen == torch.float16:
            keep |= set(getattr(module, "_keep_in_fp32_modules", None) or ())
    return keep


def _foreign_quantisation(model: nn.Module) -> str | None:
    """The method of a model that is quantised by another library than bitsandbytes (GPTQ, AWQ, ...), whose scales
    belong to its kernels.
    """
    config: Any = getattr(model, "config", None)
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
    name = str(getattr(method, "value", method))
    return None if "bitsandbytes" in name else name


def _set_compute_dtype(model: nn.Module, precision: Precision) -> list[str]:
    count = 0
    module: Any
    for module in model.modules():
        if "compute_dtype" not in vars(module):  # only bitsandbytes' 4-bit layers have it; PEFT's wrappers do not
            continue
        count += module.compute_dtype != precision.compute
        module.compute_dtype = precision.compute
        module.compute_type_is_set = True  # or bitsandbytes follows the dtype of its first input
    return (
        [f"{counted(count, '4-bit layer computes', '4-bit layers compute')} in {_name(precision.compute)}."]
        if count
        else []
    )


def _one_kernel_in_8bit(model: nn.Module) -> None:
    """On a CPU, bitsandbytes' 8-bit layers multiply unpacked weights while they train and packed ones while they do
    not: policy and reference, or training and generation, would differ. They always compute as in inference.
    """
    for module in model.modules():
        ours = getattr(module, "_preftune_one_kernel", False)
        if type(module).__name__ == "Linear8bitLt" and type(module).__module__.startswith("bitsandbytes") and not ours:
            module.register_forward_pre_hook(_as_in_inference)
            module._preftune_one_kernel = True  # type: ignore[assignment]


def _as_in_inference(module: nn.Module, args: Any) -> None:
    module.training = False


def _sentence(kind: str, before: torch.dtype, after: torch.dtype, count: int) -> str:
    what = f"{count} {kind} {_weights(count)} cast from {_name(before)} to {_name(after)}"
    if kind == "trainable" and before in _HALVES:
        return f"{what}: in pure {_name(before)} small updates would round to nothing."
    return f"{what}."


def _weights(count: int) -> str:
    return "weight" if count == 1 else "weights"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def rounded(weight: Tensor, dtype: torch.dtype, *, seed: str) -> Tensor:
    """A float32 weight in a coarser dtype. To bfloat16 and float16 it is rounded stochastically (arXiv:2010.06192): up
    with the probability of its distance from the lower neighbour, so that an update smaller than a unit in the last
    place survives on average. What the dtype can represent is unchanged. To other dtypes it is rounded to nearest.

    Args:
        seed: the same seed gives the same bits.
    """
    if dtype not in _DROPPED_BITS:
        return weight.to(dtype)
    dropped = _DROPPED_BITS[dtype]
    generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
    draws = torch.randint(0, 1 << dropped, weight.shape, generator=generator, dtype=torch.int32).to(weight.device)
    exact = weight.float().contiguous()
    found = ((exact.view(torch.int32) + draws) & -(1 << dropped)).view(torch.float32)
    if dtype is torch.float16:  # below its normal numbers the distance of neighbours is constant
        limits = torch.finfo(dtype)
        shift = (draws + 0.5) / (1 << dropped) - 0.5
        small = (exact.abs() < limits.tiny) & (exact != 0)
        found = torch.where(small, exact + shift * limits.tiny * limits.eps, found)
    coarse = found.to(dtype)
    return torch.where(coarse.isfinite() & weight.isfinite(), coarse, weight.to(dtype))


_DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13}
"""Bits of a float32's significand that a dtype does not have."""
