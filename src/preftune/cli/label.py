"""`preftune label`: a judge ranks the completions of each prompt, and pairs come out."""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.cli.messages import tell
from preftune.cli.plain_parser import PlainParser
from preftune.cli.sample import (
    ENDPOINT_FLAGS,
    add_endpoint_options,
    add_model_options,
    conduct_and_budget,
    is_endpoint,
    refuse,
)
from preftune.errors import PreftuneError, RequestError

if TYPE_CHECKING:
    from preftune.evaluation.labelling import Group, Rater

_RULES = ("key-fact", "shorter", "longer")
_REWARD = "reward:"


def run(argv: Sequence[str]) -> int:
    """Runs `preftune label` and returns its exit code: 1 when no pair came out."""
    asked = _parser().read(argv)
    _check(asked)

    from preftune.evaluation.labelling import label
    from preftune.evaluation.progress import Counting

    unit = "answers" if asked.judge.startswith(_REWARD) else "verdicts"
    try:
        with ExitStack() as opened:
            rater, before = _rater(asked, opened)
            counts = label(
                asked.samples,
                asked.output,
                rater,
                which=asked.pairs,
                min_gap=asked.min_gap,
                margin_from_scores=asked.margin_from_scores,
                finished_only=asked.finished_only,
                settings={"judge": asked.judge, **({"criteria": asked.criteria} if asked.criteria else {})},
                progress=opened.enter_context(Counting("labelling", unit=unit)),
                before=before,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Stopped. Verdicts that came are kept; the same command goes on from there.") from None
    for line in counts.sentences():
        print(line)
    if counts.pairs == 0:
        raise PreftuneError(
            "No pair came out, for the reasons above. Sample more completions (-k) at a higher --temperature, or use "
            "another judge."
        )
    print(f"They lie in {asked.output}, and how they were made in {asked.output}.manifest.json.")
    print(f"Train on them:   preftune dpo --model MODEL --data {shlex.quote(asked.output)}")
    return 0


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="preftune label",
        description="Preference pairs out of the samples of preftune sample: a judge ranks the completions of each "
        "prompt. Verdicts that cost something are kept on disk, so a second labelling costs nothing.",
    )
    parser.add_argument("samples", metavar="SAMPLES", help="the file that preftune sample wrote")
    parser.add_argument(
        "--judge",
        required=True,
        help="rule:MODULE:FUNCTION (four arguments: compares two answers; three: scores one), reward:MODEL, "
        "openai:MODEL@BASE_URL, key-fact, shorter or longer",
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="pairs, as JSON lines")
    parser.add_argument(
        "--pairs",
        choices=["best-worst", "all", "adjacent"],
        default="best-worst",
        help="the best against the worst, all against all, or each against the next one (best-worst)",
    )
    parser.add_argument(
        "--min_gap", type=float, default=0.0, help="least difference of scores, or of comparisons won (any above 0)"
    )
    parser.add_argument(
        "--margin_from_scores", type=float, metavar="NATS", help="write margins: so many nats per point of difference"
    )
    parser.add_argument("--finished_only", action="store_true", help="leave out completions cut at their length limit")
    model = parser.add_argument_group("a reward model on this machine")
    model.add_argument("--batch_size", type=int, help="answers at once (16)")
    add_model_options(model)
    endpoint = parser.add_argument_group("a judge behind an address")
    endpoint.add_argument("--criteria", metavar="TEXT", help="what is better, in a sentence or two")
    endpoint.add_argument("--judge_max_tokens", type=int, help="longest verdict, in tokens (512)")
    endpoint.add_argument(
        "--ask_again", action="store_true", default=None, help="ask once more where no verdict could be read"
    )
    add_endpoint_options(parser)
    return parser


def _check(asked: argparse.Namespace) -> None:
    if not (math.isfinite(asked.min_gap) and asked.min_gap >= 0):
        raise RequestError(f"--min_gap {asked.min_gap}: give a number that is not negative.")
    scale = asked.margin_from_scores
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        raise RequestError(f"--margin_from_scores {scale}: give the nats of margin per point, such as 0.5.")
    if Path(asked.output).is_dir():
        raise RequestError(f"-o {asked.output} is a folder. Name a file in it, such as pairs.jsonl.")
    reward = asked.judge.startswith(_REWARD)
    if not (is_endpoint(asked.judge) or reward or asked.judge.startswith("rule:") or asked.judge in _RULES):
        raise RequestError(
            f"There is no judge {asked.judge!r}. Give rule:MODULE:FUNCTION, reward:MODEL, openai:MODEL@BASE_URL, "
            f"{', '.join(_RULES[:-1])} or {_RULES[-1]}."
        )
    if not is_endpoint(asked.judge):
        flags = (*ENDPOINT_FLAGS, "criteria", "judge_max_tokens", "ask_again")
        refuse(asked, flags, unless="--judge is openai:MODEL@BASE_URL")
    if not reward:
        refuse(asked, ("batch_size", "dtype", "trust_remote_code"), unless="--judge is reward:MODEL")


def _rater(asked: argparse.Namespace, opened: ExitStack) -> tuple[Rater, Callable[[list[Group]], None] | None]:
    """Who rates, and what is done before anything is asked. What is opened for that is closed with `opened`."""
    from preftune.evaluation.judges import is_scorer, load_judge
    from preftune.evaluation.labelling import ByComparison, ByScore
    from preftune.evaluation.verdicts import VerdictCache

    if is_endpoint(asked.judge):
        return _endpoint_rater(asked, opened)
    if asked.judge.startswith(_REWARD):
        from preftune.evaluation.reward_model import load_reward_model

        scorer = load_reward_model(
            asked.judge.removeprefix(_REWARD),
            cache=opened.enter_context(closing(VerdictCache())),
            batch_size=16 if asked.batch_size is None else asked.batch_size,
            dtype=asked.dtype or "auto",
            trust_remote_code=bool(asked.trust_remote_code),
        )
        return ByScore(scorer), None
    rule: Any = load_judge(asked.judge)
    cache = opened.enter_context(closing(VerdictCache())) if getattr(rule, "cache_key", None) is not None else None
    return ByScore(rule, cache) if is_scorer(rule) else ByComparison(rule, cache), None


def _endpoint_rater(asked: argparse.Namespace, opened: ExitStack) -> tuple[Rater, Callable[[list[Group]], None]]:
    from preftune.evaluation.endpoint import Endpoint, EndpointName
    from preftune.evaluation.endpoint_judge import CRITERIA, EndpointJudge
    from preftune.evaluation.labelling import ByComparison
    from preftune.evaluation.verdicts import VerdictCache

    conduct, budget = conduct_and_budget(asked)
    endpoint = opened.enter_context(Endpoint(EndpointName.parse(asked.judge), conduct=conduct, budget=budget))
    opened.callback(lambda: tell(f"preftune: used {budget.line()}") if budget.calls else None)
    judge = EndpointJudge(
        endpoint,
        opened.enter_context(closing(VerdictCache())),
        criteria=asked.criteria or CRITERIA,
        max_tokens=512 if asked.judge_max_tokens is None else asked.judge_max_tokens,
    )
    rater = ByComparison(judge, again=bool(asked.ask_again))

    def before(groups: list[Group]) -> None:
        questions = [question for question, _ in rater.questions(groups)]
        estimate = judge.estimate(questions, again=bool(asked.ask_again))
        known = judge.known(questions)
        if known:
            tell(f"preftune: {known:,} verdicts are known from earlier runs and cost nothing")
        if estimate.calls:
            tell(f"preftune: {estimate.line()} (every two completions of a prompt, in both orders)")
            endpoint.check()

    return rater, before
