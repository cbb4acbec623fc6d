"""Suites: common benchmarks of aligned models, each compared with the baseline, each reporting what got worse.

Listing them imports no suite; `run_suite` loads the requested one.

    alpaca_eval       AlpacaEval 2: win rate against reference outputs, at equal length
    arena_hard        Arena-Hard-Auto: hard prompts against a baseline
    asking            what suites share: judges with own wording, answers of one side
    general           plain text and lm-evaluation-harness: what alignment may damage
    harness           tasks of lm-evaluation-harness
    held_out          held-out preference pairs: margins and accuracy
    hhh               helpful, honest, harmless: choices by log-probability
    mt_bench          MT-Bench: two turns, scores 1 to 10
    mt_bench_prompts  the judge's prompts of MT-Bench
    perplexity        bits per byte of plain text
    result            SuiteResult and its comparison with the baseline
    reward_bench      RewardBench 1 and 2: whether the better answer has the higher reward
    reward_bench_scores  their scores: questions, sections, ties
    sources           where the suites' data come from
    xstest            XSTest: refusals of safe and unsafe prompts
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from preftune.errors import RequestError, did_you_mean

if TYPE_CHECKING:
    from preftune.evaluation.suites.result import SuiteResult
    from preftune.evaluation.two_models.context import Contest

Need: TypeAlias = Literal["asker", "judge", "models", "rewards"]
Data: TypeAlias = str | Path | Sequence[str]

__all__ = [
    "SUITES",
    "Data",
    "Need",
    "SuiteEntry",
    "check_suites",
    "find_suite",
    "result",
    "run_suite",
    "writes_no_answers",
]


class SuiteEntry(NamedTuple):
    """A suite that can be requested."""

    module: str
    """Under `preftune.evaluation.suites`, with a function `run`."""
    summary: str
    """For the help text."""
    needs: tuple[Need, ...]
    """A judge that can be asked in the suite's own words, one that compares, loaded models, loaded models or reward
    models; nothing more: answers."""
    options: tuple[str, ...] = ()
    """Arguments of `run_suite` that this suite takes beyond `data` and `limit`."""


SUITES: Mapping[str, SuiteEntry] = MappingProxyType(
    {
        "mt-bench": SuiteEntry("mt_bench", "80 two-turn questions, graded 1 to 10 and compared", ("asker",)),
        "alpaca-eval": SuiteEntry(
            "alpaca_eval", "805 instructions, win rate plain and at equal length; alpaca_eval's files", ("judge",)
        ),
        "arena-hard": SuiteEntry("arena_hard", "500 hard prompts, five labels in both orders", ("judge",)),
        "xstest": SuiteEntry("xstest", "wanted and unwanted refusals", ()),
        "hhh": SuiteEntry("hhh", "whether the model itself prefers the helpful, honest, harmless answer", ("models",)),
        "reward-bench": SuiteEntry(
            "reward_bench", "RewardBench 1 or 2: accuracy of rewards by section; for reward models too", ("rewards",)
        ),
        "held-out": SuiteEntry(
            "held_out", "margin, accuracy and calibration on preference pairs", ("models",), ("beta",)
        ),
        "general": SuiteEntry(
            "general", "abilities that alignment may damage: plain text and tasks of lm-eval", ("models",), ("tasks",)
        ),
    }
)


def find_suite(name: str) -> SuiteEntry:
    """The suite of this name.

    Raises: RequestError with the nearest name.
    """
    if name in SUITES:
        return SUITES[name]
    hint = did_you_mean(name.replace("_", "-").lower(), SUITES, cutoff=0.5, shown="{}", otherwise="Check the spelling.")
    raise RequestError(f"There is no suite {name!r} (there are: {', '.join(SUITES)}). {hint}")


def writes_no_answers(model: str) -> RequestError:
    """The error for a reward model that is asked for answers."""
    return RequestError(
        f"{model} is a reward model, which writes no answers. Use --suite reward-bench, or give it as --judge "
        "reward:MODEL."
    )


def check_suites(names: Sequence[str], contest: Contest) -> None:
    """Whether the contest has what all of these suites need; before the first of them runs.

    Raises: RequestError for an unknown suite, a judge or models that are missing.
    """
    from preftune.evaluation.suites.asking import check_models, need_asker, need_judge

    for name in names:
        needs = find_suite(name).needs
        if contest.scorers and "rewards" not in needs:
            raise writes_no_answers(contest.aligned)
        if not contest.scorers and ("models" in needs or "rewards" in needs):
            check_models(contest, name)
        if "asker" in needs:
            need_asker(contest, name)
        if "judge" in needs and contest.asker is None:
            need_judge(contest, name)


def run_suite(
    name: str,
    contest: Contest,
    *,
    data: Data | None = None,
    limit: int | None = None,
    tasks: Sequence[str] | None = None,
    beta: float | None = None,
) -> SuiteResult:
    """Run one suite and write its files to `contest.folder / name`, `summary.json` among them.

    Run again after a kill, what is there is used: answers and scores by content, verdicts in the judge's cache.

    Args:
        data: the suite's questions instead of the hub's: a path (for `held-out` NAME=PATH, one or several).
        limit: questions of it for a cheap look, evenly spread; the headline then says so.
        tasks: of lm-evaluation-harness, for `general`.
        beta: of the training run, for `held-out`'s calibration.
    Raises: RequestError for an unknown suite, an option that it does not take, a judge or models that are missing;
        DatasetError for data that cannot be had or are not this suite's.
    """
    from preftune.storage.jsonl import prepare_folder

    entry = find_suite(name)
    given: dict[str, Any] = {"tasks": tasks, "beta": beta}
    extra = {option: value for option, value in given.items() if value is not None}
    for option in extra:
        if option not in entry.options:
            takers = [other for other, one in SUITES.items() if option in one.options]
            raise RequestError(f"The suite {name} takes no --{option}; it is for {', '.join(takers)}. Leave it out.")
    if data is not None and not isinstance(data, str | Path) and name != "held-out":
        if len(data) != 1:
            raise RequestError(f"The suite {name} reads one --suite_data, not {len(data)}. Name one.")
        data = data[0]
    check_suites([name], contest)  # before anything is downloaded
    folder = contest.folder / name
    prepare_folder(folder)
    module = importlib.import_module(f"preftune.evaluation.suites.{entry.module}")
    result: SuiteResult = module.run(contest, data=data, limit=limit, folder=folder, **extra)
    result = replace(result, details={**result.details, "settings": dict(contest.settings)})
    result.write(folder)
    return result
