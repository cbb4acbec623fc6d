"""Both models' answers to every prompt, kept as they come.

eval/generations.jsonl           one object per row: id, prompt, base, aligned, tokens, finished, category
eval/generations.partial.jsonl   one object per answer, while they are made; afterwards the answers to prompts that an
                                 earlier evaluation asked and this one did not (a smaller --limit): they are not lost
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from preftune.errors import DatasetError
from preftune.evaluation.records import append_lines, digest, read_lines, write_lines
from preftune.evaluation.thoughts import Spoken, share_of_tokens, split_thoughts
from preftune.types import Text

Side: TypeAlias = Literal["base", "aligned"]
SIDES: tuple[Side, ...] = ("base", "aligned")
PARTIAL = "generations.partial.jsonl"


class Answer(Protocol):
    """What a generator returns for one prompt; `preftune.evaluation.generation.Completion` is one.

    Two attributes are optional: `thought`, what a thinking model wrote before `text`, and `thought_tokens`. Without
    them a thought between marks in `text` is found (`preftune.evaluation.thoughts`).
    """

    @property
    def text(self) -> str: ...
    @property
    def tokens(self) -> int: ...
    @property
    def finished(self) -> bool: ...


Take: TypeAlias = Callable[[int, Answer], None]
"""Called with the number of a prompt and its answer."""


SHAPING = ("tools", "chat_template_kwargs", "sampling", "given")
"""Columns of a row, besides its prompt, that shape an answer. A generator sees these and `id`, nothing else, so that
the key of an answer holds all that the answer depends on."""


class Generator(Protocol):
    """Answers prompts with one of the two models; `rows` hold the `id` and the `SHAPING` columns of each prompt.

    A method `stream(side, prompts, rows, take)` is optional: it hands every answer over as soon as it is there, so that
    a kill costs no more than what is under way. Without it answers are kept after every chunk.
    """

    def __call__(self, side: Side, prompts: Sequence[Text], rows: Sequence[Mapping[str, Any]]) -> Sequence[Answer]: ...


@dataclass(frozen=True, slots=True)
class AnsweredRow:
    """One row with both answers, as a line of `generations.jsonl`."""

    id: str
    prompt: Text
    base: str
    aligned: str
    base_tokens: int
    aligned_tokens: int
    base_finished: bool
    aligned_finished: bool
    key: str = ""
    """Content address of prompt and settings: an answer is reused only under the same key."""
    category: str | None = None
    base_thought: str = ""
    """What a thinking model wrote before its answer; judges, matchers and lengths do not see it."""
    aligned_thought: str = ""
    base_thought_tokens: int = 0
    aligned_thought_tokens: int = 0

    def to_dict(self) -> dict[str, Any]:
        record: dict[str, Any] = {
            "id": self.id,
            "prompt": self.prompt,
            "base": self.base,
            "aligned": self.aligned,
            "tokens": {"base": self.base_tokens, "aligned": self.aligned_tokens},
            "finished": {"base": self.base_finished, "aligned": self.aligned_finished},
            "key": self.key,
            "category": self.category,
        }
        if self.base_thought or self.aligned_thought:
            record["thought"] = {"base": self.base_thought, "aligned": self.aligned_thought}
            record["thought_tokens"] = {"base": self.base_thought_tokens, "aligned": self.aligned_thought_tokens}
        return record

    def with_thoughts(self) -> AnsweredRow:
        """The row as a judge of thoughts sees it: each answer with its thought before it."""
        return replace(
            self,
            base=Spoken(self.base, self.base_thought).whole,
            aligned=Spoken(self.aligned, self.aligned_thought).whole,
            base_tokens=self.base_tokens + self.base_thought_tokens,
            aligned_tokens=self.aligned_tokens + self.aligned_thought_tokens,
            base_thought="",
            aligned_thought="",
            base_thought_tokens=0,
            aligned_thought_tokens=0,
        )

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> AnsweredRow:
        return cls(
            id=record["id"],
            prompt=record["prompt"],
            base=record["base"],
            aligned=record["aligned"],
            base_tokens=record["tokens"]["base"],
            aligned_tokens=record["tokens"]["aligned"],
            base_finished=record["finished"]["base"],
            aligned_finished=record["finished"]["aligned"],
            key=record.get("key", ""),
            category=record.get("category"),
            base_thought=record.get("thought", {}).get("base", ""),
            aligned_thought=record.get("thought", {}).get("aligned", ""),
            base_thought_tokens=record.get("thought_tokens", {}).get("base", 0),
            aligned_thought_tokens=record.get("thought_tokens", {}).get("aligned", 0),
        )


class Kept(NamedTuple):
    """An answer as it is kept on disk, its thought apart."""

    text: str
    tokens: int
    finished: bool
    thought: str = ""
    thought_tokens: int = 0

    @classmethod
    def of(cls, answer: Answer) -> Kept:
        """Any answer, with a thought that is still in its text taken out."""
        thought, thought_tokens = getattr(answer, "thought", ""), getattr(answer, "thought_tokens", 0)
        if thought:
            return cls(answer.text, answer.tokens, answer.finished, thought, thought_tokens)
        part = split_thoughts(answer.text)
        tokens = share_of_tokens(part, answer.text, answer.tokens)
        return cls(part.answer, tokens, answer.finished, part.thought, answer.tokens - tokens)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Kept:
        """From a line on disk; those of earlier versions have the thought in the text."""
        return cls.of(cls(*(record.get(name, cls._field_defaults.get(name)) for name in cls._fields)))

    @property
    def whole(self) -> Kept:
        """With the thought before the text."""
        text = Spoken(self.text, self.thought).whole
        return Kept(text, self.tokens + self.thought_tokens, self.finished)


Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with the step and how far it is: "generate" with answers done and answers in all (two per row), "judge" with
questions done and questions in all."""


def row_id(row: Mapping[str, Any], index: int) -> str:
    """The row's own `id`, or its index."""
    return str(row["id"]) if row.get("id") is not None else str(index)


def answer_rows(
    rows: Sequence[Mapping[str, Any]],
    *,
    generate: Generator,
    path: Path,
    settings: Mapping[str, Any],
    chunk: int = 64,
    thoughts: bool = False,
    progress: Progress | None = None,
) -> list[AnsweredRow]:
    """Both answers to every row, in the order of the rows; those already in `path` under the same key are reused.

    All answers of the baseline come first: two models need not be in memory together. Answers are kept one by one in
    `generations.partial.jsonl` beside `path` until both sides are whole. Answers to other rows that lie there, or under
    other settings, are kept beside it.

    Args:
        thoughts: return the answers of thinking models with their thoughts before them.
    """
    _check_rows(rows)
    keys = _keys(rows, settings)
    known = _known_answers(path)
    total, partial = 2 * len(rows), path.with_name(PARTIAL)
    done = sum(key in known[side] for side in SIDES for key in keys)

    def tell() -> None:
        if progress is not None:
            progress("generate", done, total)

    tell()
    for side in SIDES:
        missing = [index for index, key in enumerate(keys) if key not in known[side]]

        def take(number: int, answer: Answer, side: Side = side, missing: list[int] = missing) -> None:
            nonlocal done
            key = keys[missing[number]]
            done += key not in known[side]
            known[side][key] = found = Kept.of(answer)
            append_lines(partial, [{"key": key, "side": side, **found._asdict()}])
            tell()

        if missing:
            chosen = [rows[index] for index in missing]
            stream_answers(generate, side, [row["prompt"] for row in chosen], chosen, take, chunk=chunk)
    answered = [
        _answered_row(row, index, key, known["base"][key], known["aligned"][key])
        for index, (row, key) in enumerate(zip(rows, keys, strict=True))
    ]
    others = _answers_to_others(known, frozenset(keys))
    if others:
        write_lines(partial, others)  # before `path` is replaced, which holds them until then
    write_lines(path, (answer.to_dict() for answer in answered))
    if not others:
        partial.unlink(missing_ok=True)
    return [row.with_thoughts() for row in answered] if thoughts else answered


def _answers_to_others(known: Mapping[Side, Mapping[str, Kept]], keys: frozenset[str]) -> list[dict[str, Any]]:
    """Answers that are known and belong to none of these rows, as lines of the partial file."""
    return [
        {"key": key, "side": side, **found._asdict()}
        for side in SIDES
        for key, found in known[side].items()
        if key not in keys
    ]


def missing_rows(
    rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], path: Path, side: Side
) -> list[Mapping[str, Any]]:
    """The rows that this side has still to answer; see `answer_rows`."""
    known = _known_answers(path)[side]
    return [row for row, key in zip(rows, _keys(rows, settings), strict=True) if key not in known]


def _check_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        raise DatasetError("There are no rows to evaluate. Give at least one held-out prompt.")
    for index, row in enumerate(rows):
        if not row.get("prompt"):
            raise DatasetError(
                f"Row {index} has no 'prompt' to answer (columns: {', '.join(map(repr, row)) or 'none'})."
            )


def answer_key(prompt: Text, row: Mapping[str, Any], settings: Any) -> str:
    """Content address of an answer: the prompt, all `SHAPING` columns of its row, and who answers and how."""
    return digest([prompt, {name: row[name] for name in SHAPING if row.get(name)}, settings])


def _keys(rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[str]:
    """The row's index is not part of its key; its place among equal prompts is: two rows of one prompt are two
    answers."""
    seen: dict[str, int] = {}
    keys = []
    for row in rows:
        content = answer_key(row["prompt"], row, settings)
        seen[content] = seen.get(content, -1) + 1
        keys.append(f"{content}-{seen[content]}")
    return keys


def _known_answers(path: Path) -> dict[Side, dict[str, Kept]]:
    known: dict[Side, dict[str, Kept]] = {"base": {}, "aligned": {}}
    for record in read_lines(path):
        if _is_answer(record):
            for side in SIDES:
                of_side = {name: record[name][side] for name in Kept._fields if name in record}
                known[side][record["key"]] = Kept.read({"text": record[side], **of_side})
    for record in read_lines(path.with_name(PARTIAL)):
        values = (record.get(name) for name in ("tokens", "finished", "text"))
        if record.get("side") in SIDES and isinstance(record.get("key"), str) and _whole(*values):
            known[record["side"]][record["key"]] = Kept.read(record)
    return known


def stream_answers(
    generate: Generator,
    side: Side,
    prompts: Sequence[Text],
    rows: Sequence[Mapping[str, Any]],
    take: Take,
    *,
    chunk: int = 64,
) -> None:
    """One side's answers, each handed over as it comes; of a generator that does not stream, `chunk` at a time."""
    seen = [{name: row[name] for name in ("id", *SHAPING) if row.get(name) is not None} for row in rows]
    stream = getattr(generate, "stream", None)
    if stream is not None:
        stream(side, prompts, seen, take)
        return
    for start in range(0, len(seen), chunk):
        answers = generate(side, prompts[start : start + chunk], seen[start : start + chunk])
        for number, answer in enumerate(answers, start=start):
            take(number, answer)


def _answered_row(row: Mapping[str, Any], index: int, key: str, base: Kept, aligned: Kept) -> AnsweredRow:
    return AnsweredRow(
        id=row_id(row, index),
        prompt=row["prompt"],
        base=base.text,
        aligned=aligned.text,
        base_tokens=base.tokens,
        aligned_tokens=aligned.tokens,
        base_finished=base.finished,
        aligned_finished=aligned.finished,
        key=key,
        category=None if row.get("category") is None else str(row["category"]),
        base_thought=base.thought,
        aligned_thought=aligned.thought,
        base_thought_tokens=base.thought_tokens,
        aligned_thought_tokens=aligned.thought_tokens,
    )


def _is_answer(record: Mapping[str, Any]) -> bool:
    try:
        AnsweredRow.from_dict(record)
    except (KeyError, TypeError, AttributeError):
        return False
    return bool(record.get("key")) and all(
        _whole(record["tokens"][side], record["finished"][side], record[side]) for side in SIDES
    )


def _whole(tokens: Any, finished: Any, text: Any) -> bool:
    return isinstance(text, str) and isinstance(tokens, int) and isinstance(finished, bool)
