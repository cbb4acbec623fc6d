"""Answers token by token, from a model or from the same model with its adapter off; or whole, from an endpoint."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.errors import RequestError
from preftune.generation.endpoint.client import EndpointName, is_endpoint
from preftune.log import printable
from preftune.types import Message

if TYPE_CHECKING:
    from preftune.generation.endpoint.client import Endpoint

Show = Callable[[str], None]
"""Called with the answer so far, each time it has grown."""


@dataclass(slots=True)
class _Side:
    """One side of a chat: a name, and its own conversation."""

    name: str
    system: str | None = field(default=None, kw_only=True)
    messages: list[Message] = field(init=False)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets the conversation; the system prompt stays."""
        self.messages = _opening(self.system)


@dataclass(slots=True)
class Speaker(_Side):
    """A model on this machine."""

    model: Any
    tokenizer: Any
    adapter_off: bool = False

    def answer(self, text: str, *, show: Show, max_new_tokens: int, temperature: float, seed: int) -> str:
        """Answers one message; the message and the answer are added to the conversation.

        Args:
            temperature: 0 always takes the likeliest token.
        """
        import torch

        from preftune.generation.generate import baseline, generating, generation_config
        from preftune.generation.thoughts import spoken

        messages = [*self.messages, {"role": "user", "content": text}]
        config = generation_config(
            self.model,
            self.tokenizer,
            max_new_tokens=max_new_tokens,
            do_sample=temperature > 0,
            temperature=temperature or None,
        )
        ids = self._prompt_ids(messages)
        prompt_ids = torch.tensor([ids], device=self.model.get_input_embeddings().weight.device)
        streamer = GrowingText(self.tokenizer, show)
        with baseline(self.model) if self.adapter_off else nullcontext(), generating(self.model, "auto", seed):
            self.model.generate(
                input_ids=prompt_ids,
                attention_mask=torch.ones_like(prompt_ids),
                generation_config=config,
                streamer=streamer,
            )
        said, _ = spoken(self.tokenizer, streamer.ids, ids)
        self.messages = [*messages, {"role": "assistant", "content": said.answer}]
        return streamer.text

    def _prompt_ids(self, messages: list[Message]) -> list[int]:
        from preftune.generation.encode_prompts import encode_prompts

        prompt: Any = messages
        if not self.tokenizer.chat_template:  # a base model: what was said so far, as text
            prompt = "".join(f"{message['content']}\n" for message in messages)
        return encode_prompts(self.tokenizer, [prompt], None)[0]


@dataclass(slots=True)
class RemoteSpeaker(_Side):
    """A model behind an address, whose answers are shown when they are complete."""

    endpoint: Endpoint

    def answer(self, text: str, *, show: Show, max_new_tokens: int, temperature: float, seed: int) -> str:
        """As `Speaker.answer`."""
        from preftune.generation.thoughts import Spoken

        messages = [*self.messages, Message(role="user", content=text)]
        reply = self.endpoint.chat(
            messages, max_tokens=max_new_tokens, temperature=temperature, seed=seed if temperature > 0 else None
        )
        self.messages = [*messages, Message(role="assistant", content=reply.text)]
        whole = Spoken(reply.text, reply.thought).whole.strip()
        show(whole)
        return whole


def _opening(system: str | None) -> list[Message]:
    return [{"role": "system", "content": system}] if system else []


class GrowingText:
    """A streamer for `generate`: the answer so far, decoded as a whole, so that incomplete characters are never
    shown.
    """

    def __init__(self, tokenizer: Any, show: Show) -> None:
        self.text = ""
        self._tokenizer = tokenizer
        self._show = show
        self._ids: list[int] | None = None

    @property
    def ids(self) -> list[int]:
        """The generated token ids, including the end token."""
        return self._ids or []

    def put(self, value: Any) -> None:
        """Takes token ids from `generate`; the first call holds the prompt."""
        if self._ids is None:
            self._ids = []
            return
        self._ids += value.reshape(-1).tolist()
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        if not text.endswith("\ufffd"):  # the rest of this character is still to come
            self.text = text
            self._show(text)

    def end(self) -> None:
        """The answer is complete."""
        self.text = self._tokenizer.decode(self.ids, skip_special_tokens=True).strip()


def load_speakers(
    name: str, baseline_name: str | None, *, system: str | None, base_model: str | None = None, **options: Any
) -> list[Speaker]:
    """The models of a chat, the one before alignment first.

    An adapter and its base are one loaded model: the base answers with the adapter switched off. Without a baseline, an
    adapter is shown next to its base, and a whole model answers alone.

    Args:
        base_model: instead of the base that an adapter names.
        options: for `ModelSource`.
    Raises: ModelError when a model cannot be loaded; RequestError when both names are the same model.
    """
    from preftune.generation.generate import base_changed_by_adapter
    from preftune.generation.lazy_model import ModelSource
    from preftune.models.locate import same_model

    source = ModelSource(name, base_model=base_model, **options)
    base = source.base_name if source.is_adapter else None
    before = baseline_name or base
    other = None if before is None else ModelSource(before, **options)
    if baseline_name is not None and same_model(name, baseline_name):
        raise RequestError(
            f"--model and --baseline are both {name}. Name as --baseline the model that it was trained from."
        )
    if other is None:
        return [Speaker(labels(name)[0], source.model, source.tokenizer, system=system)]
    first, second = labels(other.name, name)
    aligned = Speaker(second, source.model, source.tokenizer, system=system)
    shared = base is not None and same_model(base, other.name) and base_changed_by_adapter(source.place.name) is None
    model = source.model if shared else other.model
    return [Speaker(first, model, other.tokenizer, adapter_off=shared, system=system), aligned]


def labels(*names: str) -> list[str]:
    """The last parts of the names, or the whole names if the last parts do not distinguish the models."""
    short = [_last_part(name) for name in names]
    return [printable(name) for name in (names if len(set(short)) < len(names) else short)]


def _last_part(name: str) -> str:
    if is_endpoint(name):
        return EndpointName.parse(name).model
    return Path(name).expanduser().resolve().name if Path(name).expanduser().exists() else name.rpartition("/")[2]
