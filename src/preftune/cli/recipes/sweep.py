"""`preftune sweep`: a recipe with ranges in, the best settings and a page over all trials out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.cli.flags.messages import echo, until_stopped
from preftune.cli.flags.plain_parser import PlainParser
from preftune.cli.train.train_command import method_of
from preftune.errors import RequestError, did_you_mean

if TYPE_CHECKING:
    from preftune.cli.train.train_command import Method
    from preftune.sweep.plan import SweepPlan

_COMMANDS = ("dpo", "kto", "sft", "reward", "ppo", "grpo", "rloo", "online", "xpo", "nash-md")


def run(argv: Sequence[str]) -> int:
    """Runs `preftune sweep` and returns its exit code: 0 when the planned trials are there or the time is up."""
    asked = _parser().read(argv)
    from preftune.cli.flags.recipe import typed_values
    from preftune.storage.jsonl import prepare_folder
    from preftune.sweep.plan import read_plan

    plan = read_plan(_with_trials(typed_values(asked.recipe), asked.trials), name=asked.recipe)
    method = _method(plan)
    _check(plan, method, recipe=asked.recipe, output=asked.output)
    timeout = None if asked.timeout is None else _seconds(asked.timeout)
    folder = Path(asked.output)
    prepare_folder(folder)
    kept = f"Stopped. {folder} keeps the trials that have ended; the same command continues from there."
    return until_stopped(folder, kept, partial(_sweep, plan, method, folder, storage=asked.storage, timeout=timeout))


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="preftune sweep",
        description="Trains a recipe many times with settings drawn from the ranges in its `sweep` block, on Optuna. "
        "Trials share the cache of reference scores. After a stop, the same command continues.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML recipe with a `sweep` block (docs/sweeps.md)")
    parser.add_argument("-o", "--output", metavar="FOLDER", default="runs/sweep", help="where to (runs/sweep)")
    parser.add_argument("--trials", type=int, metavar="N", help="how many, instead of the recipe's number")
    parser.add_argument("--timeout", metavar="TIME", help="start no trial after this time: 90s, 10m, 2h")
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="of a database that several machines share, as postgresql://...; the folder's name is the study's "
        "(FOLDER/study.db)",
    )
    return parser


def _with_trials(values: Mapping[str, Any], trials: int | None) -> Mapping[str, Any]:
    block = values.get("sweep")
    if trials is None or not isinstance(block, Mapping):
        return values
    return {**values, "sweep": {**block, "trials": trials}}


def _method(plan: SweepPlan) -> Method:
    """How the recipe's command trains."""
    if plan.command not in _COMMANDS:
        raise RequestError(
            f"sweep: command: {plan.command}: it does not train. {did_you_mean(plan.command, _COMMANDS)} There are "
            f"{', '.join(_COMMANDS)}."
        )
    return method_of(plan.command)


def _check(plan: SweepPlan, method: Method, *, recipe: str, output: str) -> None:
    """Raises: whatever the command says of the recipe, and of each end of each range."""
    from dataclasses import replace

    from preftune.cli.flags.field_names import check_names, what_of
    from preftune.cli.flags.recipe import read_recipe
    from preftune.cli.train.train_command import read_request
    from preftune.data.reading.load import path_of
    from preftune.judges.registry import judge_kind

    if plan.judge is not None:
        judge_kind(str(plan.judge))
    if plan.prompts is not None and not path_of(plan.prompts).exists() and "/" not in plan.prompts:
        raise RequestError(f"{recipe}: sweep: prompts: there is no file {plan.prompts}. Correct the path.")
    names = frozenset(field.name for field in method.fields() or ())
    read = read_recipe(recipe)
    read = replace(read, entries=tuple(entry for entry in read.entries if entry.key != "sweep"))
    if names:
        check_names(names, (), read, prog=method.prog)
        for one in plan.space:
            if one.name not in names:
                raise RequestError(f"{recipe}: sweep: search: {what_of(one.name, names, prog=method.prog)}")
    first = {one.name: one.ends[0] for one in plan.space}
    changes: list[dict[str, Any]] = [{}, *({one.name: end} for one in plan.space for end in one.ends)]
    for change in changes:
        words = [f"--{name}={_word(value)}" for name, value in {**first, **change}.items()]
        read_request(method, [*words, "--output_dir", output], read)


def _word(value: Any) -> str:
    """A value as it is typed on a command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _seconds(words: str) -> float:
    from preftune.comparison.plan import Budget

    budget = Budget.parse(words)
    if budget.unit != "seconds":
        raise RequestError(f"--timeout {words}: give a time, as 90s, 10m or 2h.")
    return budget.amount


def _sweep(plan: SweepPlan, method: Method, folder: Path, *, storage: str | None, timeout: float | None) -> None:
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise RequestError("preftune sweep needs Optuna. Install it with: pip install 'preftune[sweep]'") from None
    from preftune.amounts import counted
    from preftune.sweep.run import Sweep

    said = ", ".join(one.name for one in plan.space)
    echo(
        f"preftune: {counted(plan.trials, 'trial')} of preftune {plan.command}, searching {said}; "
        f"{plan.objective}, {plan.better} is better. Results in {folder}"
    )
    if plan.note:
        echo(f"preftune: {plan.note}")
    fields = [field.name for field in method.fields() or ()]
    sweep = Sweep(plan, folder, fields=fields, say=partial(print, flush=True), storage=storage)
    result = sweep.result(sweep.run(timeout=timeout))
    best = result["best"]
    if best is None:
        raise RequestError(f"no trial has ended. {folder}/trials has their logs.")
    settings = ", ".join(f"{name} {value}" for name, value in best["settings"].items())
    echo(f"\nBest: trial {best['number']}, {plan.objective} {best['value']:.4g} ({settings})")
    echo(
        f"Its recipe is {folder}/best.yaml, the page {folder}/report.html. The best of {len(result['trials'])} trials "
        "looks better than it is: train best.yaml with other seeds, and judge it with preftune eval."
    )
