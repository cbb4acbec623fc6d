"""Flags of all commands that use a judge, which flags fit which judge, and the judge that they define."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from preftune.amounts import counted
from preftune.cli.flags.messages import echo
from preftune.cli.flags.model_flags import ENDPOINT_FLAGS, refuse
from preftune.cli.flags.plain_parser import PlainParser
from preftune.errors import RequestError

if TYPE_CHECKING:
    from preftune.generation.endpoint.budget import Budget
    from preftune.generation.endpoint.client import Conduct
    from preftune.judges.protocol import Question
    from preftune.judges.registry import OpenedJudge
    from preftune.workers import Pool

JUDGE_FORMS = (
    "openai:MODEL@BASE_URL, local:MODEL (a chat model on this machine), reward:MODEL, rule:MODULE:FUNCTION or "
    "rule:FILE.py:FUNCTION (four arguments: compares two answers; three: scores one), exact, key-fact, shorter or "
    "longer"
)
"""For help pages."""

_CHAT = ("criteria", "judge_max_tokens", "ask_again")
_LOADED = ("judge_batch_size", "judge_dtype")
JUDGE_FLAGS = (*_CHAT, *_LOADED, "judge_load_in_4bit", "tie_within", "reward_ensemble")
"""The flags of `add_judge_options` that have no effect without a judge."""


def add_judge_options(parser: PlainParser, *, alone: bool = True) -> None:
    """Adds the flags of the judge.

    Args:
        alone: the command loads no other model, so `--batch_size` and `--dtype` are also names for the judge's.
    """
    group = parser.add_argument_group("the judge")
    group.add_argument(
        "--criteria", metavar="TEXT", help="for a chat model: what makes an answer better, in a sentence or two"
    )
    group.add_argument(
        "--judge_max_tokens", type=int, help="for a chat model: maximum length of a verdict, in tokens (512)"
    )
    group.add_argument(
        "--ask_again", action="store_true", default=None, help="ask again where no verdict could be read"
    )
    group.add_argument(
        "--judge_thoughts",
        action="store_true",
        default=None,
        help="judge the reasoning that a thinking model writes before its answer as part of the answer",
    )
    group.add_argument(
        "--tie_within", type=float, metavar="POINTS", help="maximum difference of scores that counts as a tie (0.01)"
    )

    group.add_argument(
        "--reward_ensemble",
        choices=["mean", "min", "mean-std"],
        help="for reward:A,B,C: how their scores are combined (mean)",
    )

    def spelled(name: str) -> list[str]:
        return [f"--judge_{name}", f"--{name}"] if alone else [f"--judge_{name}"]

    group.add_argument(
        *spelled("batch_size"),
        dest="judge_batch_size",
        type=int,
        help="for a model on this machine: batch size (16 for scores, 8 for verdicts)",
    )
    group.add_argument(
        *spelled("dtype"),
        dest="judge_dtype",
        choices=["auto", "bfloat16", "float16", "float32"],
        help="for a model on this machine: number format of its weights (auto)",
    )
    group.add_argument(
        *spelled("load_in_4bit"),
        dest="judge_load_in_4bit",
        action="store_true",
        default=None,
        help="for local:MODEL: load it in 4 bits (extra: quant)",
    )
    if alone:
        group.add_argument(
            "--trust_remote_code", action="store_true", default=None, help="allow models that bring their own code"
        )


def check_judge(asked: argparse.Namespace, spec: str, *, alone: bool = True, scores_count: bool = True) -> None:
    """Checks the judge's flags before anything is loaded.

    Args:
        scores_count: whether `--tie_within` has an effect in this command.
    Raises: RequestError for a spec of no known form, and for flags that would do nothing with this judge.
    """
    from preftune.judges.registry import RULES, judge_kind, reward_models

    kind = judge_kind(spec)
    loaded = kind in ("reward", "local")
    remote: Sequence[str] = ("trust_remote_code",) if alone else ()
    if alone and kind != "openai":
        refuse(asked, ENDPOINT_FLAGS, unless="--judge is openai:MODEL@BASE_URL")
    if kind not in ("openai", "local"):
        refuse(asked, _CHAT, unless="--judge is openai:MODEL@BASE_URL or local:MODEL")
    if not loaded:
        refuse(asked, (*_LOADED, *remote), unless="--judge is reward:MODEL or local:MODEL")
    if kind != "reward" or len(reward_models(spec.partition(":")[2])) < 2:
        refuse(asked, ("reward_ensemble",), unless="--judge is reward:A,B,C")
    if kind != "local":
        refuse(asked, ("judge_load_in_4bit",), unless="--judge is local:MODEL")
    if not scores_count or kind in ("openai", "local") or spec in RULES:
        refuse(asked, ("tie_within",), unless="the judge of an evaluation gives scores (reward:MODEL or a rule)")


def open_asked_judge(
    asked: argparse.Namespace, opened: ExitStack, *, conduct: Conduct, budget: Budget, pool: Pool | None = None
) -> OpenedJudge:
    """Opens the judge of `--judge` with the flags of `add_judge_options`.

    Args:
        pool: the cluster whose workers do the work; an address is asked from this machine.
    """
    from preftune.judges.from_scores import TIE_WITHIN
    from preftune.judges.registry import JudgeOptions, judge_kind, open_judge

    code = asked.trust_remote_code and judge_kind(asked.judge) in ("reward", "local")
    model = {"dtype": asked.judge_dtype, "trust_remote_code": code, "load_in_4bit": asked.judge_load_in_4bit}
    options = JudgeOptions(
        criteria=asked.criteria,
        max_tokens=512 if asked.judge_max_tokens is None else asked.judge_max_tokens,
        batch_size=asked.judge_batch_size,
        tie_within=TIE_WITHIN if asked.tie_within is None else asked.tie_within,
        ensemble=asked.reward_ensemble or "mean",
        conduct=conduct,
        budget=budget,
        model={name: value for name, value in model.items() if value},
        pool=None if judge_kind(asked.judge) == "openai" else pool,
    )
    judge = open_judge(asked.judge, opened, options)
    if asked.tie_within is not None and judge.scorer is None:
        raise RequestError(
            f"--tie_within has no effect: {asked.judge} compares answers and gives no scores. Leave it out."
        )
    return judge


def echo_cost(judge: OpenedJudge, questions: Sequence[Question], *, again: bool, what: str) -> int:
    """Prints the number of known verdicts and the cost of the calls, checks that the address answers, and returns the
    number of calls.

    Args:
        what: what a call is made for, in words.
    Raises: RequestError for more than a cap, or an address that does not answer.
    """
    estimate = getattr(judge.judge, "estimate", None)
    if estimate is None:
        return 0
    known = judge.judge.known(questions)  # type: ignore[attr-defined]
    expected = estimate(questions, again=again)
    if known:
        echo(f"preftune: {counted(known, 'verdict is', 'verdicts are')} known from earlier runs and cost nothing")
    if expected.calls:
        echo(f"preftune: {expected.line()} ({what})")
        if judge.endpoint is not None:
            judge.endpoint.check()
    return int(expected.calls)
