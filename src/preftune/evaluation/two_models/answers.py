"""Both models' answers to every prompt, kept as they come.

eval/generations.jsonl           one object per row: id, prompt, base, aligned, tokens, finished, category
eval/generations.partial.jsonl   one object per answer, while they are made; afterwards the answers to prompts that an
                                 earlier evaluation asked and this one did not (a smaller --limit): they are not lost
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from preftune.errors import DatasetError
from preftune.evaluation.two_models.types import AnsweredRow
from preftune.generation.protocol import SIDES, Answer, Generator, Kept, Side, Take, row_id
from preftune.storage.jsonl import append_lines, digest, read_lines, write_lines
from preftune.types import Text

PARTIAL = "generations.partial.jsonl"


SHAPING = ("tools", "chat_template_kwargs", "sampling", "given")
"""Columns of a row, besides its prompt, that shape an answer. A generator sees these and `id`, nothing else, so that
the key of an answer holds all that the answer depends on."""


Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with the step and how far it is: "generate" with answers done and answers in all (two per row), "judge" with
questions done and questions in all."""


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
    `generations.partial.jsonl` next to `path` until both sides are complete. Answers to other rows, or under
    other settings, are kept there too.

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
