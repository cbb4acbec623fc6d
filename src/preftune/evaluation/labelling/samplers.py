"""Several completions per prompt, from a model or from an endpoint."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from preftune.errors import RequestError
from preftune.evaluation.labelling.sample import Asked, Take
from preftune.generation.endpoint.budget import Estimate, guess_tokens
from preftune.generation.endpoint.parallel import in_parallel
from preftune.storage.jsonl import digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from preftune.generation.endpoint.client import Endpoint
    from preftune.generation.endpoint.replies import Reply

from preftune.generation.settings import SamplingSettings, ask_endpoint, generate_options, letters_of, resolved


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
        from preftune.generation.encode_prompts import prompt_tokens
        from preftune.generation.generate import generate

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
