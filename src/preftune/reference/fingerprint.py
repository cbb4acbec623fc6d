"""Fingerprints of the model, the computation and the scored tokens: the parts of a reference score's address.

A model is identified by its weights, its adapters, its quantisation and the parts of its config that change a score,
never by its name or `config._name_or_path`."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import struct
import uuid
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from types import CodeType
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from preftune.logps.layers.rope import unscaled_rope
from preftune.models.shards import whole
from preftune.types import Span

NUMERICS_VERSION = 2
"""Increased whenever a change in preftune changes scores by more than rounding."""

FINGERPRINT_VERSION = 6
"""Increased whenever the same model gets a different fingerprint than before. Checkpoints record it, because
fingerprints of two versions cannot be compared.
"""

# Config entries that name, describe or drive a model without changing the log-probability of given tokens.
_IRRELEVANT = frozenset(
    "_name_or_path transformers_version use_cache architectures dtype torch_dtype bos_token_id eos_token_id "
    "pad_token_id decoder_start_token_id sep_token_id attn_implementation _attn_implementation name_or_path "
    "output_attentions output_hidden_states return_dict id2label label2id problem_type gradient_checkpointing "
    "chunk_size_feed_forward tokenizer_class tie_word_embeddings".split()
)

# The same for PEFT's configs: paths, versions, and what only training or initialisation reads (the weights count).
_IRRELEVANT_OF_ADAPTERS = frozenset(
    "auto_mapping base_model_name_or_path inference_mode init_lora_weights lora_dropout peft_version revision "
    "task_type".split()
)


# Whole numbers and switches that modules read when they compute. (Others change by themselves: the longest sequence so
# far, flags of training and checkpointing.)
_COUNTS = frozenset("top_k num_experts_per_tok norm_topk_prob n_group topk_group sliding_window use_rope".split())
# The same of adapters, by adapter: FourierFT's scale, the vectors used by VB-LoRA, HRA's orthogonal form, token ids.
_OF_ADAPTERS = frozenset("fourierft_scaling topk hra_apply_GS token_indices".split())
_NUMBERED = re.compile(r"\d+")
_ACTIVATIONS = ("act", "act_fn", "activation_fn", "activation")


@dataclass(frozen=True, slots=True)
class Numerics:
    """How scores are computed. Another device, kernel or dtype rounds differently, so it has another address."""

    engine: str
    device: str
    autocast: str
    weights: str
    versions: str
    matmul: str
    version: int = NUMERICS_VERSION

    @classmethod
    def of(cls, model: nn.Module, *, engine: str, device: torch.device, autocast: torch.dtype | None) -> Numerics:
        kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})
        versions = " ".join(_release(package) for package in ("torch", "transformers", "peft", "bitsandbytes"))
        matmul = torch.get_float32_matmul_precision()
        return cls(engine, kind, str(autocast).removeprefix("torch."), "+".join(dtypes), versions, matmul)

    def facts(self) -> dict[str, str]:
        """The description that a store of scores keeps, for people."""
        autocast = "" if self.autocast == "None" else f" under {self.autocast} autocast"
        return {"engine": self.engine, "device": self.device, "dtype": self.weights + autocast}

    def digest(self) -> str:
        facts = "|".join(map(str, dataclasses.astuple(self)))
        return hashlib.blake2b(facts.encode(), digest_size=8).hexdigest()


@functools.cache
def _release(package: str) -> str:
    """Major and minor version; patch releases do not change numbers."""
    try:
        return ".".join(metadata.version(package).split(".")[:2])
    except metadata.PackageNotFoundError:
        return "-"


def fingerprint(model: nn.Module, *, adapters: bool) -> str:
    """A digest of everything in a model that affects its scores, 32 hex digits.

    Args:
        model: a causal language model, plain, quantised or with PEFT adapters.
        adapters: whether the adapters count (the model with adapters on) or not (with adapters off). A plain model and
            the same model with its adapters off have the same fingerprint.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    unscaled_rope(model)
    digest = xxhash.xxh3_128()
    digest.update(json.dumps(_relevant(base.config.to_dict()), sort_keys=True, default=str).encode())
    prefixes = adapter_prefixes(model)
    for name, tensor in _tensors(model):
        is_adapter = is_adapter_parameter(name, prefixes)
        if is_adapter and not adapters:
            continue
        digest.update(_canonical(name).encode())
        _update(digest, tensor)
    for fact in (*_as_text(numbers_of(base)), *_hooks_of(base), *_forwards_of(base)):
        digest.update(fact.encode())
    for fact in _shared_layers_of(model, prefixes):
        digest.update(fact.encode())
    if adapters and (configs := getattr(model, "peft_config", None)):
        for name, config in sorted(configs.items()):
            relevant = {k: v for k, v in config.to_dict().items() if k not in _IRRELEVANT_OF_ADAPTERS}
            digest.update((name + json.dumps(relevant, sort_keys=True, default=_stable)).encode())
        digest.update(str(getattr(model, "active_adapters", "")).encode())
        for fact in _states_of_adapters(model):
            digest.update(fact.encode())
    return digest.hexdigest()


def _shared_layers_of(model: nn.Module, prefixes: tuple[str, ...]) -> Iterator[str]:
    """The places of layers that share weights, of which `_tensors` knows only the first; adapters are not among them.

    Args:
        prefixes: those of adapters' parameters.
    """
    places: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not is_adapter_parameter(name, prefixes):
            places.setdefault(id(parameter), []).append(_canonical(name))
    for names in places.values():
        if len(names) > 1 and len({_NUMBERED.sub("#", name) for name in names}) == 1:  # not an embedding and its head
            yield " = ".join(names)


def _states_of_adapters(model: nn.Module) -> Iterator[str]:
    """The state of PEFT's layers besides their weights: on or off, merged, active, scaled."""
    module: Any
    for name, module in model.named_modules():
        if not _is_adapter_layer(module):
            continue
        on = not module.disable_adapters and list(module.active_adapters)
        merged = sorted(getattr(module, "merged_adapters", ()))
        scaling = getattr(module, "scaling", None)
        scales = sorted((key, float(value)) for key, value in scaling.items()) if isinstance(scaling, dict) else scaling
        yield f"{name} {on} {merged} {scales}"
        for key, table in sorted(vars(module).items()):  # where SHiRA's numbers stand is in no parameter
            if key in _OF_ADAPTERS:
                yield f"{name} {key} {sorted(table.items())}"
            if isinstance(table, dict) and not key.startswith("_"):
                places = [(at, t) for at, t in table.items() if isinstance(t, Tensor) and not t.is_floating_point()]
                yield from (f"{key} {at} {xxhash.xxh3_128(_bytes(t)).hexdigest()}" for at, t in sorted(places))


def _is_adapter_layer(module: nn.Module) -> bool:
    """Whether a module is a PEFT layer around another layer; whole models have a method of the same name."""
    return isinstance(getattr(type(module), "disable_adapters", None), property)


def numbers_of(model: nn.Module) -> dict[str, Any]:
    """Numbers that modules hold as plain attributes (epsilons, scales of attention, embeddings, rope, the number of
    experts used), which can be changed without the config, and the activation functions (`NAME is`). Dropout is
    off when scores are computed.
    """
    found: dict[str, Any] = {}
    for name, module in sorted(model.named_modules(), key=lambda item: _canonical(item[0])):
        if _is_adapter_layer(module):
            continue
        for key, value in sorted(vars(module).items()):
            number = isinstance(value, float) and key != "p" and "drop" not in key
            if number or key in _COUNTS or (key == "is_causal" and value is False):  # nearly all are causal
                found[f"{_canonical(name)}.{key}"] = value
        if name.rpartition(".")[2] in _ACTIVATIONS:
            found[f"{_canonical(name)} is"] = f"{type(module).__qualname__}({module.extra_repr()})"
    return found


def _as_text(numbers: Mapping[str, Any]) -> Iterator[str]:
    for name, value in numbers.items():
        yield f"{name} {value}" if name.endswith(" is") else f"{name}={value!r}"


def _hooks_of(model: nn.Module) -> Iterator[str]:
    """Hooks of a module, which may change its result. A function's behaviour cannot be determined, so it is identified
    by itself: a model with a hook shares no score with another process. Hooks of libraries that move weights, and
    preftune's own, do not change values.
    """
    for name, module in sorted(model.named_modules(), key=lambda item: _canonical(item[0])):
        for kind in ("_forward_hooks", "_forward_pre_hooks"):
            for hook in getattr(module, kind).values():
                maker = getattr(hook, "__module__", None) or type(hook).__module__
                if maker.partition(".")[0] not in _HARMLESS:
                    yield f"{_canonical(name)} {kind} {maker} {_of_this_process(hook)}"


def _forwards_of(model: nn.Module) -> Iterator[str]:
    """The code of modules that no library of `_HARMLESS` wrote: a subclass, a class or a module with its own forward,
    code that came with a model. Functions that this code calls are not included.
    """
    for name, module in sorted(model.named_modules(), key=lambda item: _canonical(item[0])):
        function = getattr(module.forward, "__func__", module.forward)
        maker = str(getattr(function, "__module__", None) or type(function).__module__)
        if maker.partition(".")[0] not in _HARMLESS:
            yield f"{_canonical(name)} computes {_written(function)}"


def _written(function: Any) -> str:
    """A digest of a function's code and its plain values; the same in every process."""
    code = getattr(function, "__code__", None)
    if code is None:
        return type(function).__qualname__
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    held = [value for value in (*(function.__defaults__ or ()), *cells) if isinstance(value, bool | int | float | str)]
    inner = [_instructions(value.__code__) for value in cells if hasattr(value, "__code__")]
    return hashlib.blake2b(repr((*_instructions(code), held, inner)).encode(), digest_size=8).hexdigest()


def _instructions(code: CodeType) -> tuple[Any, ...]:
    return code.co_code, code.co_names, [_constant(one) for one in code.co_consts]


def _constant(value: Any) -> Any:
    if isinstance(value, CodeType):
        return _instructions(value)
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)  # a set has no order of its own


_HARMLESS = frozenset({"accelerate", "transformers", "peft", "torch", "bitsandbytes", "preftune"})
_NUMBERS: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def _of_this_process(hook: Any) -> str:
    """A unique name for a function, in this process and all others."""
    function = getattr(hook, "__func__", hook)  # a bound method is made anew each time that it is read
    owner = id(getattr(hook, "__self__", None))
    return f"{_NUMBERS.setdefault(function, uuid.uuid4().hex)} {owner}"


def completion_keys(
    prompt_ids: Sequence[int], completions: Sequence[Sequence[int]], scored: Sequence[Sequence[Span]] = ()
) -> list[bytes]:
    """Addresses of the scores of several completions of one prompt, under a given model and numerics: the tokens
    themselves, 16 bytes each. The prompt is hashed once, because this runs in every step.

    Args:
        scored: the scored tokens of each completion, as in `TokenizedGroup.scored`; empty if all are scored.
    """
    prompt = hashlib.blake2b(len(prompt_ids).to_bytes(4, "little"), digest_size=16)
    prompt.update(struct.pack(f"<{len(prompt_ids)}i", *prompt_ids))
    keys = []
    for index, completion in enumerate(completions):
        digest = prompt.copy()
        digest.update(struct.pack(f"<{len(completion)}i", *completion))
        if scored and scored[index]:  # the odd byte at the end tells this from the tokens of a longer completion
            spans = [edge for span in scored[index] for edge in span]
            digest.update(struct.pack(f"<{len(spans) + 1}ib", *spans, len(spans), 1))
        keys.append(digest.digest())
    return keys


def adapter_prefixes(model: nn.Module) -> tuple[str, ...]:
    """Parts of the names of adapter parameters (`lora_` and the like); empty for a model without adapters."""
    if not getattr(model, "peft_config", None):
        return ()
    prefix = getattr(getattr(model, "base_model", None), "prefix", None)
    known = {"lora_", "modules_to_save.", "trainable_tokens_", "prompt_encoder."}
    return tuple(sorted(known | ({prefix} if prefix else set())))


def is_adapter_parameter(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(prefix in name for prefix in prefixes)


def _relevant(config: Any) -> Any:
    if isinstance(config, dict):
        return {k: _relevant(v) for k, v in config.items() if k not in _IRRELEVANT}
    return config


def _tensors(model: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from sorted(model.named_parameters(), key=lambda item: _canonical(item[0]))
    for name, buffer in sorted(model.named_buffers(), key=lambda item: _canonical(item[0])):
        owner: Any = model.get_submodule(name.rpartition(".")[0])
        if not _follows_the_length(owner, name.rpartition(".")[2]):
            yield name, buffer


def _follows_the_length(module: Any, buffer: str) -> bool:
    """Whether a buffer is recomputed from others for the current sequence: tables of old rotary embeddings, and long
    rope's frequencies.
    """
    longrope = "longrope" in str(getattr(module, "rope_type", "")) and not buffer.endswith("original_inv_freq")
    return buffer in ("cos_cached", "sin_cached") or (longrope and buffer.endswith("inv_freq"))


def _canonical(name: str) -> str:
    """The parameter's name in the model without adapters."""
    for part in ("base_model.model.", ".base_layer", ".original_module"):
        name = name.replace(part, "")
    return name


def _update(digest: Any, tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(_bytes(tensor))
    state = getattr(tensor, "quant_state", None)  # bitsandbytes 4-bit: the codes alone do not make the weight
    if state is not None:
        for key, value in sorted(state.as_dict(packed=True).items()):
            digest.update(key.encode())
            digest.update(_bytes(value) if isinstance(value, Tensor) else str(value).encode())
    if (scales := getattr(tensor, "SCB", None)) is not None:  # bitsandbytes 8-bit
        digest.update(_bytes(scales))


def _bytes(tensor: Tensor) -> Any:
    flat = whole(tensor.detach()).contiguous().cpu().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else b""


def _stable(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)
