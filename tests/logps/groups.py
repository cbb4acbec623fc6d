"""Random groups of token ids for engine tests."""

from __future__ import annotations

import torch

from preftune.types import Preference, TokenizedGroup


def random_groups(sizes=((4, (3, 5)), (9, (6, 2)), (2, (1, 1))), *, vocabulary=128, seed=0) -> list[TokenizedGroup]:
    """`sizes`: (prompt length, completion lengths) of each group."""
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> list[int]:
        return torch.randint(3, vocabulary, (count,), generator=generator).tolist()

    groups = []
    for index, (prompt, completions) in enumerate(sizes):
        pairs = tuple(Preference(i, j) for i in range(len(completions)) for j in range(i + 1, len(completions)))
        groups.append(TokenizedGroup(ids(prompt), tuple(ids(n) for n in completions), pairs, id=str(index)))
    return groups
