"""`preftune label`: a judge ranks the completions of each prompt, which gives preference pairs."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from preftune.cli.flags.judge_flags import (
    JUDGE_FORMS,
    add_judge_options,
    check_judge,
    echo_cost,
    open_asked_judge,
)
from preftune.cli.flags.messages import tell
from preftune.cli.flags.model_flags import add_endpoint_options, conduct_and_budget, refuse
from preftune.cli.flags.plain_parser import PlainParser
from preftune.cli.flags.ray_flags import RAY_FLAGS, add_ray_options, open_pool
from preftune.errors import PreftuneError, RequestError
from preftune.judges.registry import judge_kind
from preftune.shell_words import path_word
from preftune.storage.run_lock import locked_file

if TYPE_CHECKING:
    from preftune.evaluation.labelling.sample_groups import Group
    from preftune.evaluation.labelling.scoring import Rater


def run(argv: Sequence[str]) -> int:
    """Runs `preftune label` and returns its exit code: 1 when there is no pair."""
    asked = _parser().read(argv)
    _check(asked)

    from preftune.evaluation.labelling.label import label
    from preftune.progress import Counting

    unit = "answers" if asked.judge.startswith("reward:") else "verdicts"
    try:
        with locked_file(asked.output), ExitStack() as opened:
            rater, before = _rater(asked, opened)
            counts = label(
                asked.samples,
                asked.output,
                rater,
                which=asked.pairs,
                min_gap=asked.min_gap,
                margin_from_scores=asked.margin_from_scores,
                finished_only=asked.finished_only,
                judge_thoughts=bool(asked.judge_thoughts),
                settings={"judge": asked.judge, **({"criteria": asked.criteria} if asked.criteria else {})},
                progress=opened.enter_context(Counting("labelling", unit=unit)),
                before=before,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "Stopped. The verdicts received so far are kept; the same command continues from there."
        ) from None
    for line in counts.sentences():
        tell(line)
    if counts.pairs == 0:
        raise PreftuneError(
            "There is no pair, for the reasons above. Sample more completions (-k) at a higher --temperature, or use "
            "another judge."
        )
    tell(f"They are in {asked.output}; {asked.output}.manifest.json says how they were made.")
    tell(f"Train on them:   preftune dpo --model MODEL --data {path_word(asked.output)}")
    return 0


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="preftune label",
        description="Make preference pairs from the samples of preftune sample: a judge ranks the completions of "
        "each prompt. Verdicts of models and endpoints are kept on disk, so a second labelling costs "
        "nothing.",
    )
    parser.add_argument("samples", metavar="SAMPLES", help="the file that preftune sample wrote")
    parser.add_argument("--judge", required=True, help=JUDGE_FORMS)
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="file for the pairs, as JSON lines")
    parser.add_argument(
        "--pairs",
        choices=["best-worst", "all", "adjacent"],
        default="best-worst",
        help="which completions form pairs: the best and the worst, all with all, or each with the next one "
        "(best-worst)",
    )
    parser.add_argument(
        "--min_gap", type=float, default=0.0, help="minimum difference of scores, or of comparisons won (any above 0)"
    )
    parser.add_argument(
        "--margin_from_scores", type=float, metavar="NATS", help="write margins: nats per point of score difference"
    )
    parser.add_argument(
        "--finished_only", action="store_true", help="leave out completions that were cut before their end"
    )
    add_judge_options(parser)
    add_endpoint_options(parser)
    add_ray_options(parser)
    return parser


def _check(asked: argparse.Namespace) -> None:
    if not (math.isfinite(asked.min_gap) and asked.min_gap >= 0):
        raise RequestError(f"--min_gap {asked.min_gap}: give a number that is not negative.")
    scale = asked.margin_from_scores
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        raise RequestError(
            f"--margin_from_scores {scale}: give the nats of margin per point as a positive number, such as 0.5."
        )
    if Path(asked.output).is_dir():
        raise RequestError(f"-o {asked.output} is a folder. Name a file in it, such as pairs.jsonl.")
    check_judge(asked, asked.judge, scores_count=False)
    if judge_kind(asked.judge) == "openai":
        refuse(asked, RAY_FLAGS, unless="--judge is a rule or a model that workers can load")


def _rater(asked: argparse.Namespace, opened: ExitStack) -> tuple[Rater, Callable[[list[Group]], None] | None]:
    """The judge or scorer, after the checks that precede the first call. `opened` closes the resources it uses."""
    from preftune.evaluation.labelling.scoring import ByComparison, ByScore

    conduct, budget = conduct_and_budget(asked, opened)
    pool = open_pool(asked, opened)
    judge = open_asked_judge(asked, opened, conduct=conduct, budget=budget, pool=pool)
    if judge.scorer is not None:
        return ByScore(judge.scorer), None
    again = bool(asked.ask_again)
    rater = ByComparison(judge.judge, again=again)

    def before(groups: list[Group]) -> None:
        what = "each two completions of a prompt, in both orders"
        echo_cost(judge, rater.questions(groups), again=again, what=what)

    return rater, before
