"""Ollama's Modelfile: the chat template in Go's language, the tokens that end an answer, and the context length.

Ollama does not run Jinja. A chat template is expressed as the texts around every turn, which are found by rendering
conversations, and are refused if they do not render the same conversations again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.data.chat.end_marks import EndMarks
from preftune.data.chat.tool_calls import apply_template
from preftune.errors import ModelError
from preftune.storage.atomic import write_whole
from preftune.types import Message

CONTEXT = 8192
"""Upper bound of `num_ctx`. Ollama's own default cuts long prompts without a message."""


def write_modelfile(folder: Path, weights: str, tokenizer: Any, ends: Sequence[str], positions: int | None) -> None:
    """Writes the Modelfile of the GGUF file `weights`, which is in the same folder.

    Args:
        ends: the texts of the tokens that end an answer.
        positions: the longest sequence of the model; None if it has no limit.
    Raises: ModelError for a template that cannot be expressed.
    """
    template = go_template(derive_affixes(tokenizer))
    if '"""' in template:
        raise ModelError('The chat template contains """, which a Modelfile cannot hold. Export with --to gguf.')
    lines = [
        f"FROM ./{weights}",
        f'TEMPLATE """{template}"""',
        *(f"PARAMETER stop {json.dumps(end, ensure_ascii=False)}" for end in ends),
        f"PARAMETER num_ctx {min(positions or CONTEXT, CONTEXT)}",
    ]
    write_whole(folder / "Modelfile", ("\n".join(lines) + "\n").encode())


def go_template(affixes: Affixes) -> str:
    """The template as Ollama runs it over `.Messages`."""
    start = (
        f'{{{{- if or (not .Messages) (ne (index .Messages 0).Role "system") }}}}{_literal(affixes.lead)}{{{{ end }}}}'
    )
    branches: list[str] = []
    for role, (before, after) in affixes.turns.items():
        word = "else if" if branches else "- if"
        branches.append(f'{{{{{word} eq .Role "{role}" }}}}{_literal(before)}{{{{ .Content }}}}{_literal(after)}')
    loop = "{{- range .Messages }}" + "".join(branches) + "{{ end }}{{ end }}"
    return (start if affixes.lead else "") + loop + _literal(affixes.generation)


def _literal(text: str) -> str:
    """Text that Go's template language leaves as it is."""
    return text.replace("{{", '{{ "{{" }}')


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
        raise ModelError("The tokenizer has no chat template, so no Modelfile can be written. Export with --to gguf.")
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
