"""A reward model whose adapter lies on the policy's own base, as a scorer like any other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from preftune.errors import ModelError
from preftune.generation.lazy_model import ModelSource, contents
from preftune.judges.reward_model import RewardModel
from preftune.judges.reward_model_input import form_of
from preftune.types import TokenizedGroup


class RewardOnBase(RewardModel):
    """Gives the scores of the same reward model loaded by itself: it reads prompt and answer as it was trained to, with
    the end of a turn and what its template writes behind it, which the policy's own tokens lack.
    """

    def __init__(self, policy: Any, name: str, measure: Callable[[Sequence[TokenizedGroup]], Sequence[Tensor]]) -> None:
        """
        Args:
            policy: whose base it is.
            name: folder or hub id of the reward model.
            measure: a score for each group, read at the last token of its completion.
        """
        source = ModelSource(name)
        loaded = (policy, source.tokenizer)
        # every answer is new, so scores are not kept: the identity tells a resumed run whether it is the same one
        identity = contents(source.place).hex()
        super().__init__(lambda: loaded, name=f"reward:{name}", identity=identity, form=form_of(source.place.name))
        self._loaded = loaded  # the policy stays in the mode that it is in
        self._measure = measure

    def _score(self, encoded: Sequence[Mapping[str, list[int]]]) -> list[float]:
        rows = [row["input_ids"] for row in encoded]
        groups = [TokenizedGroup(row[:-1], (row[-1:],), (), id=str(place)) for place, row in enumerate(rows)]
        scores = [float(score) for score in self._measure(groups)]
        if not all(map(math.isfinite, scores)):
            raise ModelError(f"{self.name} gives scores that are not finite. Load the policy with --dtype float32.")
        return scores
