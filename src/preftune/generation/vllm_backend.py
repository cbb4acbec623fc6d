"""Answers by vLLM, if it is installed and there is a GPU: one engine, with the adapter as a request.

It uses vLLM's offline API (`LLM`, `SamplingParams`, `LoRARequest`), 0.10 and newer. Prompts are passed as token ids, so
that the model reads exactly the same input as with transformers."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from preftune.errors import ModelError, RequestError
from preftune.generation.backends import OfSource, batches, seed_of, template_of
from preftune.generation.encode_prompts import encode_prompts
from preftune.generation.generate import Completion, end_ids
from preftune.generation.lazy_model import ModelSource
from preftune.generation.protocol import Rows, Take, Wanted
from preftune.generation.settings import SamplingSettings, letters_of
from preftune.generation.thoughts import spoken
from preftune.types import Text

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts as the largest rank of its adapters."""
_AT_ONCE = 1024
"""Number of prompts between two writes; vLLM forms its own batches of them."""


def available() -> bool:
    """Whether vLLM can be used: it is installed, and there is a GPU."""
    if find_spec("vllm") is None:
        return False
    import torch

    return torch.cuda.is_available()


def refused_by(source: ModelSource) -> str | None:
    """Why vLLM cannot serve a model; None if it can."""
    if source.place.kind == "gguf":
        return "it is a GGUF file"
    if not source.is_adapter:
        return None
    from preftune.models.attach import adapter_config

    config = adapter_config(source.place.name)
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA":
        return f"its adapter is of type {kind}"
    if getattr(config, "use_dora", False):
        return "its adapter uses DoRA"
    if getattr(config, "modules_to_save", None) or getattr(config, "bias", "none") != "none":
        return "its adapter holds whole modules or biases"
    rank = lora_rank(config)
    return f"its adapter has rank {rank}" if rank > RANKS[-1] else None


def lora_rank(config: Any) -> int:
    """The largest rank in a LoRA's configuration."""
    return int(max([config.r, *(getattr(config, "rank_pattern", None) or {}).values()]))


class VllmEngine:
    """One loaded base with room for one adapter; it is started with the first prompt."""

    def __init__(self, model: str, *, rank: int = 0, **options: Any) -> None:
        """
        Args:
            rank: largest rank of the adapters; 0 for none.
            options: options of vLLM's `LLM`.
        """
        if rank:
            options |= {"enable_lora": True, "max_lora_rank": next(r for r in RANKS if r >= rank), "max_loras": 1}
        self._options: dict[str, Any] = {"model": model, "seed": 0, **options}
        self._llm: Any = None

    def generate(self, token_ids: Sequence[Sequence[int]], params: Sequence[Any], adapter: Any = None) -> list[Any]:
        """vLLM's outputs in the order of the prompts; with the adapter of a `LoRARequest`."""
        if self._llm is None:
            from vllm import LLM

            self._llm = LLM(**self._options)
        prompts = [{"prompt_token_ids": list(ids)} for ids in token_ids]
        return list(self._llm.generate(prompts, list(params), use_tqdm=False, lora_request=adapter))

    def close(self) -> None:
        """Ends the engine and releases its memory."""
        if self._llm is None:
            return
        import torch

        self._llm = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def engine_for(
    source: ModelSource, *, dtype: str = "auto", trust_remote_code: bool = False, batch_size: int | None = None
) -> VllmEngine:
    """An engine with the base of `source`, and room for its adapter if it has one.

    Args:
        batch_size: maximum number of answers at the same time; None leaves that to vLLM.
    Raises: ModelError if vLLM cannot serve this model; RequestError for an impossible batch size.
    """
    if batch_size is not None and batch_size < 1:
        raise RequestError(f"--batch_size {batch_size}: give at least 1.")
    reason = refused_by(source)
    if reason is not None:
        raise ModelError(f"vLLM cannot serve {source.name}: {reason}. Use --backend transformers.")
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    if batch_size is not None:
        options["max_num_seqs"] = batch_size
    if not source.is_adapter:
        return VllmEngine(source.place.name, **options)
    from preftune.models.attach import adapter_config

    rank = lora_rank(adapter_config(source.place.name))
    return VllmEngine(source.base_name, rank=rank, **options)


class VllmAnswerer(OfSource):
    """A side whose answers come from vLLM."""

    def __init__(self, source: ModelSource, engine: VllmEngine, settings: SamplingSettings, **options: Any) -> None:
        """
        Args:
            options: of `OfSource`.
        """
        super().__init__(source, settings, **options)
        self.engine = engine

    def identity(self) -> Mapping[str, Any]:
        generation = _params(self.settings, [])
        return {"identity": self._own.identity, "backend": "vllm", "generation": generation}

    def release(self) -> None:
        self.engine.close()

    def answer(self, prompts: Sequence[Text], rows: Rows, take: Take, wanted: Wanted = None) -> None:
        from vllm import SamplingParams

        tokenizer, adapter = self.tokenizer(), None
        if self.source.is_adapter and not self.adapter_off:
            from vllm.lora.request import LoRARequest

            adapter = LoRARequest("aligned", 1, _folder(self.source))
        ends = end_ids(self.source.generation_config, tokenizer)
        for settings, numbers in self._batches(prompts, rows):
            token_ids = encode_prompts(
                tokenizer, [prompts[n] for n in numbers], [template_of(rows[n]) for n in numbers]
            )
            params = [
                SamplingParams(**_params(settings, ends), seed=seed_of(self._seed, prompts[n], rows[n]))
                for n in numbers
            ]
            outputs = self.engine.generate(token_ids, params, adapter)
            for number, ids, output in zip(numbers, token_ids, outputs, strict=True):
                take(number, _completion(output.outputs[0], ids, tokenizer, ends))

    def batches_of(self, prompts: Sequence[Text], rows: Rows) -> list[list[int]]:
        """The numbers of the prompts that are passed to vLLM together."""
        return [numbers for _, numbers in self._batches(prompts, rows)]

    def _batches(self, prompts: Sequence[Text], rows: Rows) -> Iterator[tuple[SamplingSettings, list[int]]]:
        return batches([letters_of(prompt) for prompt in prompts], rows, self.settings, _AT_ONCE)


def _params(settings: SamplingSettings, ends: Sequence[int]) -> dict[str, Any]:
    """Sampling parameters; None is left to vLLM, which then sets no limit, and greedy decoding uses no limits.

    Args:
        ends: end tokens in addition to those that vLLM finds in the base's config.
    """
    params: dict[str, Any] = {"max_tokens": settings.max_new_tokens, "temperature": settings.temperature}
    if settings.temperature > 0:
        limits = {"top_p": settings.top_p, "top_k": settings.top_k, "min_p": settings.min_p}
        params |= {name: value for name, value in limits.items() if value is not None}
    if ends:
        params["stop_token_ids"] = list(ends)
    return params


def _completion(output: Any, prompt_ids: Sequence[int], tokenizer: Any, ends: Sequence[int]) -> Completion:
    tokens = list(output.token_ids)
    finished = output.finish_reason == "stop"
    ended = finished and bool(tokens) and tokens[-1] in {*tokenizer.all_special_ids, *ends}
    kept = tokens[:-1] if ended else tokens
    said, length = spoken(tokenizer, kept, prompt_ids)
    return Completion(said.answer, length, finished, said.thought, len(kept) - length)


def _folder(source: ModelSource) -> str:
    """The folder of the adapter; an adapter on the hub is downloaded, because vLLM needs a path."""
    if source.place.kind == "adapter":
        return source.place.name
    from huggingface_hub import snapshot_download

    return str(snapshot_download(source.place.name))
