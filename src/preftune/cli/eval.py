"""`preftune eval`: generate, judge, count; and say in words whether it got better."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.cli.auto_judge import AUTO
from preftune.cli.judge_flags import JUDGE_FORMS, add_judge_options, check_judge, open_asked_judge, tell_before_asking
from preftune.cli.messages import tell
from preftune.cli.model_flags import (
    ENDPOINT_FLAGS,
    MODEL_FLAGS,
    add_endpoint_options,
    add_model_options,
    conduct_and_budget,
    is_endpoint,
    model_options,
    refuse,
)
from preftune.cli.plain_parser import PlainParser
from preftune.errors import RequestError

if TYPE_CHECKING:
    from preftune.evaluation.budget import Budget
    from preftune.evaluation.judge_specs import OpenedJudge
    from preftune.evaluation.matchup import Matchup
    from preftune.evaluation.pairwise import AnsweredRow, Progress

_CATEGORIES = ("category", "topic", "source")
"""Columns that prompts are grouped by, the first that is there."""
_OWN_COLUMNS = ("category", "topic")
"""Those of preftune's own prompts."""
_KEYS = ("key_fact", "answer", "expected")
"""Columns that rules read."""


def run(argv: Sequence[str]) -> int:
    """Runs `preftune eval` and returns its exit code: 0 when it is done, whatever the verdict."""
    asked = _parser().read(argv)
    _check(asked)
    folder = _folder(asked)
    try:
        with ExitStack() as opened:
            _evaluate(asked, folder, opened)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Stopped. Answers that came are kept in {folder}, verdicts in the cache; the same command goes on from "
            "there."
        ) from None
    return 0


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="preftune eval",
        description="Did it get better? Answers the same prompts with the aligned model and with the one it came from, "
        "lets a judge compare them in both orders, and says how sure the result is. Run again after a stop, it goes on "
        "from there; verdicts that are known cost nothing.",
    )
    parser.add_argument(
        "--model",
        "--model_name_or_path",
        dest="model",
        required=True,
        metavar="ALIGNED",
        help="a run directory, an adapter or a model (path or hub id), or openai:NAME@BASE_URL",
    )
    parser.add_argument(
        "--baseline",
        metavar="BASE",
        help="the same, or 'dataset' for the chosen answers of held-out pairs (what the model was trained from)",
    )
    parser.add_argument(
        "--prompts",
        "--data",
        "--dataset_name",
        dest="prompts",
        help="preference data in any known format, rows with a prompt or messages, or a .txt file of lines "
        "(63 prompts of preftune's own)",
    )
    parser.add_argument("--judge", help=f"{JUDGE_FORMS}; auto: a reward model trained here, without any key")
    parser.add_argument(
        "--judge_data", metavar="PAIRS", help="for --judge auto: what it learns from (the run's held-out pairs)"
    )
    parser.add_argument("-o", "--output", metavar="FOLDER", help="where the results go (MODEL/eval for a folder)")
    parser.add_argument("--limit", type=int, help="only the first so many distinct prompts, or questions of a suite")
    parser.add_argument("--seed", type=int, default=0, help="of draws, and of intervals that are resampled (0)")
    suites = parser.add_argument_group("suites")
    suites.add_argument(
        "--suite", action="append", default=[], metavar="NAME", help="a known set of questions instead; repeatable"
    )
    suites.add_argument(
        "--suite_data", nargs="+", metavar="PATH", help="its questions, where they are not to come from the hub"
    )
    suites.add_argument("--tasks", nargs="+", metavar="NAME", help="of lm-evaluation-harness, for the suite general")
    suites.add_argument("--beta", type=float, help="of the training run, for the suite held-out (run.json's)")
    data = parser.add_argument_group("prompts")
    data.add_argument("--split", help="of the data; slices work: 'test[:100]' (train)")
    data.add_argument("--format", help="of the data, where its shape does not tell")
    data.add_argument("--columns", nargs="+", default=[], metavar="prompt=YOURS", help="where the prompts stand")
    data.add_argument("--by", metavar="COLUMN", help=f"win rate for each value of it ({', '.join(_CATEGORIES)})")
    data.add_argument("--keep", nargs="+", metavar="COLUMN", help="columns that a rule of yours reads")
    sampling = parser.add_argument_group("answers")
    sampling.add_argument("--max_new_tokens", type=int, default=512, help="longest answer, in tokens (512)")
    sampling.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (0)")
    sampling.add_argument("--top_p", type=float, help="share of probability to draw from (the model's own, or all)")
    sampling.add_argument("--top_k", type=int, help="likeliest tokens to draw from, 0 for all")
    sampling.add_argument("--min_p", type=float, help="least probability, as a share of the likeliest token's")
    local = parser.add_argument_group("models on this machine")
    local.add_argument("--batch_size", type=int, help="answers at once (16)")
    local.add_argument(
        "--backend",
        choices=["auto", "transformers", "vllm"],
        help="who generates; auto: vLLM where it is installed and there is a GPU",
    )
    add_model_options(local)
    add_judge_options(parser, alone=False)
    add_endpoint_options(parser)
    return parser


def _check(asked: argparse.Namespace) -> None:
    """What can be known to be wrong before anything is loaded. Raises: RequestError."""
    if asked.limit is not None and asked.limit < 1:
        raise RequestError(f"--limit {asked.limit}: give at least 1 prompt.")
    if asked.judge is None and not asked.suite:
        raise RequestError(f"--judge is missing: who says which answer is better? Give {JUDGE_FORMS}.")
    if asked.judge != AUTO:
        refuse(asked, ("judge_data",), unless="--judge is auto")
    if asked.judge is not None:
        check_judge(asked, "reward:it" if asked.judge == AUTO else asked.judge, alone=False)
    else:
        flags = ("criteria", "judge_max_tokens", "ask_again", "judge_batch_size", "judge_dtype", "judge_load_in_4bit")
        refuse(asked, (*flags, "tie_within", "reward_ensemble"), unless="there is a --judge")
    models = [name for name in (asked.model, asked.baseline) if name is not None]
    if asked.model is not None and is_endpoint(asked.model) and all(map(_is_remote, models)):
        refuse(asked, (*MODEL_FLAGS, "backend"), unless="one of the models is on this machine")
    if not any(is_endpoint(name) for name in (*models, asked.judge or "")):
        refuse(asked, ENDPOINT_FLAGS, unless="a model or the judge is openai:NAME@BASE_URL")
    if asked.temperature == 0:
        refuse(asked, ("top_p", "top_k", "min_p"), unless="answers are drawn, with a --temperature above 0")
    if asked.prompts is None:
        refuse(asked, ("split", "format", "keep"), unless="there are --prompts")
        if asked.by not in (None, *_OWN_COLUMNS):
            raise RequestError(f"--by {asked.by}: preftune's own prompts have {' and '.join(_OWN_COLUMNS)}. Name one.")
        if asked.columns:
            raise RequestError("--columns has no effect unless there are --prompts. Leave it out.")
    _check_suites(asked)
    if asked.baseline == "dataset" and asked.prompts is None:
        raise RequestError("--baseline dataset takes the chosen answers of pairs. Give such pairs with --prompts.")


def _check_suites(asked: argparse.Namespace) -> None:
    if not asked.suite:
        refuse(asked, ("suite_data", "tasks", "beta"), unless="there is a --suite")
        return
    from preftune.evaluation.suites import find_suite

    entries = [find_suite(name) for name in asked.suite]
    for option in ("tasks", "beta"):
        if not any(option in entry.options for entry in entries):
            refuse(asked, (option,), unless="a suite takes it (general: --tasks, held-out: --beta)")
    if asked.prompts is not None or asked.by is not None:
        raise RequestError("A suite brings its own questions. Leave --prompts and --by out.")
    if asked.baseline == "dataset":
        raise RequestError("--baseline dataset goes with held-out pairs, not with a suite. Name a model.")
    if asked.suite_data is not None and len(asked.suite) > 1:
        raise RequestError("--suite_data is the data of one suite. Run the suites one by one.")


def _is_remote(name: str) -> bool:
    return is_endpoint(name) or name == "dataset"


def _folder(asked: argparse.Namespace) -> Path:
    """Where results go: `eval` in a run directory or model folder, unless another place is named."""
    if asked.output is not None:
        if Path(asked.output).is_file():
            raise RequestError(f"-o {asked.output} is a file. Name a folder for the results.")
        return Path(asked.output)
    model = Path(asked.model).expanduser()
    if not model.is_dir():
        raise RequestError(f"{asked.model} is no folder that results could go into. Name one with -o FOLDER.")
    return model / "eval"


def _evaluate(asked: argparse.Namespace, folder: Path, opened: ExitStack) -> None:
    from preftune.cli.auto_judge import make_judge
    from preftune.evaluation.matchup import AnswerOptions, match_up
    from preftune.evaluation.samplers import SamplingSettings
    from preftune.training.run_directory import write_json

    sampling = SamplingSettings(
        max_new_tokens=asked.max_new_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        min_p=asked.min_p,
    )
    conduct, budget = conduct_and_budget(asked)
    own = make_judge(asked) if asked.judge == AUTO else None
    if own is not None:
        asked.judge = f"reward:{own.folder}"
    judge = None if asked.judge is None else open_asked_judge(asked, opened, conduct=conduct, budget=budget)
    options = AnswerOptions(
        sampling=sampling,
        seed=asked.seed,
        batch_size=16 if asked.batch_size is None else asked.batch_size,
        backend=asked.backend or "auto",
        model=model_options(asked),
        conduct=conduct,
        budget=budget,
    )
    match = match_up(asked.model, asked.baseline, opened, options)
    for note in match.notes:
        tell(f"preftune: {note}")
    opened.callback(lambda: tell(f"preftune: used {budget.line()}") if budget.calls else None)
    if asked.suite:
        _run_suites(asked, folder, match, judge, opened)
    else:
        assert judge is not None
        _compare(asked, folder, match, judge, budget, opened)
    if own is not None:
        write_json(folder / "judge.json", own.to_dict())
        print(own.sentence())


def _compare(
    asked: argparse.Namespace, folder: Path, match: Matchup, judge: OpenedJudge, budget: Budget, opened: ExitStack
) -> None:
    from preftune.cli.eval_table import show
    from preftune.evaluation.pairwise import evaluate_pairwise, questions_of
    from preftune.evaluation.records import prepare_folder

    rows = _rows(asked, match)
    prepare_folder(folder)
    _tell_what_changes(folder, match)
    _before_answering(match, rows, folder)
    again, symmetric = bool(asked.ask_again), bool(getattr(judge.judge, "symmetric", False))

    def before_judging(answered: list[AnsweredRow]) -> None:
        match.release()
        questions = questions_of(answered, rows, symmetric=symmetric)
        calls = tell_before_asking(judge, questions, again=again, what="each pair of answers, in both orders")
        if judge.asker is not None and questions and not calls:
            tell("preftune: 0 calls: every verdict is known")

    summary = evaluate_pairwise(
        rows,
        generate=match.generate,
        judge=judge.judge,
        output_dir=folder,
        settings=match.settings,
        seed=asked.seed,
        names=(match.baseline, match.aligned),
        again=again,
        cost=lambda: _cost(budget, asked),
        training=_trained_with(asked.model),
        before_judging=before_judging,
        progress=_progress(opened),
    )
    show(summary, folder)


def _rows(asked: argparse.Namespace, match: Matchup) -> list[dict[str, Any]]:
    """The prompts as rows for `evaluate_pairwise`."""
    from preftune.evaluation.prompts import Prompts, load_prompts

    as_chat = match.takes_conversations()
    if asked.prompts is None:
        from preftune.evaluation.own_prompts import own_prompts

        prompts: Prompts = own_prompts(asked.limit, as_chat=as_chat)
    else:
        from preftune.cli.arguments import DataArguments

        keep = [*(asked.keep or []), *([asked.by] if asked.by else [])]
        prompts = load_prompts(
            asked.prompts,
            split=asked.split or "train",
            columns=DataArguments(columns=asked.columns).column_names(),
            format=asked.format,
            as_chat=as_chat,
            keep=list(dict.fromkeys(keep)),
            keep_if_there=(*_CATEGORIES, *_KEYS),
            limit=asked.limit,
        )
    again = f" ({prompts.repeated:,} rows repeat one)" if prompts.repeated else ""
    tell(f"preftune: {len(prompts.prompts):,} distinct prompts in {prompts.name}{again}")
    rows = []
    for prompt in prompts.prompts:
        row: dict[str, Any] = {**prompt.kept, **prompt.carried, "id": prompt.id, "prompt": prompt.prompt}
        category = _category(prompt.kept, asked.by)
        if category is not None:
            row["category"] = category
        if asked.baseline == "dataset":
            if prompt.chosen is None:
                raise RequestError(
                    f"--baseline dataset takes the chosen answers of pairs, and {prompts.name} holds none. Give "
                    "held-out pairs with --prompts, or name a model as --baseline."
                )
            row["given"] = prompt.chosen
        rows.append(row)
    return rows


def _category(kept: Mapping[str, Any], by: str | None) -> str | None:
    if by is not None:
        return None if kept.get(by) is None else str(kept[by])
    return next((str(kept[name]) for name in _CATEGORIES if kept.get(name) is not None), None)


def _tell_what_changes(folder: Path, match: Matchup) -> None:
    """An evaluation that stands there was made in another way: its answers are made anew."""
    from preftune.evaluation.sampling import differences

    try:
        before = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["settings"]
        changed = differences(before, match.settings)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    if changed:
        tell(f"preftune: {folder} held an evaluation with other settings ({'; '.join(changed[:3])}); it is replaced")


def _before_answering(match: Matchup, rows: list[dict[str, Any]], folder: Path) -> None:
    """What endpoints will cost at most, and whether they are there."""
    from preftune.evaluation.pairwise import missing_rows

    asking = []
    for side, answerer in match.generate.sides.items():
        if answerer not in match.endpoints:
            continue
        missing = missing_rows(rows, match.settings, folder / "generations.jsonl", side)
        if missing:
            estimate = answerer.estimate([row["prompt"] for row in missing], missing)
            tell(f"preftune: {answerer.name}: {estimate.line()}")
            asking.append((answerer, estimate))
    if len(asking) > 1:  # each fits under the caps; do both?
        _, both = zip(*asking, strict=True)
        asking[0][0].endpoint.budget.estimate(
            calls=sum(one.calls for one in both),
            tokens_in=sum(one.tokens_in for one in both),
            tokens_out=sum(one.tokens_out for one in both),
        )
    for answerer, _ in asking:
        answerer.endpoint.check()


def _progress(opened: ExitStack) -> Progress:
    from preftune.evaluation.progress import Counting

    bars = {
        "generate": opened.enter_context(Counting("answering", unit="answers")),
        "judge": opened.enter_context(Counting("judging", unit="verdicts")),
    }

    def progress(step: str, done: int, total: int) -> None:
        bars[step](done, total)
        if done >= total:
            bars[step].close()

    return progress


def _cost(budget: Budget, asked: argparse.Namespace) -> dict[str, Any] | None:
    if not any(is_endpoint(name) for name in (asked.model, asked.baseline or "", asked.judge or "")):
        return None
    return {
        "calls": budget.calls,
        "tokens_in": budget.tokens_in,
        "tokens_out": budget.tokens_out,
        "money": budget.cost,
    }


def _run_suites(
    asked: argparse.Namespace, folder: Path, match: Matchup, judge: OpenedJudge | None, opened: ExitStack
) -> None:
    from preftune.cli.eval_table import show_suite
    from preftune.evaluation.contest import Contest
    from preftune.evaluation.records import prepare_folder
    from preftune.evaluation.suites import find_suite, run_suite

    prepare_folder(folder)
    if judge is not None and judge.endpoint is not None:
        judge.endpoint.check()
    contest = Contest(
        generate=match.generate,
        settings=match.settings,
        folder=folder,
        judge=None if judge is None else judge.judge,
        asker=None if judge is None else judge.asker,
        baseline=match.baseline,
        aligned=match.aligned,
        progress=_progress(opened),
        seed=asked.seed,
        load_models=match.load_models,
    )
    for name in asked.suite:
        beta = _trained_with(asked.model).get("beta") if asked.beta is None else asked.beta
        options: dict[str, Any] = {"tasks": asked.tasks, "beta": beta}
        taken = {option: options[option] for option in find_suite(name).options}
        show_suite(run_suite(name, contest, data=asked.suite_data, limit=asked.limit, **taken), folder)


def _trained_with(model: str) -> dict[str, float | None]:
    """`beta`, `learning_rate` and `epochs` of a run directory, as far as it knows them."""
    names = {"beta": "beta", "learning_rate": "learning_rate", "epochs": "num_train_epochs"}
    try:
        run = json.loads((Path(model).expanduser() / "run.json").read_text(encoding="utf-8"))["configuration"]
        return {name: None if run.get(field) is None else float(run[field]) for name, field in names.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
