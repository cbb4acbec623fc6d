"""Damaged encoding, and typed special tokens and role marks in the texts."""

from __future__ import annotations

import re

from preftune.audit.checks.check import Check, Setting
from preftune.audit.finding import Kind
from preftune.audit.seen import SeenPair

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_SPECIAL = re.compile(
    r"<\|[A-Za-z_0-9]{2,40}\|>|<｜[^｜\n]{1,40}｜>|\A\s*<s>|</s>\s*\Z|\[/?INST\]|<</?SYS>>"
    r"|<(?:start|end)_of_turn>|<(?:bos|eos|pad)>"
)
"""The text of tokens that chat templates write."""

_ROLE_MARK = re.compile(r"(?:\A|\n\n)(?:Human|Assistant): |(?:\A|\n)### (?:Instruction|Response|Input):")

DAMAGED = Kind(
    "encoding",
    "warning",
    "Damaged encoding",
    "The model learns to write broken characters.",
    "Read the source again in its true encoding; ftfy.fix_text repairs most of what is left.",
)
SPECIAL = Kind(
    "special_tokens",
    "warning",
    "Special tokens typed in the text",
    "The chat template writes them a second time: turns end too early, and the model learns to print them.",
    "Remove them from the texts, or give the rows as messages and let the template write them.",
)
ROLE_MARK = Kind(
    "role_marks",
    "warning",
    "Role marks inside an answer",
    "The model learns to continue with the user's turn, or to start its answers with a role.",
    "Cut the answers at the mark, or give such rows as messages.",
)


class TextCheck(Check):
    """Checks prompt, chosen and rejected of every pair."""

    kinds = (SPECIAL, DAMAGED, ROLE_MARK)

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.eos, self.own = "", None
        if setting.encoder is not None:
            tokenizer = setting.encoder.tokenizer
            self.eos = str(tokenizer.eos_token or "")
            marks = [str(mark) for mark in tokenizer.all_special_tokens if len(str(mark)) > 3]
            if marks:
                self.own = re.compile("|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True)))

    def take(self, seen: SeenPair) -> None:
        texts = (("prompt", seen.prompt), ("chosen", seen.chosen), ("rejected", seen.rejected))
        found = {
            DAMAGED: [(part, damage) for part, text in texts if (damage := damage_of(text))],
            SPECIAL: [(part, mark) for part, text in texts if (mark := self._special_in(text, seen))],
            ROLE_MARK: [(part, role[0].strip()) for part, text in texts[1:] if (role := _ROLE_MARK.search(text))],
        }
        for kind, parts in found.items():
            if parts:
                self.add(kind, seen, ": ".join(parts[0]))

    def _special_in(self, text: str, seen: SeenPair) -> str | None:
        if isinstance(seen.pair.prompt, str) and self.eos:  # a typed eos ends the answer correctly
            text = text.rstrip().removesuffix(self.eos)
        found = _SPECIAL.search(text) if "<" in text or "[" in text else None
        if found is None and self.own is not None:
            found = self.own.search(text)
        return found[0].strip() if found else None


def damage_of(text: str) -> str | None:
    """The damage of a text's characters, in a few words; None for an undamaged text."""
    if not text.isascii():
        if "\ufffd" in text:
            return "replacement character U+FFFD"
        from ftfy.badness import is_bad

        if is_bad(text):
            return "text decoded in the wrong encoding"
    found = _CONTROL.search(text)
    return f"control character U+{ord(found[0]):04X}" if found else None
