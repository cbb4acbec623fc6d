"""`preftune compare`: compares methods on your own model and data, within the same budget."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.amounts import counted
from preftune.cli.display.terminal import console as fitting_console
from preftune.cli.flags.judge_flags import JUDGE_FORMS, add_judge_options, check_judge, open_asked_judge
from preftune.cli.flags.messages import echo, until_stopped
from preftune.cli.flags.model_flags import (
    ENDPOINT_FLAGS,
    add_endpoint_options,
    add_model_options,
    conduct_and_budget,
    model_options,
    refuse,
)
from preftune.cli.flags.plain_parser import PlainParser
from preftune.cli.train.train_command import method_of
from preftune.errors import RequestError
from preftune.generation.endpoint.client import is_endpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from preftune.comparison.measure import Score
    from preftune.comparison.methods import Method
    from preftune.comparison.plan import Budget, Settings
    from preftune.comparison.result import Result
    from preftune.comparison.trainings import Plan


_DEFAULT = ("dpo", "ppo")


def run(argv: Sequence[str]) -> int:
    """Runs `preftune compare` and returns its exit code: 0 when it finishes, independent of the verdict."""
    asked = _read_flags(argv)
    _check(asked)
    folder = Path(asked.output)
    kept = (
        f"Stopped. {folder} keeps the complete trainings, answers and verdicts; the same command continues from there."
    )

    def work() -> None:
        with ExitStack() as opened:
            _compare(asked, folder, opened)

    return until_stopped(folder, kept, work)


def _read_flags(argv: Sequence[str]) -> argparse.Namespace:
    named = _named(argv)
    parser = _parser(named)
    values: argparse.Namespace
    values, unknown = parser.parse_known_args(list(argv))
    if unknown:
        from preftune.comparison.methods import METHODS

        method = unknown[0].partition("=")[0].removeprefix("--")
        if method in METHODS:
            raise RequestError(
                f"--{method} has settings of {method}, which is not compared (--methods {' '.join(named)}). Name it "
                "there, or leave the flag out."
            )
        parser.read(argv)
    return values


def _named(argv: Sequence[str]) -> list[str]:
    """The requested methods; each has a flag for its settings. Raises: RequestError."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--methods", nargs="+")
    try:
        words = finder.parse_known_args(list(argv))[0].methods
    except argparse.ArgumentError:  # the whole parser reports it
        words = None
    if words is None:
        return list(_DEFAULT)
    from preftune.comparison.methods import parse_methods

    return [method.name for method in parse_methods(words)]


def _parser(methods: Sequence[str] = _DEFAULT) -> PlainParser:
    parser = PlainParser(
        prog="preftune compare",
        description="Compare methods, such as DPO and the classic pipeline (reward model, then PPO): from the same "
        "model, on the same pairs, within the same budget and number of trials, by the same judge. The "
        "result says which method is ahead, or that no difference is shown. After a stop, the same "
        "command continues.",
    )
    parser.add_argument(
        "--model", required=True, metavar="SFT", help="the model that all methods start from (of preftune sft)"
    )
    parser.add_argument("--data", required=True, metavar="PAIRS", help="preference pairs in any known format")
    parser.add_argument("--judge", required=True, help=JUDGE_FORMS)
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", default="runs/compare", help="folder of the results (runs/compare)"
    )
    tuning = parser.add_argument_group("training")
    tuning.add_argument(
        "--budget",
        default="10m",
        help="limit of one trial: a time (90s, 10m, 2h), or a number of tokens or pairs, as in 2000pairs; two "
        "sampled answers count as a pair (10m)",
    )
    tuning.add_argument(
        "--seeds", nargs="+", type=int, default=[0], help="seeds of training; settings are chosen with the first (0)"
    )
    tuning.add_argument(
        "--methods",
        nargs="+",
        default=list(_DEFAULT),
        metavar="NAME",
        help="two or more of: dpo, the loss types of preftune dpo (ipo, simpo, orpo, ...), cdpo, kto, grpo, rloo, "
        "online, xpo, nash_md, ppo (dpo ppo)",
    )
    tuning.add_argument(
        "--trials", type=int, metavar="N", help="trials of each method, with its usual values (1 to 3; default 3)"
    )
    _add_settings(tuning, methods)
    _add_data(parser.add_argument_group("data"))
    measured = parser.add_argument_group("answers")
    measured.add_argument(
        "--gold", help="a gold reward that is reported in addition to the judge: rule:MODULE:FUNCTION, reward:MODEL"
    )
    measured.add_argument(
        "--max_new_tokens", type=int, default=256, help="maximum length of an answer, in tokens (256)"
    )
    measured.add_argument(
        "--temperature", type=float, default=0.0, help="sampling temperature of the judged answers (0)"
    )
    measured.add_argument("--samples", type=int, default=2, help="answers to each prompt that estimate the KL (2)")
    measured.add_argument("--batch_size", type=int, default=16, help="batch size of generation (16)")
    measured.add_argument("--seed", type=int, default=0, help="seed of the split of the data and of sampling (0)")
    add_model_options(measured, base=False)
    add_judge_options(parser, alone=False)
    add_endpoint_options(parser)
    return parser


def _add_data(data: Any) -> None:
    data.add_argument("--split", default="train", help="split of the data; slices work: 'train[:1000]' (train)")
    data.add_argument("--format", help="format of the data, if it cannot be recognised")
    data.add_argument("--columns", nargs="+", default=[], metavar="prompt=YOURS", help="renames")
    data.add_argument("--as_chat", action="store_true", help="plain prompts and answers become chat messages")
    data.add_argument(
        "--test_data", metavar="PROMPTS", help="prompts to judge on (a fifth of the data's prompts, at most 256)"
    )
    data.add_argument("--test_prompts", type=int, help="number of prompts to judge at the end")
    data.add_argument(
        "--tune_prompts", type=int, help="number of prompts to choose the settings by (a tenth, at most 64)"
    )
    data.add_argument("--keep", nargs="+", default=[], metavar="COLUMN", help="columns that your own rule reads")


def _add_settings(tuning: Any, methods: Sequence[str]) -> None:
    """A flag for the settings of each method, of the reward model and of all of them."""
    for name in methods:
        example = "kl_coef=0.02,0.05,0.2" if name == "ppo" else "beta=0.05,0.1,0.3 learning_rate=2e-5"
        more = "; every method has such a flag" if name == methods[-1] else ""
        what = f"settings of {name} to try, as {example}{more}"
        tuning.add_argument(f"--{name}", nargs="+", default=[], metavar="NAME=VALUE", help=what)
    for name, what in (
        ("reward", "settings of the reward model, one value each"),
        ("both", "settings of every training, as in use_peft=true dtype=float32 max_length=512"),
    ):
        tuning.add_argument(f"--{name}", nargs="+", default=[], metavar="NAME=VALUE", help=f"settings {what}")


def _check(asked: argparse.Namespace) -> None:
    """Checks the request before anything is loaded. Raises: RequestError."""
    if asked.judge == "auto":
        raise RequestError("--judge auto is only for preftune eval. Name a judge that no method trains on.")
    check_judge(asked, asked.judge, alone=False)
    if not any(is_endpoint(name) for name in (asked.judge, asked.gold or "")):
        refuse(asked, ENDPOINT_FLAGS, unless="the judge or the gold reward is openai:NAME@BASE_URL")
    if asked.trials is not None:
        from preftune.comparison.plan import TRIALS

        if not 1 <= asked.trials <= TRIALS:
            raise RequestError(
                f"--trials {asked.trials}: a method has {TRIALS} usual values. Give 1 to {TRIALS}, or values of your "
                "own (--dpo beta=0.05,0.1,0.2,0.4)."
            )
    for name in ("samples", "batch_size", "test_prompts", "tune_prompts"):
        if getattr(asked, name) is not None and getattr(asked, name) < 1:
            raise RequestError(f"--{name} {getattr(asked, name)}: give at least 1.")
    if len(set(asked.seeds)) < len(asked.seeds):
        raise RequestError(f"--seeds {' '.join(map(str, asked.seeds))}: a seed is given twice. Give different seeds.")
    if Path(asked.output).is_file():
        raise RequestError(f"-o {asked.output} is a file. Name a folder for the results.")


def _compare(asked: argparse.Namespace, folder: Path, opened: ExitStack) -> None:
    from preftune.cli.commands.env import environment
    from preftune.comparison.page import comparison_page
    from preftune.comparison.run import Comparison
    from preftune.storage.jsonl import write_atomically, write_json

    plan = _plan(asked, folder, opened)
    trials, others = len(next(iter(plan.trials.values()))), len(plan.seeds) - 1
    more = f", then the chosen settings with {counted(others, 'more seed')}" if others else ""
    echo(
        f"preftune: {counted(len(plan.parts.train), 'pair')} to train on, {counted(len(plan.parts.tune), 'prompt')} to "
        f"choose settings by, {len(plan.parts.test):,} to judge. Trials: {trials} per method, each with at most "
        f"{plan.budget.words()}{more}. Results in {folder}"
    )
    if hasattr(plan.judge, "estimate"):
        echo(f"preftune: the judge compares at most {counted(plan.questions, 'pair')} of answers, each in both orders")
    facts = {name: found for name, found in environment().items() if name in ("versions", "hardware")}
    result = Comparison(plan, partial(print, flush=True), facts).run()
    write_json(folder / "compare.json", result.to_dict())
    write_atomically(folder / "report.html", comparison_page(result))
    _show(result, folder)


def _plan(asked: argparse.Namespace, folder: Path, opened: ExitStack) -> Plan:
    """Does everything cheap first: errors are reported before anything is trained."""
    from preftune.comparison.data import split, write_parts
    from preftune.comparison.measure import Ruler
    from preftune.comparison.methods import parse_methods
    from preftune.comparison.plan import Budget
    from preftune.comparison.trainings import Plan
    from preftune.generation.settings import SamplingSettings
    from preftune.models.locate import locate
    from preftune.storage.jsonl import prepare_folder

    budget = Budget.parse(asked.budget)
    methods = parse_methods(asked.methods)
    trials, shared, reward = _settings(asked, methods, budget)
    sampling = SamplingSettings(max_new_tokens=asked.max_new_tokens, temperature=asked.temperature)
    locate(asked.model)
    prepare_folder(folder)
    conduct, calls = conduct_and_budget(asked, opened)
    judge = open_asked_judge(asked, opened, conduct=conduct, budget=calls)
    gold = _gold(asked, opened, conduct=conduct, budget=calls)
    pairs, prompts, separate = _read(asked)
    parts = split(pairs, prompts, tune=asked.tune_prompts, test=asked.test_prompts, separate=separate, seed=asked.seed)
    train, held_out = write_parts(parts, folder / "data")
    if judge.endpoint is not None:
        judge.endpoint.check()
    return Plan(
        start=asked.model,
        methods=methods,
        data_name=prompts.name,
        parts=parts,
        train_file=train,
        held_out_file=held_out,
        output=folder,
        budget=budget,
        seeds=asked.seeds,
        trials=trials,
        shared=shared,
        reward=reward,
        ruler=Ruler(sampling, asked.samples, asked.batch_size, asked.seed, gold, bool(asked.judge_thoughts)),
        judge=judge.judge,
        gold_name=asked.gold,
        model=model_options(asked),
        again=bool(asked.ask_again),
    )


def _settings(
    asked: argparse.Namespace, methods: Sequence[Method], budget: Budget
) -> tuple[Mapping[str, Sequence[Settings]], Settings, Settings]:
    """Trials, settings of all trainings, settings of the reward model; every name and value is checked by the command
    that uses it.
    """
    from preftune.comparison.plan import check_names, parse_grid, parse_settings, tried
    from preftune.comparison.trainings import SET_HERE

    commands = dict.fromkeys([*(method.command for method in methods), "reward"])
    known = {command: [field.name for field in method_of(command).fields() or ()] for command in commands}
    grids = {method.name: parse_grid(getattr(asked, method.name), f"--{method.name}") for method in methods}
    reward, shared = parse_settings(asked.reward, "--reward"), parse_settings(asked.both, "--both")
    for method in methods:
        ours = (*SET_HERE, "loss_type") if "loss_type" in method.fixed else SET_HERE
        check_names(grids[method.name], known[method.command], f"--{method.name}", ours=ours)
    check_names(reward, known["reward"], "--reward", ours=SET_HERE)
    if asked.trust_remote_code:
        shared = {"trust_remote_code": "true", **shared}
    common = [name for name in known["reward"] if all(name in names for names in known.values())]
    check_names(shared, common, "--both", ours=SET_HERE)
    named = {*reward, *shared, *(name for grid in grids.values() for name in grid)}
    if budget.unit == "pairs" and "group_by_prompt" in named:
        raise RequestError(
            "With group_by_prompt batches count prompts, so that a budget in pairs cannot be kept. Leave it out, or "
            "give --budget a time or tokens."
        )
    trials = tried(methods, grids, number=asked.trials, shared=shared)
    for method in methods:
        for settings in trials[method.name]:
            _build(method.command, {**method.fixed, **shared, **settings}, asked, rewarded=method.needs_reward)
    if any(method.needs_reward for method in methods):
        _build("reward", {**shared, **reward}, asked)
    elif reward:
        raise RequestError("--reward: none of the methods trains a reward model. Leave it out.")
    return trials, shared, reward


def _build(command: str, settings: Mapping[str, str], asked: argparse.Namespace, *, rewarded: bool = False) -> None:
    """Raises: what the command raises for these settings."""
    from preftune.cli.train.train_command import read_request

    words = ["--model", asked.model, "--data", asked.data, "--output_dir", asked.output]
    words += [word for name, value in settings.items() for word in (f"--{name}", value)]
    words += ["--reward_model", "rule:none:none"] if rewarded else []
    read_request(method_of(command), words)


def _gold(asked: argparse.Namespace, opened: ExitStack, **endpoint: Any) -> Score | None:
    if asked.gold is None:
        return None
    from preftune.judges.registry import JudgeOptions
    from preftune.training.online.scoring import open_score

    score = open_score([asked.gold], opened, options=JudgeOptions(**endpoint))
    return lambda items: score.of_items(items).scores


def _read(asked: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Pairs, their prompts, and the prompts of --test_data."""
    from preftune.cli.flags.arguments import column_names
    from preftune.data import load_pairs
    from preftune.generation.prompts import CATEGORIES, KEYS, load_prompts

    read: dict[str, Any] = {"split": asked.split, "columns": column_names(asked.columns), "format": asked.format}
    kept: dict[str, Any] = {"keep": asked.keep, "keep_if_there": (*CATEGORIES, *KEYS), "as_chat": asked.as_chat}
    pairs = load_pairs(asked.data, **read)
    prompts = load_prompts(asked.data, **read, **kept)
    separate = None if asked.test_data is None else load_prompts(asked.test_data, **kept)
    for note in dict.fromkeys((*pairs.notes, *prompts.notes, *(() if separate is None else separate.notes))):
        echo(f"preftune: {note}")
    return pairs.as_chat() if asked.as_chat else pairs, prompts, separate


def _show(result: Result, folder: Path) -> None:
    from rich.table import Table

    console = fitting_console(highlight=False)
    header, rows = result.table()
    verdict, *others = result.sentences()
    wraps = not console.is_terminal  # a pipe gets whole lines
    console.print(f"\n{verdict}", style="bold", soft_wrap=wraps)
    if console.is_terminal and console.width >= 100:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in header:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    else:
        for name, *cells in rows:
            figures = ", ".join(f"{who}: {cell}" for who, cell in zip(header[1:], cells, strict=True) if cell)
            console.print(f"{name}: {figures}", markup=False, soft_wrap=wraps)
    for line in others:
        console.print(f"- {line}", markup=False, soft_wrap=wraps)
    console.print(f"Its report: {folder / 'report.html'}", markup=False, soft_wrap=True)
