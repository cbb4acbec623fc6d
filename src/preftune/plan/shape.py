"""Sizes of a model, read from its modules; a model on the meta device has them all and no memory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from preftune.errors import ModelError
from preftune.models.precision import is_packed, real_size

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
_USUAL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model and its adapter decides memory and work. Counts are of parameters."""

    layers: int
    width: int
    """D: numbers of a hidden state."""
    heads: int
    query_width: int
    """Query heads times their size."""
    key_width: int
    """Key heads times their size."""
    head_size: int
    inner: int
    """F: numbers inside an MLP; of experts, those of the active ones."""
    vocabulary: int
    trunk: int
    """Parameters that a token is multiplied with, outside embeddings, head and adapters."""
    head: int
    """D x V of the output head; 0 for a reward model."""
    stored: int
    """All parameters without the adapter."""
    linear: int
    """Of them, those that 4-bit loading packs: linear layers without the head."""
    trainable: int
    adapter: int
    """Parameters of the adapter; 0 in full fine-tuning."""
    largest_layer: int
    largest_layer_trainable: int
    root: int
    """Parameters outside the decoder layers."""
    root_trainable: int
    largest_weight: int
    """Parameters of the largest trained tensor."""
    norms: int
    """Norms of the hidden state in a layer."""
    norms_trained: bool
    has_head_norms: bool
    """Whether queries and keys are normalised."""
    fused_mlp: bool
    """Whether the MLP is one that the engine computes as one function."""
    narrow: int
    """Sum of the adapters' ranks in a layer."""
    adapted_inputs: int
    """Sum of the input sizes of the adapted linear layers in a layer."""
    usual: bool
    """Whether a layer is built as the formula of the activations assumes."""
    dtype: str
    """Number format of the checkpoint."""
    bits: int | None = None
    """4 or 8 for a checkpoint that is stored quantised."""
    nested: bool = False
    """Whether its scales are quantised too."""

    @property
    def full(self) -> bool:
        return self.adapter == 0

    def second_model(self) -> int:
        """Bytes of the model in half precision."""
        return 2 * self.stored


def shape_of(model: nn.Module, *, scores: bool = False, dtype: str | None = None) -> ModelShape:
    """Sizes of a model as it will be trained.

    Args:
        scores: whether a head of one number takes the place of the output head (reward models).
        dtype: number format of the checkpoint, if the model's config does not say it.
    Raises: ModelError if its config does not name the sizes.
    """
    whole: Any = model
    config: Any = getattr(whole, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    layers, width = getattr(text, "num_hidden_layers", None), getattr(text, "hidden_size", None)
    if not isinstance(layers, int) or not isinstance(width, int):
        raise ModelError("the model's config does not say num_hidden_layers and hidden_size: there is no plan for it.")
    heads = _whole(text, "num_attention_heads", 1)
    size = _whole(text, "head_dim", width // heads)
    head, embedding = _tables(whole)
    tables = {id(weight): weight.numel() for weight in (head, embedding) if weight is not None}
    left_out = head.numel() if scores and head is not None and head is not embedding else 0
    counts = _Counts.of(whole, text, tables=set(tables))
    usual = counts.usual
    inner = _whole(text, "intermediate_size", 4 * width)
    if experts := _whole(text, "num_experts_per_tok", 0):
        inner = experts * _whole(text, "moe_intermediate_size", inner)
    return ModelShape(
        layers=layers,
        width=width,
        heads=heads,
        query_width=heads * size,
        key_width=_whole(text, "num_key_value_heads", heads) * size,
        head_size=size,
        inner=inner,
        vocabulary=_whole(text, "vocab_size", 0),
        trunk=counts.active,
        head=0 if scores or head is None else head.numel(),
        stored=counts.stored - left_out,
        linear=counts.linear,
        trainable=counts.trainable - (left_out if counts.adapter == 0 else 0),
        adapter=counts.adapter,
        largest_layer=counts.largest_layer,
        largest_layer_trainable=counts.largest_layer_trainable,
        root=counts.root - left_out,
        root_trainable=counts.root_trainable - (left_out if counts.adapter == 0 else 0),
        largest_weight=counts.largest_weight,
        norms=counts.norms,
        norms_trained=counts.norms_trained,
        has_head_norms=counts.head_norms,
        fused_mlp=counts.fused_mlp,
        narrow=counts.narrow,
        adapted_inputs=counts.adapted_inputs,
        usual=usual and not experts,
        bits=_stored_bits(config),
        nested=bool(_quantisation(config).get("bnb_4bit_use_double_quant")),
        dtype=dtype
        or str(getattr(text, "dtype", None) or getattr(config, "dtype", None) or torch.float32).removeprefix("torch."),
    )


def _whole(config: Any, name: str, default: int) -> int:
    """A whole number of a config; some architectures have lists there, or nothing."""
    value = getattr(config, name, None)
    return value if isinstance(value, int) and value > 0 else default


def _quantisation(config: Any) -> dict[str, Any]:
    """How a checkpoint is stored quantised; empty for one that is not."""
    settings = getattr(config, "quantization_config", None)
    return settings if isinstance(settings, dict) else getattr(settings, "__dict__", {})


def _stored_bits(config: Any) -> int | None:
    """Bits of the linear layers of a checkpoint that is stored quantised."""
    facts = _quantisation(config)
    for bits in (4, 8):
        if facts.get(f"load_in_{bits}bit") or facts.get(f"_load_in_{bits}bit") or facts.get("bits") == bits:
            return bits
    return None


def _tables(model: Any) -> tuple[Any, Any]:
    """The weights of the output head and of the input embedding."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    found = []
    for name in ("get_output_embeddings", "get_input_embeddings"):
        module = getattr(base, name, lambda: None)()
        module = getattr(module, "original_module", module)
        found.append(getattr(module, "weight", None))
    return found[0], found[1]


@dataclass(slots=True)
class _Counts:
    """Sums over the parameters and modules of a model."""

    active: int = 0
    stored: int = 0
    linear: int = 0
    trainable: int = 0
    adapter: int = 0
    largest_layer: int = 0
    largest_layer_trainable: int = 0
    root: int = 0
    root_trainable: int = 0
    largest_weight: int = 0
    norms: int = 2
    norms_trained: bool = False
    head_norms: bool = False
    fused_mlp: bool = False
    narrow: int = 0
    adapted_inputs: int = 0
    usual: bool = False

    @classmethod
    def of(cls, model: nn.Module, text: Any, *, tables: set[int]) -> _Counts:
        counts = cls()
        counts._add_parameters(model, text, tables)
        counts._add_first_layer(model)
        counts.adapter = counts.adapter if hasattr(model, "peft_config") else 0
        return counts

    def _add_parameters(self, model: nn.Module, text: Any, tables: set[int]) -> None:
        of_layers: dict[str, list[int]] = {}
        experts = _whole(text, "num_experts", 0) or _whole(text, "num_local_experts", 0)
        share = _whole(text, "num_experts_per_tok", 1) / experts if experts else 1.0
        for name, parameter in model.named_parameters():
            size = real_size(parameter)
            trained = size if parameter.requires_grad else 0
            place = _LAYER.search(name)
            if place is None:
                self.root, self.root_trainable = self.root + size, self.root_trainable + trained
            else:
                layer = of_layers.setdefault(place[1], [0, 0])
                layer[0], layer[1] = layer[0] + size, layer[1] + trained
            self.trainable += trained
            self.largest_weight = max(self.largest_weight, trained)
            if "lora_" in name or ".modules_to_save." in name or (trained and hasattr(model, "peft_config")):
                self.adapter += size
                continue
            self.stored += size
            if id(parameter) not in tables:
                self.active += round(size * share) if "experts" in name else size
                if (parameter.ndim == 2 or is_packed(parameter)) and place is not None:
                    self.linear += size
        self.largest_layer = max((layer[0] for layer in of_layers.values()), default=0)
        self.largest_layer_trainable = max((layer[1] for layer in of_layers.values()), default=0)

    def _add_first_layer(self, model: nn.Module) -> None:
        first: dict[str, Any] = {}
        for name, module in model.named_modules():
            place = _LAYER.search(f"{name}.")
            if place is not None and place[1] == "0":
                first[name] = module
        names = {name.rpartition(".")[2] for name in first}
        direct = [name for name in first if name.rpartition(".")[2].endswith(("norm", "layernorm", "ln_1", "ln_2"))]
        inside = [
            name for name in direct if "attn" in name.rpartition(".")[0] or "attention" in name.rpartition(".")[0]
        ]
        self.head_norms = any(name.rpartition(".")[2] in ("q_norm", "k_norm") for name in inside)
        self.norms = len(direct) - len(inside) or 2
        self.norms_trained = any(p.requires_grad for name in direct for p in first[name].parameters())
        for module in first.values():
            if hasattr(module, "lora_A") and hasattr(module, "r"):
                ranks = [int(rank) for rank in module.r.values()]
                self.narrow += sum(ranks)
                self.adapted_inputs += int(getattr(module, "in_features", 0)) * bool(ranks)
        acts = [type(m).__name__ for name, m in first.items() if name.endswith("act_fn")]
        self.fused_mlp = set(_USUAL[4:]) <= names and bool(acts) and acts[0] in ("SiLU", "SiLUActivation")
        self.usual = set(_USUAL) <= names and self.fused_mlp and self.norms == 2
