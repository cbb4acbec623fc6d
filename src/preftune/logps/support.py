"""Whether the packed engine is exact for a model, tested on a small random twin of the model's config.

Some architectures accept an attention implementation and never call it, some drop keyword arguments, some apply their
window or chunks only in the mask, and long-rope variants depend on the longest position of the whole batch. A config
does not show this, but a run of a twin with tiny windows, chunks and rope limits does."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from preftune.errors import PreftuneError
from preftune.logps.batch import pack
from preftune.logps.engine import Engine, EngineName, LayersNotReachedError, make_engine
from preftune.logps.naive import naive_logps
from preftune.types import Preference, TokenizedGroup

_VOCABULARY = 96
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LIMIT = 7  # windows, chunks and original rope lengths of the twin: shorter than its longest group
TOLERANCE = 2e-4
_NAMES = ("_name_or_path", "base_model_name_or_path")
"""Entries of a config that say where a model is, not what it is."""
_EXACT: set[tuple[Any, ...]] = set()
"""Kinds of models that were tried in this process and found exact."""


@dataclass(frozen=True, slots=True)
class Support:
    """Whether packing and prompt sharing are exact for a model, and if not, why not."""

    exact: bool
    reason: str = ""
    fallback: Literal["separate", "naive"] = "separate"
    """The alternative: separate sequences, or the naive path if the head is not supported."""

    def check(self, name: EngineName) -> None:
        """Raises: PreftuneError if the packed engine was requested and is not exact."""
        if not self.exact and name == "packed":
            raise PreftuneError(
                f"engine='packed' was requested, but it is not exact for this model: {self.reason}. Use engine='auto', "
                f"which falls back to {self.fallback!r}."
            )


def supports(model: nn.Module) -> Support:
    """Tries the packed engine on a two-layer random twin of the model and compares it with the eager path.

    It runs on the CPU in float32 and takes well under a second for ordinary widths; a kind of model that was found
    exact is not tried again in this process. The global random state is not changed."""
    if reason := obstacle(model):
        return Support(False, reason)
    kind = _kind(model)
    if kind in _EXACT:
        return Support(True)
    support = _tried(model)
    if support.exact:
        _EXACT.add(kind)
    return support


def _kind(model: Any) -> tuple[Any, ...]:
    """All that the trial reads of a model: its config, its adapters, and the code of its layers."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = {key: value for key, value in base.config.to_dict().items() if key not in _NAMES}
    adapters = getattr(model, "peft_config", None) or {}
    return (
        type(model),
        type(base),
        json.dumps(config, sort_keys=True, default=str),
        *(
            (name, str(sorted((k, v) for k, v in one.to_dict().items() if k not in _NAMES)))
            for name, one in adapters.items()
        ),
        str(getattr(model, "active_adapter", None)),
        frozenset(_adapted_leaves(model)) if adapters else None,
        frozenset((type(module), type(module).forward) for module in model.modules()),
    )


def _tried(model: nn.Module) -> Support:
    twin, failure = None, ""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), quietly():
        torch.manual_seed(0)
        for shrink_width in (True, False):
            try:
                twin = random_twin(model, shrink_width=shrink_width)
                break
            except Exception as error:  # a config may refuse any of the changes; its own words are the reason
                failure = f"no small twin of its config could be built ({type(error).__name__}: {short(error)})"
        if twin is None:
            return Support(False, failure)
        try:
            twin = with_adapters(twin, model)
        except Exception as error:
            return Support(False, f"its adapter could not be tried on a small twin ({short(error)})")
        head = _difference(twin, "separate")
        if head is not None:
            return Support(False, f"its head does more than preftune supports: separate scoring {head}", "naive")
        packed = _difference(twin, "packed")
        return Support(True) if packed is None else Support(False, packed)


def choose_engine(model: nn.Module, name: EngineName = "auto") -> tuple[Engine, Support]:
    """The engine for a model: packed if that is exact, separate sequences otherwise; or the requested one."""
    if name in ("naive", "separate"):
        return make_engine(model, name), Support(False, f"engine={name!r} was requested", name)
    support = supports(model)
    support.check(name)
    return make_engine(model, "packed" if support.exact else support.fallback), support


@contextmanager
def quietly() -> Iterator[None]:
    """Silences transformers' messages about the twin's config, which is deliberately unusual."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)


def obstacle(model: nn.Module) -> str:
    """A known obstacle to packing, found without a trial; empty if there is none."""
    for name, config in (getattr(model, "peft_config", None) or {}).items():
        if getattr(config, "is_prompt_learning", False):
            return f"adapter {name!r} ({config.peft_type}) adds virtual tokens to every sequence"
        if getattr(config, "alora_invocation_tokens", None):
            return f"adapter {name!r} (aLoRA) starts at its invocation tokens, which it searches for once in every row"
        if getattr(config, "layer_replication", None):
            return f"adapter {name!r} uses copies of layers (layer_replication), which have their own attention"
    return neighbours_in_quantisation(model)


def neighbours_in_quantisation(model: nn.Module) -> str:
    """Whether a quantised layer's result for a row of its input depends on the other rows, tested on the layers
    themselves: an independent layer gives the same bits for the same shapes.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    if not (getattr(base, "is_quantized", False) or getattr(base, "is_loaded_in_8bit", False)):
        return ""
    tried: set[tuple[type, str]] = set()
    for name, module in model.named_modules():
        layer: Any = getattr(module, "base_layer", module)
        weight = getattr(layer, "weight", None)
        if type(layer) is nn.Linear or not isinstance(weight, torch.Tensor) or not hasattr(layer, "in_features"):
            continue
        leaf = name.removesuffix(".base_layer").rpartition(".")[2]
        if (type(layer), leaf) not in tried:
            tried.add((type(layer), leaf))
            if weight.device.type != "meta" and _sees_neighbours(layer):
                return (
                    f"{type(layer).__name__} layers quantise a token depending on the rest of its row (outliers, "
                    "scales of a whole tensor)"
                )
    return ""


def _sees_neighbours(layer: Any) -> bool:
    generator = torch.Generator().manual_seed(0)
    dtype = next((p.dtype for p in layer.parameters() if p.dtype in _FLOATS), torch.float32)
    x = torch.randn(8, layer.in_features, generator=generator)
    outliers = x.clone()
    outliers[4:, ::3] *= 100
    try:
        with torch.no_grad():
            plain, beside = (layer(rows.to(layer.weight.device, dtype))[:4].float() for rows in (x, outliers))
    except Exception:
        return True  # what cannot be tried is not packed
    return bool((plain - beside).abs().max() > 1e-4 * plain.abs().max())


def with_adapters(twin: Any, model: Any) -> Any:
    """The twin with random adapters of the model's kind; unchanged if the model has none.

    Layers that an adapter names by number may be missing in the twin, so it is put on all layers of the same names.
    """
    configs = getattr(model, "peft_config", None) or {}
    if not configs:
        return twin
    leaves = _adapted_leaves(model)
    for index, (name, given) in enumerate(configs.items()):
        config = copy.deepcopy(given)
        _set(config, layers_to_transform=None, layers_pattern=None, exclude_modules=None, inference_mode=False)
        if leaves and getattr(config, "target_modules", None) is not None:
            config.target_modules = leaves
        if isinstance(getattr(config, "init_lora_weights", None), str):
            config.init_lora_weights = False  # PiSSA and the like change the base, which is random here
        if getattr(config, "trainable_token_indices", None):
            config.trainable_token_indices = [3, 4]
        if index == 0:
            twin = type(model)(twin, config, adapter_name=name)
        else:
            twin.add_adapter(name, config)
    active = getattr(model, "active_adapter", None)
    if isinstance(active, str):
        twin.set_adapter(active)
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.requires_grad and parameter.ndim >= 2:
                parameter.add_(torch.randn_like(parameter), alpha=0.2 * parameter.shape[-1] ** -0.5)
    return twin.eval()


def _adapted_leaves(model: Any) -> set[str]:
    return {name.rpartition(".")[2] for name in getattr(model.base_model, "targeted_module_names", [])}


def _difference(twin: Any, name: Literal["separate", "packed"]) -> str | None:
    """The engine's error on the twin, in words; None if it agrees with the eager path."""
    try:
        groups = trial_groups()
        twin.set_attn_implementation("eager")
        with torch.no_grad():
            # one sequence at a time: what neighbours do to each other must show
            expected = naive_logps(twin, pack(groups))
            engine = make_engine(twin, name)
            scored = engine(twin, pack(groups)).token_logps_T
    except LayersNotReachedError as error:
        return (
            f"{error.layers - error.calls} of {error.layers} layers do not use the attention interface (state-space, "
            "linear-attention or hybrid layers, or a custom architecture)"
        )
    except PreftuneError as error:
        return str(error)
    except Exception as error:
        return f"fails ({type(error).__name__}: {short(error)})"
    difference = float((expected - scored).abs().max())
    if difference <= TOLERANCE:
        return None
    what = "packing changes its scores" if name == "packed" else "changes its scores"
    return f"{what} (by {difference:.2g} nat on a random twin)"


def trial_groups() -> list[TokenizedGroup]:
    """Three groups of very different lengths; the second has three completions, the last is longer than any limit."""
    generator = torch.Generator().manual_seed(1)

    def ids(count: int) -> list[int]:
        return torch.randint(3, _VOCABULARY, (count,), generator=generator).tolist()

    sizes = [(3, (2, 1)), (5, (4, 2, 6)), (13, (9, 3))]
    return [
        TokenizedGroup(ids(prompt), tuple(ids(n) for n in completions), (Preference(0, 1),), id=str(index))
        for index, (prompt, completions) in enumerate(sizes)
    ]


def random_twin(model: Any, *, shrink_width: bool) -> Any:
    """A tiny random model of the same architecture, with one layer of every kind (at least two), in eval mode."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = copy.deepcopy(base.config)
    for attribute in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, attribute):
            delattr(config, attribute)
    text = config.get_text_config()
    _one_layer_of_each_kind(text)
    _set(text, vocab_size=_VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    _limit(text)
    _set(text, num_local_experts=4, num_experts=4, n_routed_experts=4, num_experts_per_tok=2)
    _set(text, intermediate_size=48, moe_intermediate_size=32, shared_expert_intermediate_size=32)
    if shrink_width:
        _narrow(text)
    config.dtype = torch.float32
    twin = type(base)(config).float().eval()
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if parameter.ndim >= 2:
                # strong enough that a leak between groups moves a score by far more than rounding does
                parameter.normal_(0.0, 1.5 * parameter.shape[-1] ** -0.5)
            elif "norm" not in name:
                parameter.normal_(0.0, 0.3)
    return twin


def _one_layer_of_each_kind(text: Any) -> None:
    layers = text.num_hidden_layers
    per_layer = {
        key: value for key, value in vars(text).items() if isinstance(value, list | tuple) and len(value) == layers
    }
    kinds: dict[str, int] = {}
    for layer in range(layers):
        kinds.setdefault(repr([value[layer] for value in per_layer.values()]), layer)
    chosen = list(kinds.values())[:4]
    chosen = (chosen * 2)[: max(2, len(chosen))]
    for key, value in per_layer.items():
        setattr(text, key, type(value)(value[layer] for layer in chosen))
    text.num_hidden_layers = len(chosen)


def _limit(text: Any) -> None:
    _set(text, sliding_window=_LIMIT, attention_chunk_size=_LIMIT, original_max_position_embeddings=_LIMIT)
    for rope in _rope_dicts(getattr(text, "rope_parameters", None)):
        if "original_max_position_embeddings" in rope:
            rope["original_max_position_embeddings"] = _LIMIT
        if "dynamic" in str(rope.get("rope_type")):  # scales by the longest sequence beyond this
            _set(text, max_position_embeddings=_LIMIT)


def _rope_dicts(rope: Any) -> list[dict[str, Any]]:
    """`rope_parameters` is one dict, or one per layer type."""
    if not isinstance(rope, dict):
        return []
    nested = [value for value in rope.values() if isinstance(value, dict)]
    return nested or [rope]


def _narrow(text: Any) -> None:
    """Fewer heads of the same size, in the same proportion: errors of packing depend on neither."""
    heads, keys = text.num_attention_heads, getattr(text, "num_key_value_heads", None)
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    share = heads // keys if keys else 1
    new_keys = 1 if keys == 1 else 2
    new_heads = new_keys * min(share, 4) if keys else 2
    if heads <= new_heads:
        return
    _set(text, num_attention_heads=new_heads, num_key_value_heads=new_keys, hidden_size=new_heads * head_dim)


def _set(text: Any, **values: Any) -> None:
    for key, value in values.items():
        if getattr(text, key, None) is not None or key in ("pad_token_id",):
            setattr(text, key, value)


def short(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:160] if text else "no message"
