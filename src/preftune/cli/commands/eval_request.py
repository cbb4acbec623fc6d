"""The request of `preftune eval`: its flags, and the checks that need nothing loaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.cli.flags.judge_flags import JUDGE_FLAGS, JUDGE_FORMS, add_judge_options, check_judge
from preftune.cli.flags.model_flags import (
    ENDPOINT_FLAGS,
    MODEL_FLAGS,
    add_endpoint_options,
    add_model_options,
    add_sampling_options,
    refuse,
)
from preftune.cli.flags.plain_parser import PlainParser
from preftune.cli.flags.ray_flags import RAY_FLAGS, add_ray_options
from preftune.cli.train.auto_judge import AUTO
from preftune.errors import RequestError
from preftune.generation.endpoint.client import is_endpoint
from preftune.statistics.verdict_names import LEVELS

if TYPE_CHECKING:
    from preftune.evaluation.two_models.open_models import Matchup

_OWN_COLUMNS = ("category", "topic")
"""The columns of preftune's own prompts."""


def read_request(argv: Sequence[str]) -> argparse.Namespace:
    """The flags, checked. Raises: RequestError."""
    asked = _parser().read(argv)
    _check(asked)
    return asked


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="preftune eval",
        description="Did the model get better? The aligned model and the one it was trained from answer the same "
        "prompts, a judge compares the answers in both orders, and the result is reported with its "
        "uncertainty. After a stop, the same command continues; known verdicts cost nothing.",
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
        help="the same, or 'dataset' for the chosen answers of held-out pairs (default: the model that it was trained "
        "from)",
    )
    parser.add_argument(
        "--prompts",
        "--data",
        "--dataset_name",
        dest="prompts",
        help="preference data in any known format, rows with a prompt or messages, or a .txt file of lines (default: "
        "63 prompts of preftune's own)",
    )
    parser.add_argument(
        "--judge", help=f"{JUDGE_FORMS}; auto: a reward model that is trained on this machine, without an API key"
    )
    parser.add_argument(
        "--judge_data", metavar="PAIRS", help="for --judge auto: pairs to train it on (the run's held-out pairs)"
    )
    parser.add_argument("-o", "--output", metavar="FOLDER", help="folder of the results (MODEL/eval for a folder)")
    parser.add_argument("--limit", type=int, help="use only the first N distinct prompts, or N questions of a suite")
    parser.add_argument("--seed", type=int, default=0, help="seed of sampling and of bootstrap intervals (0)")
    _add_verdict(parser.add_argument_group("verdict"))
    _add_suites(parser.add_argument_group("suites"))
    _add_prompts(parser.add_argument_group("prompts"))
    add_sampling_options(parser.add_argument_group("answers"), "an answer", temperature=0.0)
    local = parser.add_argument_group("models on this machine")
    local.add_argument("--batch_size", type=int, help="batch size of generation (16; vLLM chooses its own)")
    local.add_argument(
        "--backend",
        choices=["auto", "transformers", "vllm"],
        help="generation backend; auto: vLLM where it is installed and there is a GPU",
    )
    add_model_options(local)
    add_judge_options(parser, alone=False)
    add_ray_options(parser)
    add_endpoint_options(parser)
    return parser


def _add_verdict(rules: Any) -> None:
    rules.add_argument(
        "--fail_under",
        choices=list(LEVELS),
        metavar="VERDICT",
        help="exit code 1 unless the verdict is at least this: better, below-bar (better, but below the 55%% bar) or "
        "undecided",
    )
    rules.add_argument(
        "--forgetting_budget",
        type=float,
        metavar="POINTS",
        help="points that a general ability may lose for the verdict better, as --suite general measured it (2)",
    )
    rules.add_argument(
        "--anytime",
        action="store_true",
        default=None,
        help="prompts are added until it is decided: the verdict better needs an interval that stays valid then",
    )


def _add_suites(suites: Any) -> None:
    suites.add_argument(
        "--suite",
        action="append",
        default=[],
        metavar="NAME",
        help="a known set of questions instead of --prompts; repeatable",
    )
    suites.add_argument(
        "--suite_data", nargs="+", metavar="PATH", help="its questions in a file or folder, instead of the hub's"
    )
    suites.add_argument(
        "--tasks", nargs="+", metavar="NAME", help="tasks of lm-evaluation-harness, for the suite general"
    )
    suites.add_argument(
        "--beta", type=float, help="beta of the training run, for the suite held-out (default: that of run.json)"
    )


def _add_prompts(data: Any) -> None:
    data.add_argument("--split", help="split of the data; slices work: 'test[:100]' (train)")
    data.add_argument("--format", help="format of the data, if it cannot be recognised")
    data.add_argument("--columns", nargs="+", default=[], metavar="prompt=YOURS", help="column that holds the prompts")
    data.add_argument(
        "--by", metavar="COLUMN", help="report a win rate for each value of this column (category, topic, source)"
    )
    data.add_argument("--keep", nargs="+", metavar="COLUMN", help="columns that your own rule reads")


def _check(asked: argparse.Namespace) -> None:
    """Checks the request before anything is loaded. Raises: RequestError."""
    if asked.forgetting_budget is not None and not 0 <= asked.forgetting_budget <= 100:
        raise RequestError(f"--forgetting_budget {asked.forgetting_budget:g}: give points between 0 and 100.")
    if asked.suite and "general" not in asked.suite:
        refuse(asked, ("fail_under", "forgetting_budget"), unless="two models are compared, or --suite is general")
    if asked.suite:
        refuse(asked, ("anytime",), unless="two models are compared, without a --suite")
    if asked.limit is not None and asked.limit < 1:
        raise RequestError(f"--limit {asked.limit}: give at least 1 prompt.")
    if asked.judge is None and not asked.suite:
        raise RequestError(f"--judge is missing: a judge decides which answer is better. Give {JUDGE_FORMS}.")
    if asked.judge != AUTO:
        refuse(asked, ("judge_data",), unless="--judge is auto")
    if asked.judge is not None:
        check_judge(asked, "reward:it" if asked.judge == AUTO else asked.judge, alone=False)
    else:
        refuse(asked, JUDGE_FLAGS, unless="there is a --judge")
    models = [name for name in (asked.model, asked.baseline) if name is not None]
    if asked.model is not None and is_endpoint(asked.model) and all(map(_is_remote, models)):
        refuse(asked, (*MODEL_FLAGS, "backend"), unless="one of the models is on this machine")
        if is_endpoint(asked.judge or ""):
            refuse(asked, RAY_FLAGS, unless="a model is on this machine, or the judge is not openai:NAME@BASE_URL")
    if not any(is_endpoint(name) for name in (*models, asked.judge or "")):
        refuse(asked, ENDPOINT_FLAGS, unless="a model or the judge is openai:NAME@BASE_URL")
    if asked.temperature == 0:
        refuse(asked, ("top_p", "top_k", "min_p"), unless="answers are sampled, with a --temperature above 0")
    if asked.prompts is None:
        refuse(asked, ("split", "format", "keep"), unless="there are --prompts")
        if asked.by not in (None, *_OWN_COLUMNS):
            raise RequestError(f"--by {asked.by}: preftune's own prompts have {' and '.join(_OWN_COLUMNS)}. Name one.")
        if asked.columns:
            raise RequestError("--columns has no effect without --prompts. Leave it out.")
    _check_suites(asked)
    if asked.baseline == "dataset" and asked.prompts is None:
        raise RequestError("--baseline dataset takes the chosen answers of pairs. Give such pairs with --prompts.")


def _check_suites(asked: argparse.Namespace) -> None:
    if asked.suite:
        refuse(asked, RAY_FLAGS, unless="two models are compared, without a --suite")
    if not asked.suite:
        refuse(asked, ("suite_data", "tasks", "beta"), unless="there is a --suite")
        return
    from preftune.evaluation.suites import find_suite

    entries = [find_suite(name) for name in asked.suite]
    for option in ("tasks", "beta"):
        if not any(option in entry.options for entry in entries):
            refuse(asked, (option,), unless="a suite that uses it is given (general: --tasks, held-out: --beta)")
    if "alpaca-eval" not in asked.suite:  # the other suites have criteria of their own
        refuse(asked, ("criteria",), unless="the suite is alpaca-eval, or two models are compared without a --suite")
    if asked.prompts is not None or asked.by is not None:
        raise RequestError("A suite brings its own questions. Leave --prompts and --by out.")
    if asked.baseline == "dataset":
        raise RequestError("--baseline dataset goes with held-out pairs, not with a suite. Name a model.")
    if asked.suite_data is not None and len(asked.suite) > 1:
        raise RequestError("--suite_data is the data of one suite. Run the suites one by one.")


def _is_remote(name: str) -> bool:
    return is_endpoint(name) or name == "dataset"


def results_folder(asked: argparse.Namespace) -> Path:
    """The folder of the results: `eval` in a run directory or model folder, unless another one is named."""
    if asked.output is not None:
        if Path(asked.output).is_file():
            raise RequestError(f"-o {asked.output} is a file. Name a folder for the results.")
        return Path(asked.output)
    model = Path(asked.model).expanduser()
    if not model.is_dir() and not _is_remote(asked.model):
        from preftune.models.locate import locate

        locate(asked.model)  # a model that is not there is named as that, with near names
    if not model.is_dir():
        raise RequestError(f"{asked.model} is not a folder that results can be written to. Name one with -o FOLDER.")
    return model / "eval"


def need_comparison(asked: argparse.Namespace, folder: Path, match: Matchup) -> None:
    """A verdict needs a comparison; checked before a suite runs. Raises: RequestError."""
    from preftune.evaluation.two_models.verdict_record import compared_before

    for flag in ("fail_under", "forgetting_budget"):
        if getattr(asked, flag) is not None and not compared_before(folder, match.settings):
            raise RequestError(
                f"--{flag} applies to a verdict, and these two models have not been compared in {folder}. Run preftune "
                f"eval with --judge first, or leave --{flag} out."
            )
