"""What is asked of a model to verify it, however it is served; and a model of transformers that answers it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from preftune.generation.encode_prompts import encode_prompts
from preftune.generation.generate import end_ids, generate
from preftune.generation.lazy_model import ModelSource
from preftune.generation.protocol import Kept
from preftune.models.locate import locate
from preftune.types import Preference, Text, TokenizedGroup

Scores = list[tuple[float, float]]
"""Log-probabilities, in nats, of the two completions of every group."""


@runtime_checkable
class Served(Protocol):
    """A model as a client of its server sees it. What a server does not show is None."""

    @property
    def name(self) -> str:
        """The name for people."""

    def text_ids(self, texts: Sequence[str]) -> list[list[int]] | None:
        """The token ids of plain texts, with special tokens recognised and none added."""

    def prompt_ids(self, prompts: Sequence[Text]) -> list[list[int]] | None:
        """The token ids of prompts, rendered up to the beginning of the answer."""

    def ending(self, tokens: Sequence[int]) -> list[int] | None:
        """Those of the token ids at which an answer ends."""

    def scores(self, groups: Sequence[TokenizedGroup]) -> Scores | None:
        """Scores of groups of one prompt and two completions."""

    def answers(self, prompts: Sequence[Text], max_new_tokens: int) -> list[Kept]:
        """The greedy answers, each with the reasoning before it."""

    def close(self) -> None:
        """Releases memory and connections."""


class ServedModel:
    """A folder, adapter or hub id, loaded by transformers (and PEFT)."""

    def __init__(self, name: str, *, base_model: str | None = None, **options: Any) -> None:
        """
        Args:
            base_model: used instead of the base that an adapter names.
            options: of `load_model`: `dtype`, `trust_remote_code`.
        """
        self.name = name
        self.trust_remote_code = bool(options.get("trust_remote_code"))
        self.source = ModelSource(name, base_model=base_model, **options)

    @cached_property
    def tokenizer(self) -> Any:
        return self.source.tokenizer

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]

    def prompt_ids(self, prompts: Sequence[Text]) -> list[list[int]]:
        return encode_prompts(self.tokenizer, prompts, None)

    def ends(self) -> frozenset[int]:
        return frozenset(end_ids(self.source.generation_config, self.tokenizer))

    def ending(self, tokens: Sequence[int]) -> list[int]:
        """Those that the generation config alone names: other servers use no others."""
        named = getattr(self.source.generation_config, "eos_token_id", None)
        ends = named if isinstance(named, list | tuple) else [named]
        return [token for token in tokens if token in ends]

    def scores(self, groups: Sequence[TokenizedGroup]) -> Scores:
        from preftune.evaluation.two_models.pair_logps import LogpScorer

        rows = LogpScorer(self.source.model).score(groups)
        return [(row[0], row[1]) if row is not None else (float("nan"), float("nan")) for row in rows]

    def answers(self, prompts: Sequence[Text], max_new_tokens: int) -> list[Kept]:
        """In batches of one, where no padding can decide between two tokens that are equally likely."""
        found = generate(
            self.source.model,
            self.tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            batch_size=1,
            thoughts_apart=False,
        )
        return [Kept(*answer[:3]) for answer in found]

    def close(self) -> None:
        self.source.release()


def pair_of(prompt_ids: Sequence[int], chosen: Sequence[int], rejected: Sequence[int]) -> TokenizedGroup:
    """A group of one prompt and two completions."""
    return TokenizedGroup(tuple(prompt_ids), (tuple(chosen), tuple(rejected)), (Preference(0, 1),))


def gguf_of(path: str | os.PathLike[str]) -> Path | None:
    """A GGUF file, or the one in a folder; None for another model. Raises: ModelError for a folder with several."""
    return Path(place.name) if (place := locate(path)).kind == "gguf" else None
