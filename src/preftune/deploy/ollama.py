"""Ollama's Modelfile: the chat template in Go's language, the tokens that end an answer, and the context length."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preftune.deploy.chat_affixes import Affixes, derive_affixes
from preftune.errors import ModelError
from preftune.storage.atomic import write_whole

CONTEXT = 8192
"""Upper bound of `num_ctx`. Ollama's own default cuts long prompts without a message."""


def write_modelfile(folder: Path, weights: str, tokenizer: Any, ends: Sequence[str]) -> None:
    """Writes the Modelfile of the GGUF file `weights`, which is in the same folder.

    Args:
        ends: the texts of the tokens that end an answer.
    Raises: ModelError for a template that cannot be expressed.
    """
    template = go_template(derive_affixes(tokenizer))
    if '"""' in template:
        raise ModelError('The chat template contains """, which a Modelfile cannot hold. Export with --to gguf.')
    longest = getattr(tokenizer, "model_max_length", CONTEXT)
    lines = [
        f"FROM ./{weights}",
        f'TEMPLATE """{template}"""',
        *(f"PARAMETER stop {json.dumps(end, ensure_ascii=False)}" for end in ends),
        f"PARAMETER num_ctx {min(int(longest), CONTEXT)}",
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
