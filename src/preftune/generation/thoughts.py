"""Separates a thinking model's answer from its reasoning: judges, matchers, lengths and rewards see only the answer.

Reasoning is enclosed in marks. The tokenizer's own response template defines them, if there is one; otherwise the marks
below are recognised, which are those of public thinking models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

MARKS = (
    ("<think>", "</think>"),  # DeepSeek-R1, Qwen3, SmolLM3, QwQ, Hunyuan
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),  # EXAONE Deep
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1
    ("◁think▷", "◁/think▷"),  # Kimi-VL
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("<unused94>thought", "<unused95>"),  # MedGemma
    ("<|channel|>analysis<|message|>", "<|end|>"),  # gpt-oss
)
_OPEN = "|".join(re.escape(opened) for opened, _ in MARKS)
_CLOSE = "|".join(re.escape(closed) for _, closed in MARKS[:-1])
_BLOCK = re.compile(
    "|".join(rf"^[ \t]*{re.escape(opened)}.*?(?:{re.escape(closed)}|\Z)" for opened, closed in MARKS),
    re.DOTALL | re.IGNORECASE | re.MULTILINE,
)
_FIRST_CLOSE = re.compile(rf"(?<!`)(?:{_CLOSE})(?!`)", re.IGNORECASE)
_ANY_MARK = re.compile(rf"(?P<open>{_OPEN})|{_CLOSE}", re.IGNORECASE)
_CHANNEL = re.compile(r"<\|start\|>assistant|<\|channel\|>\w+(?:<\|message\|>)?")


class Spoken(NamedTuple):
    """The two parts of a reply; both are stripped if there is reasoning."""

    answer: str
    thought: str
    """The reasoning; empty for a reply without it."""

    @property
    def whole(self) -> str:
        """Both parts in one text, for a judge that should see the reasoning too."""
        return f"<think>\n{self.thought}\n</think>\n\n{self.answer}" if self.thought else self.answer


def split_thoughts(text: str, *, inside: bool = False) -> Spoken:
    """Splits a reply into its answer and its reasoning. A reply that is cut off within its reasoning has an empty
    answer.

    A closing mark without an opening one ends reasoning too: the chat template or the server has consumed the opening
    one.

    Args:
        inside: whether the prompt ends with the opening mark, so that the reply begins within the reasoning.
    """
    if not inside and _ANY_MARK.search(text) is None:
        return Spoken(_CHANNEL.sub("", text), "") if "<|channel|>" in text else Spoken(text, "")
    thoughts = []
    close = _FIRST_CLOSE.search(text)
    first_open = re.search(_OPEN, text, re.IGNORECASE)
    if close is not None and (inside or first_open is None or close.start() < first_open.start()):
        thoughts.append(text[: close.start()])
        text = text[close.end() :]
    elif inside and close is None:
        return Spoken("", text.strip())
    thoughts += [_ANY_MARK.sub("", block).removesuffix(MARKS[-1][1]) for block in _BLOCK.findall(text)]
    text = _CHANNEL.sub("", _BLOCK.sub("", text))
    thought = "\n\n".join(part.strip() for part in thoughts if part.strip())
    return Spoken(text.strip() if thoughts else text, thought)


def begins_inside(prompt: str) -> bool:
    """Whether a rendered prompt ends within the reasoning, as with templates that write the opening mark."""
    marks = list(_ANY_MARK.finditer(prompt))
    return bool(marks) and marks[-1].group("open") is not None and not prompt[marks[-1].end() :].strip()


def spoken(tokenizer: Any, ids: Sequence[int], prompt_ids: Sequence[int]) -> tuple[Spoken, int]:
    """Answer and reasoning of generated tokens, both without special tokens, and the answer's length in tokens.

    Args:
        ids: token ids without the one that ends the reply.
        prompt_ids: the prompt of the reply.
    """
    found = _parsed(tokenizer, ids, prompt_ids)
    if found is None:
        raw = str(tokenizer.decode(list(ids), skip_special_tokens=False))
        inside = begins_inside(str(tokenizer.decode(list(prompt_ids[-24:]), skip_special_tokens=False)))
        split = split_thoughts(raw, inside=inside)
        if split == (raw, ""):
            return Spoken(str(tokenizer.decode(list(ids), skip_special_tokens=True)), ""), len(ids)
        found = Spoken(*(_without_special_tokens(tokenizer, part) for part in split))
    return found, min(len(ids), len(tokenizer(found.answer, add_special_tokens=False)["input_ids"]))


def share_of_tokens(part: Spoken, whole: str, tokens: int) -> int:
    """The approximate number of a reply's tokens that belong to its answer, without a tokenizer."""
    return round(tokens * len(part.answer) / max(1, len(whole))) if part.thought else tokens


def _parsed(tokenizer: Any, ids: Sequence[int], prompt_ids: Sequence[int]) -> Spoken | None:
    """Splits with the tokenizer's response template; None without one, or if it does not find both parts."""
    if getattr(tokenizer, "response_template", None) is None:
        return None
    try:
        message = tokenizer.parse_response(list(ids), prefix=list(prompt_ids))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):  # the template does not fit this reply
        return None
    thought = message.get("thinking") or message.get("reasoning") or message.get("reasoning_content")
    content = message.get("content") or ""
    if not isinstance(thought, str) or not isinstance(content, str) or message.get("tool_calls"):
        return None
    return Spoken(content.strip(), thought.strip())


def _without_special_tokens(tokenizer: Any, text: str) -> str:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    for token in added.values():
        if getattr(token, "special", False) and str(token.content):
            text = text.replace(str(token.content), "")
    return text.strip()
