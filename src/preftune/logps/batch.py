"""Groups packed into one row of tensors, and a model's scores of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from preftune.logps.layout import GroupLayout, plan_layout
from preftune.types import Sides, Span, TokenizedGroup


class OneByOne(NamedTuple):
    """One completion after its prompt, as a separate row."""

    ids: Tensor
    """(1, R) int64."""
    prompt: int
    """Number of tokens of the prompt."""
    spans: tuple[Span, ...]
    """The scored spans, counted from the first token of the completion."""


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Groups concatenated in one row, `[P C1 .. CK | P C1 .. CK | ...]`, and the positions of the scores.

    A group's first completion token is predicted by the last prompt state; every further completion of the group
    is predicted from that same state, so `predict_T` repeats it.
    """

    input_ids: Tensor
    """(1, R) int64."""
    position_ids: Tensor
    """(1, R) int64; every completion restarts at the length of its prompt."""
    layout: GroupLayout
    predict_T: Tensor
    """(T,) int64: index in the row of the state that predicts each scored token."""
    target_T: Tensor
    """(T,) int64: the scored tokens of all completions, by `TokenizedGroup.scored`."""
    owner_T: Tensor
    """(T,) int64: the completion of the batch that each token belongs to, 0..K-1."""
    chosen_N: Tensor
    """(N,) int64: completion index of each pair's chosen side."""
    rejected_N: Tensor
    """(N,) int64."""
    weight_N: Tensor
    """(N,) float32."""
    margin_N: Tensor
    """(N,) float32."""
    rejected_margin_N: Tensor
    """(N,) float32: margins for the gradient of the rejected sides."""
    good_K: Tensor
    """(K,) bool: the labels of all completions; empty without labels."""
    label_weight_K: Tensor
    """(K,) float32."""
    score_K: Tensor
    """(K,) float32: the scores of all completions; empty without scores."""
    groups: tuple[TokenizedGroup, ...]

    def to(self, device: Any, non_blocking: bool = False) -> PackedBatch:
        """The batch with its tensors on `device`."""
        names = "input_ids position_ids layout predict_T target_T owner_T chosen_N rejected_N weight_N margin_N"
        names += " rejected_margin_N"
        names += " good_K label_weight_K score_K"
        moved = {n: getattr(self, n).to(device, non_blocking=non_blocking) for n in names.split()}
        return replace(self, **moved)

    def sequences(self) -> Iterator[OneByOne]:
        """Every completion as a separate sequence, on the device of the batch."""
        for group in self.groups:
            for index, completion in enumerate(group.completions):
                ids = torch.tensor([[*group.prompt_ids, *completion]], device=self.input_ids.device)
                yield OneByOne(ids, len(group.prompt_ids), tuple(group.spans(index)))

    @property
    def completions(self) -> int:
        return sum(len(g.completions) for g in self.groups)

    @property
    def pairs(self) -> int:
        return int(self.chosen_N.shape[0])


@dataclass(frozen=True, slots=True)
class GroupLogps:
    """Scores of a batch's completions under one model, in nats.

    Engines return `token_logps_T`, and the reference cache stores it; the rest is derived from it.
    """

    token_logps_T: Tensor
    """(T,) float32 (float64 in a float64 model)."""
    owner_T: Tensor
    """(T,) int64."""
    completions: int
    hit_T: Tensor | None = None
    """(T,) bool: whether no other token was likelier; None if the scores came from a cache."""
    square_T: Tensor | None = None
    """(T,) log of the sum of all tokens' squared probabilities, without gradient; None if it was not requested."""
    entropy_T: Tensor | None = None
    """(T,) entropy of the distribution of each token, without gradient; None if it was not requested."""

    @property
    def sum_K(self) -> Tensor:
        """(K,): log-probability of each completion's scored tokens given the tokens before them."""
        zeros = self.token_logps_T.new_zeros(self.completions)
        return zeros.index_add(0, self.owner_T, self.token_logps_T)

    @property
    def length_K(self) -> Tensor:
        """(K,): number of scored tokens of each completion, in the dtype of the scores."""
        ones = self.token_logps_T.new_ones(self.owner_T.shape[0])
        return self.token_logps_T.new_zeros(self.completions).index_add(0, self.owner_T, ones)

    @property
    def entropies(self) -> Tensor:
        """(T,): the requested entropies."""
        assert self.entropy_T is not None
        return self.entropy_T

    @property
    def confidence_K(self) -> Tensor:
        """(K,) mean over a completion's tokens of log p - log sum p^2: its likelihood relative to the model's own
        samples, without gradient; for the weights of WPO.
        """
        assert self.square_T is not None
        apart_T = self.token_logps_T.detach() - self.square_T
        return apart_T.new_zeros(self.completions).index_add(0, self.owner_T, apart_T) / self.length_K

    def sides(self, batch: PackedBatch, *, ld_alpha: float | None = None) -> Sides:
        """The scores of the batch's pairs.

        Args:
            ld_alpha: weight of the tokens of the longer side beyond the length of the shorter one; None and 1 sum all.
                LD-DPO, Liu et al. 2024 (arXiv:2409.06411), eq. 9.
        """
        sums, lengths = self.sum_K, self.length_K
        chosen_N, rejected_N = sums[batch.chosen_N], sums[batch.rejected_N]
        if ld_alpha is not None and ld_alpha != 1:
            shared_N = torch.minimum(lengths[batch.chosen_N], lengths[batch.rejected_N])
            first_N = self._first(batch.chosen_N, shared_N)
            chosen_N = first_N + ld_alpha * (chosen_N - first_N)
            first_N = self._first(batch.rejected_N, shared_N)
            rejected_N = first_N + ld_alpha * (rejected_N - first_N)
        return Sides(
            chosen_N=chosen_N,
            rejected_N=rejected_N,
            chosen_length_N=lengths[batch.chosen_N],
            rejected_length_N=lengths[batch.rejected_N],
        )

    def _first(self, completion_N: Tensor, tokens_N: Tensor) -> Tensor:
        """(N,): log-probability of the first `tokens_N` scored tokens of these completions."""
        lengths = self.length_K
        place_T = torch.arange(len(self.owner_T), device=self.owner_T.device)
        place_T = place_T - (lengths.cumsum(0) - lengths).long()[self.owner_T]
        is_first_NT = (self.owner_T == completion_N[:, None]) & (place_T < tokens_N[:, None])
        return torch.where(is_first_NT, self.token_logps_T, 0.0).sum(1)


def pack(groups: Sequence[TokenizedGroup]) -> PackedBatch:
    """Packs groups into one row. Prompts and completions must not be empty (the tokeniser ensures this).

    Tokens outside a completion's spans are context: they are in the row, but are not predicted.

    Raises:
        ValueError: no groups, an empty prompt or an empty completion.
    """
    if not groups:
        raise ValueError("a batch needs at least one group")
    ids: list[int] = []
    positions: list[int] = []
    predict: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    pairs: list[tuple[int, int, float, float, float]] = []
    completions = 0
    for group in groups:
        prompt = len(group.prompt_ids)
        if prompt == 0 or not all(len(c) for c in group.completions):
            raise ValueError(f"group {group.id!r} has an empty prompt or completion")
        last_prompt_state = len(ids) + prompt - 1
        ids.extend(group.prompt_ids)
        positions.extend(range(prompt))
        for index, completion in enumerate(group.completions):
            length, start = len(completion), len(ids)
            ids.extend(completion)
            positions.extend(range(prompt, prompt + length))
            for begin, end in group.spans(index):
                if begin == 0:
                    predict.append(last_prompt_state)
                predict.extend(range(start + max(begin, 1) - 1, start + end - 1))
                targets.extend(completion[begin:end])
                owners.extend([completions + index] * (end - begin))
        for pair in group.pairs:
            other = pair.margin if pair.rejected_margin is None else pair.rejected_margin
            pairs.append((completions + pair.chosen, completions + pair.rejected, pair.weight, pair.margin, other))
        completions += len(group.completions)
    chosen, rejected, weight, margin, other_margin = zip(*pairs, strict=True) if pairs else ((),) * 5
    return PackedBatch(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        layout=plan_layout(groups),
        predict_T=torch.tensor(predict),
        target_T=torch.tensor(targets),
        owner_T=torch.tensor(owners),
        chosen_N=torch.tensor(chosen, dtype=torch.int64),
        rejected_N=torch.tensor(rejected, dtype=torch.int64),
        weight_N=torch.tensor(weight, dtype=torch.float32),
        margin_N=torch.tensor(margin, dtype=torch.float32),
        rejected_margin_N=torch.tensor(other_margin, dtype=torch.float32),
        good_K=torch.tensor([label.desirable for group in groups for label in group.labels], dtype=torch.bool),
        label_weight_K=torch.tensor([label.weight for group in groups for label in group.labels], dtype=torch.float32),
        score_K=torch.tensor([score for group in groups for score in group.scores], dtype=torch.float32),
        groups=tuple(groups),
    )
