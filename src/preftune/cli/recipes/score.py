"""`preftune score`: reference scores of a whole dataset, into the cache, before a training that then computes none."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING

from preftune.amounts import counted
from preftune.cli.flags.messages import tell
from preftune.errors import ConfigError, RequestError, did_you_mean

if TYPE_CHECKING:
    from preftune.cli.train.train_command import Method, Request

COMMANDS = ("dpo", "kto")
"""Commands that compare given answers with a reference."""

HELP = """\
usage: preftune score [dpo|kto] OPTIONS OF THE TRAINING

Compute the reference scores of all rows, training and held out, and keep them
in the cache. The training with the same options then computes none. After a
stop, the same command continues. Options are those of the training (its
--config RECIPE too; preftune dpo --help lists them); what concerns training
alone has no effect.

  preftune score dpo --model MODEL --data pairs.jsonl --use_peft
  preftune dpo --model MODEL --data pairs.jsonl --use_peft
"""


def run(argv: Sequence[str]) -> int:
    """Runs `preftune score` and returns its exit code."""
    words = list(argv)
    if {"-h", "--help"} & set(words):
        print(HELP, end="")
        return 0
    name = words.pop(0) if words and not words[0].startswith("-") else "dpo"
    if name not in COMMANDS:
        raise RequestError(
            f"preftune score does not cover {name}, only {' and '.join(COMMANDS)}, which compare given answers with a "
            f"reference. {did_you_mean(name, COMMANDS, otherwise='See preftune score --help.')}"
        )
    method: Method = import_module(f"preftune.cli.train.{name}").METHOD
    from preftune.cli.train.train_command import requested, speaking_flags

    try:
        with speaking_flags(method):
            return _score(method, requested(method, words))
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Stopped. The scores so far are kept; the same command continues from there.") from None


def _score(method: Method, request: Request) -> int:
    from preftune.cli.train.train_command import prepare
    from preftune.training.setup.forecast import without_plan
    from preftune.training.setup.scoring import score_beforehand, scoring_config

    if request.data.dataset_streaming:
        raise ConfigError("--streaming: rows that are read while training have no scores beforehand. Leave it out.")
    with tempfile.TemporaryDirectory() as folder, without_plan():
        request = replace(request, config=scoring_config(request.config, folder))
        trainer, progress = prepare(method, request)
        try:
            scored = score_beforehand(trainer)
        finally:
            progress.close()
    if trainer.is_world_process_zero():
        if method.name == "kto" and request.config.loss_type == "kto":
            tell("preftune: the baseline of loss_type=kto is scored in each step, from answers to other prompts.")
        tell(f"preftune: the scores are in {scored.file}")
        new = f"{counted(scored.computed, 'completion')} scored now" if scored.computed else "nothing to score"
        print(f"{counted(scored.rows, 'row')}: {new}, the other scores are known.")
        print(f"Train with them:   {shlex.join(['preftune', method.name, *request.words])}")
    return 0
