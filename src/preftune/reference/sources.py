"""Which model is the reference: by default the policy as received, before the first step.

    fresh adapter, off-state equals the model as received     `AdapterOff`       no second model
    trained adapter, PiSSA and the like, trained biases       `FrozenCopy`       a copy of the trainable weights only
    full fine-tuning                                          `AsReceived`       a pass before the first step
    explicit ref_model                                        `ExplicitModel`    a pass, then it is released
    sync_ref_model                                            `MovingCopy`       a copy that follows what trains
    a loss without a reference                                `NoReference`      nothing

The baseline of `loss_type=kto` and training on fresh answers need a reference at any time. With full fine-tuning they
get a `FrozenCopy` instead of `AsReceived`, and `ExplicitModel` is not let go.

The source of a model is chosen by measurement (does switching the adapter off change a score?), except if a probe could
miss the difference (`_shows_rarely`): then the names of the adapted parameters decide."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from preftune.errors import ReferenceMismatchError
from preftune.logps.batch import PackedBatch
from preftune.logps.engine import Engine
from preftune.models.roles import trained_as_it_was
from preftune.models.shards import is_sharded, local
from preftune.reference.fingerprint import adapter_prefixes, fingerprint, fingerprints, is_adapter_parameter


class Source(Protocol):
    """A model that can score a batch as the reference."""

    description: str
    fingerprint: str
    live: bool
    """Whether it can score at any time; otherwise everything must be scored before the first step."""
    received: bool
    """Whether it is by construction the policy as received, and not a model that the user chose."""

    def unchanged(self, model: nn.Module) -> bool:
        """Whether the model that would score now is the one of the fingerprint, and stays so while `model` (the policy,
        before any step) is trained.

        Weights, adapters and scales can change between the creation of a trainer and its training, and scores must not
        be kept under the address of another model. Weights that were unfrozen meanwhile would change a reference that
        shares them."""
        ...

    def score(self, model: nn.Module, batch: PackedBatch, engine: Engine) -> Tensor:
        """(T,) per-token log-probabilities. `model` is the trainer's current policy, wrapped or not."""
        ...


class LiveSource(Source, Protocol):
    """A source that can be asked at any time."""

    def acting(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """The model that is the reference as long as the context lasts; it may be the policy itself, changed."""
        ...


class NoReference:
    """No reference, for losses without one."""

    description = "no reference: the loss has none"
    fingerprint = "none"
    live = True
    received = True

    def unchanged(self, model: nn.Module) -> bool:
        return True

    def score(self, model: nn.Module, batch: PackedBatch, engine: Engine) -> Tensor:
        raise ReferenceMismatchError(
            "reference scores were requested in a run without a reference. Please report this."
        )


class AdapterOff:
    """The policy with its adapters switched off."""

    description = "the same model with its adapter switched off"
    live = True
    received = True

    def __init__(self, model: nn.Module) -> None:
        self.fingerprint, self._as_made = fingerprints(model)
        self._trained = trainable(model)

    def unchanged(self, model: nn.Module) -> bool:
        return trainable(model) <= self._trained and fingerprint(unwrap(model), adapters=True) == self._as_made

    @contextmanager
    def acting(self, model: nn.Module) -> Iterator[nn.Module]:
        """The policy, its adapters switched off."""
        with adapters_off(model):
            yield model

    def score(self, model: nn.Module, batch: PackedBatch, engine: Engine) -> Tensor:
        with self.acting(model), inference(model):
            return engine(model, batch).token_logps_T


class FrozenCopy:
    """The policy with its trainable weights restored to their initial values. It costs one copy of the trainable
    weights.
    """

    description = "a frozen copy of the trainable weights, as received"
    live = True
    received = True

    def __init__(self, model: nn.Module) -> None:
        self.fingerprint = fingerprint(model, adapters=True)
        self._received = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def unchanged(self, model: nn.Module) -> bool:
        return trainable(model) <= self._received.keys() and (
            fingerprint(unwrap(model), adapters=True) == self.fingerprint
        )

    def score(self, model: nn.Module, batch: PackedBatch, engine: Engine) -> Tensor:
        with self.acting(model), inference(model):
            return engine(model, batch).token_logps_T

    @contextmanager
    def acting(self, model: nn.Module) -> Iterator[nn.Module]:
        """The policy with the copied weights."""
        parameters = dict(unwrap(model).named_parameters())
        if is_sharded(model):
            with self._exchanged(parameters):
                yield model
            return
        trained = {name: parameters[name].data for name in self._received}
        try:
            for name, received in self._received.items():
                parameters[name].data = received.to(trained[name].device, trained[name].dtype)
            yield model
        finally:
            for name, data in trained.items():
                parameters[name].data = data

    @contextmanager
    def _exchanged(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """Copied and trained weights in each other's memory: FSDP2 knows its parts by their addresses."""

        def exchange() -> None:
            with torch.no_grad():
                for name, received in self._received.items():
                    here, there = local(parameters[name].detach()), local(received)
                    now = here.clone()
                    here.copy_(there)
                    there.copy_(now)

        exchange()
        try:
            yield
        finally:
            exchange()


class AsReceived:
    """Full fine-tuning: the policy itself before the first step; after that a verified reload, or an error."""

    description = "a pass over all rows before the first step, while the policy is the reference"
    live = False
    received = True

    def __init__(
        self, model: nn.Module, *, trained: Callable[[], bool], reload: Callable[[], nn.Module] | None
    ) -> None:
        """
        Args:
            trained: whether the policy has changed since it was received.
            reload: loads the model again from the source in its config, ready for the engine; its weights are checked.
                It is kept until `let_go`.
        """
        self.fingerprint = fingerprint(model, adapters=True)
        self._trained, self._reload = trained, reload
        self._again: nn.Module | None = None

    def unchanged(self, model: nn.Module) -> bool:
        return self._trained() or fingerprint(unwrap(model), adapters=True) == self.fingerprint

    def let_go(self) -> None:
        """Releases a model that was loaded again."""
        self._again = None

    def score(self, model: nn.Module, batch: PackedBatch, engine: Engine) -> Tensor:
        if not self._trained():
            with inference(model):
                return engine(model, batch).token_logps_T
        if self._again is None:
            self._again = self._load_again().to(batch.input_ids.device)
        with inference(self._again):
            return engine(self._again, batch).token_logps_T

    def _load_again(self) -> nn.Module:
        remedy = "Pass this data as eval_dataset when the trainer is made, so that it is scored before the first step."
        if self._reload is None:
            raise ReferenceMismatchError(
                "Rows without a reference score appeared after the policy was trained, and the reference was only the "
                f"model in memory. {remedy}"
            )
        try:
            again = self._reload()
        except Exception as error:
            raise ReferenceMismatchError(
                f"Rows without a reference score appeared after training, and the reference cannot be loaded again "
                f"({error}). {remedy}"
            ) from error
        if fingerprint(again, adapters=True) != self.fingerprint:
            raise ReferenceMismatchError(
                "Rows without a reference score appeared after training. The model at the policy's name is not the "
                f"model that was trained (its weights differ), so it cannot serve as the reference. {remedy}"
            )
        return again


class ExplicitModel:
    """A `ref_model` that the user passed. It is held weakly once everything is scored, so that the user can free its
    memory.
    """

    description = "the ref_model that was passed"
    live = False
    received = False

    def __init__(self, model: nn.Module, engine: Engine) -> None:
        self.fingerprint = fingerprint(model, adapters=True)
        self._engine = engine
        self._held: nn.Module | None = model
        self._weak = weakref.ref(model)
        self._state = state_of(model)

    @property
    def model(self) -> nn.Module | None:
        """The model, unless it was released and collected."""
        return self._held if self._held is not None else self._weak()

    def unchanged(self, model: nn.Module) -> bool:
        reference = self.model
        return reference is None or fingerprint(reference, adapters=True) == self.fingerprint

    def release(self) -> None:
        """Releases the model; its scores are in the cache."""
        self._held = None

    @contextmanager
    def acting(self, model: nn.Module) -> Iterator[nn.Module]:
        """The reference, where it was not released."""
        if self._held is None:
            raise ReferenceMismatchError("a reference that was released was asked to answer. Please report this.")
        yield self._held if is_sharded(self._held) else self._held.to(next(model.parameters()).device)

    def score(self, model: nn.Module, batch: PackedBatch, engine: Engine) -> Tensor:
        reference = self.model
        if reference is None:
            raise ReferenceMismatchError(
                "Rows without a reference score appeared after the ref_model was released. Pass this data as "
                "eval_dataset when the trainer is made, or keep the ref_model in a variable until the end."
            )
        if self._held is None and state_of(reference) != self._state:
            if not self.unchanged(model):
                raise ReferenceMismatchError(
                    "Rows without a reference score appeared after the weights of the ref_model were changed. Pass "
                    "this data as eval_dataset when the trainer is made, or do not change the ref_model until the end."
                )
            self._state = state_of(reference)
        if not is_sharded(reference):
            reference.to(batch.input_ids.device)
        with inference(reference):
            return self._engine(reference, batch).token_logps_T


def choose_source(
    model: nn.Module,
    probe: PackedBatch,
    engine: Engine,
    *,
    trained: Callable[[], bool],
    reload: Callable[[], nn.Module] | None,
) -> Source:
    """The source of reference scores for a policy without explicit `ref_model`.

    Args:
        model: the policy as received, unwrapped.
        probe: a few real rows, on which switching the adapters off is tested.
    """
    if not adapter_prefixes(model):
        return AsReceived(model, trained=trained, reload=reload)
    return AdapterOff(model) if as_received_without_adapters(model, probe, engine) else FrozenCopy(model)


def as_received_without_adapters(model: nn.Module, probe: PackedBatch, engine: Engine) -> bool:
    """Whether a model as received computes the same with its adapters switched off, and trains nothing else; also True
    for a model without adapters.

    Args:
        probe: a few real rows, on which it is tested.
    """
    prefixes = adapter_prefixes(model)
    if not prefixes:
        return True
    adapters = [name for name, _ in model.named_parameters() if is_adapter_parameter(name, prefixes)]
    if not trainable(model) <= {*adapters} or _shows_rarely(model, adapters):
        return False
    with inference(model):
        on = engine(model, probe).token_logps_T
        with adapters_off(model):
            off = engine(model, probe).token_logps_T
    return torch.equal(on, off)


def _shows_rarely(model: nn.Module, adapters: Sequence[str]) -> bool:
    """Whether parts of the adapters may have been trained that affect only some inputs, so that a probe can miss them:
    rows of an embedding, whole modules, experts to which a probe's tokens are not routed, aLoRA without its invocation
    tokens. This does not depend on whether they are still trained: a fresh adapter may be loaded together with a
    trained and frozen one.

    Args:
        adapters: names of their parameters.
    """
    if any("trainable_tokens_" in name or "modules_to_save." in name for name in adapters):
        return True
    weights = dict(model.named_parameters())
    factors: dict[str, bool] = {}  # of each product of two: whether none of its factors is zero
    configs: Any = getattr(model, "peft_config", {})
    invoked = any(getattr(config, "alora_invocation_tokens", None) for config in configs.values())
    for name in adapters:
        if "lora_embedding_" in name or "expert" in name or (invoked and "lora_" in name):
            product = name.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B")
            factors[product] = factors.get(product, True) and bool(weights[name].any())
    return any(factors.values())


def trainable(model: nn.Module) -> set[str]:
    """Names of the trainable parameters."""
    return {name for name, parameter in unwrap(model).named_parameters() if parameter.requires_grad}


def state_of(model: nn.Module) -> list[tuple[int, int, str]]:
    """The address, the version counter and the middle element of each weight and buffer: a cheap check that nothing was
    changed in place. A change through `.data` is not counted by torch, and is seen if it changes that element.
    """
    return [(t.data_ptr(), t._version, _middle(local(t))) for t in (*model.parameters(), *model.buffers())]


def _middle(tensor: Tensor) -> str:
    here = tensor.numel() and not tensor.is_meta
    return str(tensor[tuple(size // 2 for size in tensor.shape)].item()) if here else ""


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """PEFT's `disable_adapter`, which makes frozen adapter weights trainable when it ends; this is undone."""
    peft: Any = unwrap(model)
    with trained_as_it_was(peft), peft.disable_adapter():
        yield


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Without gradients and dropout; the training flag of every module is restored afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DDP and similar wrappers."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module  # type: ignore[assignment]
    return model
