"""`preftune score`: reference scores of a whole dataset, into the cache, before a training that then computes none."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from preftune.amounts import counted
from preftune.cli.flags.arguments import take_command
from preftune.cli.flags.messages import echo, tell
from preftune.cli.flags.plain_parser import PlainParser
from preftune.cli.flags.ray_flags import add_ray_options, open_pool
from preftune.cli.train.train_command import method_of
from preftune.errors import ConfigError
from preftune.shell_words import command_line

if TYPE_CHECKING:
    from preftune.cli.train.train_command import Method, Request
    from preftune.training.scoring.beforehand import Scored
    from preftune.types import TokenizedGroup
    from preftune.workers import Pool

COMMANDS = ("dpo", "kto")
"""Commands that compare given answers with a reference."""


def run(argv: Sequence[str]) -> int:
    """Runs `preftune score` and returns its exit code."""
    which = "compare given answers with a reference"
    name, words = take_command(argv, COMMANDS, prog="preftune score", which=which)
    asked, words = _parser().parse_known_args(words)
    from preftune.cli.train.train_command import speaking_flags

    method = method_of(name)
    try:
        with speaking_flags(method):
            scored = _score(method, asked, words)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Stopped. The scores so far are kept; the same command continues from there.") from None
    if scored is not None:
        _show(scored, method, words)
    return 0


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="preftune score",
        usage="preftune score [dpo|kto] OPTIONS OF THE TRAINING [--ray [ADDRESS]]",
        description="Compute the reference scores of all rows, training and held out, and keep them in the cache. The "
        "training with the same options then computes none. After a stop, the same command continues. Every flag of "
        "the training (preftune dpo --help) and --config RECIPE are taken as they are; what concerns training alone "
        "has no effect.",
    )
    add_ray_options(parser)
    return parser


def _show(scored: Scored, method: Method, words: Sequence[str]) -> None:
    echo(f"preftune: reference: {scored.reference}; its scores are in {scored.file}")
    if scored.draws:
        echo("preftune: the baseline of loss_type=kto is scored in each step, from answers to other prompts.")
    new = f"{counted(scored.computed, 'completion')} scored now" if scored.computed else "nothing to score"
    tell(f"{counted(scored.rows, 'row')}: {new}, the other scores are known.")
    tell(f"Train with them:   {command_line(['preftune', method.name, *words])}")


def _score(method: Method, asked: argparse.Namespace, words: Sequence[str]) -> Scored | None:
    """Scores; None on all ranks but the first."""
    from preftune.cli.train.train_command import prepare, requested
    from preftune.training.scoring.beforehand import score_beforehand
    from preftune.training.setup.forecast import without_plan

    with ExitStack() as opened:
        folder = opened.enter_context(tempfile.TemporaryDirectory())
        opened.enter_context(without_plan())
        pool = open_pool(asked, opened)
        request = _alone(requested(method, words, elsewhere=pool is not None), folder)
        if pool is not None:
            return _on_pool(pool, method, request, words)
        trainer, progress = prepare(method, request)
        opened.callback(progress.close)
        scored = score_beforehand(trainer)
        return scored if trainer.is_world_process_zero() else None


def _alone(request: Request, folder: str) -> Request:
    """The request of a training, for its scores alone."""
    from preftune.training.scoring.beforehand import scoring_config

    if request.data.dataset_streaming:
        raise ConfigError("--streaming: rows that are read while training have no scores beforehand. Leave it out.")
    return replace(request, config=scoring_config(request.config, folder))


def _on_pool(pool: Pool, method: Method, request: Request, words: Sequence[str]) -> Scored:
    """The rows are tokenised here, and scored by the workers."""
    from preftune.cli.train.train_command import tokenizer_of
    from preftune.training.scoring.by_team import probes, score_on_team

    config, (train, held_out) = request.config, method.open_data(request)
    trainer: Any = method.trainer_class()
    datasets = trainer.groups_of(train, tokenizer_of(request), config, held_out=held_out)
    team = pool.team(partial(work_of, method.name, tuple(words), probes(datasets[0])), gpu=True)
    try:
        return score_on_team(team, datasets, config)
    finally:
        team.close()


def work_of(name: str, words: Sequence[str], rows: Sequence[TokenizedGroup]) -> Callable[[Any], Any]:
    """What a worker does with batches of rows; it makes the trainer of the training with a few of them."""
    from preftune.cli.train.train_command import prepare, requested
    from preftune.data import GroupDataset
    from preftune.training.scoring.by_team import scoring_work
    from preftune.training.setup.forecast import without_plan

    method = method_of(name)
    with tempfile.TemporaryDirectory() as folder, without_plan():
        request = _alone(requested(method, words), folder)
        trainer, progress = prepare(method, request, (GroupDataset.from_groups(rows), None))
        progress.close()
        return scoring_work(trainer)
