"""What must not reach a file, a page or a tracker: tokens, keys and passwords."""

from __future__ import annotations

import json
import re
from typing import Any

_HIDDEN = "***"
_SECRET = re.compile(
    r"^([^=\s]*[_-])?(token|(api|access|secret|private)[_-]?key|apikey|passwd|password|secret|credentials?|authorization)$",
    re.IGNORECASE,
)
_OPTION = re.compile(r"--?[\w-]+")
_NO_SECRET = ("pad_token", "eos_token", "bos_token", "unk_token", "sep_token", "cls_token", "mask_token")
_KNOWN_TOKEN = re.compile(r"\b(?:hf_\w{16,}|sk-[\w-]{16,}|gh[pousr]_\w{16,}|(?<=://)[^/\s:@]*:[^/\s@]+(?=@))")
"""Tokens of hubs and endpoints by how they begin, and the name and password inside an address."""


def without_secrets(value: Any) -> Any:
    """JSON without the values of options called `token`, `hub_token`, `api_key` and the like, and without tokens that
    tell themselves by their beginning, anywhere. In a list, an option may stand before its value, as on a command line.
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


def is_secret(name: str) -> bool:
    """Whether an option of this name holds a secret."""
    return name.lstrip("-").replace("-", "_") not in _NO_SECRET and _SECRET.search(name) is not None
