"""`preftune sample`: several completions per prompt, from which on-policy pairs are made."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.cli.flags.arguments import column_names
from preftune.cli.flags.messages import echo, tell
from preftune.cli.flags.model_flags import (
    ENDPOINT_FLAGS,
    MODEL_FLAGS,
    add_endpoint_options,
    add_model_options,
    add_sampling_options,
    conduct_and_budget,
    echo_prompts,
    model_options,
    refuse,
    sampling_settings,
)
from preftune.cli.flags.plain_parser import PlainParser
from preftune.cli.flags.ray_flags import RAY_FLAGS, add_ray_options, open_pool
from preftune.errors import RequestError
from preftune.generation.endpoint.client import is_endpoint
from preftune.shell_words import path_word
from preftune.storage.run_lock import locked_file

if TYPE_CHECKING:
    from preftune.evaluation.labelling.sample import Answerer, Asked, SampleCounts
    from preftune.generation.prompts import Prompts
    from preftune.generation.settings import SamplingSettings


def run(argv: Sequence[str]) -> int:
    """Runs `preftune sample` and returns its exit code."""
    asked = _parser().read(argv)
    _check(asked)
    endpoint = is_endpoint(asked.model)
    if endpoint:
        refuse(asked, (*MODEL_FLAGS, *RAY_FLAGS), unless="--model is on this machine")
    else:
        refuse(asked, ENDPOINT_FLAGS, unless="--model is openai:NAME@BASE_URL")

    settings = sampling_settings(asked)
    with locked_file(asked.output):
        counts = _from_endpoint(asked, settings) if endpoint else _from_model(asked, settings)
    for line in counts.sentences():
        tell(line)
    tell(f"They are in {asked.output}, their settings in {asked.output}.manifest.json.")
    tell(f"Make pairs of them:   preftune label {path_word(asked.output)} --judge JUDGE -o pairs.jsonl")
    return 0


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="preftune sample",
        description="Sample several completions per prompt from a model, and write each one as it is finished. After "
        "a stop, the same command continues. preftune label makes pairs of them.",
    )
    parser.add_argument(
        "--model",
        "--model_name_or_path",
        dest="model",
        required=True,
        help="a path, a hub id, or openai:NAME@BASE_URL for a model behind an OpenAI-compatible address",
    )
    parser.add_argument(
        "--data",
        "--dataset_name",
        dest="data",
        required=True,
        metavar="PROMPTS",
        help="preference data in any known format, rows with a prompt or messages, or a .txt file of lines",
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="file for the samples, as JSON lines")
    parser.add_argument("-k", "--k", type=int, default=4, help="completions per prompt (4)")
    add_sampling_options(parser, "a completion", temperature=1.0)
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of sampling; the same seed gives the same completions (0)"
    )
    data = parser.add_argument_group("prompts")
    data.add_argument("--split", default="train", help="split of the data; slices work: 'train[:100]' (train)")
    data.add_argument("--format", help="format of the data, if it cannot be recognised")
    data.add_argument("--columns", nargs="+", default=[], metavar="prompt=YOURS", help="column that holds the prompts")
    data.add_argument("--limit", type=int, help="use only the first N distinct prompts")
    data.add_argument(
        "--keep", nargs="+", default=[], metavar="COLUMN", help="columns to copy to the samples, for a judge"
    )
    data.add_argument(
        "--prompts_as",
        choices=["auto", "chat", "text"],
        default="auto",
        help="whether text prompts become a user's turn (chat) or stay text; auto: chat if the model has a template",
    )
    local = parser.add_argument_group("a model on this machine")
    local.add_argument("--batch_size", type=int, help="batch size of generation (16)")
    add_model_options(local)
    add_endpoint_options(parser)
    add_ray_options(parser)
    return parser


def _check(asked: argparse.Namespace) -> None:
    if asked.k < 1:
        raise RequestError(f"-k {asked.k}: give at least 1 completion per prompt.")
    if asked.k > 1 and asked.temperature == 0:
        raise RequestError(f"--temperature 0 gives the same completion {asked.k} times. Give more than 0, or -k 1.")
    if asked.limit is not None and asked.limit < 1:
        raise RequestError(f"--limit {asked.limit}: give at least 1 prompt.")
    if Path(asked.output).is_dir():
        raise RequestError(f"-o {asked.output} is a folder. Name a file in it, such as samples.jsonl.")


def _prompts(asked: argparse.Namespace, *, as_chat: bool) -> Prompts:
    from preftune.generation.prompts import load_prompts

    prompts = load_prompts(
        asked.data,
        split=asked.split,
        columns=column_names(asked.columns),
        format=asked.format,
        as_chat=as_chat,
        keep=asked.keep,
        limit=asked.limit,
    )
    echo_prompts(prompts)
    return prompts


def _from_model(asked: argparse.Namespace, settings: SamplingSettings) -> SampleCounts:
    from preftune.generation.backends import ModelAnswerer
    from preftune.generation.lazy_model import ModelSource

    source = ModelSource(asked.model, **model_options(asked))
    chat = asked.prompts_as == "chat" or (asked.prompts_as == "auto" and bool(source.tokenizer.chat_template))
    prompts = _prompts(asked, as_chat=chat)

    more: dict[str, Any] = {"batch_size": 16 if asked.batch_size is None else asked.batch_size, "raw": True}
    generator = ModelAnswerer(source, settings, **more)
    with ExitStack() as opened:
        pool = open_pool(asked, opened)
        if pool is None:
            return _sample(asked, prompts, generator)
        from preftune.generation.spread.answers import SpreadAnswerer, answering

        work = partial(answering, asked.model, model_options(asked), settings, more)
        spread = SpreadAnswerer(generator, pool.team(work, gpu=True))
        opened.callback(spread.release)
        return _sample(asked, prompts, spread)


def _from_endpoint(asked: argparse.Namespace, settings: SamplingSettings) -> SampleCounts:
    from preftune.generation.backends import EndpointAnswerer
    from preftune.generation.endpoint.client import Endpoint, EndpointName

    if asked.prompts_as == "text":
        raise RequestError("--prompts_as text: an endpoint takes conversations only. Leave it out.")
    with ExitStack() as opened:
        conduct, budget = conduct_and_budget(asked, opened)
        endpoint = opened.enter_context(Endpoint(EndpointName.parse(asked.model), conduct=conduct, budget=budget))
        prompts = _prompts(asked, as_chat=True)
        generator = EndpointAnswerer(endpoint, settings, raw=True)

        def before(missing: list[Asked]) -> None:
            if missing:
                asked_of = [one.prompt.prompt for one in missing]
                echo(f"preftune: {generator.estimate(asked_of, [one.row for one in missing]).line()}")
                endpoint.check()

        return _sample(asked, prompts, generator, before=before)


def _sample(asked: argparse.Namespace, prompts: Prompts, generator: Answerer, *, before: Any = None) -> SampleCounts:
    from preftune.evaluation.labelling.sample import sample
    from preftune.progress import Counting

    try:
        with Counting("sampling", unit="completions") as progress:
            options: dict[str, Any] = {"k": asked.k, "seed": asked.seed, "progress": progress, "before": before}
            return sample(prompts, generator, asked.output, **options)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Stopped. The completions so far are kept in {asked.output}; the same command continues from there."
            if _has_lines(asked.output)
            else "Stopped before the first completion, so nothing is kept."
        ) from None


def _has_lines(file: str) -> bool:
    path = Path(file).expanduser()
    return path.is_file() and path.stat().st_size > 0
