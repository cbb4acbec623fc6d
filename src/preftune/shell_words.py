"""Words of a command that a message prints: what is copied into a shell must mean what was meant."""

from __future__ import annotations

import os
import shlex


def path_word(path: str | os.PathLike[str]) -> str:
    """A path as one word of a printed command: quoted, and `./-out` for one that would be read as a flag.

    Characters that a terminal does not show are written as bash's $'...' writes them.
    """
    text = os.fspath(path)
    return word(f"./{text}" if text.startswith("-") and text != "-" else text)


def word(text: str) -> str:
    """Any text as one word of a printed command."""
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(map(_escaped, text)) + "'"


_NAMED = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def _escaped(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if character in _NAMED:
        return _NAMED[character]
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x80 else f"\\U{code:08x}"


def command_line(words: list[str]) -> str:
    """The words of a command, as a shell takes them."""
    return " ".join(map(word, words))
