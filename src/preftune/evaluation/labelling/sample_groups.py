"""The answers to a prompt that a judge ranks, read from a file of samples, and the counts of the results."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.amounts import counted
from preftune.errors import DatasetError
from preftune.evaluation.labelling.sample import answer_in, read_samples
from preftune.types import Text


@dataclass(frozen=True, slots=True)
class Group:
    """The distinct answers to one prompt."""

    id: str
    prompt: Text
    answers: tuple[str, ...]
    """The answers as sampled, from which pairs are made."""
    judged: tuple[str, ...]
    """The same without the reasoning of a thinking model, unless it is requested, for the judge."""
    samples: tuple[int, ...]
    """The number of each answer among the samples of the prompt."""
    row: Mapping[str, Any]
    """The row for rules: the id, the prompt, and the columns that `preftune sample --keep` copied."""
    carried: Mapping[str, Any]


@dataclass(slots=True)
class LabelCounts:
    """The counts of inputs, results, and reasons for the difference."""

    prompts: int = 0
    completions: int = 0
    unreadable: int = 0
    """Lines of the file that are not samples, or that repeat one."""
    empty: int = 0
    unfinished: int = 0
    repeated: int = 0
    """Answers that are the same as another to their prompt."""
    single: int = 0
    """Prompts with fewer than two answers left."""
    unrated: int = 0
    """Answers that the judge gave no number."""
    asked: int = 0
    """Comparisons of two answers."""
    tied: int = 0
    close: int = 0
    disagreed: int = 0
    """Comparisons where the judge preferred the same place both times: position bias. They count as ties."""
    unjudged: int = 0
    """Comparisons where a verdict could not be read. They count as ties."""
    pairs: int = 0

    def sentences(self) -> list[str]:
        """The counts in sentences; zero counts are left out."""
        lines = [
            f"{counted(self.pairs, 'pair')} from {counted(self.prompts, 'prompt')} with "
            f"{counted(self.completions, 'completion')}."
        ]
        for number, what in (
            (self.unreadable, "lines are not samples, or repeat an earlier one"),
            (self.empty, "completions are empty"),
            (self.unfinished, "completions were cut before their end and left out"),
            (self.repeated, "completions repeat another one to the same prompt"),
            (self.single, "prompts have fewer than two completions left"),
            (self.unrated, "completions got no score"),
            (self.tied, "pairs of completions are tied"),
            (self.close, "pairs of completions differ by less than --min_gap"),
        ):
            if number:
                lines.append(f"Left out: {number:,} {what}.")
        if self.disagreed:
            lines.append(
                f"The judge contradicted itself on {self.disagreed:,} of {counted(self.asked, 'comparison')} when the "
                "answers were swapped (position bias); these count as ties."
            )
        if self.unjudged:
            lines.append(
                f"{self.unjudged:,} of {counted(self.asked, 'comparison')} without a readable verdict count as ties; "
                "--ask_again repeats them."
            )
        return lines


def read_groups(
    path: str | Path, counts: LabelCounts, *, finished_only: bool = False, thoughts: bool = False
) -> list[Group]:
    """The samples of a file by prompt, without empty and repeated ones.

    Args:
        thoughts: the judge sees the thoughts too.
    Raises: DatasetError when the file does not exist or holds no samples.
    """
    path = Path(path)
    if path.is_dir():
        raise DatasetError(f"{path} is a folder. Name the file in it that preftune sample wrote.")
    if not path.is_file():
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, names, n=1)
        hint = f" Did you mean {str(path.parent / near[0])!r}?" if near else ""
        raise DatasetError(f"There is no file {path}. Give the samples that preftune sample wrote.{hint}")
    rows = read_samples(path)
    if not rows:
        raise DatasetError(
            f"{path} holds no samples (lines with key, prompt, sample, completion). Make them with preftune sample "
            f"--model MODEL --data PROMPTS -o {path.name}."
        )
    lines = sum(1 for line in path.read_bytes().split(b"\n") if line.strip())
    counts.unreadable = lines - len(rows)
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault(row["key"], []).append(row)
    counts.prompts, counts.completions = len(by_prompt), len(rows)
    found = []
    for rows in by_prompt.values():
        group = _group(sorted(rows, key=lambda row: row["sample"]), counts, finished_only, thoughts)
        found += [] if group is None else [group]
    return found


def _group(rows: Sequence[Mapping[str, Any]], counts: LabelCounts, finished_only: bool, thoughts: bool) -> Group | None:
    answers: dict[str, int] = {}
    judged: dict[str, str] = {}
    for row in rows:
        text, said = row["completion"], answer_in(row)
        if not said.strip():
            counts.empty += 1
        elif finished_only and not row["finished"]:
            counts.unfinished += 1
        elif text in answers:
            counts.repeated += 1
        else:
            answers[text] = row["sample"]
            judged[text] = text if thoughts else said
    if len(answers) < 2:
        counts.single += 1
        return None
    first = rows[0]
    name = str(first.get("id") or first["key"])
    carried = {column: first[column] for column in ("tools", "chat_template_kwargs") if first.get(column)}
    return Group(
        id=name,
        prompt=first["prompt"],
        answers=tuple(answers),
        judged=tuple(judged.values()),
        samples=tuple(answers.values()),
        row={**(first.get("row") or {}), **carried, "id": name, "prompt": first["prompt"]},
        carried=carried,
    )
