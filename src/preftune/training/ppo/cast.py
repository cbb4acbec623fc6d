"""The models of a run of PPO: adapters on one base where that is possible, separate models otherwise."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from preftune.errors import ConfigError, ModelError
from preftune.generation.generate import base_changed_by
from preftune.logps.states import trunk_of
from preftune.models.attach import adapter_config, locate_base
from preftune.models.locate import locate
from preftune.models.roles import (
    POLICY,
    VALUE,
    Scalar,
    adapter_parameters,
    load_trunk,
    on_this_base,
    reward_adapter,
    separate_value,
    value_adapter,
)
from preftune.models.same_weights import changed_weight
from preftune.training.online.scoring import as_spec
from preftune.training.setup.dropout import dropout_off


@dataclass
class Cast:
    """The roles besides the policy."""

    value: Scalar
    reward: Scalar | None
    """A reward that is an adapter on the policy's base; None if other judges rate the answers."""
    by_text: list[str]
    """Names of the other judges, which rate answers by their text."""
    trained: nn.Module
    """All modules that the optimiser changes."""
    value_parameters: list[nn.Parameter]
    reward_name: str = ""
    """Name of the reward on the policy's base; empty without one."""
    lines: list[str] = field(default_factory=list)
    """Descriptions for the log."""

    def value_state(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The value function's parameters by name, for checkpoints."""
        own = {id(parameter) for parameter in self.value_parameters}
        for name, parameter in self.trained.named_parameters():
            if id(parameter) in own:
                yield name, parameter


def cast_roles(model: Any, args: Any, rewards: Sequence[str], *, packed: bool) -> Cast:
    """The roles of a run, for a policy that is prepared.

    Args:
        model: the policy.
        args: the `PPOConfig`.
        rewards: names of what rates answers; empty if it was passed as an object.
        packed: whether the policy's engine packs.
    Raises:
        ConfigError: `value_init='reward'` without a reward on the policy's base.
        ModelError: the reward or value model cannot be loaded, or the policy's adapter excludes a second one.
    """
    lines = []
    specs = [as_spec(name) for name in rewards]
    places = [spec.partition(":")[2] for spec in specs if spec.startswith("reward:")]
    shared = len(specs) == 1 and len(places) == 1 and on_this_base(model, places[0])
    apart = _parts_the_base(model, places[0]) if shared else ""
    shared = shared and not apart
    reward = reward_adapter(model, places[0], packed=packed) if shared else None
    if reward is not None:
        lines.append(f"reward: {places[0]}, an adapter on the policy's own base.")
    elif rewards:
        why = f": {apart}" if apart else ""
        lines.append(f"reward: {', '.join(specs)}{f', a separate model{why}' if places else ''}.")
    if args.value_init == "reward" and reward is None:
        raise ConfigError(
            "value_init='reward' needs a reward model that is an adapter on the policy's base. Train one there "
            "(preftune reward --use_peft on the same model), or use value_init='zeros'."
        )
    value, line = _value(model, args, reward, packed=packed)
    parts: dict[str, nn.Module] = {"policy": model, "value_head": value.head}
    if hasattr(model, "peft_config") and args.value_model is None:
        names = set(adapter_parameters(model, VALUE))
        own = [parameter for name, parameter in model.named_parameters() if name in names]
    else:
        parts["value_trunk"] = value.trunk
        own = list(value.trunk.parameters())
    trained = nn.ModuleDict(parts)
    own = [*own, *value.head.parameters()]
    by_text = [] if shared else list(rewards)
    return Cast(value, reward, by_text, trained, own, places[0] if shared else "", [*lines, line])


def _parts_the_base(model: Any, reward: str) -> str:
    """The reason why a reward adapter cannot share the policy's base, although it names the same base; empty if it can.

    It cannot if one of the two adapters changes weights of the base: the reward would then give other scores, or the
    policy and its reference would differ from the model as received. Nor can it if PEFT cannot hold both adapters.
    """
    theirs = adapter_config(locate(reward).name)
    for whose, config in (("the policy's adapter", model.peft_config.get(POLICY)), ("its adapter", theirs)):
        if cause := base_changed_by(config):
            return f"{whose} changes the base ({cause})"
    if others := sorted(set(theirs.modules_to_save or ()) - {"score", "classifier"}):
        return f"it has its own {others[0]}"
    ours: Any = model.peft_config.get(POLICY)
    if getattr(ours, "peft_type", None) != theirs.peft_type:
        return "the type of its adapter differs from the policy's"
    if getattr(ours, "trainable_token_indices", None):
        return "the policy's adapter trains its own tokens"
    changed = changed_weight(model, locate_base(locate(reward)))
    return f"{changed} of the policy's base differs from its files" if changed else ""


def _value(model: Any, args: Any, reward: Scalar | None, *, packed: bool) -> tuple[Scalar, str]:
    device = model.get_input_embeddings().weight.device
    if args.value_model is not None:
        trunk, head = load_trunk(args.value_model, trust_remote_code=args.trust_remote_code)
        same = trunk.config.model_type == model.config.model_type  # type: ignore[union-attr]
        # trained weights are float32 (float64 in a float64 model)
        trunk = trunk.to(device, torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32)
        _as_trained(trunk, args)
        made = separate_value(trunk, packed=packed and same, head=head)
        return made, f"value: {args.value_model}, a separate model, all of it trained."
    if hasattr(model, "peft_config"):
        _check_adapter(model)
        like = reward if args.value_init in ("auto", "reward") else None
        made = value_adapter(model, packed=packed, like=like, dropout=not args.disable_dropout)
        begins = "starts as the reward's" if like is not None else "starts at 0"
        return made, f"value: an adapter on the policy's own base, which {begins}."
    trunk = copy.deepcopy(trunk_of(model))
    _as_trained(trunk, args)
    size = sum(parameter.numel() * parameter.element_size() for parameter in trunk.parameters()) / 2**30
    made = separate_value(trunk, packed=packed)
    return (
        made,
        f"value: a copy of the policy, all of it trained ({size:.2f} GiB more); an adapter would share its base.",
    )


def _check_adapter(model: Any) -> None:
    """Raises: ModelError if the policy's adapter excludes a second one for the value."""
    name = model.active_adapter
    if name != POLICY or not _bears_another(model.peft_config[POLICY]):
        kind = getattr(model.peft_config.get(name), "peft_type", "several")
        raise ModelError(
            f"the policy's adapter is {name!r} ({getattr(kind, 'value', kind)}), which excludes an adapter for "
            f"the value: it must be a LoRA adapter (or the like) called {POLICY!r}. Load it with preftune.load_model("
            "name, is_trainable=True), or name a value_model."
        )


def _bears_another(config: Any) -> bool:
    """Whether PEFT can load a second adapter next to this one, and train both."""
    alone = config.is_prompt_learning or str(getattr(config.peft_type, "value", config.peft_type)) == "ADALORA"
    return not (alone or getattr(config, "layer_replication", None))


def _as_trained(trunk: Any, args: Any) -> None:
    """Set dropout and activation checkpointing as for the policy, in place."""
    if args.disable_dropout:
        dropout_off(trunk)
    if args.activation_checkpointing:
        trunk.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


@contextmanager
def kept_off_disk(model: Any) -> Iterator[None]:
    """Within this context, a PeftModel saves and loads only the policy's adapter."""
    configs = getattr(model, "peft_config", None)
    if configs is None:
        yield
        return
    others = {name: configs.pop(name) for name in list(configs) if name != POLICY}
    try:
        yield
    finally:
        configs.update(others)
