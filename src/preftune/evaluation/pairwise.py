"""Base against aligned, prompt by prompt: generate, judge, count. Each step is a file that the next run picks up.

eval/generations.jsonl   one object per row: id, prompt, base, aligned, tokens, finished
eval/verdicts.jsonl      one object per row: id, outcome (for the aligned model), the judgement in each order
eval/summary.json        the win rate, its interval, the verdicts in words
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from preftune.errors import DatasetError
from preftune.evaluation.judges import Judge, Judgement, checked, judge_name
from preftune.evaluation.records import append_lines, digest, prepare_folder, read_lines, write_json, write_lines
from preftune.evaluation.summary import Summary, summarise
from preftune.types import Text

Side: TypeAlias = Literal["base", "aligned"]
Outcome: TypeAlias = Literal["win", "tie", "loss"]
"""Of the aligned model."""


class Answer(Protocol):
    """What a generator returns for one prompt; `preftune.evaluation.generation.Completion` is one."""

    @property
    def text(self) -> str: ...
    @property
    def tokens(self) -> int: ...
    @property
    def finished(self) -> bool: ...


class Generator(Protocol):
    """Answers prompts with one of the two models; `rows` are the rows of the prompts, for what else they carry."""

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

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "prompt": self.prompt,
            "base": self.base,
            "aligned": self.aligned,
            "tokens": {"base": self.base_tokens, "aligned": self.aligned_tokens},
            "finished": {"base": self.base_finished, "aligned": self.aligned_finished},
            "key": self.key,
        }

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
        )


class JudgedRow(NamedTuple):
    """The outcome of one row for the aligned model, and the raw judgements that led to it."""

    id: str
    outcome: Outcome
    base_first: Judgement
    """Base as answer a, aligned as answer b."""
    aligned_first: Judgement | None
    """Aligned as answer a; None when the judge is symmetric and was asked once."""
    key: str = ""

    def to_dict(self) -> dict[str, Any]:
        return self._asdict()


Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with the step ("generate" or "judge"), rows done and rows in all."""


def row_id(row: Mapping[str, Any], index: int) -> str:
    """The row's own `id`, or its index."""
    return str(row["id"]) if row.get("id") is not None else str(index)


def evaluate_pairwise(
    rows: Sequence[Mapping[str, Any]],
    *,
    generate: Generator,
    judge: Judge,
    output_dir: str | Path,
    settings: Mapping[str, Any],
    chunk: int = 64,
    confidence: float = 0.95,
    progress: Progress | None = None,
) -> Summary:
    """Answer every row's `prompt` with both models, judge, and write the three files named at the top.

    Run again after a kill, only what is missing is generated. `settings` decides what may be reused, so it must hold
    all that shapes an answer: an identity of both models (a fingerprint, not only a name), `max_new_tokens`, sampling.

    Args:
        rows: each has `prompt` (text or messages); `id` and what the judge reads (`key_fact`) are optional.
        output_dir: the `eval` folder itself.
        chunk: rows answered between two writes.
    Raises: DatasetError when there is no row or a row has no prompt; RequestError for an unwritable folder.
    """
    folder = Path(output_dir)
    prepare_folder(folder)
    answered = answer_rows(
        rows, generate=generate, path=folder / "generations.jsonl", settings=settings, chunk=chunk, progress=progress
    )
    judged = judge_rows(answered, rows, judge=judge, path=folder / "verdicts.jsonl", progress=progress)
    summary = summarise(answered, judged, rows, judge=judge_name(judge), settings=settings, confidence=confidence)
    write_json(folder / "summary.json", summary.to_dict())
    return summary


def answer_rows(
    rows: Sequence[Mapping[str, Any]],
    *,
    generate: Generator,
    path: Path,
    settings: Mapping[str, Any],
    chunk: int = 64,
    progress: Progress | None = None,
) -> list[AnsweredRow]:
    """Both answers to every row, in the order of the rows; those already in `path` under the same key are reused."""
    if not rows:
        raise DatasetError("There are no rows to evaluate. Give at least one held-out prompt.")
    for index, row in enumerate(rows):
        if not row.get("prompt"):
            raise DatasetError(
                f"Row {index} has no 'prompt' to answer (columns: {', '.join(map(repr, row)) or 'none'})."
            )
    # The row's index is not part of the key; its place among equal prompts is: two rows of one prompt are two answers.
    seen: dict[str, int] = {}
    keys = []
    for row in rows:
        content = digest([row["prompt"], row.get("chat_template_kwargs"), settings])
        seen[content] = seen.get(content, -1) + 1
        keys.append(f"{content}-{seen[content]}")
    known = {record["key"]: record for record in read_lines(path) if _is_answer(record)}
    missing = [index for index, key in enumerate(keys) if key not in known]
    _tell(progress, "generate", len(rows) - len(missing), len(rows))
    for start in range(0, len(missing), chunk):
        part = missing[start : start + chunk]
        fresh = _answer_part([rows[i] for i in part], part, [keys[i] for i in part], generate)
        append_lines(path, (answer.to_dict() for answer in fresh))
        known.update((answer.key, answer.to_dict()) for answer in fresh)
        _tell(progress, "generate", len(rows) - len(missing) + start + len(part), len(rows))
    answered = [
        AnsweredRow.from_dict({**known[key], "id": row_id(row, index)})
        for index, (row, key) in enumerate(zip(rows, keys, strict=True))
    ]
    write_lines(path, (answer.to_dict() for answer in answered))
    return answered


def _answer_part(
    rows: Sequence[Mapping[str, Any]], indices: Sequence[int], keys: Sequence[str], generate: Generator
) -> list[AnsweredRow]:
    prompts: list[Text] = [row["prompt"] for row in rows]
    base = generate("base", prompts, rows)
    aligned = generate("aligned", prompts, rows)
    return [
        AnsweredRow(
            id=row_id(row, index),
            prompt=row["prompt"],
            base=b.text,
            aligned=a.text,
            base_tokens=b.tokens,
            aligned_tokens=a.tokens,
            base_finished=b.finished,
            aligned_finished=a.finished,
            key=key,
        )
        for row, index, key, b, a in zip(rows, indices, keys, base, aligned, strict=True)
    ]


def _is_answer(record: Mapping[str, Any]) -> bool:
    try:
        AnsweredRow.from_dict(record)
    except (KeyError, TypeError):
        return False
    return bool(record.get("key"))


def judge_rows(
    answered: Sequence[AnsweredRow],
    rows: Sequence[Mapping[str, Any]],
    *,
    judge: Judge,
    path: Path | None = None,
    progress: Progress | None = None,
) -> list[JudgedRow]:
    """The outcome of every row. A judge that is not `symmetric` is asked in both orders, and disagreement is a tie.

    With a `path`, judgements are appended as they come; a judge with a `cache_key` finds its earlier ones there.
    """
    cache_key = getattr(judge, "cache_key", None)
    known: dict[str, dict[str, Any]] = {}
    if path is not None and cache_key is not None:
        known = {str(record.get("key")): record for record in read_lines(path) if record.get("key")}
    judged = []
    for done, (answer, row) in enumerate(zip(answered, rows, strict=True), start=1):
        key = "" if cache_key is None else digest([cache_key, answer.prompt, answer.base, answer.aligned])
        if key and key in known:
            judged.append(JudgedRow(**{**known[key], "id": answer.id}))
        else:
            judged.append(_judge_row(answer, row, judge, key))
            if path is not None and key:
                append_lines(path, [judged[-1].to_dict()])
        _tell(progress, "judge", done, len(answered))
    if path is not None:
        write_lines(path, (item.to_dict() for item in judged))
    return judged


def _judge_row(answer: AnsweredRow, row: Mapping[str, Any], judge: Judge, key: str) -> JudgedRow:
    if answer.base == answer.aligned:
        return JudgedRow(answer.id, "tie", "tie", None, key)  # nothing to ask, and nothing to pay for
    base_first = checked(judge(answer.prompt, answer.base, answer.aligned, row), judge)
    aligned_first: Judgement | None = None
    if not getattr(judge, "symmetric", False):
        aligned_first = checked(judge(answer.prompt, answer.aligned, answer.base, row), judge)
    return JudgedRow(answer.id, outcome_of(base_first, aligned_first), base_first, aligned_first, key)


def outcome_of(base_first: Judgement, aligned_first: Judgement | None) -> Outcome:
    """The aligned model's outcome from the judgement in each order; two orders must agree, or it is a tie."""
    first: Outcome = {"a": "loss", "b": "win", "tie": "tie"}[base_first]  # type: ignore[assignment]
    if aligned_first is None:
        return first
    second: Outcome = {"a": "win", "b": "loss", "tie": "tie"}[aligned_first]  # type: ignore[assignment]
    return first if first == second else "tie"


def _tell(progress: Progress | None, step: str, done: int, total: int) -> None:
    if progress is not None:
        progress(step, done, total)
