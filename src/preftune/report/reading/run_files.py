"""Reads a run directory for people: what is there, and a sentence for each file that is missing, torn or unreadable.

Nothing in these files is trusted: any of them may be half written, of another version, or another person's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preftune.amounts import counted
from preftune.errors import RequestError
from preftune.storage.jsonl import read_line
from preftune.storage.untrusted_json import Figures, at, mapping, number, prompt_text, text, truth

FILES = ("run.json", "metrics.jsonl", "audit.json", "samples.jsonl", "guard.jsonl")
_EPOCH = 1e9
"""Seconds: a file that claims to be older than 2001 was unpacked without its time."""
EVALUATION = ("summary.json", "generations.jsonl", "verdicts.jsonl")


@dataclass(frozen=True, slots=True)
class Answers:
    """One prompt with the answers before and after."""

    id: str
    prompt: str
    before: str | None
    """None where no judge was asked."""
    after: str
    category: str = ""
    outcome: str = ""
    """Of the answer after: win, tie, loss; empty where nothing was judged."""
    tokens: tuple[int | None, int | None] = (None, None)
    finished: tuple[bool | None, bool | None] = (None, None)
    thoughts: tuple[str, str] = ("", "")
    """What thinking models wrote before their answers."""
    step: int | None = None
    """Of a sample of the guard."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a run directory holds, as far as it can be read."""

    name: str
    folder: Path
    facts: Figures = field(default_factory=dict)
    """run.json"""
    metrics: Sequence[Figures] = ()
    data: Figures = field(default_factory=dict)
    """audit.json: what tokenising counted, or what `preftune audit` found."""
    samples: Sequence[Figures] = ()
    alarms: Sequence[Figures] = ()
    summary: Figures = field(default_factory=dict)
    """eval/summary.json"""
    history: Sequence[Figures] = ()
    """eval/history.jsonl"""
    answers: Sequence[Answers] = ()
    """Of the evaluation, in its order."""
    suites: Mapping[str, Figures] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    """File -> what is wrong with it."""

    @property
    def answers_place(self) -> str:
        """The file that holds all answers."""
        return "eval/generations.jsonl" if self.answers else "samples.jsonl"

    @property
    def before(self) -> str:
        """The name of the baseline's answers: "before" where it was the model itself, untrained."""
        named = text(self.summary.get("baseline_name")).rstrip("/")
        trained_from = text(at(self.facts, "model", "name")).rstrip("/")
        if not self.answers or named in ("", "base", trained_from):
            return "before"
        return "chosen in the data" if named == "dataset" else short_name(named)

    def shown_answers(self) -> list[Answers]:
        """Those of the evaluation; without one, the guard's last samples."""
        return list(self.answers) or last_samples(self.samples)


def read_run(folder: str | Path, *, name: str | None = None) -> Run:
    """Everything of a run that can be read.

    Args:
        folder: a run directory, or the folder of an evaluation alone.
        name: what the run is called on the page; by default the folder's name.
    Raises:
        RequestError: there is no such folder, or nothing of a run is in it.
    """
    path = Path(folder).expanduser()
    evaluation = path / "eval"
    is_evaluation = not any((path / file).exists() for file in FILES) and any((path / f).exists() for f in EVALUATION)
    if is_evaluation:
        evaluation = path
    _check(path, evaluation)
    missing: dict[str, str] = {}
    facts = _object(path / "run.json", missing, path)
    summary: Figures = {}
    generations: Sequence[Figures] = []
    verdicts: Sequence[Figures] = []
    if _is_older(evaluation / "summary.json", facts):
        missing["eval/summary.json"] = (
            "is older than this training, so an earlier model was judged; it is left out until preftune eval is run"
        )
    else:
        summary = _object(evaluation / "summary.json", missing, path)
        generations = _lines(evaluation / "generations.jsonl", missing, path)
        # without a summary, an evaluation did not end, and outcomes may be of earlier answers
        verdicts = _lines(evaluation / "verdicts.jsonl", missing, path) if summary else []
    history = evaluation / "history.jsonl"
    return Run(
        name=name or path.resolve().name,
        folder=path,
        facts=facts,
        metrics=[line for line in _lines(path / "metrics.jsonl", missing, path) if _is_step(line)],
        data=_object(path / "audit.json", missing, path),
        samples=_lines(path / "samples.jsonl", missing, path),
        alarms=[line for line in _lines(path / "guard.jsonl", missing, path) if text(line.get("name"))],
        summary=summary,
        history=_lines(history, missing, path) if history.exists() else [],
        answers=_answers(generations, verdicts),
        suites=_suites(evaluation, facts, missing, path),
        missing=missing,
    )


def short_name(model: str) -> str:
    """A model's name for people: of a path its last folder, a hub id as it is."""
    return model.rstrip("/").rsplit("/", 1)[-1] if model.startswith(("/", ".", "~")) else model


def different_names(folders: Sequence[str | Path]) -> list[str]:
    """A name for each run: its folder's, with as many folders above it as it takes to tell them apart."""
    parts = [Path(folder).expanduser().resolve().parts for folder in folders]
    longest = max((len(part) for part in parts), default=1)
    for depth in range(1, longest + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(part[-1:])} ({number})" for number, part in enumerate(parts, start=1)]


def last_samples(samples: Sequence[Figures]) -> list[Answers]:
    """The guard's completions at the last step for which there are any: the reference's before, the policy's after."""
    steps = [int(step) for step in (number(line.get("step")) for line in samples) if step is not None]
    if not steps:
        return []
    last = max(steps)
    return [
        Answers(
            id=str(line.get("id", "")),
            prompt=prompt_text(line.get("prompt")),
            before=None if line.get("reference", "") is None else text(line.get("reference")),
            after=text(line.get("policy")),
            tokens=(_whole(line.get("reference_tokens")), _whole(line.get("policy_tokens"))),
            finished=(truth(line.get("reference_finished")), truth(line.get("policy_finished"))),
            step=last,
        )
        for line in samples
        if number(line.get("step")) == last
    ]


def _check(path: Path, evaluation: Path) -> None:
    if not path.is_dir():
        what = "is a file, not a run directory" if path.exists() else "does not exist"
        raise RequestError(f"{path} {what}. Name the folder that a run was written to (--output_dir).{_near(path)}")
    if not any((path / file).exists() for file in FILES) and not any((evaluation / f).exists() for f in EVALUATION):
        raise RequestError(
            f"{path} does not hold a run ({', '.join(FILES)} and eval/ are missing). Name the folder that a run was "
            f"written to (--output_dir).{_near(path)}"
        )


def _near(path: Path) -> str:
    """Runs next to or below a folder that is not a run."""
    places = [path, path.parent] if path.is_dir() else [path.parent]
    for place in places:
        try:
            found = sorted(run.parent for run in place.glob("*/run.json"))
        except OSError:
            continue
        if found:
            names = ", ".join(str(run) for run in found[:3])
            return f" Runs near it: {names}{', ...' if len(found) > 3 else ''}."
    return ""


def _object(path: Path, missing: dict[str, str], root: Path) -> Figures:
    name = _name(path, root)
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        missing[name] = "is missing"
        return {}
    except (OSError, ValueError, RecursionError) as error:
        missing[name] = f"cannot be read ({_why(error)})"
        return {}
    if not isinstance(value, Mapping):
        missing[name] = "does not hold one JSON object"
        return {}
    return value


def _lines(path: Path, missing: dict[str, str], root: Path) -> list[dict[str, Any]]:
    name = _name(path, root)
    try:
        content = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        missing[name] = "is missing"
        return []
    except OSError as error:
        missing[name] = f"cannot be read ({_why(error)})"
        return []
    found, torn = [], 0
    for line in filter(str.strip, content.split("\n")):
        value = read_line(line)
        if value:
            found.append(value)
        else:
            torn += 1
    if torn:
        missing[name] = f"has {counted(torn, 'incomplete or damaged line')}, left out on this page"
    return found


def _is_older(summary: Path, facts: Figures) -> bool:
    """Whether an evaluation was written before the training began whose model is in the same folder."""
    started = number(at(facts, "timings", "started"))
    try:
        written = summary.stat().st_mtime
    except OSError:
        return False
    return started is not None and _EPOCH < written < started - 1


def _suites(evaluation: Path, facts: Figures, missing: dict[str, str], root: Path) -> dict[str, Figures]:
    try:
        places = sorted(evaluation.glob("*/summary.json"))
    except OSError:
        return {}
    for place in places:
        if _is_older(place, facts):
            missing[_name(place, root)] = "is older than this training (of an earlier model), and is left out"
    places = [place for place in places if not _is_older(place, facts)]
    read = {place.parent.name: _object(place, missing, root) for place in places}
    return {name: summary for name, summary in read.items() if summary}


def _answers(generations: Sequence[Figures], verdicts: Sequence[Figures]) -> list[Answers]:
    """Answers with their outcomes, which belong together by place where the ids agree, else by id."""
    by_id = {str(line.get("id")): line for line in verdicts}
    made = []
    for index, line in enumerate(generations):
        base, aligned = line.get("base"), line.get("aligned")
        if not isinstance(base, str) or not isinstance(aligned, str):
            continue
        id_ = str(line.get("id", index))
        beside = verdicts[index] if index < len(verdicts) and str(verdicts[index].get("id")) == id_ else by_id.get(id_)
        tokens, finished = mapping(line.get("tokens")), mapping(line.get("finished"))
        outcome, thoughts = text(at(beside, "outcome")), mapping(line.get("thought"))
        made.append(
            Answers(
                id=id_,
                prompt=prompt_text(line.get("prompt")),
                before=base,
                after=aligned,
                category=text(line.get("category")),
                outcome=outcome if outcome in ("win", "tie", "loss") else "",
                tokens=(_whole(tokens.get("base")), _whole(tokens.get("aligned"))),
                finished=(truth(finished.get("base")), truth(finished.get("aligned"))),
                thoughts=(text(thoughts.get("base")), text(thoughts.get("aligned"))),
            )
        )
    return made


def _is_step(line: Figures) -> bool:
    return number(line.get("step")) is not None


def _whole(value: object) -> int | None:
    found = number(value)
    return None if found is None else int(found)


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return "not JSON, perhaps cut off" if isinstance(error, ValueError) else "nested too deeply"


def columns(lines: Iterable[Figures]) -> dict[str, list[tuple[int, float | None]]]:
    """The numbers of metrics.jsonl by name: (step, value), None where a value was not a finite number."""
    found: dict[str, list[tuple[int, float | None]]] = {}
    for line in lines:
        step = int(number(line.get("step")) or 0)
        for name, value in line.items():
            if name in ("step", "time") or isinstance(value, bool | str | list | dict):
                continue
            found.setdefault(name, []).append((step, number(value)))
    return found
