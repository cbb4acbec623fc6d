"""The input of preftune's own reward models: prompt and answer token for token as in training.

`preftune reward` leaves a small file with the weights that says whether its pairs were conversations or plain text.
Other models lack it, and are read by their chat template where they have one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from preftune.data.formats.to_pair import as_turns
from preftune.data.tokens.encode import Encoder
from preftune.judges.pairwise_llm import as_transcript
from preftune.models.locate import FORM_FILE
from preftune.types import Example, Text

Form: TypeAlias = Literal["conversations", "plain"]


def write_form(folder: str, form: Form) -> None:
    """Writes the file next to the weights."""
    Path(folder, FORM_FILE).write_text(json.dumps({"trained_on": form}) + "\n", encoding="utf-8")


def form_of(name: str) -> Form | None:
    """What a reward model's folder or hub id says that it was trained on; None for one of others."""
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(
            name, FORM_FILE, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
        said = None if found is None else json.loads(Path(found).read_text(encoding="utf-8"))["trained_on"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return said if said in ("conversations", "plain") else None


def trained_ids(tokenizer: Any, form: Form, prompt: Text, answer: str, template: Mapping[str, Any]) -> list[int] | None:
    """The ids that training would have had; None for an answer that could not have been trained on (an empty one).

    Args:
        template: what the prompt's row gives to the chat template, `tools` among it.
    """
    if form == "plain":
        example = Example(prompt if isinstance(prompt, str) else as_transcript(prompt), (answer,))
    else:
        turns: Any = as_turns(prompt) if isinstance(prompt, str) else prompt
        said: Text = [{"role": "assistant", "content": answer}]
        kwargs = {name: value for name, value in template.items() if name != "tools"}
        example = Example(turns, (said,), tools=template.get("tools"), chat_template_kwargs=kwargs)
    (encoded,) = Encoder(tokenizer).encode([example])
    return [*encoded.prompt, *encoded.completions[0]] if any(encoded.completions) else None
