"""`--judge auto`: the pairs that a judge may be trained on, and the model that it is made from."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from preftune.amounts import counted
from preftune.cli.flags.messages import echo
from preftune.errors import PreftuneError, RequestError
from preftune.storage.jsonl import read_object
from preftune.storage.run_directory import run_facts
from preftune.storage.trained_prompts import read_trained_prompts

if TYPE_CHECKING:
    from preftune.data import PairDataset
    from preftune.training.reward_judge import AutoJudge
    from preftune.types import Text

AUTO = "auto"


def make_judge(asked: argparse.Namespace) -> AutoJudge:
    """Returns the judge of `--judge auto`, trained now or loaded from the cache.

    Raises: RequestError: neither a run nor a flag names the pairs to train on, or the model to start from.
    """
    from preftune.data.conversion.filters import split_key
    from preftune.training.reward_judge import train_judge

    trained, held_out = _pairs_of_run(asked.model)
    known = read_trained_prompts(asked.model)
    if asked.judge_data is not None:
        from preftune.data import load_pairs

        pairs = load_pairs(asked.judge_data)
    elif held_out is not None:
        pairs = held_out
        echo(f"preftune: the judge is trained on the pairs that {asked.model} held out ({len(pairs):,})")
    else:
        raise RequestError(
            f"--judge auto needs pairs that {asked.model} was not trained on, and its run held out no pairs "
            "(--eval_fraction holds some out). Name some with --judge_data PAIRS."
        )
    unwanted = None if trained is None else frozenset(split_key(pair) for pair in trained)
    if known is not None:
        unwanted = (unwanted or frozenset()) | frozenset(known.tolist())
    judge = train_judge(_base_of(asked), pairs, unwanted=unwanted, seed=asked.seed, dtype=asked.judge_dtype or "auto")
    echo(f"preftune: {judge.sentence()}")
    return judge


def seen_in_training(model: str, prompts: Iterable[Text]) -> int | None:
    """How many prompts a model was trained on, by the hashes next to its weights; None where that is unknown."""
    from preftune.data.conversion.filters import prompt_key

    known = read_trained_prompts(model)
    if known is None:
        return None
    seen = frozenset(known.tolist())
    return sum(prompt_key(prompt) in seen for prompt in prompts)


def _base_of(asked: argparse.Namespace) -> str:
    """The model that the aligned one was trained from, which has not been trained on the preferences."""
    from preftune.generation.endpoint.client import is_endpoint
    from preftune.generation.lazy_model import ModelSource

    for name in (asked.baseline, asked.model):
        if name is None or name == "dataset" or is_endpoint(name):
            continue
        source = ModelSource(name)
        if source.is_adapter:
            return source.base_name
        if name == asked.baseline:
            return str(name)
        base = run_facts(name, "model").get("name")
        if base:
            return str(base)
    raise RequestError(
        "--judge auto trains the model that the aligned one was trained from, and that model is unknown. Name it with "
        "--baseline."
    )


def _pairs_of_run(model: str) -> tuple[PairDataset | None, PairDataset | None]:
    """The pairs that a run of `preftune dpo` trained on and held out, read again with its command line; None if there
    is no such run. If its data no longer exist, this is printed, and the result is None too.
    """
    facts = run_facts(model)
    words = [str(word) for word in facts.get("command", ())]
    if facts.get("method") != "dpo" or "dpo" not in words:
        return None, None
    from preftune.cli.flags.recipe import find_recipe
    from preftune.cli.train.dpo import METHOD, read_request

    argv = _without_resume([word for word in words[words.index("dpo") + 1 :] if word != "--traceback"])
    try:
        request = read_request(argv, find_recipe(argv))
        names = request.data.dataset_names
        if "-" in ([names] if isinstance(names, str) else names):
            echo(f"preftune: the training data of {model} came from standard input, and cannot be read again")
            return None, None
        train, held_out = METHOD.open_data(request)
    except PreftuneError as error:
        echo(f"preftune: the training data of {model} cannot be read again ({error})")
        return None, None
    rows = _rows_trained_on(model)
    if rows is not None and rows != len(train):
        echo(
            f"preftune: the training data of {model} changed since the run ({counted(rows, 'pair')} then, "
            f"{len(train):,} now), so it is unknown which of them it was trained on"
        )
        return None, None
    return train, held_out


def _rows_trained_on(model: str) -> int | None:
    """The number of pairs that the run read, from its audit.json."""
    train = read_object(Path(model).expanduser() / "audit.json").get("train")
    rows = train.get("rows_in") if isinstance(train, dict) else None
    return rows if isinstance(rows, int) else None


def _without_resume(argv: list[str]) -> list[str]:
    """The words of a command line without `--resume` and its checkpoint, which may no longer exist."""
    plain, skip = [], False
    for word in argv:
        if skip and not word.startswith("--"):
            continue
        skip = word.split("=")[0] in ("--resume", "--resume_from_checkpoint")
        if not skip:
            plain.append(word)
    return plain
