"""Engines, which compute the log-probabilities of a packed batch: one protocol, three implementations.

packed      one row, shared prompts, no padding                        exact where `supports(model)` says so
separate    one sequence at a time, no padding, chunked head           exact for every causal model
naive       one sequence at a time, full logits                        the oracle
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from preftune.amounts import counted
from preftune.errors import ModelError, UnsupportedLayoutError
from preftune.logps.attention import packed as attention
from preftune.logps.batch import GroupLogps, PackedBatch
from preftune.logps.head import LogitTransform, head_weight, token_logps
from preftune.logps.layers.fast_layers import quicken
from preftune.logps.layers.rope import unscaled_rope
from preftune.logps.naive import naive_logps
from preftune.logps.request import ScoringRequest, current_request, scoring

EngineName = Literal["auto", "packed", "separate", "naive"]


class LayersNotReachedError(UnsupportedLayoutError):
    """Raised if not every layer of a packed forward used the packed attention exactly once."""

    def __init__(self, calls: int, layers: int) -> None:
        super().__init__(
            f"the packed attention was called {counted(calls, 'time')} in a model with {counted(layers, 'layer')}: "
            "some layers do not use the attention implementation of the model's config (state-space or "
            "linear-attention layers, layers that were replaced or copied). Use engine='separate'."
        )
        self.calls, self.layers = calls, layers


class Engine(Protocol):
    """Scores a batch with a model, which may be wrapped (DDP, FSDP, accelerate)."""

    name: str

    def __call__(
        self, model: nn.Module, batch: PackedBatch, *, squares: bool = False, entropy: bool = False
    ) -> GroupLogps:
        """Log-probabilities of all scored tokens of the batch; gradients flow to the model's parameters.

        Args:
            squares: also compute `GroupLogps.square_T`.
            entropy: also compute `GroupLogps.entropy_T`.
        """
        ...


class PackedEngine:
    """Every prompt computed once, groups end to end in one row, head over completion tokens only."""

    name = "packed"

    def __init__(self, transform: LogitTransform, chunk: int | None = None, *, layers: int | None = None) -> None:
        """
        Args:
            layers: number of layers that must use the packed attention in every forward; None for no check.
        """
        self.transform, self.chunk, self.layers = transform, chunk, layers

    def __call__(
        self, model: nn.Module, batch: PackedBatch, *, squares: bool = False, entropy: bool = False
    ) -> GroupLogps:
        request = ScoringRequest(
            batch.predict_T, batch.target_T, batch.layout, self.transform, self.chunk, squares=squares, entropy=entropy
        )
        with scoring(request):
            model(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                group_layout=batch.layout,
                use_cache=False,
            )
        check_layers(request, self.layers)
        more = (request.hit_T, request.square_T, request.entropy_T)
        return GroupLogps(_answer(request), batch.owner_T, batch.completions, *more)


class SeparateEngine:
    """One sequence after the other: no sharing and no padding, so neighbours cannot affect the result."""

    name = "separate"

    def __init__(self, transform: LogitTransform, chunk: int | None = None) -> None:
        self.transform, self.chunk = transform, chunk

    def __call__(
        self, model: nn.Module, batch: PackedBatch, *, squares: bool = False, entropy: bool = False
    ) -> GroupLogps:
        scores, hits = [], []
        squared: list[Tensor] = []
        entropies: list[Tensor] = []
        for ids, prompt, spans in batch.sequences():
            at = torch.cat([torch.arange(prompt + begin, prompt + end) for begin, end in spans]).to(ids.device)
            request = ScoringRequest(
                at - 1,
                ids[0, at],
                None,
                self.transform,
                self.chunk,
                length=ids.shape[1],
                squares=squares,
                entropy=entropy,
            )
            unscaled_rope(model)
            with scoring(request):
                model(input_ids=ids, use_cache=False)
            scores.append(_answer(request))
            assert request.hit_T is not None
            hits.append(request.hit_T)
            if request.square_T is not None:
                squared.append(request.square_T)
            if request.entropy_T is not None:
                entropies.append(request.entropy_T)
        more = (torch.cat(parts) if parts else None for parts in (squared, entropies))
        return GroupLogps(torch.cat(scores), batch.owner_T, batch.completions, torch.cat(hits), *more)


class NaiveEngine:
    """The oracle as an engine."""

    name = "naive"

    def __call__(
        self, model: nn.Module, batch: PackedBatch, *, squares: bool = False, entropy: bool = False
    ) -> GroupLogps:
        hits: list[Tensor] = []
        squared: list[Tensor] = []
        entropies: list[Tensor] = []
        logps_T = naive_logps(model, batch, hits=hits, squares=squared, entropies=entropies if entropy else None)
        square_T = torch.cat(squared) if squares else None
        entropy_T = torch.cat(entropies) if entropy else None
        return GroupLogps(logps_T, batch.owner_T, batch.completions, torch.cat(hits), square_T, entropy_T)


def prepare_head(model: nn.Module) -> None:
    """Makes scoring forwards compute log-probabilities instead of logits. Idempotent.

    Raises:
        ModelError: the model has no output head, or has a LoRA adapter on it.
    """
    for head in _head_modules(model):
        if not getattr(head, "_preftune_head", False):
            head.register_forward_pre_hook(_before_head)
            head.register_forward_hook(_after_head)
            head._preftune_head = True  # type: ignore[assignment]


def make_engine(model: nn.Module, name: Literal["packed", "separate", "naive"], *, chunk: int | None = None) -> Engine:
    """The engine called `name`, with the model made ready for it (attention implementation, head hooks,
    fast layers).
    """
    if name == "naive":
        return NaiveEngine()
    prepare_head(model)
    quicken(model)
    transform = LogitTransform.of(model.config)
    if name == "separate":
        return SeparateEngine(transform, chunk)
    attention.register()
    model.set_attn_implementation(attention.NAME)  # type: ignore[operator]
    return PackedEngine(transform, chunk, layers=attention_layers(model))


def attention_layers(model: Any) -> int:
    """The number of layers in the model's config, which use the packed attention in a whole forward."""
    return int(model.config.get_text_config().num_hidden_layers)


def check_layers(request: ScoringRequest, layers: int | None) -> None:
    """Raises: LayersNotReachedError, if not every layer of a packed forward used the packed attention: the others would
    treat the whole row as one sequence.
    """
    if layers is not None and request.attention_calls != layers:
        raise LayersNotReachedError(request.attention_calls, layers)


def _answer(request: ScoringRequest) -> Tensor:
    if request.token_logps_T is None:
        raise ModelError(
            "the model's forward did not reach its output head, so nothing was scored. Use engine='naive'."
        )
    return request.token_logps_T


def _head_modules(model: nn.Module) -> Iterator[nn.Module]:
    """The linear layers that may serve as the head: the head itself, or PEFT's original and trained copies of it."""
    get: Any = getattr(model, "get_output_embeddings", None)
    head = get() if get is not None else None
    if head is None and hasattr(model, "get_base_model"):
        head = model.get_base_model().get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise ModelError(f"{type(model).__name__} has no output head: preftune aligns causal language models")
    if hasattr(head, "modules_to_save"):
        yield from head.modules_to_save.values()
        yield head.original_module
    elif hasattr(head, "lora_A") or hasattr(head, "base_layer"):
        raise ModelError(
            "there is an adapter on the output head, which the chunked log-probabilities do not support. Leave "
            "lm_head out of target_modules (target_modules='all-linear' does), train the head whole with "
            "modules_to_save=['lm_head'], or pass engine='naive'."
        )
    else:
        yield head


def _before_head(head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    request = current_request()
    if request is None:
        return None
    request.hidden = args[0]
    return (args[0][:, :0], *args[1:])  # the head itself has nothing left to multiply


def _after_head(head: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
    request = current_request()
    if request is None or request.hidden is None:
        return None
    hidden, request.hidden = request.hidden, None
    if request.layout is None:  # a prompt-learning adapter puts the states of its virtual tokens in front
        hidden = hidden[:, hidden.shape[1] - request.length :]
    # index_select: its backward adds the gradients of repeated rows, deterministically (indexing by a list does not)
    hidden_TD = hidden.reshape(-1, hidden.shape[-1]).index_select(0, request.predict_T)
    weight_VD, bias_V = head_weight(head)
    request.hit_T = torch.empty_like(request.target_T, dtype=torch.bool)
    dtype = torch.promote_types(weight_VD.dtype, torch.float32)
    if request.squares:
        request.square_T = torch.empty_like(request.target_T, dtype=dtype)
    if request.entropy:
        request.entropy_T = torch.empty_like(request.target_T, dtype=dtype)
    request.token_logps_T = token_logps(
        hidden_TD,
        weight_VD,
        request.target_T,
        bias_V=bias_V,
        transform=request.transform,
        chunk=request.chunk,
        hit_T=request.hit_T,
        square_T=request.square_T,
        entropy_T=request.entropy_T,
    )
    return request.token_logps_T.view(1, -1, 1).clone()  # FSDP2 warns of views
