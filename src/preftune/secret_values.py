"""Values that must not reach a file, a page or a tracker: tokens, keys and passwords."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from typing import Any

_HIDDEN = "***"
_SECRET = re.compile(
    r"^([^=\s]*[_-])?(token|(api|access|secret|private)[_-]?key|apikey|passwd|password|secret|credentials?|authorization)$",
    re.IGNORECASE,
)
_OPTION = re.compile(r"--?[\w-]+")
_NO_SECRET = ("pad_token", "eos_token", "bos_token", "unk_token", "sep_token", "cls_token", "mask_token")
_KNOWN_TOKEN = re.compile(
    r"\b(?:hf_\w{16,}|sk-[\w-]{16,}|gh[pousr]_\w{16,}|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"
    r"|(?<=:/)[^/\s:@]*:[^/\s@]+(?=@))"  # an address that was taken for a path
)
"""Tokens of hubs and endpoints, recognised by their beginning, and the name and password inside an address."""


def without_secrets(value: Any) -> Any:
    """JSON without the values of options called `token`, `hub_token`, `api_key` and the like, and without tokens that
    are recognised by their beginning, in any place. In a list, an option may precede its value, as on a command line.
    """
    if isinstance(value, dict):
        return {key: without_secrets(item) for key, item in value.items() if not is_secret(key)}
    if isinstance(value, list):
        options = [isinstance(item, str) and item.startswith("-") and is_secret(item) for item in value]
        return [
            _HIDDEN if hide else without_secrets(item) for hide, item in zip([False, *options], value, strict=False)
        ]
    if isinstance(value, str):
        name, equals, given = value.partition("=")
        if equals and is_secret(name):
            return f"{name}={_HIDDEN}"
        if equals and _OPTION.fullmatch(name):
            return f"{name}={without_secrets(given)}"
        if value.lstrip().startswith(("{", "[")):  # an option's value in JSON, as --model_init_kwargs takes it
            try:
                inner = json.loads(value)
            except (ValueError, RecursionError):
                pass
            else:
                kept = without_secrets(inner)
                return value if kept == inner else json.dumps(kept, ensure_ascii=False)
        return _KNOWN_TOKEN.sub(_HIDDEN, value)
    return value


_BEARER = re.compile(r"(?i)\bbearer\s+(?!realm)[^\s'\")]+")
_STARRED = re.compile(r"[\w.-]*\*{3,}(?:[\w.*-]*[\w*-])?")
"""A key as servers show it in error messages: a few letters of its ends around stars."""
_PIECE = 6
"""Length from which a part of a key is hidden."""


def hidden(text: str, keys: Iterable[str] = ()) -> str:
    """A message without tokens and passwords: of a known form, of the environment, and `keys`, whole or in part."""
    text = _BEARER.sub(f"Bearer {_HIDDEN}", _KNOWN_TOKEN.sub(_HIDDEN, text))
    for key in keys:
        text = _without_key(text, key, piece=_PIECE)
    for name, value in os.environ.items():
        if is_secret(name):
            text = _without_key(text, value, piece=2 * _PIECE)  # a short one may be a word of any message
    return text


def without_starred(text: str) -> str:
    """A server's message without the parts of a key that it shows."""
    return _STARRED.sub(_HIDDEN, text)


def _without_key(text: str, key: str, *, piece: int) -> str:
    """The text without a key, without its Python repr, and without parts of it."""
    forms = {key, repr(key)[1:-1], key.encode("unicode_escape").decode("ascii")}
    for form in forms:
        if len(form.strip()) >= _PIECE:
            text = text.replace(form, _HIDDEN)
    pieces = {form[i : i + piece] for form in forms for i in range(len(form) - piece + 1)}
    found = [i for i in range(len(text) - piece + 1) if text[i : i + piece] in pieces]
    if not found:
        return text
    covered = {i + j for i in found for j in range(piece)}
    kept, last = [], -2
    for i, letter in enumerate(text):
        if i not in covered:
            kept.append(letter)
        elif i != last + 1:
            kept.append(_HIDDEN)
        last = i if i in covered else last
    return "".join(kept)


def is_secret(name: str) -> bool:
    """Whether an option of this name holds a secret."""
    return name.lstrip("-").replace("-", "_") not in _NO_SECRET and _SECRET.search(name) is not None
