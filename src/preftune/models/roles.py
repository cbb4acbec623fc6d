"""The roles of reinforcement learning on one base model: policy, value and reward are adapters and small heads on it.

    policy      the adapter that is trained and saved (PEFT's "default")
    value       an adapter and a linear head: predicts an answer's return before each of its tokens
    reward      a trained reward model's adapter and head, frozen
    reference   all adapters off (or a copy of the trainable weights): `preftune.reference`

A role may also be a separate model; then it has its own trunk and no adapter is switched.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from preftune.errors import ModelError
from preftune.logps.batch import PackedBatch
from preftune.logps.layers.fast_layers import quicken
from preftune.logps.states import completion_states, prepare_trunk, read_head, token_states, trunk_of
from preftune.models.attach import adapter_config, locate_base
from preftune.models.load import load_pretrained
from preftune.models.locate import Location, locate
from preftune.models.quiet import quiet_peft

POLICY = "default"
VALUE = "preftune_value"
REWARD = "preftune_reward"
"""Names of adapters. preftune's two names collide with no module's name."""


class Scalar:
    """One number for a token or an answer: a linear head with one output on the states of a trunk."""

    def __init__(
        self,
        trunk: nn.Module,
        head: nn.Linear,
        *,
        packed: bool,
        acting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """
        Args:
            packed: whether the trunk computes packed rows exactly, as the policy's engine does.
            acting: context in which a shared trunk computes with this role's adapter. The backward pass must run in it
                too, because gradient checkpointing computes the layers again.
        """
        self.trunk, self.head, self.packed, self.acting = trunk, head, packed, acting

    def of_tokens(self, batch: PackedBatch) -> Tensor:
        """(T,) float32 (float64 for a float64 model): a number for the state before each scored token."""
        return self._read(token_states(self.trunk, batch, packed=self.packed))

    def of_completions(self, batch: PackedBatch) -> Tensor:
        """(K,): a number for each completion, read at its last token."""
        return self._read(completion_states(self.trunk, batch, packed=self.packed))

    def _read(self, states_ND: Tensor) -> Tensor:
        return read_head(self.head, states_ND)


def base_of(model: Any) -> str:
    """The name or folder of the base weights of a model with adapters; "" if there is none."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    return str(getattr(whole.config, "_name_or_path", "") or "")


def on_this_base(model: Any, reward: str) -> bool:
    """Whether a saved reward model is an adapter on the same base as this model's adapter."""
    place = locate(reward)
    if not hasattr(model, "disable_adapter") or place.kind != "adapter" or not base_of(model):
        return False
    theirs = locate_base(place)
    ours = locate(base_of(model))
    if theirs.kind != ours.kind:
        return False
    if theirs.kind == "hub":
        return theirs.name == ours.name
    return Path(theirs.name).resolve() == Path(ours.name).resolve()


@contextmanager
def acting_as(model: Any, adapter: str) -> Iterator[None]:
    """Context in which the model computes with only this adapter; the set of trainable weights does not change.

    PEFT's `set_adapter` would freeze the inactive adapters, and train the active one.
    """
    before = model.active_adapter
    if before == adapter:
        yield
        return
    with trained_as_it_was(model):
        model.set_adapter(adapter)
    try:
        yield
    finally:
        with trained_as_it_was(model):
            model.set_adapter(before)


@contextmanager
def trained_as_it_was(model: nn.Module) -> Iterator[None]:
    """Restores the set of trainable weights afterwards."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)


def value_adapter(model: Any, *, packed: bool, like: Scalar | None = None, dropout: bool = False) -> Scalar:
    """A value function on the base of a PeftModel: an adapter of the policy's shape, and a head.

    It starts as the base with a head of zeros, so that all values are 0; or as a copy of a reward model on the same
    base, as in Ouyang et al. 2022 (arXiv:2203.02155), appendix C.4.

    Args:
        like: a reward on this base.
        dropout: keep the dropout of the adapter that gives this one its shape.
    """
    config = copy.deepcopy(model.peft_config[POLICY if like is None else REWARD])
    config.modules_to_save = None
    config.init_lora_weights = True
    config.bias = "none"
    config.inference_mode = False
    if not dropout and hasattr(config, "lora_dropout"):
        config.lora_dropout = 0.0
    _add(model, VALUE, config, trained=True)
    if like is not None:
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name in adapter_parameters(model, REWARD):
                parameters[name.replace(f".{REWARD}", f".{VALUE}")].copy_(parameters[name])
    head = _head(trunk_of(model), None if like is None else like.head)
    return Scalar(trunk_of(model), head, packed=packed, acting=lambda: acting_as(model, VALUE))


def reward_adapter(model: Any, name: str, *, packed: bool) -> Scalar:
    """Loads a saved reward model's adapter and head on the base of this model, frozen.

    Args:
        name: a folder that `RewardTrainer` saved, an adapter on the same base (`on_this_base`).
    Raises:
        ModelError: it holds no head of one output, or its adapter does not fit.
    """
    from peft import set_peft_model_state_dict
    from peft.utils import load_peft_weights

    place = locate(name)
    config = adapter_config(place.name)
    state = load_peft_weights(place.name, device="cpu")
    heads = {key: weight for key, weight in state.items() if ".score." in f".{key}" and "lora_" not in key}
    weight = next((weight for key, weight in heads.items() if key.endswith("weight")), None)
    if weight is None or weight.shape[0] != 1:
        raise ModelError(
            f"{name} is an adapter without a head of one score, so it is not a reward model. Give the output of "
            "preftune reward, or a sequence classifier with one label."
        )
    config.modules_to_save, config.task_type, config.inference_mode = None, "CAUSAL_LM", True
    _add(model, REWARD, config, trained=False)
    rest = {key: tensor for key, tensor in state.items() if key not in heads}
    report: Any = set_peft_model_state_dict(model, rest, adapter_name=REWARD)
    if report.unexpected_keys:
        raise ModelError(
            f"The adapter of {name} does not fit this base ({report.unexpected_keys[0]} has no place in it). Give a "
            "reward model that was trained on the same base."
        )
    head = _head(trunk_of(model), None)
    with torch.no_grad():
        head.weight.copy_(weight)
    head.requires_grad_(False)
    return Scalar(trunk_of(model), head, packed=packed, acting=lambda: acting_as(model, REWARD))


def separate_value(trunk: nn.Module, *, packed: bool, head: nn.Linear | None = None) -> Scalar:
    """A value function with its own trunk, all of it trained.

    Args:
        head: initial head, of a reward model; by default zeros.
    """
    trunk.requires_grad_(True)
    prepare_trunk(trunk, packed=packed)
    return Scalar(trunk, _head(trunk, head), packed=packed)


def load_trunk(name: str, *, trust_remote_code: bool = False) -> tuple[nn.Module, nn.Linear | None]:
    """The trunk of a saved model, and its head if it is a classifier with one label (a reward model).

    Raises:
        ModelError: there is no such model, or it is an adapter.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    place: Location = locate(name)
    if place.kind not in ("folder", "hub"):
        raise ModelError(
            f"{name} is not a whole model ({place.kind}), but a separate value function starts from a whole model. "
            "Merge it first (preftune merge), or leave value_model out: the value is then an adapter on the policy's "
            "base."
        )
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    config = load_pretrained(AutoConfig, place, revision=None, options=options)
    classifier = any(kind.endswith("ForSequenceClassification") for kind in config.architectures or ())
    loader = AutoModelForSequenceClassification if classifier and config.num_labels == 1 else AutoModel
    model = load_pretrained(loader, place, revision=None, options={**options, "dtype": "auto"})
    return (trunk_of(model), model.score) if loader is AutoModelForSequenceClassification else (model, None)


def adapter_parameters(model: nn.Module, adapter: str) -> list[str]:
    """The names of an adapter's parameters."""
    return [name for name, _ in model.named_parameters() if f".{adapter}." in name or name.endswith(f".{adapter}")]


def _add(model: Any, adapter: str, config: Any, *, trained: bool) -> None:
    """Adds a new, inactive adapter, in the precision of trained weights."""
    wide = torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32
    with trained_as_it_was(model), quiet_peft():
        model.add_adapter(adapter, config)
        model.set_adapter(POLICY)
    names = set(adapter_parameters(model, adapter))
    device = model.get_input_embeddings().weight.device
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.data = parameter.data.to(device, wide if trained else parameter.dtype)
            parameter.requires_grad_(trained)
    quicken(model)


def _head(trunk: nn.Module, like: nn.Linear | None) -> nn.Linear:
    """A linear layer of one output with a bias, float32 (float64 for a float64 trunk), on the trunk's device."""
    parameter = next(trunk.parameters())
    width = int(trunk.config.get_text_config().hidden_size)  # type: ignore[union-attr, operator]
    wide = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    head = nn.Linear(width, 1, device=parameter.device, dtype=wide)
    with torch.no_grad():
        head.bias.zero_()
        head.weight.zero_()
        if like is not None:
            head.weight.copy_(like.weight)
            if like.bias is not None:
                head.bias.copy_(like.bias)
    return head
