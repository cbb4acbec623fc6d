"""Who answers for `sampling`: a model of transformers, in batches, or a model at an address, several calls at once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from preftune.data.chat.tool_calls import with_text_arguments
from preftune.errors import RequestError

if TYPE_CHECKING:
    from preftune.types import Message, Text


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """Sampling settings. None means the value of the model's own generation config (without one there, no limit), or
    the server's.
    """

    max_new_tokens: int = 512
    temperature: float = 1.0
    """0 always takes the likeliest token."""
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise RequestError(f"--max_new_tokens {self.max_new_tokens}: give at least 1.")
        if not 0 <= self.temperature <= 100:
            raise RequestError(f"--temperature {self.temperature:g}: give 0 (always the likeliest token) or more.")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise RequestError(f"--{name} {value:g}: give a share above 0 and at most 1.")
        if self.top_k is not None and self.top_k < 0:
            raise RequestError(f"--top_k {self.top_k}: give 0 (no limit) or more.")


def generate_options(settings: SamplingSettings, model: Any) -> dict[str, Any]:
    """The settings as arguments of `generate`."""
    options = {**asdict(settings), "do_sample": settings.temperature > 0}
    options["temperature"] = settings.temperature or None
    if options["top_k"] is None:
        # transformers would draw from the 50 likeliest tokens without saying so; answers are to be the model's own
        own = getattr(model, "generation_config", None)
        options["top_k"] = getattr(own, "top_k", None) or 0
    return options


def resolved(settings: SamplingSettings, model: Any, tokenizer: Any) -> dict[str, Any]:
    """The effective generation config, including the values of the model's own, as JSON.

    Args:
        model: a model, or any object with a `generation_config`.
    """
    from preftune.generation.generate import generation_config

    config = generation_config(model, tokenizer, **generate_options(settings, model))
    return {name: value for name, value in config.to_diff_dict().items() if name != "transformers_version"}


def messages_of(prompt: Text) -> list[Message]:
    """Messages in the form of endpoints, which expect the arguments of calls as JSON text."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else with_text_arguments(prompt)


def letters_of(prompt: Text) -> int:
    """Number of characters of all messages, for estimates."""
    return sum(len(str(message.get("content") or "")) for message in messages_of(prompt))
