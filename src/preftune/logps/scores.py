"""Scores of completions: a scalar head read at the last token of each completion, over packed, prompt-shared groups.

The head is `model.score` of a transformers sequence classifier with one label. transformers itself searches for the
last token that is not padding; preftune knows the position from the layout, so that the pad token has no effect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from preftune.errors import ModelError
from preftune.logps.batch import PackedBatch, pack
from preftune.logps.engine import EngineName
from preftune.logps.layers.rope import unscaled_rope
from preftune.logps.states import completion_states, prepare_trunk, read_head, trunk_of
from preftune.logps.support import (
    TOLERANCE,
    Support,
    obstacle,
    quietly,
    random_twin,
    short,
    trial_groups,
    with_adapters,
)


class ScoreEngine(Protocol):
    """Scores a batch's completions with a sequence classifier of one label."""

    @property
    def name(self) -> str: ...

    def __call__(self, model: nn.Module, batch: PackedBatch) -> Tensor:
        """(K,) float32 (float64 for a float64 model); gradients flow to the model's parameters."""
        ...


@dataclass(frozen=True, slots=True)
class StateScores:
    """Applies the head only to the states of the trunk at the last tokens."""

    name: Literal["packed", "separate"]

    def __call__(self, model: nn.Module, batch: PackedBatch) -> Tensor:
        head = score_head(model)
        return read_head(head, completion_states(trunk_of(model), batch, packed=self.name == "packed"))


@dataclass(frozen=True, slots=True)
class NaiveScores:
    """The oracle as an engine."""

    name: str = "naive"

    def __call__(self, model: nn.Module, batch: PackedBatch) -> Tensor:
        return naive_scores(model, batch)


def naive_scores(model: nn.Module, batch: PackedBatch) -> Tensor:
    """The oracle: one sequence at a time through the model's own forward, its head applied to every state.

    Args:
        batch: only its groups are read.
    Returns: (K,) float32 or wider.
    """
    return torch.stack([_read_whole(model, sequence.ids) for sequence in batch.sequences()])


def choose_score_engine(model: nn.Module, name: EngineName = "auto") -> tuple[ScoreEngine, Support]:
    """The engine for a sequence classifier: packed if that is exact, separate otherwise; or the requested one.

    Raises:
        ModelError: the model is not a sequence classifier with a head `score` of one label.
        PreftuneError: "packed" was requested and is not exact.
    """
    score_head(model)
    if name == "naive":
        return NaiveScores(), Support(False, "engine='naive' was requested", "naive")
    if name == "separate":
        support = Support(False, "engine='separate' was requested")
    else:
        support = supports_scores(model)
    support.check(name)
    if support.fallback == "naive":
        return NaiveScores(), support
    prepare_trunk(trunk_of(model), packed=support.exact)
    return StateScores("packed" if support.exact else "separate"), support


def supports_scores(model: nn.Module) -> Support:
    """Tries packed scores on a small random twin of the model and compares them with the naive path; see `supports`."""
    if reason := obstacle(model):
        configs = (getattr(model, "peft_config", None) or {}).values()
        virtual = any(getattr(config, "is_prompt_learning", False) for config in configs)
        return Support(False, reason, "naive" if virtual else "separate")  # virtual tokens come in before the trunk
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), quietly():
        torch.manual_seed(0)
        failure = ""
        for shrink_width in (True, False):
            try:
                twin = with_adapters(random_twin(model, shrink_width=shrink_width), model)
                twin.set_attn_implementation("eager")
                batch = pack(trial_groups())
                with torch.no_grad():
                    expected = naive_scores(twin, batch)
                    prepare_trunk(trunk_of(twin), packed=True)
                    scored = StateScores("packed")(twin, batch)
            except Exception as error:  # whatever a config, a layer or an interface says; its words are the reason
                failure = failure or f"a small twin of it fails ({type(error).__name__}: {short(error)})"
                continue
            difference = float((expected - scored).abs().max())
            if difference <= TOLERANCE:
                return Support(True)
            return Support(False, f"packing changes its scores (by {difference:.2g} on a random twin)")
    return Support(False, failure)


def score_head(model: Any) -> nn.Module:
    """The head of a sequence classifier with one label; PEFT's wrapper, where the head is trained with an adapter.

    Raises:
        ModelError: without one.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = getattr(base, "score", None)
    weight = getattr(head, "weight", None)
    if head is None or weight is None:
        raise ModelError(
            f"{type(base).__name__} has no head 'score': rewards are read from a decoder's sequence classifier "
            "(AutoModelForSequenceClassification of Llama, Qwen, Gemma, ...). Give a causal model or such a classifier."
        )
    if weight.shape[0] != 1:
        raise ModelError(
            f"the head of {type(base).__name__} has {weight.shape[0]} labels, but a reward is one number. Give a "
            "causal model, or a classifier with num_labels=1."
        )
    found: nn.Module = head
    return found


def _read_whole(model: nn.Module, ids: Tensor) -> Tensor:
    """One completion's score, with the head's output caught before transformers looks for padding in it."""
    seen: list[Tensor] = []
    handle = score_head(model).register_forward_hook(lambda head, args, output: seen.append(output))
    unscaled_rope(model)
    try:
        model(input_ids=ids, use_cache=False)
    finally:
        handle.remove()
    (scores_1R1,) = seen
    return scores_1R1[0, -1, 0].to(torch.promote_types(scores_1R1.dtype, torch.float32))
