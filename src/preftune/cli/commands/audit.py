"""`preftune audit`: what is wrong with preference data, on the terminal, as JSON and as a page."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.cli.flags.arguments import column_names
from preftune.cli.flags.messages import echo
from preftune.cli.flags.plain_parser import PlainParser
from preftune.cli.flags.ray_flags import add_ray_options, open_pool
from preftune.errors import RequestError, did_you_mean

if TYPE_CHECKING:
    from preftune.audit import Audit, Finding, Setting
    from preftune.audit.opening import Opened
    from preftune.audit.run import Progress
    from preftune.audit.scoring import PairReader, ReferenceScorer
    from preftune.workers import Pool

PROG = "preftune audit"
DEFAULT_OUTPUT = "runs/audit"
DEFAULT_MAX_LENGTH = 1024
"""The default of `preftune dpo`."""
_COUNTED = 16_384
"""Lengths up to this number of tokens are exact; of texts that may be longer, only the ends are tokenised."""

_LEVELS = {"error": ("error",), "warning": ("error", "warning")}
"""Values of `--fail-on` besides the names of findings -> the severities that fail."""


def run(argv: Sequence[str]) -> int:
    """Runs `preftune audit` and returns its exit code: 1 if `--fail-on` names something that was found."""
    asked = _parser().read(argv)
    failing = _failing(asked.fail_on)
    _check(asked)
    with ExitStack() as opened:
        pool = open_pool(asked, opened)
        setting = _setting(asked, pool, opened)
        team = None
        if pool is not None:
            team = opened.enter_context(closing(pool.team(partial(_checking, asked, setting.data.name), gpu=False)))
        progress = opened.enter_context(_progress(setting))
        from preftune.audit import audit

        result = audit(setting, team=team, progress=progress)
    folder = Path(asked.output or default_output(asked.data)).expanduser()
    written = _write(result, folder)
    if asked.json:
        from preftune.audit.writing import as_text

        print(as_text(result.to_json()), end="")
    else:
        from preftune.cli.display.audit_table import show

        show(result, written)
    return _gate(result, failing, asked.fail_on)


def _parser() -> PlainParser:
    parser = PlainParser(
        prog=PROG,
        description="Report what is wrong with preference data: as a table on the terminal, and as audit.json and "
        "audit.html.",
        epilog="Exit code: 0, or 1 when --fail-on names something that was found, or 2 for a wrong request.",
    )
    parser.add_argument("data", metavar="DATA", help="pairs: a path (jsonl, json, csv, parquet; .gz), a hub id, or -")
    parser.add_argument("--eval", metavar="DATA2", help="evaluation pairs, whose prompts must not be trained on")
    parser.add_argument("--model", metavar="M", help="count tokens as this model does; its weights are not loaded")
    parser.add_argument("--tokenizer", metavar="T", help="count tokens with this tokenizer instead")
    parser.add_argument(
        "--with_reference",
        action="store_true",
        help="load the model too: margins and accuracy before training, and the labels that surprise it most",
    )
    parser.add_argument("--load_in_4bit", action="store_true", help="load it in 4 bits")
    parser.add_argument("--trust_remote_code", action="store_true", help="allow models that bring their own code")
    parser.add_argument("--max_length", type=int, metavar="N", help="the limit of training in tokens (default: 1024)")
    parser.add_argument("--max_prompt_length", type=int, metavar="N", help="the limit of prompts, in tokens")
    parser.add_argument("--columns", nargs="+", default=[], metavar="C=YOURS", help="renames: chosen=good rejected=bad")
    parser.add_argument("--format", metavar="NAME", help="format of the data, if it cannot be recognised")
    parser.add_argument("--split", default="train", help="split of the data; slices work: train[:1000]")
    parser.add_argument("--eval_split", metavar="SPLIT", help="split of the evaluation data (default: the one it has)")
    parser.add_argument("--as_chat", action="store_true", help="plain prompts and answers become turns, as in dpo")
    parser.add_argument(
        "--near_duplicates",
        choices=["on", "off"],
        default="on",
        help="off skips the check for near-duplicates, which takes longest",
    )
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", help=f"folder for the files (default: {DEFAULT_OUTPUT}/NAME)"
    )
    parser.add_argument("--json", action="store_true", help="print audit.json instead of the table")
    parser.add_argument(
        "--fail_on",
        metavar="WHAT",
        help="exit with 1 if found: error, warning (and errors), or names: contradictions,...",
    )
    add_ray_options(parser)
    return parser


def _failing(asked: str | None) -> tuple[frozenset[str], frozenset[str]]:
    """Severities and names that fail. Raises: RequestError for an unknown one."""
    from preftune.audit import KINDS

    severities: set[str] = set()
    names: set[str] = set()
    for word in (asked or "").split(","):
        word = word.strip()
        if word in _LEVELS:
            severities.update(_LEVELS[word])
        elif word in KINDS:
            names.add(word)
        elif asked is not None:
            known = [*_LEVELS, *KINDS]
            hint = did_you_mean(word, known, otherwise=f"Known are {', '.join(known)}.")
            raise RequestError(f"--fail_on: {word!r} is neither a severity nor the name of a finding. {hint}")
    return frozenset(severities), frozenset(names)


def _check(asked: argparse.Namespace) -> None:
    """Raises: RequestError or ConfigError for options that contradict each other, before anything starts."""
    tokenizer_name = asked.tokenizer or asked.model
    for flag in ("max_length", "max_prompt_length"):
        if getattr(asked, flag) is not None and tokenizer_name is None:
            raise RequestError(f"--{flag} counts tokens. Name the tokenizer: --model M or --tokenizer T.")
    for flag in ("with_reference", "load_in_4bit"):
        if getattr(asked, flag) and asked.model is None:
            raise RequestError(f"--{flag} is about the model that is to be trained. Name it with --model M.")
    if asked.load_in_4bit and not asked.with_reference:
        raise RequestError("--load_in_4bit is for --with_reference; without it no weights are loaded. Leave it out.")
    if asked.eval_split is not None and asked.eval is None:
        raise RequestError("--eval_split is the split of the evaluation data. Name them with --eval DATA2.")
    if tokenizer_name is not None:
        from preftune.data.tokens.tokenize import Limits

        Limits(_max_length(asked), asked.max_prompt_length)  # refuses impossible ones


def _setting(asked: argparse.Namespace, pool: Pool | None, opened: ExitStack) -> Setting:
    """Opens the data, and the model for `--with_reference`."""
    names = column_names(asked.columns)
    data = _open(asked.data, asked.split, names, asked)
    held_out = None if asked.eval is None else _open(asked.eval, asked.eval_split or "train", names, asked)
    setting = _without_scorer(asked, data, held_out)
    if asked.with_reference and setting.encoder is not None:
        tokenizer = setting.encoder.tokenizer
        if pool is None:
            setting.scorer = _scorer(asked, tokenizer)
        else:
            from preftune.audit.scoring_by_team import TeamScorer, scoring_work

            team = opened.enter_context(closing(pool.team(partial(scoring_work, partial(_scorer, asked)), gpu=True)))
            setting.scorer = TeamScorer(asked.model, _reader(asked, tokenizer), team)
    return setting


def _open(name: str, split: str, columns: dict[str, str | None] | None, asked: argparse.Namespace) -> Opened:
    from preftune.audit import open_data

    data = open_data(name, split=split, columns=columns, format=asked.format)
    if asked.as_chat and data.pairs is not None:
        data.pairs = data.pairs.as_chat()
    return data


def _without_scorer(asked: argparse.Namespace, data: Opened, held_out: Opened | None = None) -> Setting:
    from preftune.audit import Setting

    setting = Setting(
        data,
        held_out=held_out,
        near_duplicates=asked.near_duplicates == "on",
        max_prompt_length=asked.max_prompt_length,
    )
    name = asked.tokenizer or asked.model
    if name is not None:
        from preftune.data.tokens.encode import Encoder
        from preftune.data.tokens.shorten import shortening

        tokenizer, setting.max_length = _tokenizer(asked), _max_length(asked)
        setting.encoder, setting.tokenizer_name = Encoder(tokenizer), name
        setting.encoder.shorten = shortening(tokenizer, max(_COUNTED, setting.max_length))
    return setting


def _checking(asked: argparse.Namespace, name: str) -> Callable[[Any], Any]:
    """What a worker does: the checks of a block.

    Args:
        name: of the data.
    """
    from preftune.audit.opening import Opened
    from preftune.audit.run import looking

    return looking(lambda: _without_scorer(asked, Opened(name, 0, None)))


def _max_length(asked: argparse.Namespace) -> int:
    return DEFAULT_MAX_LENGTH if asked.max_length is None else int(asked.max_length)


def _tokenizer(asked: argparse.Namespace) -> Any:
    from preftune.models.load import load_tokenizer

    return load_tokenizer(asked.tokenizer or asked.model, trust_remote_code=asked.trust_remote_code)


def _reader(asked: argparse.Namespace, tokenizer: Any) -> PairReader:
    from preftune.audit.scoring import PairReader

    return PairReader(tokenizer, _max_length(asked), asked.max_prompt_length)


def _scorer(asked: argparse.Namespace, tokenizer: Any = None) -> ReferenceScorer:
    """
    Args:
        tokenizer: None to load it, as a worker does.
    """
    from preftune.audit.scoring import ReferenceScorer

    reader = _reader(asked, _tokenizer(asked) if tokenizer is None else tokenizer)
    return ReferenceScorer(
        asked.model, reader, load_in_4bit=asked.load_in_4bit, trust_remote_code=asked.trust_remote_code
    )


@contextmanager
def _progress(setting: Setting) -> Iterator[Progress]:
    """A bar over the rows, on a terminal and for long work only."""
    from tqdm.auto import tqdm

    total = 0 if setting.data.pairs is None else len(setting.data.pairs)
    hide = total < 5000 or not sys.stderr.isatty()
    with tqdm(total=total, desc="Auditing", unit="pair", disable=hide, leave=False) as bar:
        yield bar.update


def default_output(data: str) -> str:
    """The folder for data of this name: `runs/audit/pairs` for `folder/pairs.jsonl.gz`."""
    name = "stdin" if data == "-" else Path(data).name if Path(data).exists() else data
    plain = re.sub(r"(\.(jsonl|ndjson|json|csv|tsv|parquet))?(\.gz)?$", "", name)
    return f"{DEFAULT_OUTPUT}/{re.sub(r'[^A-Za-z0-9._-]+', '-', plain).strip('-.') or 'data'}"


def _write(result: Audit, folder: Path) -> list[Path]:
    """Writes audit.json first, because the page is made from it."""
    import json

    from preftune.audit.writing import write_audit, write_text
    from preftune.report.audit.page import audit_page

    written = write_audit(result, folder)
    page = folder / "audit.html"
    write_text(page, audit_page(json.loads(written[0].read_text(encoding="utf-8"))))
    return [*written, page]


def _gate(result: Audit, failing: tuple[frozenset[str], frozenset[str]], asked: str | None) -> int:
    severities, names = failing
    found: list[Finding] = [f for f in result.findings if f.severity in severities or f.name in names]
    if not found:
        return 0
    named = ", ".join(f"{finding.name} ({finding.count:,})" for finding in found)
    echo(f"preftune: --fail_on {asked}: {result.name} has {named}.")
    return 1
