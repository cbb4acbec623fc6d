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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from preftune.errors import PreftuneError
from preftune.logps.layers.rope import unscaled_rope
from preftune.models.load import meta_copy
from preftune.models.shards import whole
from preftune.own_code import is_plain, of_a_library, own_functions, written
from preftune.reference.module_settings import (
    canonical,
    changed_settings,
    is_adapter_layer,
    plain_attributes,
    settings_of,
)
from preftune.types import Span

NUMERICS_VERSION = 2
"""Increased whenever a change in preftune changes scores by more than rounding."""

FINGERPRINT_VERSION = 8
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
_NUMBERED = re.compile(r"\d+")


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
    return fingerprints(model)[adapters]


def fingerprints(model: nn.Module) -> tuple[str, str]:
    """`fingerprint` without adapters and with them; the weights, which take the time, are read once."""
    unscaled_rope(model)
    digest = xxhash.xxh3_128()
    digest.update(_config_of(model).encode())
    prefixes = adapter_prefixes(model)
    of_adapters = []
    for name, tensor in _tensors(model):
        if is_adapter_parameter(name, prefixes):
            of_adapters.append((name, tensor))
        else:
            digest.update(canonical(name).encode())
            _update(digest, tensor)
    for fact in _facts_of_base(model):
        digest.update(fact.encode())
    without = digest.hexdigest()
    for name, tensor in of_adapters:
        digest.update(canonical(name).encode())
        _update(digest, tensor)
    for fact in _facts_of_adapters(model):
        digest.update(fact.encode())
    return without, digest.hexdigest()


def settings_of_model(model: nn.Module) -> str:
    """What `fingerprint` reads besides the weights: configs, settings of modules, hooks, adapters and their states."""
    return "\n".join((_config_of(model), *_facts_of_base(model), *_facts_of_adapters(model)))


def _base_of(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _config_of(model: nn.Module) -> str:
    return json.dumps(_relevant(_base_of(model).config.to_dict()), sort_keys=True, default=str)


def _facts_of_base(model: nn.Module) -> Iterator[str]:
    base = _base_of(model)
    yield from (*_settings_changed_in(base), *_hooks_of(base), *_own_code_of(base))
    yield from _shared_layers_of(model, adapter_prefixes(model))


def _facts_of_adapters(model: nn.Module) -> Iterator[str]:
    """Nothing for a model without adapters."""
    configs: Any = getattr(model, "peft_config", None)
    if not configs:
        return
    for name, config in sorted(configs.items()):
        relevant = {k: v for k, v in config.to_dict().items() if k not in _IRRELEVANT_OF_ADAPTERS}
        yield name + json.dumps(relevant, sort_keys=True, default=_stable)
    yield str(getattr(model, "active_adapters", ""))
    yield from _states_of_adapters(model)


def _shared_layers_of(model: nn.Module, prefixes: tuple[str, ...]) -> Iterator[str]:
    """The places of layers that share weights, of which `_tensors` knows only the first; adapters are not among them.

    Args:
        prefixes: those of adapters' parameters.
    """
    places: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not is_adapter_parameter(name, prefixes):
            places.setdefault(id(parameter), []).append(canonical(name))
    for names in places.values():
        if len(names) > 1 and len({_NUMBERED.sub("#", name) for name in names}) == 1:  # not an embedding and its head
            yield " = ".join(names)


def _states_of_adapters(model: nn.Module) -> Iterator[str]:
    """The state of PEFT's modules besides their weights: on or off, merged, active, scaled, and their settings."""
    module: Any
    layers: set[str] = set()
    for at, tokens in sorted(getattr(model, "prompt_tokens", {}).items()):
        yield f"prompt_tokens {at} {xxhash.xxh3_128(_bytes(tokens)).hexdigest()}"
    for name, module in model.named_modules():
        if is_adapter_layer(module):
            layers.add(name)
            yield f"{name} {not module.disable_adapters and list(module.active_adapters)}"
        elif not _is_inside(name, layers) and not type(module).__module__.startswith("peft.tuners."):
            continue
        yield from (f"{name} {key} {value}" for key, value in plain_attributes(module))
        for key, table in sorted(vars(module).items()):
            if isinstance(table, dict) and not key.startswith("_"):
                yield from (f"{name} {key} {at} {value}" for at, value in sorted(table.items()) if is_plain(value))
                places = [(at, t) for at, t in table.items() if isinstance(t, Tensor) and not t.is_floating_point()]
                yield from (f"{key} {at} {xxhash.xxh3_128(_bytes(t)).hexdigest()}" for at, t in sorted(places))


def _is_inside(name: str, layers: set[str]) -> bool:
    """Whether a module is part of one of PEFT's layers, and not of the layer that this one is put around."""
    parts = name.split(".")
    owned = (i for i in range(1, len(parts)) if ".".join(parts[:i]) in layers)
    return any(parts[i] not in ("base_layer", "original_module") for i in owned)


def _settings_changed_in(base: Any) -> Iterator[str]:
    """Settings of modules that the configuration does not make. A class that cannot be built again from its
    configuration is compared with nothing: its numbers count, and nothing that may count steps or tokens.
    """
    try:
        made = meta_copy(base, None)
    except PreftuneError:
        found = {name: value for name, value in settings_of(base).items() if isinstance(value, float)}
    else:
        found = {name: value for name, (value, _) in changed_settings(base, made).items()}
    yield from (f"{name}={value!r}" for name, value in sorted(found.items()))
    for name, module in base.named_modules():  # tensors that are no buffers, of layers and of PEFT's
        tensors = ((key, value) for key, value in vars(module).items() if isinstance(value, Tensor))
        for key, value in sorted(tensors):
            if not key.startswith("_") and not _follows_the_length(module, key):
                yield f"{canonical(name)} {key} {xxhash.xxh3_128(_bytes(value)).hexdigest()}"


def _hooks_of(model: nn.Module) -> Iterator[str]:
    """Hooks of a module, which may change its result. A function's behaviour cannot be determined, so it is identified
    by itself: a model with a hook shares no score with another process. Hooks of libraries that move weights, and
    preftune's own, do not change values.
    """
    for name, module in sorted(model.named_modules(), key=lambda item: canonical(item[0])):
        for kind in ("_forward_hooks", "_forward_pre_hooks"):
            for hook in getattr(module, kind).values():
                if not of_a_library(hook):
                    yield f"{canonical(name)} {kind} {_of_this_process(hook)} {written(hook)}"


def _own_code_of(model: nn.Module) -> Iterator[str]:
    """The code of modules that no library wrote (a subclass, a module with a function of its own, code that came with a
    model), and the values that they hold as attributes or name.
    """
    for name, module in sorted(model.named_modules(), key=lambda item: canonical(item[0])):
        found = own_functions(module)
        replaced = vars(module).get("forward")
        maker = str(getattr(replaced, "__module__", None) or type(replaced).__module__).partition(".")[0]
        if replaced is not None and name and maker not in ("accelerate", "preftune"):  # they change no value
            found.append(f"forward {written(replaced)}")
        if found:
            held = ((key, value) for key, value in vars(module).items() if key not in _LABELS and is_plain(value))
            yield from (f"{canonical(name)} {fact}" for fact in (*found, *(f"{k}={v!r}" for k, v in sorted(held))))


_LABELS = frozenset({"training", "model_tags", "name_or_path"})
"""Attributes that change no score; trainers set them."""
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
    yield from sorted(model.named_parameters(), key=lambda item: canonical(item[0]))
    for name, buffer in sorted(model.named_buffers(), key=lambda item: canonical(item[0])):
        owner: Any = model.get_submodule(name.rpartition(".")[0])
        if not _follows_the_length(owner, name.rpartition(".")[2]):
            yield name, buffer


def _follows_the_length(module: Any, buffer: str) -> bool:
    """Whether a buffer is recomputed from others for the current sequence: tables of old rotary embeddings, and long
    rope's frequencies.
    """
    longrope = "longrope" in str(getattr(module, "rope_type", "")) and not buffer.endswith("original_inv_freq")
    return buffer in ("cos_cached", "sin_cached") or (longrope and buffer.endswith("inv_freq"))


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
