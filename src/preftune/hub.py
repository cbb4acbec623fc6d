"""Why the Hugging Face hub cannot be asked, and what to do about it, in words."""

from __future__ import annotations

import os
from typing import NamedTuple

_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""Variables that keep the hub's client from asking; the first that is set is named."""


class Unreachable(NamedTuple):
    """Two parts of a message: the first follows "the hub cannot be asked", the second begins a sentence."""

    why: str
    fix: str


def unreachable(error: BaseException | None = None) -> Unreachable:
    """What keeps the hub from being asked: offline mode, or the first line of an error of its client.

    Args:
        error: of the client; None where only the environment is known.
    """
    from huggingface_hub import constants, errors

    if isinstance(error, errors.OfflineModeIsEnabled) or (error is None and constants.HF_HUB_OFFLINE):
        name = next((name for name in _VARIABLES if os.environ.get(name)), _VARIABLES[0])
        return Unreachable(f"{name} is set", f"Unset {name}")
    text = " ".join(str(error or "").strip().split("\n")[0].split()) or type(error).__name__
    text = text.rstrip(".") if len(text) <= 120 else f"{text[:120].rpartition(' ')[0]} ..."
    return Unreachable("no connection" if error is None else text, "Connect to the internet")
