"""Samples and a judge make preference pairs, in the canonical form that training reads.

pairs.jsonl                 id, prompt, chosen, rejected, score_chosen, score_rejected
pairs.jsonl.manifest.json   the judge, the settings, and what gave no pair

The difference of the two scores is the pair's strength: points of the scorer, or comparisons won.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from preftune.errors import DatasetError, RequestError
from preftune.evaluation.endpoint_judge import EndpointJudge, Question
from preftune.evaluation.judges import Judge, Judgement, Scorer, checked, judge_name
from preftune.evaluation.ranking import Which, rank, wins
from preftune.evaluation.records import prepare_folder, write_json, write_lines
from preftune.evaluation.sampling import manifest_of, read_samples
from preftune.evaluation.verdicts import VerdictCache, verdict_key
from preftune.types import Text
from preftune.version import __version__

Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Group:
    """The distinct answers to one prompt."""

    id: str
    prompt: Text
    answers: tuple[str, ...]
    samples: tuple[int, ...]
    """The number of each answer among the samples of the prompt."""
    row: Mapping[str, Any]
    """What a rule reads: the id, the prompt, and the columns that `preftune sample --keep` carried along."""
    carried: Mapping[str, Any]


@dataclass(slots=True)
class LabelCounts:
    """What came in, what came out, and why the rest did not."""

    prompts: int = 0
    completions: int = 0
    unreadable: int = 0
    """Lines of the file that are no samples, or the same one again."""
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
        """The counts for people; what is 0 is not mentioned."""
        lines = [f"{self.pairs:,} pairs from {self.prompts:,} prompts with {self.completions:,} completions."]
        for number, what in (
            (self.unreadable, "lines are no samples, or one that was there before"),
            (self.empty, "completions are empty"),
            (self.unfinished, "completions were cut at their length limit and left out"),
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
                f"The judge contradicted itself on {self.disagreed:,} of {self.asked:,} comparisons when the answers "
                "were swapped (position bias); these count as ties."
            )
        if self.unjudged:
            lines.append(
                f"{self.unjudged:,} of {self.asked:,} comparisons have no verdict that could be read and count as "
                "ties; --ask_again asks for them once more."
            )
        return lines


class Rater(Protocol):
    """Gives the answers of every group their scores; the two classes below are raters."""

    @property
    def name(self) -> str: ...

    def rate(self, groups: Sequence[Group], counts: LabelCounts, progress: Progress | None) -> Iterator[Rated]: ...


@dataclass(frozen=True, slots=True)
class Rated:
    """The scores of a group's answers, None where there is none, and the comparisons that they were counted from."""

    scores: list[float | None]
    comparisons: Mapping[tuple[int, int], float] | None = None


def read_groups(path: str | Path, counts: LabelCounts, *, finished_only: bool = False) -> list[Group]:
    """The samples of a file by prompt, without what is empty or the same twice.

    Raises: DatasetError when the file does not exist or holds no samples.
    """
    path = Path(path)
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
    groups = (_group(sorted(r, key=lambda row: row["sample"]), counts, finished_only) for r in by_prompt.values())
    return [group for group in groups if group is not None]


def _group(rows: Sequence[Mapping[str, Any]], counts: LabelCounts, finished_only: bool) -> Group | None:
    answers: dict[str, int] = {}
    for row in rows:
        text = row["completion"]
        if not text.strip():
            counts.empty += 1
        elif finished_only and not row["finished"]:
            counts.unfinished += 1
        elif text in answers:
            counts.repeated += 1
        else:
            answers[text] = row["sample"]
    if len(answers) < 2:
        counts.single += 1
        return None
    first = rows[0]
    name = str(first.get("id") or first["key"])
    return Group(
        id=name,
        prompt=first["prompt"],
        answers=tuple(answers),
        samples=tuple(answers.values()),
        row={**(first.get("row") or {}), "id": name, "prompt": first["prompt"]},
        carried={column: first[column] for column in ("tools", "chat_template_kwargs") if first.get(column)},
    )


class ByScore:
    """Rates every answer by itself."""

    def __init__(self, scorer: Scorer, cache: VerdictCache | None = None) -> None:
        self._scorer, self._cache = scorer, cache
        self.name = judge_name(scorer)

    def rate(self, groups: Sequence[Group], counts: LabelCounts, progress: Progress | None) -> Iterator[Rated]:
        items = [(group.prompt, answer, group.row) for group in groups for answer in group.answers]
        many = getattr(self._scorer, "score_all", None)
        if many is not None:
            scores = iter(many(items, progress=progress))
        else:
            scores = self._one_by_one(items, progress)
        for group in groups:
            found = [_finite(next(scores), self._scorer) for _ in group.answers]
            counts.unrated += found.count(None)
            yield Rated(found)

    def _one_by_one(
        self, items: Sequence[tuple[Text, str, Mapping[str, Any]]], progress: Progress | None
    ) -> Iterator[float | None]:
        for done, (prompt, answer, row) in enumerate(items, start=1):
            yield _remembered(self._scorer, self._cache, prompt, answer, row)
            if progress is not None:
                progress(done, len(items))


class ByComparison:
    """Compares every two answers of a prompt; the score of an answer is the number of its wins.

    A judge that is not `symmetric` is asked in both orders, and disagreement is a tie.
    """

    def __init__(self, judge: Judge, cache: VerdictCache | None = None, *, again: bool = False) -> None:
        """
        Args:
            again: ask an endpoint once more what could not be read in an earlier run.
        """
        self._judge, self._cache, self._again = judge, cache, again
        self.name = judge_name(judge)

    def questions(self, groups: Sequence[Group]) -> list[tuple[Question, Mapping[str, Any]]]:
        """All that has to be asked, with the row of each."""
        asked = []
        for group in groups:
            for first, second in combinations(group.answers, 2):
                asked.append((Question(group.prompt, first, second), group.row))
                if not getattr(self._judge, "symmetric", False):
                    asked.append((Question(group.prompt, second, first), group.row))
        return asked

    def rate(self, groups: Sequence[Group], counts: LabelCounts, progress: Progress | None) -> Iterator[Rated]:
        asked = self.questions(groups)
        if isinstance(self._judge, EndpointJudge):
            questions = [question for question, _ in asked]
            verdicts = iter(self._judge.judge_all(questions, again=self._again, progress=progress))
        else:
            verdicts = self._one_by_one(asked, progress)
        for group in groups:
            comparisons = {}
            for i, j in combinations(range(len(group.answers)), 2):
                counts.asked += 1
                there = next(verdicts)
                back = _swapped(there) if getattr(self._judge, "symmetric", False) else next(verdicts)
                comparisons[i, j] = _outcome(there, back, counts)
            yield Rated(list(wins(len(group.answers), comparisons)), comparisons)

    def _one_by_one(
        self, asked: Sequence[tuple[Question, Mapping[str, Any]]], progress: Progress | None
    ) -> Iterator[Judgement | None]:
        for done, (question, row) in enumerate(asked, start=1):
            yield checked(_remembered(self._judge, self._cache, *question, row), self._judge)
            if progress is not None:
                progress(done, len(asked))


def _remembered(rule: Any, cache: VerdictCache | None, *content: Any) -> Any:
    """What the rule says; of a rule with a `cache_key` what it said before."""
    name = getattr(rule, "cache_key", None)
    if cache is None or name is None:
        return rule(*content)
    key = verdict_key("rule", name, *content)
    known = cache.get([key])
    if key not in known:
        known[key] = rule(*content)
        cache.put(known, judge=judge_name(rule))
    return known[key]


def _finite(score: Any, scorer: Scorer) -> float | None:
    if score is None:
        return None
    if isinstance(score, bool | int | float) and math.isfinite(score):
        return float(score)
    raise RequestError(
        f"Scorer {judge_name(scorer)!r} answered {score!r}; a scorer answers a finite number, or None for an answer "
        "that it cannot rate."
    )


def _swapped(verdict: Judgement | None) -> Judgement | None:
    swapped: dict[Judgement | None, Judgement | None] = {"a": "b", "b": "a", "tie": "tie", None: None}
    return swapped[verdict]


def _outcome(there: Judgement | None, back: Judgement | None, counts: LabelCounts) -> float:
    """1 when the first answer is better in both orders, 0 when the second is, 0.5 otherwise."""
    if there is None or back is None:
        counts.unjudged += 1
        return 0.5
    if there == back and there != "tie":
        counts.disagreed += 1
        return 0.5
    if (there, back) == ("a", "b"):
        return 1.0
    return 0.0 if (there, back) == ("b", "a") else 0.5


def label(
    samples: str | Path,
    output: str | Path,
    rater: Rater,
    *,
    which: Which = "best-worst",
    min_gap: float = 0.0,
    margin_from_scores: float | None = None,
    finished_only: bool = False,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    before: Callable[[list[Group]], None] | None = None,
) -> LabelCounts:
    """Writes the pairs of a file of samples; the file appears whole or not at all.

    Args:
        which, min_gap: see `rank`.
        margin_from_scores: nats of margin per unit of strength, for a column `margin`; None writes none.
        finished_only: leave out answers that were cut at their length limit.
        settings: more about the judge, for the manifest.
        before: called with the groups before anything is asked.
    Raises: DatasetError for samples that are none; RequestError when `output` is somebody else's file.
    """
    samples, output = Path(samples), Path(output)
    _check_output(samples, output)
    counts = LabelCounts()
    groups = read_groups(samples, counts, finished_only=finished_only)
    if before is not None:
        before(groups)
    prepare_folder(output.parent)
    rows: list[dict[str, Any]] = []
    for group, rated in zip(groups, rater.rate(groups, counts, progress), strict=True):
        rows += _pairs(group, rated, counts, which=which, min_gap=min_gap, scale=margin_from_scores)
    counts.pairs = len(rows)
    write_lines(output, rows)
    used = {
        "judge": rater.name,
        "pairs": which,
        "min_gap": min_gap,
        "margin_from_scores": margin_from_scores,
        "finished_only": finished_only,
        **(settings or {}),
    }
    source = {"samples": str(samples), "sha256": hashlib.sha256(samples.read_bytes()).hexdigest()}
    write_json(
        manifest_of(output),
        {"preftune": __version__, "settings": used, "data": source, "counts": asdict(counts)},
    )
    return counts


def _pairs(
    group: Group, rated: Rated, counts: LabelCounts, *, which: Which, min_gap: float, scale: float | None
) -> list[dict[str, Any]]:
    places = [place for place, score in enumerate(rated.scores) if score is not None]
    scores = [score for score in rated.scores if score is not None]
    if len(scores) < 2:
        counts.single += 1
        return []
    ranked = rank(scores, which=which, min_gap=min_gap, comparisons=rated.comparisons)
    counts.tied += ranked.tied
    counts.close += ranked.close
    made = []
    for pair in ranked.pairs:
        chosen, rejected = places[pair.chosen], places[pair.rejected]
        row: dict[str, Any] = {
            "id": f"{group.id}-{group.samples[chosen]}-{group.samples[rejected]}",
            "prompt": group.prompt,
            "chosen": _side(group.prompt, group.answers[chosen]),
            "rejected": _side(group.prompt, group.answers[rejected]),
            "score_chosen": scores[pair.chosen],
            "score_rejected": scores[pair.rejected],
            **group.carried,
        }
        made.append(row if scale is None else {**row, "margin": scale * pair.strength})
    return made


def _side(prompt: Text, answer: str) -> Text:
    return answer if isinstance(prompt, str) else [{"role": "assistant", "content": answer}]


def _check_output(samples: Path, output: Path) -> None:
    if output.exists() and samples.exists() and output.samefile(samples):
        raise RequestError(f"The pairs would be written over the samples {samples}. Give another file with -o.")
    if not output.exists() or output.stat().st_size == 0:
        return
    try:
        ours = "judge" in json.loads(manifest_of(output).read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise RequestError(
            f"{output} exists, and nothing beside it says that preftune label wrote it. Give another file with -o."
        )
