"""Answers of the policy by vLLM, on the card that trains it: one engine with the base, and every round a new adapter.

Written against vLLM's offline API (`LLM`, `SamplingParams`, `LoRARequest`), 0.10 and newer.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preftune.errors import ModelError
from preftune.generation.vllm_backend import RANKS, VllmEngine, available, lora_rank
from preftune.models.roles import POLICY, base_of
from preftune.training.online.rollout import TransformersSampler
from preftune.training.record.scaling import saved_scaling

_SHARE_OF_CARD = 0.4
"""Of the card's memory, for vLLM's weights and cache; the rest trains."""


class VllmSampler(TransformersSampler):
    """Draws with vLLM, whose engine holds a second copy of the base and gets the policy's adapter anew every round."""

    def __init__(self, tokenizer: Any, *, model: Any, folder: Path, **options: Any) -> None:
        """
        Args:
            options: `max_new_tokens`, `temperature` and `seed`.
        Raises:
            ModelError: vLLM is not there, or cannot serve this policy.
        """
        if not available():
            raise ModelError(
                "use_vllm=True needs vLLM and a GPU, but one of them is missing. Leave use_vllm out: then "
                "transformers samples."
            )
        config = (getattr(model, "peft_config", None) or {}).get(POLICY)
        rank = 0 if config is None else lora_rank(config)
        if config is None or not base_of(model) or config.use_dora or config.modules_to_save or rank > RANKS[-1]:
            raise ModelError(
                "use_vllm=True serves a base that has a name, with a plain LoRA adapter on it, which is sent to vLLM "
                "every round, but this policy is different. Leave use_vllm out, or train with use_peft."
            )
        super().__init__(tokenizer, batch_size=0, autocast=None, **options)
        self._folder, self._round = folder / "vllm-adapter", 0
        # generation_config: not the model's own top-k and penalties
        own: dict[str, Any] = {"gpu_memory_utilization": _SHARE_OF_CARD, "generation_config": "vllm"}
        self._engine = VllmEngine(str(base_of(model)), rank=rank, **own)

    def draw(
        self, model: Any, token_ids: Sequence[Sequence[int]], config: Any, seeds: Sequence[int]
    ) -> list[list[int]]:
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        self._round += 1
        place = self._folder / str(self._round)
        with saved_scaling(model):
            model.save_pretrained(str(place), selected_adapters=[POLICY])
        shared: dict[str, Any] = {
            "max_tokens": config.max_new_tokens,
            "temperature": config.temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": list(config.eos_token_id or []),
        }
        params = [SamplingParams(**shared, seed=seed) for seed in seeds]
        adapter = LoRARequest(f"round-{self._round}", self._round, str(place))
        outputs = self._engine.generate(token_ids, params, adapter)
        shutil.rmtree(self._folder, ignore_errors=True)
        return [list(output.outputs[0].token_ids) for output in outputs]
