"""`preftune verify`: whether what is served is what was aligned."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from preftune.cli.flags.judge_flags import (
    JUDGE_FLAGS,
    JUDGE_FORMS,
    add_judge_options,
    check_judge,
    open_asked_judge,
)
from preftune.cli.flags.messages import echo, tell
from preftune.cli.flags.model_flags import ENDPOINT_FLAGS, add_endpoint_options, conduct_and_budget, refuse
from preftune.cli.flags.plain_parser import PlainParser
from preftune.log import printable

if TYPE_CHECKING:
    from preftune.deploy import Judging, Verification
    from preftune.generation.endpoint.budget import Budget
    from preftune.generation.endpoint.client import Conduct


def run(argv: Sequence[str]) -> int:
    """Runs `preftune verify` and returns its exit code: 1 if what is served is not what was aligned."""
    asked = _parser().read(argv)

    from preftune.deploy import questions_of, verify
    from preftune.generation.endpoint.client import is_endpoint

    _check(asked)
    questions = questions_of(asked.data, limit=asked.limit, max_new_tokens=asked.max_new_tokens)
    with ExitStack() as opened:
        conduct, budget = conduct_and_budget(asked, opened)
        judging = _judging(asked, opened, conduct, budget)
        artefact: Any = asked.artefact
        if is_endpoint(artefact):
            artefact = _endpoint(artefact, opened, conduct, budget)
        found = verify(
            artefact,
            asked.against,
            questions,
            form=asked.form or "",
            judging=judging,
            base_model=asked.base,
            dtype=asked.dtype,
            trust_remote_code=asked.trust_remote_code,
            progress=lambda what: echo(f"verify: {what}"),
        )
    if asked.json:
        print(json.dumps(found.to_dict()))
    else:
        tell(page(found))
    return 0 if found.holds else 1


def page(found: Verification) -> str:
    """The result as lines for a terminal."""
    lines = [f"{found.name}: {found.verdict()}"]
    lines += [f"  also {fault.stage}: {fault.sentence}" for fault in found.faults[1:]]
    figures = found.figures
    if figures is not None:
        lines.append(f"  greedy answers    {figures.same_answers:.0%} of {figures.prompts} are the trained model's")
        if figures.pairs:
            lines += [
                f"  distance          {figures.off:.4f} nats per token from the trained model, {figures.from_base:.4f} "
                f"from its base (trained model to base: {figures.moved:.4f})",
                f"  reward margin     {figures.served_margin:.3f} nats, trained model {figures.margin:.3f}; same sign "
                f"on {figures.agreement:.0%} of {figures.pairs} pairs",
            ]
    if found.win_rates is not None:
        lines.append(f"  win rate          {found.win_rates.line()}")
    lines += [f"  {sentence}" for sentence in found.notes]
    return "\n".join(printable(line).replace("\n", " ") for line in lines)  # names and tokens of others are in them


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="preftune verify",
        description="Compare what is served with what was trained: token ids of the rendered prompts, end tokens, "
        "log-probabilities and margins, greedy answers, and with a judge the win rate against "
        "the base. A fault is reported with the stage that caused it.",
    )
    parser.add_argument(
        "artefact",
        metavar="ARTEFACT",
        help="a folder of preftune export, a model, an adapter, a GGUF file, or openai:MODEL@BASE_URL",
    )
    parser.add_argument("--against", required=True, metavar="RUN", help="the run that it was made from")
    parser.add_argument("--base", "--base_model", dest="base", metavar="MODEL", help="the base of the run")
    add_questions(parser)
    parser.add_argument("--judge", metavar="SPEC", help=f"for the win rate against the base: {JUDGE_FORMS}")
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="float32",
        help="of the computation with transformers (float32: the weights are compared, not the rounding)",
    )
    parser.add_argument(
        "--form", metavar="TYPE", help="number format behind an address, if coarser than float16: q4_k_m, bfloat16, ..."
    )
    parser.add_argument("--trust_remote_code", action="store_true", help="allow models that bring their own code")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_judge_options(parser, alone=False)
    add_endpoint_options(parser)
    return parser


def _check(asked: argparse.Namespace) -> None:
    """Raises: RequestError for flags without effect."""
    from preftune.generation.endpoint.client import is_endpoint

    if not is_endpoint(asked.artefact):
        refuse(asked, ("form",), unless="the artefact is openai:MODEL@BASE_URL")
        if not is_endpoint(asked.judge or ""):
            refuse(asked, ENDPOINT_FLAGS, unless="the artefact or the judge is openai:MODEL@BASE_URL")
    if asked.judge is None:
        refuse(asked, (*JUDGE_FLAGS, "judge_thoughts"), unless="there is a --judge")
    else:
        check_judge(asked, asked.judge, alone=False)


def _judging(asked: argparse.Namespace, opened: ExitStack, conduct: Conduct, budget: Budget) -> Judging | None:
    from preftune.deploy import Judging

    if asked.judge is None:
        return None
    judge = open_asked_judge(asked, opened, conduct=conduct, budget=budget)
    if judge.endpoint is not None:
        judge.endpoint.check()
    return Judging(judge.judge, again=bool(asked.ask_again), thoughts=bool(asked.judge_thoughts))


def add_questions(parser: PlainParser) -> None:
    """Adds the flags of what all models are asked."""
    parser.add_argument("--data", metavar="FILE", help="held-out pairs (default: preftune's own prompts)")
    parser.add_argument("--limit", type=int, default=16, metavar="N", help="number of prompts (16)")
    parser.add_argument("--max_new_tokens", type=int, default=64, metavar="N", help="length of the answers (64)")


def _endpoint(name: str, opened: ExitStack, conduct: Conduct, budget: Budget) -> Any:
    from preftune.deploy import ServedEndpoint
    from preftune.generation.endpoint.client import Endpoint, EndpointName

    endpoint = opened.enter_context(Endpoint(EndpointName.parse(name), conduct=conduct, budget=budget))
    endpoint.check()
    return ServedEndpoint(endpoint)
