"""Answers on disk by key: each is written when it arrives, and a resumed run requests only missing ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, TypeAlias

from preftune.generation.protocol import Answer, Take, is_token_count
from preftune.storage.jsonl import append_lines, read_lines

Record: TypeAlias = Mapping[str, Any]
"""A line of the file."""


class AnswerStore:
    """The answers of one JSON lines file."""

    def __init__(self, path: Path, known: dict[str, Record] | None = None, *, sealed: bool = True) -> None:
        """
        Args:
            known: existing answers by key; default: the complete ones in `path`.
            sealed: lines get a checksum; not in a file that is a dataset.
        """
        self.path, self._sealed = path, sealed
        self.known: dict[str, Record] = {} if known is None else known
        if known is None:
            self.known.update((line["key"], line) for line in read_lines(path) if is_answer(line))

    def missing(self, keys: Sequence[str]) -> list[int]:
        """The numbers of the keys without an answer."""
        return [number for number, key in enumerate(keys) if key not in self.known]

    def complete(
        self,
        keys: Sequence[str],
        ask: Callable[[Take, AbstractSet[int]], None],
        *,
        record: Callable[[int, Answer], Record],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Obtains every missing answer, and keeps it.

        Args:
            ask: called, if any answer is missing, with a function that takes a number and its answer, and with the
                numbers of the missing keys. It may also answer others, which are ignored: it forms its own batches.
            record: the line of an answer.
            progress: called with answers known and answers in all.
        """
        wanted = set(self.missing(keys))
        report = progress or (lambda done, total: None)
        report(len(keys) - len(wanted), len(keys))

        def take(number: int, answer: Answer) -> None:
            if number in wanted:
                wanted.remove(number)
                self.known[keys[number]] = line = record(number, answer)
                append_lines(self.path, [line], sealed=self._sealed)
                report(len(keys) - len(wanted), len(keys))

        if wanted:
            ask(take, frozenset(wanted))


def is_answer(record: Record) -> bool:
    """Whether a line holds a complete answer."""
    kinds = {"key": str, "text": str, "finished": bool}
    return (
        all(isinstance(record.get(name), kind) for name, kind in kinds.items())
        and isinstance(record.get("thought", ""), str)
        and all(is_token_count(record.get(name, 0)) for name in ("tokens", "thought_tokens"))
        and "tokens" in record
    )
