"""Prompts as the token ids that a model continues: the one place that renders them for generation.

They are the ids that training has for the same prompt (`data.tokens.encode`): a tokeniser that ends every text with
eos does not end a prompt with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from preftune.amounts import counted
from preftune.data.chat.end_marks import EndMarks, appends_eos
from preftune.data.chat.tool_calls import apply_template
from preftune.errors import ModelError, RequestError
from preftune.models.positions import check_token_ids, limit_of
from preftune.types import Message, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PromptLike: TypeAlias = Text | list[int]
"""Text, messages, or the token ids themselves."""
TemplateKwargs: TypeAlias = Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[PromptLike], template_kwargs: TemplateKwargs
) -> list[list[int]]:
    """Token ids of every prompt: text directly, message lists through the chat template, up to the beginning of the
    answer; token ids unchanged.

    Args:
        template_kwargs: arguments of the chat template, for all prompts or one mapping per prompt.
    Raises: ModelError for messages without a chat template; RequestError for a prompt that is empty.
    """
    if template_kwargs is None or isinstance(template_kwargs, Mapping):
        per_prompt: Sequence[Mapping[str, Any] | None] = [template_kwargs] * len(prompts)
    else:
        per_prompt = template_kwargs
        if len(per_prompt) != len(prompts):
            raise RequestError(
                f"{len(per_prompt)} chat_template_kwargs for {counted(len(prompts), 'prompt')}: give one per prompt."
            )
    ended = any(isinstance(prompt, str) for prompt in prompts) and appends_eos(tokenizer)
    encoded = [
        _plain(tokenizer, prompt, ended) if isinstance(prompt, str) else _rendered(tokenizer, prompt, kwargs or {})
        for prompt, kwargs in zip(prompts, per_prompt, strict=True)
    ]
    for index, ids in enumerate(encoded):
        if not ids and prompts[index] and not isinstance(prompts[index], str):
            raise ModelError(f"The chat template writes nothing for prompt {index}. Repair tokenizer.chat_template.")
        if not ids:
            raise RequestError(f"Prompt {index} is empty after tokenising. Remove it.")
    return encoded


def _plain(tokenizer: PreTrainedTokenizerBase, prompt: str, ended: bool) -> list[int]:
    ids = list(tokenizer(prompt)["input_ids"])
    return ids[:-1] if ended else ids


def _rendered(
    tokenizer: PreTrainedTokenizerBase, prompt: list[Message] | list[int], kwargs: Mapping[str, Any]
) -> list[int]:
    if prompt and isinstance(prompt[0], int):
        return prompt
    messages = EndMarks(tokenizer).without(cast("list[Message]", prompt))
    if not tokenizer.chat_template:
        raise ModelError(
            "The prompts are message lists, but the tokenizer has no chat template (it may belong to a base model). "
            "Use an instruction-tuned model, set tokenizer.chat_template, or give the prompts as text."
        )
    prefill = bool(messages) and messages[-1].get("role") == "assistant"
    text = apply_template(
        tokenizer, messages, add_generation_prompt=not prefill, continue_final_message=prefill, **kwargs
    )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])  # the template has written them


def check_fit(
    model: Any, token_ids: Sequence[Sequence[int]], max_new_tokens: int, *, names: Sequence[str] | None = None
) -> None:
    """Checks the longest prompt, and that the model has an embedding for every token.

    Args:
        names: names of the prompts in the message; default: their numbers.
    Raises: ModelError for a prompt that leaves no room for an answer of this length, or with an unknown token.
    """
    check_token_ids(model, max(map(max, token_ids)))
    limit = limit_of(model)
    longest = max(range(len(token_ids)), key=lambda i: len(token_ids[i]))
    if limit is not None and len(token_ids[longest]) + max_new_tokens > limit:
        name = longest if names is None else names[longest]
        raise ModelError(
            f"Prompt {name} has {counted(len(token_ids[longest]), 'token')} and its answer up to {max_new_tokens}, but "
            f"the model has only {limit} positions. Lower max_new_tokens or leave that prompt out."
        )
