"""Hidden states of a trunk at the tokens that small heads read, packed as in the engine.

    token_states        (T, D) the state *before* each scored token: where its log-probability comes from, and its value
    completion_states   (K, D) the state *at* the last token of each completion: where a reward model reads its score

The position is taken from the layout, never guessed from padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from preftune.errors import ModelError
from preftune.logps.attention import packed as attention
from preftune.logps.batch import PackedBatch
from preftune.logps.engine import attention_layers, check_layers
from preftune.logps.head import LogitTransform
from preftune.logps.layers.fast_layers import quicken
from preftune.logps.layers.rope import unscaled_rope
from preftune.logps.request import ScoringRequest, scoring


def trunk_of(model: nn.Module) -> nn.Module:
    """The model without its head, which gives hidden states. Adapters inside its layers are included.

    Raises:
        ModelError: the trunk of the model cannot be found.
    """
    whole: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    prefix = getattr(whole, "base_model_prefix", "")
    trunk = getattr(whole, prefix, None) if prefix else None
    if trunk is None and hasattr(whole, "get_output_embeddings") and whole.get_output_embeddings() is None:
        trunk = whole  # one already
    if isinstance(trunk, nn.Module):
        return trunk
    raise ModelError(f"preftune cannot find the trunk of {type(whole).__name__}, so no value can be read.")


def prepare_trunk(trunk: nn.Module, *, packed: bool) -> None:
    """Prepares a separate trunk as `make_engine` prepares a whole model. Idempotent."""
    quicken(trunk)
    if packed:
        attention.register()
        trunk.set_attn_implementation(attention.NAME)  # type: ignore[operator]


def token_states(trunk: nn.Module, batch: PackedBatch, *, packed: bool) -> Tensor:
    """(T, D): the state that predicts each scored token, in the order of `batch.target_T`; with gradient.

    Args:
        packed: as in the engine that scores this batch: one row, or one sequence after the other.
    """
    if packed:
        return _row_states(trunk, batch).index_select(0, batch.predict_T)
    parts = []
    for ids, prompt, spans in batch.sequences():
        states_RD = _sequence_states(trunk, ids)
        parts += [states_RD[prompt - 1 + begin : prompt - 1 + end] for begin, end in spans]
    return torch.cat(parts)


def completion_states(trunk: nn.Module, batch: PackedBatch, *, packed: bool) -> Tensor:
    """(K, D): the state at the last token of each completion of the batch; with gradient."""
    if packed:
        return _row_states(trunk, batch).index_select(0, last_tokens(batch))
    return torch.stack([_sequence_states(trunk, sequence.ids)[-1] for sequence in batch.sequences()])


def read_head(head: Any, states_ND: Tensor) -> Tensor:
    """(N,) float32 (float64 of a float64 head): the number that a head of one output reads in each state.

    It runs without autocast, because differences of scores may be small.
    """
    with torch.autocast(states_ND.device.type, enabled=False):
        numbers_N1: Tensor = head(states_ND.to(head.weight.dtype))
    return numbers_N1[:, 0].to(torch.promote_types(numbers_N1.dtype, torch.float32))


def last_tokens(batch: PackedBatch) -> Tensor:
    """(K,) int64: the position in the row of each completion's last token."""
    places, at = [], 0
    for group in batch.groups:
        at += len(group.prompt_ids)
        for completion in group.completions:
            at += len(completion)
            places.append(at - 1)
    return torch.tensor(places, device=batch.input_ids.device)


def _row_states(trunk: nn.Module, batch: PackedBatch) -> Tensor:
    """(R, D) of the packed row."""
    nothing = batch.predict_T[:0]  # the request says that this is a packed forward; there is no head to score
    request = ScoringRequest(nothing, nothing, batch.layout, LogitTransform())
    with scoring(request):
        output = trunk(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            group_layout=batch.layout,
            use_cache=False,
        )
    check_layers(request, attention_layers(trunk))
    states: Tensor = output[0]
    return states[0]


def _sequence_states(trunk: nn.Module, ids: Tensor) -> Tensor:
    """(R, D) of one prompt with one completion."""
    unscaled_rope(trunk)
    states: Tensor = trunk(input_ids=ids, use_cache=False)[0]
    return states[0]
