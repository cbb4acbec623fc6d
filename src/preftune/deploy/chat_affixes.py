"""A chat template as the texts around every turn, for servers that do not run Jinja."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from preftune.data.chat.end_marks import EndMarks
from preftune.data.chat.tool_calls import apply_template
from preftune.errors import ModelError
from preftune.types import Message

_SYSTEM, _ASKED, _SAID, _AGAIN = "Zqsystem", "Zqasked", "Zqsaid", "Zqagain"
"""Contents of the turns that are rendered; no template writes them itself."""


@dataclass(frozen=True, slots=True)
class Affixes:
    """The conversation is `lead` (only without a system turn), the turns between their affixes, and `generation`."""

    lead: str
    turns: Mapping[str, tuple[str, str]]
    """Prefix and suffix by role: `user`, `assistant`, and `system` if the template takes one."""
    generation: str

    def render(self, turns: Sequence[Message]) -> str:
        """The prompt up to the beginning of the answer."""
        lead = "" if turns and turns[0]["role"] == "system" else self.lead
        parts = (
            before + str(turn["content"]) + after for turn in turns for before, after in [self.turns[turn["role"]]]
        )
        return lead + "".join(parts) + self.generation


def derive_affixes(tokenizer: Any) -> Affixes:
    """The affixes of a tokenizer's chat template, without the bos that the tokenizer, and so a server, adds itself.

    Every conversation that was rendered to find them is rendered again from them and compared.

    Raises: ModelError if the template is missing, or does more than put texts around turns.
    """
    if not tokenizer.chat_template:
        raise ModelError("The tokenizer has no chat template, so a server of chats cannot be told how to write one.")
    render = _renderer(tokenizer)
    asked, said, again = _turn("user", _ASKED), _turn("assistant", _SAID), _turn("user", _AGAIN)
    system = _turn("system", _SYSTEM)
    one, three = render([asked]), render([asked, said, again])
    with_system = render([system, asked])
    if one is None or three is None:
        raise _more_than_affixes()
    mark = EndMarks(tokenizer).closing or ""
    head, question, answer, tail = _parts(three, _ASKED, _SAID, _AGAIN)
    user_after, assistant_before = _split(question, mark)
    assistant_after, user_before = _split(answer, mark)
    if not head.endswith(user_before) or not tail.startswith(user_after):
        raise _more_than_affixes()
    turns = {"user": (user_before, user_after), "assistant": (assistant_before, assistant_after)}
    if with_system is not None and _SYSTEM in with_system:
        system_before, middle, _ = _parts(with_system, _SYSTEM, _ASKED)
        if middle.endswith(user_before):
            turns["system"] = system_before, middle.removesuffix(user_before)
    found = Affixes(head.removesuffix(user_before), turns, tail.removeprefix(user_after))
    tried = [[asked], [asked, said, again], [asked, said, again, _turn("assistant", "Zqend"), asked]]
    tried += [[system, asked], [system, asked, said, again]] if "system" in turns else []
    if any(render(conversation) != found.render(conversation) for conversation in tried):
        raise _more_than_affixes()
    return found


def _renderer(tokenizer: Any) -> Callable[[list[Message]], str | None]:
    """Renders a prompt; None for a conversation that the template refuses."""
    bos = str(tokenizer.bos_token or "") if list(tokenizer("a")["input_ids"])[:1] == [tokenizer.bos_token_id] else ""

    def render(turns: list[Message]) -> str | None:
        try:
            text = str(apply_template(tokenizer, turns, add_generation_prompt=True))
        except Exception:  # a template is a program; it may refuse a system turn
            return None
        return text.removeprefix(bos) if bos else text

    return render


def _parts(text: str, *contents: str) -> list[str]:
    """The texts before, between and after the contents."""
    found = []
    for content in contents:
        before, present, text = text.partition(content)
        if not present:
            raise _more_than_affixes()
        found.append(before)
    return [*found, text]


def _split(between: str, mark: str) -> tuple[str, str]:
    """The text between two turns as suffix and prefix: the suffix ends after the end mark and the blanks behind it."""
    before, present, after = between.partition(mark) if mark else ("", "", between)
    if not present:
        return "", between
    start = len(after) - len(after.lstrip())
    return before + mark + after[:start], after[start:]


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _more_than_affixes() -> ModelError:
    return ModelError(
        "The chat template does more than put texts around turns, so Ollama's template language cannot express it. "
        "Export with --to gguf: llama.cpp's server runs the template itself."
    )
