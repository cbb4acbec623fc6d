"""Answers of the policy by vLLM, on the card that trains it: one engine with the base, and every round a new adapter.

Written against vLLM's offline API (`LLM`, `SamplingParams`, `LoRARequest`), 0.10 and newer.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preftune.errors import ModelError
from preftune.generation.encode_prompts import check_lengths
from preftune.generation.generate import generation_config
from preftune.generation.prompts import Prompt
from preftune.generation.vllm_backend import available
from preftune.models.roles import POLICY, base_of
from preftune.training.online.rollout import Rollout, rollout_of, seed_of

_SHARE_OF_CARD = 0.4
"""Of the card's memory, for vLLM's weights and cache; the rest trains."""
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


class VllmSampler:
    """A `Sampler` whose engine holds a second copy of the base, and takes the policy's adapter anew every round."""

    def __init__(
        self, tokenizer: Any, *, model: Any, folder: Path, max_new_tokens: int, temperature: float, seed: int
    ) -> None:
        """
        Raises:
            ModelError: vLLM is not there, or cannot serve this policy.
        """
        if not available():
            raise ModelError(
                "use_vllm=True needs vLLM and a GPU, and one of them is missing here. Leave use_vllm out: transformers "
                "samples then."
            )
        config = (getattr(model, "peft_config", None) or {}).get(POLICY)
        rank = 0 if config is None else max([config.r, *(config.rank_pattern or {}).values()])
        if config is None or not base_of(model) or config.use_dora or config.modules_to_save or rank > _RANKS[-1]:
            raise ModelError(
                "use_vllm=True serves a base that has a name, with a plain LoRA adapter on it, which is sent to vLLM "
                "every round; this policy is something else. Leave use_vllm out, or train with use_peft."
            )
        self._tokenizer, self._folder, self._seed = tokenizer, folder / "vllm-adapter", seed
        self._max_new_tokens, self._temperature = max_new_tokens, temperature
        self._rank = next(size for size in _RANKS if size >= rank)
        self._llm: Any = None
        self._round = 0

    def __call__(
        self, model: Any, prompts: Sequence[Prompt], token_ids: Sequence[Sequence[int]], *, first: int
    ) -> list[Rollout]:
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        check_lengths(model, token_ids, self._max_new_tokens)
        ends = generation_config(model, self._tokenizer, max_new_tokens=self._max_new_tokens).eos_token_id or []
        self._round += 1
        place = self._folder / str(self._round)
        model.save_pretrained(str(place), selected_adapters=[POLICY])
        params = [
            SamplingParams(
                max_tokens=self._max_new_tokens,
                temperature=self._temperature,
                top_p=1.0,
                top_k=0,
                min_p=0.0,
                repetition_penalty=1.0,
                stop_token_ids=list(ends),
                seed=seed_of(self._seed, first + number),
            )
            for number in range(len(prompts))
        ]
        outputs = self._start(model).generate(
            [{"prompt_token_ids": list(ids)} for ids in token_ids],
            params,
            use_tqdm=False,
            lora_request=LoRARequest(f"round-{self._round}", self._round, str(place)),
        )
        shutil.rmtree(self._folder, ignore_errors=True)
        return [
            rollout_of(prompt, ids, list(output.outputs[0].token_ids), ends, self._tokenizer, number=first + number)
            for number, (prompt, ids, output) in enumerate(zip(prompts, token_ids, outputs, strict=True))
        ]

    def _start(self, model: Any) -> Any:
        if self._llm is None:
            from vllm import LLM

            self._llm = LLM(
                model=base_of(model),
                enable_lora=True,
                max_lora_rank=self._rank,
                max_loras=1,
                gpu_memory_utilization=_SHARE_OF_CARD,
                generation_config="vllm",  # not the model's own top-k and penalties
                seed=0,
            )
        return self._llm
