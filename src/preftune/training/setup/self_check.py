"""The check of every run at its first step.

Before the step, the engine must agree with the naive path on real groups, and the policy with the reference.
During the step, every trainable parameter must get a gradient, and no frozen one.
After the step, the weights must have changed.

A failure stops the run with an error that names the cause. The tolerances depend on the dtype, so that rounding does
not stop it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from preftune.amounts import counted
from preftune.errors import ModelError, NonFiniteError, ReferenceMismatchError, SelfCheckError
from preftune.logps import Engine, naive_logps, pack, plain_layers
from preftune.logps.batch import GroupLogps, PackedBatch
from preftune.models.shards import local
from preftune.reference import ReferenceScores, adapters_off, inference, unwrap
from preftune.training.protocol import TrainerView
from preftune.types import TokenizedGroup

# Mean and largest difference per token between the engine and the naive path, in nats, that rounding can explain.
# In half precision, different kernels differ by a few hundredths on average; a wrong mask or position changes the
# result by tenths of a nat to several nats.
_ENGINE_TOLERANCE = {torch.float32: (1e-3, 2e-2), torch.bfloat16: (0.1, 1.5), torch.float16: (0.03, 0.5)}

# The same between policy and reference, which the same kernels compute on the same batch: the right reference gives
# the same bits in every dtype.
_REFERENCE_TOLERANCE = (1e-3, 2e-2)

_MOST_SKIPPED = 30

_GLANCE = 32
"""Tokens of the causality check: enough to detect a model that attends to later tokens, and too few to reach the length
at which a dynamic rope changes."""


@dataclass(frozen=True, slots=True)
class FirstStep:
    """The results of the check before the first step, in nats."""

    engine_error: float
    """Largest difference per token between the engine and the naive path."""
    reference_distance: float | None
    """Largest difference of a completion's log-probability between policy and reference; None on a resumed run."""
    noise_floor: float | None
    """Largest reward margin, divided by beta, that rounding alone produces at the start; None on a resumed run, without
    pairs, or where a mismatch was allowed."""

    def describe(self) -> str:
        line = f"self-check: the engine agrees with the naive path within {self.engine_error:.2g} nat per token"
        if self.noise_floor is not None:
            line += f"; policy and reference agree, margins are exact to {self.noise_floor:.2g} nat"
        return line + "."


def check_before_training(
    model: nn.Module,
    batch: PackedBatch,
    engine: Engine,
    reference: ReferenceScores,
    *,
    autocast: torch.dtype | None,
    resumed: bool,
    allow_mismatch: bool,
) -> FirstStep:
    """Compare engine and naive path, policy and reference, fresh and cached scores, on one real batch.

    Args:
        batch: several groups of the run, as `probes` chooses them.
        autocast: dtype of autocast; None without.
        resumed: whether the policy was trained already; only the engine is checked then.
        allow_mismatch: whether policy and reference may disagree.
    Raises:
        ModelError: the model is not causal.
        NonFiniteError: the scores of the model as received are NaN or infinite.
        SelfCheckError: the engine and the naive path disagree.
        ReferenceMismatchError: policy and reference disagree before the first step.
    """
    policy, largest, tolerance = check_engine(model, batch, engine, autocast=autocast)
    if resumed:
        return FirstStep(largest, None, None)
    # Cached scores come from another packing, which rounds differently: in float32 far below the tolerance, in half
    # precision as much as another kernel does. In half precision a reference that is not the received model is
    # therefore scored again, and must pass the strict comparison.
    single = (autocast or _compute_dtype(model)) == torch.float32
    limits = _REFERENCE_TOLERANCE if single else tolerance
    known = reference.known(batch)
    trusted = (
        known is not None
        and (single or reference.source.received)
        and not bool(known.token_logps_T.isnan().any())
        and _agree(policy, known, limits)
    )
    if not reference.anywhere(not trusted) and known is not None:
        return _measured(policy, known, batch, largest)
    fresh = reference.fresh(model, batch)
    if known is not None and not _agree(known, fresh, limits):
        reference.forget()
    if _agree(policy, fresh, _REFERENCE_TOLERANCE):
        return _measured(policy, fresh, batch, largest)
    if not allow_mismatch:
        raise _mismatch(policy, fresh)
    return replace(_measured(policy, fresh, batch, largest), noise_floor=None)


def worst(results: Iterable[FirstStep]) -> FirstStep:
    """The largest values of several batches."""
    found = list(results)

    def largest(values: Iterable[float | None]) -> float | None:
        return max((value for value in values if value is not None), default=None)

    distance = largest(result.reference_distance for result in found)
    agree = all(result.noise_floor is not None for result in found)
    noise = largest(result.noise_floor for result in found) if agree else None
    return FirstStep(max(result.engine_error for result in found), distance, noise)


def check_engine(
    model: nn.Module, batch: PackedBatch, engine: Engine, *, autocast: torch.dtype | None
) -> tuple[GroupLogps, float, tuple[float, float]]:
    """Compare engine and naive path on one real batch of several groups.

    Returns: the engine's scores; the largest difference per token; the mean and the largest difference that rounding
        may cause. Differences are in nats.
    Raises:
        ModelError: the model is not causal.
        NonFiniteError: the scores of the model as received are NaN or infinite.
        SelfCheckError: the engine and the naive path disagree.
    """
    with torch.autocast(batch.input_ids.device.type, autocast, enabled=autocast is not None), inference(model):
        policy = engine(model, batch)
        with plain_layers():
            naive = naive_logps(model, batch)
    finite = torch.isfinite(naive)
    if not bool(finite.all()):
        row = _row_of(int((~finite).nonzero()[0]), batch)
        raise NonFiniteError(
            f"the model's log-probabilities of row {row} are not finite before the first step: its weights are "
            "damaged, or overflow in this precision. Nothing was trained. Check that the model generates text, and use "
            "bf16 or float32 instead of fp16."
        )
    check_causal(model, batch, autocast=autocast)
    difference = (policy.token_logps_T - naive).abs()
    mean, largest = float(difference.mean()), float(difference.max())
    dtype = autocast or _compute_dtype(model)
    tolerance = _ENGINE_TOLERANCE[dtype]
    if not (mean <= tolerance[0] and largest <= tolerance[1]):
        row = _row_of(int(difference.argmax()), batch)
        raise SelfCheckError(
            f"the {engine.name} engine and the naive path disagree on real groups by {mean:.3g} nat per token on "
            f"average ({largest:.3g} at most, in row {row}), more than rounding explains. Nothing was trained. Please "
            "report this model; engine='naive' computes it, slowly."
        )
    return policy, largest, tolerance


def check_causal(model: nn.Module, batch: PackedBatch, *, autocast: torch.dtype | None) -> None:
    """Check that the scores of the beginning of a text do not depend on the text that follows. Engine and naive path
    agree on a model that is not causal too, but its log-probabilities are meaningless, because it sees the tokens that
    it predicts.

    Raises: ModelError if the scores change.
    """
    group = max(batch.groups, key=lambda group: group.tokens)
    ids = [*group.prompt_ids, *group.completions[0]][:_GLANCE]
    half = len(ids) // 2
    if half < 2:
        return
    alone = TokenizedGroup(ids[:1], (ids[1:half],), (), id=group.id)
    followed = TokenizedGroup(ids[:1], (ids[1:],), (), id=group.id, scored=(((0, half - 1),),))
    off = adapters_off(model) if hasattr(unwrap(model), "disable_adapter") else nullcontext()  # Lily is not causal
    device = batch.input_ids.device
    with warnings.catch_warnings(), torch.autocast(device.type, autocast, enabled=autocast is not None):
        warnings.filterwarnings("ignore", message="Careful, disabling adapter layers with bias")  # any weights serve
        with inference(model), off:
            short, long = (naive_logps(model, pack([one]).to(device)) for one in (alone, followed))
    changed = float((short - long).abs().mean())
    if changed > 3 * _ENGINE_TOLERANCE[autocast or _compute_dtype(model)][0]:
        raise ModelError(
            f"{type(unwrap(model)).__name__} is not a causal language model: its probability of a token changes with "
            f"the tokens that follow (by {changed:.2g} nat). Nothing was trained. Give a decoder; a model such as BERT "
            "must have been trained with is_decoder=True."
        )


def _measured(policy: GroupLogps, reference: GroupLogps, batch: PackedBatch, engine_error: float) -> FirstStep:
    ours, theirs = policy.sides(batch), reference.sides(batch)
    margin_N = (ours.chosen_N - theirs.chosen_N) - (ours.rejected_N - theirs.rejected_N)
    noise = float(margin_N.abs().max()) if len(margin_N) else None
    return FirstStep(engine_error, float((policy.sum_K - reference.sum_K).abs().max()), noise)


def _mismatch(policy: GroupLogps, reference: GroupLogps) -> ReferenceMismatchError:
    mean = float((policy.token_logps_T - reference.token_logps_T).abs().mean())
    distance = float((policy.sum_K - reference.sum_K).abs().max())
    return ReferenceMismatchError(
        f"policy and reference disagree before the first step: by {mean:.3g} nat per token on average, {distance:.3g} "
        "nat on a whole completion. DPO measures how far the policy moves from its start, so the reference must be "
        "the model as received. Leave ref_model out (preftune then uses the right one), or set "
        "allow_reference_mismatch=True if this is intended."
    )


def _agree(one: GroupLogps, other: GroupLogps, tolerance: tuple[float, float]) -> bool:
    """Whether mean and largest difference per token are within the tolerance, over tokens with a score in both."""
    per_token = (one.token_logps_T - other.token_logps_T).abs()
    per_token = per_token[~per_token.isnan()]
    return float(per_token.mean()) <= tolerance[0] and float(per_token.max()) <= tolerance[1]


def _row_of(token: int, batch: PackedBatch) -> str:
    """The row that a scored token of the batch belongs to."""
    for group in batch.groups:
        token -= sum(group.scored_lengths)
        if token < 0:
            return str(group.id)
    raise IndexError(token)


def _compute_dtype(model: nn.Module) -> torch.dtype:
    """The coarsest float dtype among the weights."""
    dtypes = {p.dtype for p in model.parameters()}
    return next((d for d in (torch.bfloat16, torch.float16) if d in dtypes), torch.float32)


class FirstStepCallback(TrainerCallback):
    """Checks the gradients before the first optimiser step, and the weights after the first step with a learning rate
    above 0.
    """

    def __init__(self, trainer: TrainerView) -> None:
        self._trainer = trainer
        self._gradients_seen = False
        self._watched: tuple[str, nn.Parameter, Tensor] | None = None
        self._done = False
        self._skipped = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._done:
            return
        model = kwargs["model"]
        if not self._gradients_seen:
            check_gradients(model, may_vanish=state.global_step > 0 or not self._trainer.step_has_weight)
            self._gradients_seen = True
        rate = max(group["lr"] for group in kwargs["optimizer"].param_groups)
        self._watched = _most_moved(model) if rate > 0 else None

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._count_skipped(self._trainer.accelerator.optimizer_step_was_skipped)
        if self._done or self._watched is None or self._skipped:
            return
        name, parameter, before = self._watched
        moved = not torch.equal(local(parameter.detach()), before)
        # schedule-free RAdam collects moments first, at a rate of 0
        silent = all(group.get("scheduled_lr") == 0 for group in kwargs["optimizer"].param_groups)
        self._watched, self._done = None, moved or not silent
        if self._done and not moved:
            raise SelfCheckError(
                f"the first optimiser step changed nothing: {name} ({str(parameter.dtype).removeprefix('torch.')}) is "
                f"unchanged bit for bit, with learning_rate={args.learning_rate:g}. The update is smaller than the "
                "weight's rounding, or the optimiser does not have this weight."
            )

    def _count_skipped(self, skipped: bool) -> None:
        """Loss scaling skips single steps while it finds its scale. Many skipped steps in a row are an error."""
        self._skipped = self._skipped + 1 if skipped else 0
        if self._skipped >= _MOST_SKIPPED:
            raise NonFiniteError(
                f"the gradients of {self._skipped} steps in a row overflowed in float16, and none was applied. Use "
                "bf16=True on a card that supports it, or float32 (bf16=False); a smaller learning rate does not help."
            )


def check_gradients(model: nn.Module, *, may_vanish: bool = False) -> None:
    """Check that every trainable parameter has a gradient and no frozen one has. The gradient of a single parameter may
    be zero, as that of LoRA's A is at first. An expert to which no token was routed may have none.

    Args:
        may_vanish: whether all gradients may be zero, as those of the hinge loss once every pair is won (in a resumed
            run), or those of a step whose weights are all 0.
    Raises:
        SelfCheckError: the check failed; the message names the first three parameters.
    """
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None and "expert" not in n]
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad and p.grad is not None]
    if without:
        raise SelfCheckError(
            f"{counted(len(without), 'trainable parameter')} got no gradient in the first step "
            f"({', '.join(without[:3])}): the loss does not depend on them. Freeze them, or leave their modules out of "
            "the adapter."
        )
    if frozen:
        raise SelfCheckError(
            f"{counted(len(frozen), 'frozen parameter')} got a gradient ({', '.join(frozen[:3])}): something else runs "
            "backward through the model. Clear its gradients before training (model.zero_grad())."
        )
    if not may_vanish and not any(p.grad is not None and bool(local(p.grad).any()) for p in model.parameters()):
        raise SelfCheckError(
            "all gradients of the first step are zero: the loss does not depend on the weights. Check that not all "
            "pair weights are 0, and that chosen and rejected differ."
        )


def _most_moved(model: nn.Module) -> tuple[str, nn.Parameter, Tensor] | None:
    """Name, parameter and present value of the trainable parameter with the largest gradient; None if all are zero."""
    candidates = [(n, p) for n, p in model.named_parameters() if p.requires_grad and p.grad is not None]
    if not candidates:
        return None
    # this rank's part of sharded weights, which may be empty
    parts = [local(p.grad) for _, p in candidates if p.grad is not None]
    sizes = torch.stack([p.abs().max().float() if p.numel() else p.new_zeros(()).float() for p in parts])
    largest = int(sizes.argmax())
    if not bool(sizes[largest]):
        return None
    name, parameter = candidates[largest]
    return name, parameter, local(parameter.detach()).clone()
