"""Who answers for `sampling`: a model of transformers, in batches, or a model at an address, several calls at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from preftune.data.tool_calls import with_text_arguments
from preftune.errors import RequestError
from preftune.evaluation.budget import Estimate, guess_tokens
from preftune.evaluation.parallel import in_parallel
from preftune.evaluation.records import digest
from preftune.evaluation.sampling import Asked, Take

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from preftune.evaluation.endpoint import Endpoint
    from preftune.evaluation.endpoint_replies import Reply
    from preftune.types import Message, Text

_SEED_BITS = 31
"""Servers take a seed of so many bits."""


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How answers are drawn. None leaves a value to the model's own generation config (if that is silent too, nothing
    is cut off), or to the server."""

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


class ModelSampler:
    """A loaded model. Batches are the same whatever is done already, so a resumed run draws the same answers."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        settings: SamplingSettings,
        *,
        name: str,
        batch_size: int = 16,
    ) -> None:
        if batch_size < 1:
            raise RequestError(f"--batch_size {batch_size}: give at least 1.")
        self._model, self._tokenizer = model, tokenizer
        self._settings, self._name, self._batch_size = settings, name, batch_size

    def settings(self) -> Mapping[str, Any]:
        """The model by its content, the resolved generation config, and the chat template."""
        from preftune.reference.fingerprint import fingerprint

        return {
            "model": self._name,
            "fingerprint": fingerprint(self._model, adapters=True),
            "chat_template": digest(self._tokenizer.chat_template),
            "generation": resolved(self._settings, self._model, self._tokenizer),
        }

    def answer(self, asked: Sequence[Asked], done: Collection[str], take: Take) -> None:
        """Longest prompts first, in batches of fixed composition; one of which anything is missing is done whole."""
        from preftune.evaluation.generation import generate
        from preftune.evaluation.prompt_ids import prompt_tokens

        first = {one.prompt.key: one for one in asked}  # every prompt is tokenised once, however many answers it gets
        tokens = prompt_tokens(
            self._model,
            self._tokenizer,
            [one.prompt.prompt for one in first.values()],
            max_new_tokens=self._settings.max_new_tokens,
            chat_template_kwargs=[_template(one) for one in first.values()],
        )
        length = dict(zip(first, tokens, strict=True))
        order = sorted(asked, key=lambda one: -length[one.prompt.key])
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            if all(one.key in done for one in batch):
                continue
            sampled = self._settings.temperature > 0
            answers = generate(
                self._model,
                self._tokenizer,
                [one.prompt.prompt for one in batch],
                batch_size=len(batch),
                seeds=[one.seed for one in batch] if sampled else None,
                chat_template_kwargs=[_template(one) for one in batch],
                thoughts_apart=False,  # pairs are made of what the model writes; `label` judges the answers alone
                **self._options(),
            )
            take(list(zip(batch, answers, strict=True)))

    def _options(self) -> dict[str, Any]:
        return generate_options(self._settings, self._model)


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
    """The generation config that answers are drawn with, what is left to the model's own filled in, as JSON.

    Args:
        model: or anything with its `generation_config`.
    """
    from preftune.evaluation.generation import generation_config

    config = generation_config(model, tokenizer, **generate_options(settings, model))
    return {name: value for name, value in config.to_diff_dict().items() if name != "transformers_version"}


def _template(asked: Asked) -> dict[str, Any]:
    carried = asked.prompt.carried
    tools = {"tools": carried["tools"]} if "tools" in carried else {}
    return {**carried.get("chat_template_kwargs", {}), **tools}


class EndpointSampler:
    """A model at an address."""

    def __init__(self, endpoint: Endpoint, settings: SamplingSettings) -> None:
        self._endpoint, self._settings = endpoint, settings

    def settings(self) -> Mapping[str, Any]:
        return {"model": str(self._endpoint.name), "generation": asdict(self._settings)}

    def estimate(self, asked: Sequence[Asked]) -> Estimate:
        """What these answers will cost at most. Raises: RequestError when that is more than a cap."""
        tokens = sum(guess_tokens(letters_of(one.prompt.prompt)) for one in asked)
        return self._endpoint.budget.estimate(
            calls=len(asked), tokens_in=tokens, tokens_out=len(asked) * self._settings.max_new_tokens
        )

    def answer(self, asked: Sequence[Asked], done: Collection[str], take: Take) -> None:
        """In the order of the prompts, several at once."""
        for one in asked:
            if "tools" in one.prompt.carried:
                raise RequestError(
                    f"Prompt {one.prompt.id} has tools, whose calls an endpoint answers in a form that is no text. "
                    "Sample it from a model of transformers, or leave the column out with --columns tools=."
                )
        in_parallel(
            self._ask,
            (one for one in asked if one.key not in done),
            workers=self._endpoint.conduct.concurrency,
            take=lambda one, reply: take([(one, reply)]),
        )

    def _ask(self, asked: Asked) -> Reply:
        return ask_endpoint(
            self._endpoint,
            asked.prompt.prompt,
            self._settings,
            seed=asked.seed,
            template=asked.prompt.carried.get("chat_template_kwargs"),
            about=f"for prompt {asked.prompt.id!r}",
        )


def ask_endpoint(
    endpoint: Endpoint,
    prompt: Text,
    settings: SamplingSettings,
    *,
    seed: int,
    template: Mapping[str, Any] | None,
    about: str,
) -> Reply:
    """One answer of a model at an address.

    Args:
        seed: 63 bits.
        template: what the chat template is told, which only some servers pass on.
    """
    known_to_some = {"top_k": settings.top_k, "min_p": settings.min_p, "chat_template_kwargs": template}
    return endpoint.chat(
        _messages(prompt),
        max_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=seed >> (63 - _SEED_BITS),
        extra={name: value for name, value in known_to_some.items() if value is not None},
        about=about,
    )


def _messages(prompt: Text) -> list[Message]:
    """As endpoints take them, which want the arguments of calls as JSON text."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else with_text_arguments(prompt)


def letters_of(prompt: Text) -> int:
    """Of all messages, for estimates."""
    return sum(len(str(message.get("content") or "")) for message in _messages(prompt))
