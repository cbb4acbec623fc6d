"""`preftune convert`: converts any known format to the canonical one, with filters and a manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.amounts import counted, file_size
from preftune.cli.flags.messages import tell
from preftune.cli.flags.plain_parser import PlainParser
from preftune.cli.flags.ray_flags import add_ray_options, open_pool
from preftune.errors import RequestError
from preftune.shell_words import path_word

if TYPE_CHECKING:
    import argparse

    from preftune.data.conversion.convert import Input
    from preftune.data.conversion.filters import Filters
    from preftune.workers import Team

PROG = "preftune convert"


def run(argv: Sequence[str]) -> int:
    """Runs `preftune convert` and returns its exit code."""
    asked = _parser().read(_with_kind_of_dedupe(argv))
    if asked.by is not None and asked.split is None:
        raise RequestError("--by chooses the unit of --split. Add --split 0.05, or leave --by out.")

    from preftune.data.conversion.convert import convert_pairs
    from preftune.data.conversion.filters import Filters
    from preftune.data.conversion.write import check_output
    from preftune.storage.run_lock import locked_file

    output = Path(asked.output).expanduser()
    filters = Filters(
        **{name: getattr(asked, name) for name in _FILTERS},
        sources=tuple(asked.source or ()),
        topics=tuple(asked.topic or ()),
        keywords=tuple(asked.keyword or ()),
        languages=tuple(asked.language or ()),
        dedupe="near" if asked.dedupe == "near" else asked.dedupe is not None,
        by=asked.by or "prompt",
    )
    check_output(output)
    with locked_file(output), ExitStack() as opened:
        inputs = _inputs(asked)
        manifest = convert_pairs(
            inputs,
            output,
            filters,
            strict=asked.strict,
            overwrite=asked.overwrite,
            options={name: getattr(asked, name) for name in _OPENING},
            team=_team(asked, opened, inputs, filters),
        )
    if asked.json:
        print(json.dumps(manifest, indent=2, ensure_ascii=False))
    else:
        tell("\n".join(_report(manifest, output)))
    return 0


def _team(asked: argparse.Namespace, opened: ExitStack, inputs: Sequence[Input], filters: Filters) -> Team | None:
    """The workers of `--ray`, until `opened` is closed."""
    from preftune.data.conversion.passes import working

    pool = open_pool(asked, opened)
    if pool is None:
        return None
    parquet = asked.output.endswith(".parquet")
    team = pool.team(partial(working, filters, [entry.name for entry in inputs], parquet), gpu=False)
    opened.callback(team.close)
    return team


_FILTERS = (
    "min_margin", "min_agreement", "max_length_ratio", "rule", "drop_contradictions", "balance_length", "sample",
    "split", "seed",
)  # fmt: skip
_OPENING = ("format", "columns", "dataset_split", "dataset_config", "margin_from_scores", "as_chat", "streaming")


def _parser() -> PlainParser:
    parser = PlainParser(
        prog=PROG,
        description="Convert any known format to preftune's own (also TRL's): prompt, chosen, rejected. Rows without "
        "a preference are counted and left out. OUT.manifest.json has the outcome of every row.",
    )
    parser.add_argument(
        "data",
        nargs="+",
        metavar="DATA",
        help="a path, a hub id, or -; several are mixed, with proportions as in a.jsonl:0.7 b.jsonl:0.3",
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="file to write: .jsonl, .jsonl.gz or .parquet"
    )
    reading = parser.add_argument_group("reading").add_argument
    reading("--format", metavar="NAME", help="format of the data, if it cannot be recognised: openai, kto, ...")
    reading("--columns", nargs="+", default=[], metavar="NAME=YOURS", help="chosen=good rejected=bad")
    reading(
        "--dataset_split",
        default="train",
        metavar="NAME",
        help="split of the data; slices work: 'train[:1000]' (train)",
    )
    reading("--dataset_config", metavar="NAME", help="configuration of a hub dataset")
    reading("--margin_from_scores", type=float, metavar="NATS", help="nats of margin per point of rating difference")
    reading("--as_chat", action="store_true", help="plain prompts and answers become messages")
    reading("--streaming", action="store_true", help="read the rows one by one, without a copy in memory or on disk")
    reading("--strict", action="store_true", help="stop at the first row without a preference")
    _add_filters(parser.add_argument_group("keeping").add_argument)
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    parser.add_argument("--json", action="store_true", help="print the manifest")
    add_ray_options(parser)
    return parser


def _add_filters(keeping: Callable[..., Any]) -> None:
    keeping(
        "--min_margin",
        type=float,
        metavar="X",
        help="minimum strength in the data's own units (points, ranks, ln of votes); of the column margin if the "
        "data have no ratings",
    )
    keeping("--min_agreement", type=float, metavar="SHARE", help="minimum share of annotators who agree")
    keeping(
        "--max_length_ratio",
        type=float,
        metavar="X",
        help="maximum ratio of the longer to the shorter answer, in characters",
    )
    keeping(
        "--topic", nargs="+", metavar="NAME", help="only pairs of these topics (column topic, category, domain, ...)"
    )
    keeping("--keyword", nargs="+", metavar="WORD", help="only prompts with one of these words or phrases")
    keeping("--language", nargs="+", metavar="CODE", help="only pairs in these languages: en, de, fr, ...")
    keeping("--rule", metavar="FILE.py:FUNCTION", help="only rows for which this Python function returns True")
    keeping("--source", nargs="+", metavar="NAME", help="only pairs of these sources")
    keeping(
        "--dedupe",
        nargs="?",
        const="exact",
        choices=["exact", "near"],
        help="keep only the first of equal pairs; near: of nearly equal ones too",
    )
    keeping(
        "--drop_contradictions",
        action="store_true",
        help="keep neither of two pairs that contradict each other (A over B, B over A)",
    )
    keeping(
        "--balance_length", action="store_true", help="drop pairs until the longer answer wins as often as it loses"
    )
    keeping("--sample", type=int, metavar="N", help="keep at most this many pairs, drawn at random")
    keeping("--split", type=float, metavar="SHARE", help="share to hold out, written to OUT's .held-out file")
    keeping("--by", choices=["prompt", "pair"], help="unit of the split (prompt: no prompt is on both sides)")
    keeping("--seed", type=int, default=0, help="seed of all random choices (0)")


def _with_kind_of_dedupe(argv: Sequence[str]) -> list[str]:
    """Joins `--dedupe` and its kind into one word, so that a data name after it is not taken for a kind."""
    words = list(argv)
    for place, word in enumerate(words):
        if word == "--dedupe":
            kind = words[place + 1] if place + 1 < len(words) else ""
            named = kind in ("exact", "near")
            words[place : place + 1 + named] = [f"--dedupe={kind if named else 'exact'}"]
    return words


def _inputs(asked: argparse.Namespace) -> list[Input]:
    from preftune.cli.flags.arguments import column_names
    from preftune.data.conversion.convert import Input
    from preftune.data.pairs.mixture import parse_sources, share_out
    from preftune.data.pairs.open import read_pairs
    from preftune.data.pairs.stream import open_stream

    named = parse_sources(asked.data)
    proportions = [proportion for _, proportion in named]
    drawn = None not in proportions
    if asked.streaming and drawn:
        raise RequestError(
            "--streaming does not count the rows, and proportions need their number. Leave one of them out."
        )
    options: dict[str, Any] = {
        "split": asked.dataset_split,
        "config": asked.dataset_config,
        "columns": column_names(asked.columns),
        "format": asked.format,
        "margin_from_scores": asked.margin_from_scores,
    }
    opened: list[Any] = [
        open_stream(name, **options) if asked.streaming else read_pairs(name, tolerant=not asked.strict, **options)
        for name, _ in named
    ]
    if asked.as_chat:
        opened = [pairs.as_chat() for pairs in opened]
    names = [os.fspath(name) for name, _ in named]
    if not drawn:
        return [Input(name, pairs) for name, pairs in zip(names, opened, strict=True)]
    rows = share_out([len(pairs) for pairs in opened], proportions, seed=asked.seed)
    return [
        Input(name, pairs.select(chosen), of=len(pairs))
        for name, pairs, chosen in zip(names, opened, rows, strict=True)
    ]


def _report(manifest: dict[str, Any], output: Path) -> list[str]:
    lines = []
    for entry in manifest["inputs"]:
        kind = f" as {entry['format']}" if entry["format"] else ""
        drawn = f"; {entry['pairs_drawn']} pairs were drawn" if "pairs_drawn" in entry else ""
        lines.append(f"{entry['name']}: {counted(entry['rows'], 'row')}, read{kind}{drawn}.")
        if entry["not_used"]:
            lines.append(f"  Not used: {', '.join(map(repr, entry['not_used']))}.")
        lines += [f"  {_counted(left)} {left['do']}" for left in entry["gave_no_pair"]]
    lines.append(
        f"{counted(manifest['pairs_read'], 'pair was', 'pairs were')} read, {manifest['pairs_written']:,} kept."
    )
    lines += [f"  {_counted(left)}" for left in manifest["dropped"]]
    lines += [f"  {problem}" for problem in manifest["problems"][:1]]
    if manifest["min_margin_is_of"] == "margin":
        lines.append("  --min-margin is compared with the column of margins: the data have no ratings.")
    for written in manifest["written"]:
        lines.append(
            f"Written: {output.parent / written['file']} ({counted(written['pairs'], 'pair')}, "
            f"{file_size(written['bytes'])})."
        )
    lines.append(f"The outcome of every row is in {output}.manifest.json")
    if len(manifest["written"]) > 1:
        paths = [path_word(str(output.parent / written["file"])) for written in manifest["written"]]
        lines.append(f"Train on them: preftune dpo --model MODEL --data {paths[0]} --eval_dataset_name {paths[1]}")
    return lines


def _counted(left: dict[str, Any]) -> str:
    rows = ", ".join(map(str, left["rows"]))
    more = ", ..." if left["count"] > len(left["rows"]) else ""
    return f"{left['count']:,} left out (rows {rows}{more}): {left['what']}."
