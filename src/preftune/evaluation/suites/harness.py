"""Tasks of lm-evaluation-harness (EleutherAI) for both models, through its Python API.

The harness is a package of its own (`pip install preftune[harness]`); it downloads its tasks' data from the hub. Each
task's result is written as soon as it is there, so that a run that was killed goes on with the next task.
"""

from __future__ import annotations

import io
import logging
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

from preftune.errors import RequestError, did_you_mean
from preftune.generation.protocol import Side
from preftune.log import say
from preftune.statistics.intervals import MeanInterval
from preftune.statistics.paired import SHARE, Better, Comparison, compare_means, compare_shares
from preftune.storage.atomic import sha256_of
from preftune.storage.jsonl import append_lines, digest, read_lines

if TYPE_CHECKING:
    from preftune.evaluation.two_models.context import Contest, PairOfModels

_DOCUMENTS = re.compile(r"[^\s'\"\[\],:]+\.(?:jsonl?|csv|tsv|txt|parquet|arrow)\b")
"""How a task names files of documents (`data_files`)."""
DEFAULT_TASKS = ("truthfulqa_mc2", "gsm8k", "hellaswag", "arc_challenge", "ifeval")
_MAIN_METRIC: Mapping[str, tuple[str, ...]] = {
    "truthfulqa_mc2": ("acc,none",),
    "gsm8k": ("exact_match,flexible-extract", "exact_match,strict-match"),
    "hellaswag": ("acc_norm,none",),
    "arc_challenge": ("acc_norm,none",),
    "ifeval": ("prompt_level_strict_acc,none",),
}
"""What the field reports of these tasks; of others, the first metric that has a standard error."""
_GENERAL_CHOICE = ("acc_norm,none", "acc,none", "exact_match,strict-match", "exact_match,none")
_BATCH = 8
_RATES = ("acc", "acc_norm", "exact_match", "f1", "em", "mcc", "prompt_level_strict_acc", "prompt_level_loose_acc")


class Tasks(NamedTuple):
    """What came of the tasks."""

    results: dict[str, tuple[TaskResult, TaskResult]]
    """By task: of the baseline and of the aligned model."""
    failures: dict[str, str]
    """By task: what went wrong."""


class TaskResult(NamedTuple):
    """One task under one model."""

    task: str
    metrics: dict[str, float]
    """By metric and filter, as the harness names them ("acc_norm,none")."""
    errors: dict[str, float]
    """Standard errors under the same names, where the harness gives one."""
    higher_is_better: dict[str, bool]
    """By metric."""
    samples: dict[str, dict[str, float]]
    """By metric and filter: the value of each document, where a document has a value of its own."""
    n: int


def installed() -> bool:
    """Whether the harness is there."""
    return find_spec("lm_eval") is not None


def need_harness() -> None:
    """Raises: RequestError when it is not installed."""
    if not installed():
        raise RequestError(
            "--tasks needs lm-evaluation-harness, which is not installed. Run: pip install 'preftune[harness]'"
        )


def run_tasks(
    contest: Contest,
    models: PairOfModels,
    tasks: Sequence[str],
    *,
    limit: int | None,
    include: Path | None,
    folder: Path,
) -> Tasks:
    """Every task under the baseline and the aligned model; one that fails does not keep the others from being run.

    Args:
        limit: documents of each task.
        include: a folder with tasks of one's own, as YAML files of the harness.
        folder: where `tasks.jsonl` lies.
    Raises: RequestError for a task that the harness does not know.
    """
    path = folder / "tasks.jsonl"
    sides: tuple[Side, Side] = ("base", "aligned")
    keys = {
        (side, task): digest([side, task, limit, _version(), _of_folder(include), contest.settings])
        for side in sides
        for task in tasks
    }
    known = {r["key"]: TaskResult(**r["result"]) for r in read_lines(path) if r.keys() >= {"key", "result"}}
    manager = _task_manager(tasks, include)
    done = sum(key in known for key in keys.values())
    failures: dict[str, str] = {}
    for side in sides:
        missing = [task for task in tasks if keys[side, task] not in known]
        if not missing:
            continue
        with models.on(side) as (model, tokenizer):
            language_model = _wrapped(model, tokenizer)
            for task in missing:
                if task in failures:
                    continue
                say(f"general: {task}, {side} ({done + 1} of {len(keys)})")
                try:
                    result = _run_one(language_model, task, limit, manager)
                except Exception as error:  # a hub that cannot be reached, a task's own code: whatever these raise
                    failures[task] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                    continue
                append_lines(path, [{"key": keys[side, task], "result": result._asdict()}], sealed=True)
                known[keys[side, task]] = result
                done += 1
    finished = [task for task in tasks if task not in failures]
    return Tasks({task: (known[keys["base", task]], known[keys["aligned", task]]) for task in finished}, failures)


def compare_task(task: str, base: TaskResult, aligned: TaskResult, *, confidence: float) -> Comparison | None:
    """The task's main metric of both models; None where they share no metric.

    Paired by document where every document has its own value; otherwise from both standard errors, as if the two
    models had answered different documents, which makes the interval wider than it need be.
    """
    metric = _main_metric(task, base, aligned)
    if metric is None:
        return None
    name = f"{task} ({metric.partition(',')[0]})"
    better: Better = "higher" if base.higher_is_better.get(metric.partition(",")[0], True) else "lower"
    before, after = base.samples.get(metric, {}), aligned.samples.get(metric, {})
    unit = SHARE if metric.partition(",")[0] in _RATES else "points"
    if before and before.keys() == after.keys() and _is_the_mean(base, metric) and _is_the_mean(aligned, metric):
        values = [before[d] for d in before], [after[d] for d in before]
        if unit == SHARE and all(0 <= value <= 1 for side in values for value in side):
            return compare_shares(name, *values, better=better, confidence=confidence)
        return compare_means(name, *values, better=better, unit=unit, confidence=confidence)
    errors = base.errors.get(metric), aligned.errors.get(metric)
    half = math.inf
    if errors[0] is not None and errors[1] is not None:
        half = NormalDist().inv_cdf(0.5 + confidence / 2) * math.hypot(errors[0], errors[1])
    difference = aligned.metrics[metric] - base.metrics[metric]
    change = MeanInterval(difference, difference - half, difference + half, math.nan)
    both = base.metrics[metric], aligned.metrics[metric]
    return Comparison.of(name, *both, change, better=better, n=base.n, unit=unit, confidence=confidence)


def _main_metric(task: str, base: TaskResult, aligned: TaskResult) -> str | None:
    shared = [name for name in base.metrics if name in aligned.metrics]
    for name in (*_MAIN_METRIC.get(task, ()), *_GENERAL_CHOICE):
        if name in shared:
            return name
    with_error = [name for name in shared if name in base.errors and name in aligned.errors]
    return next(iter([*with_error, *shared]), None)


def _is_the_mean(result: TaskResult, metric: str) -> bool:
    """Whether the metric is the plain mean over documents (a corpus's BLEU is not)."""
    values = result.samples[metric].values()
    return math.isclose(sum(values) / len(values), result.metrics[metric], rel_tol=1e-6, abs_tol=1e-9)


def _task_manager(tasks: Sequence[str], include: Path | None) -> Any:
    """Knows all these tasks. The harness's thousands are read, in seconds, only if the folder does not have them all.

    Raises: RequestError for an unknown task.
    """
    from lm_eval.tasks import TaskManager

    with _quietly():
        if include is not None:
            own = TaskManager(include_path=str(include), include_defaults=False)
            if set(tasks) <= set(own.all_tasks):
                return own
        manager = TaskManager(include_path=None if include is None else str(include))
    names = list(manager.all_tasks)
    for task in tasks:
        if task not in names:
            hint = did_you_mean(task, names, most=3, shown="{}", otherwise="`lm-eval ls tasks` lists them.")
            raise RequestError(f"--tasks {task}: lm-evaluation-harness has no task of that name. {hint}")
    return manager


def _wrapped(model: Any, tokenizer: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    device = str(model.get_input_embeddings().weight.device)
    with _quietly():
        return HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=_BATCH, device=device)


def _run_one(language_model: Any, task: str, limit: int | None, manager: Any) -> TaskResult:
    import lm_eval

    with _quietly():
        found = lm_eval.simple_evaluate(
            model=language_model,
            tasks=[task],
            limit=limit,
            task_manager=manager,
            apply_chat_template=False,
            log_samples=True,
            bootstrap_iters=1000,
        )
    return _result(task, found)


def _result(task: str, found: Mapping[str, Any]) -> TaskResult:
    values: Mapping[str, Any] = found["results"].get(task) or next(iter(found["results"].values()))
    numbers = {
        name: float(value)
        for name, value in values.items()
        if "," in name and isinstance(value, int | float) and math.isfinite(value)
    }
    errors = {name.replace("_stderr,", ",", 1): v for name, v in numbers.items() if "_stderr," in name}
    samples = _samples((found.get("samples") or {}).get(task, []))
    sizes = found.get("n-samples", {})  # of a group of tasks only its parts have theirs
    counted = sum(part.get("effective", 0) for part in ([sizes[task]] if task in sizes else sizes.values()))
    return TaskResult(
        task=task,
        metrics={name: value for name, value in numbers.items() if "_stderr," not in name},
        errors=errors,
        higher_is_better={k: bool(v) for k, v in (found.get("higher_is_better", {}).get(task) or {}).items()},
        samples=samples,
        n=int(counted or max((len(documents) for documents in samples.values()), default=0)),
    )


def _samples(logged: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for sample in logged:
        for metric in sample.get("metrics") or ():
            value = sample.get(metric)
            if isinstance(value, bool | int | float):
                name = f"{metric},{sample.get('filter', 'none')}"
                found.setdefault(name, {})[str(sample["doc_id"])] = float(value)
    return found


def _version() -> str:
    from importlib.metadata import version

    return version("lm_eval")


def _of_folder(include: Path | None) -> list[str]:
    """The contents of one's own tasks, and of the files of documents that they name: others under the same name are
    another result.
    """
    if include is None:
        return []
    files = sorted(file for file in include.rglob("*") if file.is_file() and file.suffix in (".yaml", ".yml", ".py"))
    found = []
    for file in files:
        text = file.read_text(encoding="utf-8", errors="replace")
        named = [folder / name for name in _DOCUMENTS.findall(text) for folder in (Path(), file.parent)]
        found += [digest(text), *(sha256_of(one) for one in named if one.is_file())]
    return found


@contextmanager
def _quietly() -> Iterator[None]:
    """The harness logs every step, on the root logger too; its bars are for terminals."""
    names = ("lm_eval", "lm-eval", "")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
