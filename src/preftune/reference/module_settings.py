"""Plain attributes of modules that a forward pass may read, compared with what the model's configuration makes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from preftune.own_code import is_plain, written

# Of training and dropout, which are off when scores are computed; sizes, which the weights have; names and labels; the
# longest sequence so far.
_NO_SETTINGS = frozenset(
    "training gradient_checkpointing p padding_idx num_embeddings out_features vocab_size num_labels "
    "name_or_path model_tags loss_type forward".split()
)
_NO_SETTING_ENDS = ("seq_len_cached", "dropout", "dropout_prob", "layerdrop", "jitter_noise")
_ACTIVATIONS = ("act", "act_fn", "activation_fn", "activation")
_MISSING = object()


def settings_of(model: nn.Module) -> dict[str, Any]:
    """Switches, counts, scales, epsilons and functions that modules hold as attributes, and the activation functions
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
    """Public attributes of one module that a forward pass may read and that are plain values, or functions by what is
    written there; sorted by name.
    """
    for key, value in sorted(vars(module).items()):
        left_out = key.startswith("_") or key in _NO_SETTINGS or key.endswith(_NO_SETTING_ENDS)
        if not left_out and is_plain(value):
            yield key, value
        elif not left_out and callable(value) and not isinstance(value, nn.Module | type):
            yield key, written(value)


def changed_settings(model: nn.Module, made: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Settings in which a model differs from another one of its class: name -> (its value, the other's)."""
    theirs = settings_of(made)
    modules = {canonical(name): module for name, module in made.named_modules()}
    changed: dict[str, tuple[Any, Any]] = {}
    for name, module in model.named_modules():
        other = modules.get(canonical(name))
        if other is not None and not is_adapter_layer(module) and not isinstance(module, type(other)):
            changed[f"{canonical(name)} is"] = (type(module).__qualname__, type(other).__qualname__)
    for name, value in settings_of(model).items():
        owner, _, key = name.rpartition(".")
        expected = theirs[name] if name in theirs else getattr(modules.get(owner), key, _MISSING)
        if expected is not _MISSING and value != expected:
            changed[name] = (value, expected)
    return dict(sorted(changed.items()))


def canonical(name: str) -> str:
    """The name of a parameter or module in the model without adapters."""
    for part in ("base_model.model.", ".base_layer", ".original_module"):
        name = name.replace(part, "")
    return name


def is_adapter_layer(module: nn.Module) -> bool:
    """Whether a module is a PEFT layer around another layer; whole models have a method of the same name."""
    return isinstance(getattr(type(module), "disable_adapters", None), property)
