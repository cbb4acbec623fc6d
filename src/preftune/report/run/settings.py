"""Every setting and version of runs, side by side, and the command that does one again."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from preftune.amounts import duration
from preftune.report.reading.run_files import Run
from preftune.shell_words import command_line
from preftune.storage.untrusted_json import at, items, mapping, number, text

FIRST = (
    "loss_type", "beta", "label_smoothing", "reward_model", "judge", "kl_coef", "kl_target", "max_new_tokens",
    "temperature", "num_ppo_epochs", "num_mini_batches", "learning_rate", "lr_scheduler_type", "warmup_steps",
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "max_length",
    "truncation", "optim", "weight_decay", "max_grad_norm", "max_seconds", "max_train_tokens", "seed",
)  # fmt: skip
"""Of the configuration, what is read first."""


_NAMES_PLACE = re.compile(r"(?:^|_)(?:dir|name|file|folder|path|id|note|token|checkpoint)$")
"""Settings that differ between any two runs."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_VERSION = re.compile(r"[0-9][\w.!-]*", re.ASCII)


class Row(NamedTuple):
    """One setting, with a value for each run; "" where a run does not have it."""

    name: str
    values: tuple[str, ...]

    @property
    def differs(self) -> bool:
        return len(set(self.values)) > 1


def first_settings(runs: Sequence[Run]) -> list[Row]:
    """What decides about a run: model, reference, data, precision, and the first settings."""
    rows = [
        _row("model", runs, "model", "name"),
        _row("reference", runs, "reference", "source"),
        Row("precision", tuple(text(run.facts.get("precision")).removeprefix("precision: ") for run in runs)),
        Row("engine", tuple(_engine(run) for run in runs)),
        Row("training pairs", tuple(_data(run, "train") for run in runs)),
        Row("held-out pairs", tuple(_held_out(run) for run in runs)),
        *(_row(name, runs, "configuration", name) for name in FIRST),
        Row("time", tuple(_time(run) for run in runs)),
        Row("judge", tuple(text(run.summary.get("judge")) for run in runs)),
    ]
    return [row for row in rows if any(row.values)]


def all_settings(runs: Sequence[Run]) -> list[Row]:
    """The whole resolved configuration, by name."""
    names = dict.fromkeys(name for run in runs for name in mapping(run.facts.get("configuration")))
    return [_row(name, runs, "configuration", name) for name in sorted(names)]


def differing_settings(runs: Sequence[Run]) -> list[Row]:
    """What was set differently on purpose: the settings of `FIRST` before the others, without names of folders."""
    rows = {row.name: row for row in all_settings(runs) if row.differs and not _NAMES_PLACE.search(row.name)}
    first = [rows.pop(name) for name in FIRST if name in rows]
    model, data = _row("model", runs, "model", "name"), Row("training pairs", tuple(_data(r, "train") for r in runs))
    return [row for row in (model, data) if row.differs] + first + list(rows.values())


def evaluation_settings(runs: Sequence[Run]) -> list[Row]:
    """How answers were made and judged."""
    names = dict.fromkeys(name for run in runs for name in mapping(run.summary.get("settings")))
    return [
        Row(name, tuple(shown(at(run.summary, "settings", name)) for run in runs))
        for name in names
        if name != "prompts"
    ]


def versions(runs: Sequence[Run]) -> list[Row]:
    """Packages, machine, fingerprints and seeds."""
    packages = dict.fromkeys(name for run in runs for name in mapping(run.facts.get("versions")))
    rows = [_row(name, runs, "versions", name) for name in packages]
    rows += [_row(name, runs, "hardware", name) for name in ("platform", "processor", "threads", "devices")]
    rows += [
        _row("reference fingerprint", runs, "reference", "fingerprint"),
        _row("data fingerprint", runs, "data", "train", "fingerprint"),
        _row("seed", runs, "seeds", "seed"),
        _row("data seed", runs, "seeds", "data_seed"),
    ]
    return [row for row in rows if any(row.values)]


def command(run: Run) -> str:
    """The command line that does this run again; empty where it was not kept."""
    words = [word for word in items(run.facts.get("command")) if isinstance(word, str)]
    if not words:
        return ""
    first, *rest = words
    is_ours = first.replace("\\", "/").endswith(("preftune/cli/main.py", "/preftune", "preftune/__main__.py"))
    return command_line(["preftune", *rest] if is_ours or first == "preftune" else ["python", first, *rest])


def install(run: Run) -> str:
    """The packages of a run as a command line to copy; empty where they were not kept. What is no package's name or
    version is left out: it would be run by the shell.
    """
    packages = {name: text(version) for name, version in mapping(run.facts.get("versions")).items()}
    # what follows a plus names a build (2.13.0+cpu), which the package index does not have
    versions = {name: version.partition("+")[0] for name, version in packages.items()}
    python = versions.pop("python", "")
    python = python if _VERSION.fullmatch(python) else ""
    named = [(name, version) for name, version in versions.items() if _NAME.fullmatch(name)]
    pinned = " ".join(f"{name}=={version}" for name, version in named if _VERSION.fullmatch(version))
    return f"pip install {pinned}{f'  # Python {python}' if python else ''}" if pinned else ""


def shown(value: Any) -> str:
    """A value of JSON as people write it."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return ", ".join(value)
    return json.dumps(value, ensure_ascii=False)


def _row(name: str, runs: Sequence[Run], *path: str) -> Row:
    return Row(name, tuple(shown(at(run.facts, *path)) for run in runs))


def _engine(run: Run) -> str:
    name, reason = text(at(run.facts, "engine", "name")), text(at(run.facts, "engine", "reason"))
    return f"{name}: {reason}" if reason else name


def _data(run: Run, part: str) -> str:
    pairs, tokens = number(at(run.facts, "data", part, "pairs")), number(at(run.facts, "data", part, "tokens"))
    answers = number(at(run.facts, "data", part, "answers"))
    if pairs is None:
        return ""
    counted = f"{int(pairs):,}" if answers is None else f"{int(answers):,} answers"
    return counted + (f" ({int(tokens):,} tokens)" if tokens is not None else "")


def _held_out(run: Run) -> str:
    parts = [name for name in mapping(run.facts.get("data")) if name != "train"]
    return ", ".join(filter(None, (_data(run, name) for name in parts)))


def _time(run: Run) -> str:
    seconds = number(at(run.facts, "timings", "seconds"))
    if seconds is None:
        return ""
    resumed = number(run.facts.get("resumed_from_step"))
    return duration(seconds) + (f", since step {int(resumed):,}" if resumed else "")
