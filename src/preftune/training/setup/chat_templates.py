"""The end-of-answer token and the chat template that a configuration sets on the tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from preftune.errors import ConfigError


def complete_tokenizer(tokenizer: Any, *, eos_token: str | None, chat_template_path: str | None) -> None:
    """Set the tokenizer's end-of-answer token and chat template, in place; None keeps the present one.

    Raises:
        ConfigError: the tokenizer does not have the token, or the path leads to no chat template.
    """
    if eos_token is not None:
        if eos_token not in tokenizer.get_vocab():
            raise ConfigError(f"eos_token={eos_token!r} is not a token of the tokenizer. Name one that it has.")
        tokenizer.eos_token = eos_token
    if chat_template_path is not None:
        tokenizer.chat_template = read_chat_template(chat_template_path)


def read_chat_template(name: str) -> str:
    """The chat template of a Jinja file, or of a model's tokenizer (folder or hub id).

    Raises:
        ConfigError: the file does not exist, or the tokenizer has no template.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path.read_text(encoding="utf-8")
    if path.suffix in (".jinja", ".jinja2", ".j2"):
        raise ConfigError(f"chat_template_path={name!r} is not a file. Check the path.")
    from preftune.models import load_tokenizer

    template = load_tokenizer(name).chat_template
    if not isinstance(template, str):
        raise ConfigError(f"chat_template_path={name!r}: its tokenizer has no chat template. Name another, or a file.")
    return template
