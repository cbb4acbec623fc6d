"""Plain attributes of modules that a forward pass may read, compared with what the model's configuration makes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

# Of training and dropout, which are off when scores are computed; sizes, which the weights have; names and labels; the
# longest sequence so far.
_NO_SETTINGS = frozenset(
    "training gradient_checkpointing p padding_idx num_embeddings out_features vocab_size num_labels "
    "name_or_path model_tags loss_type".split()
)
_NO_SETTING_ENDS = ("seq_len_cached", "dropout", "dropout_prob", "layerdrop", "jitter_noise")
_ACTIVATIONS = ("act", "act_fn", "activation_fn", "activation")
_PLAIN = (bool, int, float, str, type(None))
_MISSING = object()


def settings_of(model: nn.Module) -> dict[str, Any]:
    """Switches, counts, scales and epsilons that modules hold as plain attributes, and the activation functions
    (`NAME is`), by their names in the model without adapters. PEFT's layers are left out.
    """
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        if is_adapter_layer(module):
            continue
        found.update((f"{canonical(name)}.{key}", value) for key, value in plain_attributes(module))
        if name.rpartition(".")[2] in _ACTIVATIONS:
            found[f"{canonical(name)} is"] = f"{type(module).__qualname__}({module.extra_repr()})"
    return found


def plain_attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Public attributes of one module that a forward pass may read and that are plain values, sorted by name."""
    for key, value in sorted(vars(module).items()):
        left_out = key.startswith("_") or key in _NO_SETTINGS or key.endswith(_NO_SETTING_ENDS)
        if not left_out and is_plain(value):
            yield key, value


def changed_settings(model: nn.Module, made: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Settings in which a model differs from another one of its class: name -> (its value, the other's)."""
    theirs = settings_of(made)
    modules = {canonical(name): module for name, module in made.named_modules()}
    changed = {}
    for name, value in sorted(settings_of(model).items()):
        owner, _, key = name.rpartition(".")
        other = theirs[name] if name in theirs else getattr(modules.get(owner), key, _MISSING)
        if other is not _MISSING and value != other:
            changed[name] = (value, other)
    return changed


def canonical(name: str) -> str:
    """The name of a parameter or module in the model without adapters."""
    for part in ("base_model.model.", ".base_layer", ".original_module"):
        name = name.replace(part, "")
    return name


def is_adapter_layer(module: nn.Module) -> bool:
    """Whether a module is a PEFT layer around another layer; whole models have a method of the same name."""
    return isinstance(getattr(type(module), "disable_adapters", None), property)


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a switch, a text, None, or a list of them."""
    if isinstance(value, tuple | list):
        return all(map(is_plain, value))
    return isinstance(value, _PLAIN)
