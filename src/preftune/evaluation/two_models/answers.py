"""Both models' answers to every prompt, kept one by one.

eval/generations.jsonl           one object per row: id, prompt, base, aligned, tokens, finished, category
eval/generations.partial.jsonl   one object per answer, while they are made; afterwards the answers to prompts that an
                                 earlier evaluation asked and this one did not (a smaller --limit): they are not lost
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from functools import partial as partial_of
from pathlib import Path
from typing import Any, TypeAlias

from preftune.errors import DatasetError
from preftune.evaluation.two_models.types import AnsweredRow
from preftune.generation.answer_store import AnswerStore, Record, is_answer
from preftune.generation.protocol import SIDES, Answer, Kept, PairGenerator, Rows, Side, Take, row_id
from preftune.storage.jsonl import append_lines, digest, read_lines, read_object, write_lines
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
    generate: PairGenerator,
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
    keys, prompts, partial = _keys(rows, settings), [row["prompt"] for row in rows], path.with_name(PARTIAL)
    stores = {side: AnswerStore(partial, known) for side, known in _known_answers(path).items()}
    done = {side: len(keys) - len(store.missing(keys)) for side, store in stores.items()}

    def report(side: Side, known: int, total: int) -> None:
        done[side] = known
        if progress is not None:
            progress("generate", sum(done.values()), 2 * total)

    for side, store in stores.items():
        answer_side(store, keys, generate, side, prompts, rows, chunk=chunk, progress=partial_of(report, side))
    answered = [
        _answered_row(row, index, key, *(Kept.read(store.known[key]) for store in stores.values()))
        for index, (row, key) in enumerate(zip(rows, keys, strict=True))
    ]
    wanted = frozenset(keys)
    others = [line for store in stores.values() for key, line in store.known.items() if key not in wanted]
    if others:
        write_lines(partial, others, sealed=True)  # before `path` is replaced, which holds them until then
    write_results(path, (answer.to_dict() for answer in answered))
    if not others:
        partial.unlink(missing_ok=True)
    return [row.with_thoughts() for row in answered] if thoughts else answered


def write_results(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Replaces answers or outcomes in the folder of an evaluation. Where they differ from the earlier ones, the
    `summary.json` next to them is of the earlier ones and is removed, so that a run that ends before its own summary
    leaves no verdict on other answers.
    """
    lines = [dict(record) for record in records]
    if list(read_lines(path)) != lines:
        path.with_name("summary.json").unlink(missing_ok=True)
    write_lines(path, lines, sealed=True)


def missing_rows(
    rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], path: Path, side: Side
) -> list[Mapping[str, Any]]:
    """The rows that this side has still to answer; see `answer_rows`."""
    missing = AnswerStore(path, _known_answers(path)[side]).missing(_keys(rows, settings))
    return [rows[number] for number in missing]


def take_over_baseline(
    rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], path: Path, *, earlier: Path
) -> None:
    """Copies the answers of the baseline from an evaluation of another model with the same baseline and sampling.

    Args:
        path: as in `answer_rows`; the answers are added to the partial file next to it.
        earlier: the folder of the other evaluation; without its summary, or with other settings, nothing is copied.
    """
    other = read_object(earlier / "summary.json").get("settings")
    if not isinstance(other, dict) or digest({**other, "aligned": None}) != digest({**settings, "aligned": None}):
        return
    known = _known_answers(earlier / path.name)["base"]
    own = _known_answers(path)["base"]
    pairs = zip(_keys(rows, settings), _keys(rows, other), strict=True)
    lines = [{**known[theirs], "key": key} for key, theirs in pairs if key not in own and theirs in known]
    if lines:
        append_lines(path.with_name(PARTIAL), lines, sealed=True)


def _check_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        raise DatasetError("There are no rows to evaluate. Give at least one held-out prompt.")
    for index, row in enumerate(rows):
        if not row.get("prompt"):
            raise DatasetError(f"Row {index} has no 'prompt' (columns: {', '.join(map(repr, row)) or 'none'}).")


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


def _known_answers(path: Path) -> dict[Side, dict[str, Record]]:
    """What is answered in `path` and next to it, as lines of the partial file."""
    known: dict[Side, dict[str, Record]] = {"base": {}, "aligned": {}}
    for record in [*_by_side(path), *read_lines(path.with_name(PARTIAL))]:
        if is_answer(record) and record.get("side") in SIDES:
            kept = Kept.read(record)._asdict()
            known[record["side"]][record["key"]] = {"key": record["key"], "side": record["side"], **kept}
    return known


def _by_side(path: Path) -> Iterator[Record]:
    for record in read_lines(path):
        for side in SIDES:
            with suppress(KeyError, TypeError):
                own = {name: record[name][side] for name in Kept._fields if name in record}
                yield {"key": record["key"], "side": side, "text": record[side], **own}


def answer_side(
    store: AnswerStore,
    keys: Sequence[str],
    generate: PairGenerator,
    side: Side,
    prompts: Sequence[Text],
    rows: Rows,
    *,
    chunk: int = 64,
    progress: Callable[[int, int], None],
) -> None:
    """Has one side answer what is missing, each answer kept as it comes; of a generator that does not stream, `chunk`
    at a time."""

    def ask(take: Take, wanted: AbstractSet[int]) -> None:
        missing = sorted(wanted)
        seen = [{name: rows[n][name] for name in ("id", *SHAPING) if rows[n].get(name) is not None} for n in missing]
        asked, stream = [prompts[n] for n in missing], getattr(generate, "stream", None)
        if stream is not None:
            stream(side, asked, seen, lambda place, answer: take(missing[place], answer))
            return
        for start in range(0, len(seen), chunk):
            part = slice(start, start + chunk)
            for number, answer in zip(missing[part], generate(side, asked[part], seen[part]), strict=True):
                take(number, answer)

    def record(number: int, answer: Answer) -> Record:
        return {"key": keys[number], "side": side, **Kept.of(answer)._asdict()}

    store.complete(keys, ask, record=record, progress=progress)


def _answered_row(row: Mapping[str, Any], index: int, key: str, base: Kept, aligned: Kept) -> AnsweredRow:
    sides = {
        f"{side}_{name}": value
        for side, kept in zip(SIDES, (base, aligned), strict=True)
        for name, value in kept._asdict().items()
    }
    texts = {side: sides.pop(f"{side}_text") for side in SIDES}
    category = None if row.get("category") is None else str(row["category"])
    return AnsweredRow(id=row_id(row, index), prompt=row["prompt"], key=key, category=category, **texts, **sides)
