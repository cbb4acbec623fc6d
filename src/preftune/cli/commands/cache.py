"""`preftune cache`: lists, removes and checks what is kept on disk for later runs."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.amounts import counted, file_size
from preftune.cli.flags.messages import tell
from preftune.cli.flags.plain_parser import PlainParser
from preftune.errors import RequestError, did_you_mean
from preftune.storage.cache_folder import cache_folder
from preftune.storage.cache_items import DEAR, KINDS, CacheItem, list_items, remove_item

if TYPE_CHECKING:
    from preftune.reference.inventory import Check, StoreFile

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_BYTES = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_NARROW = 90
"""Columns below which there are lines instead of a table."""
_IN_A_PIPE = 1000
"""Width in columns of output that goes to no terminal, unless COLUMNS is set: one line per store, for grep."""

HELP = """\
usage: preftune cache ls | prune | verify [options]

Scores of the reference are kept on disk, so that a second run over the same
rows computes none of them; so are token ids, rows read from files, verdicts of
judges, trained judges and converted models. All of it can be computed again;
verdicts of an endpoint have to be paid for again.

  ls       list what is kept: models, completions, sizes, time of last use
  prune    remove part of it: --older-than 30d, --model NAME, --max-size 2GB,
           --kind reference, tokens, rows, answers, verdicts, judges, models,
           leftovers
  verify   check every score's checksum; --repair removes what is damaged

The folder is set with PREFTUNE_CACHE.
"""


def run(argv: Sequence[str]) -> int:
    """Runs `preftune cache` and returns its exit code."""
    actions: dict[str, Callable[[Sequence[str]], int]] = {"ls": _list, "prune": _prune, "verify": _verify}
    words = list(argv)
    if words[:1] in (["-h"], ["--help"]):
        print(HELP, end="")
        return 0
    if not words or words[0] not in actions:
        hint = did_you_mean(words[0] if words else "", actions, otherwise="See preftune cache --help.")
        raise RequestError(f"preftune cache needs an action: ls, prune or verify. {hint}")
    return actions[words[0]](words[1:])


# --- ls ---


def _list(argv: Sequence[str]) -> int:
    parser = PlainParser(prog="preftune cache ls", description="List what is in the cache.")
    parser.add_argument(
        "--json", action="store_true", help="print everything as JSON; sizes in bytes, times in seconds"
    )
    asked = parser.read(argv)

    from preftune.reference.inventory import list_stores

    files = list_stores(_folder())
    if asked.json:
        print(json.dumps(_as_json(files), indent=2))
    else:
        _show(files)
    return 0


def _as_json(files: list[StoreFile]) -> dict[str, Any]:
    stores = [
        {
            "path": str(file.path),
            "state": file.state,
            "model": file.model,
            "completions": file.completions,
            "bytes": file.size,
            "last_used": file.last_used,
            "note": file.note,
        }
        for file in files
    ]
    ours = [file for file in files if file.state != "foreign"]
    return {
        "folder": str(_folder()),
        "stores": stores,
        "total": {
            "bytes": sum(file.size for file in ours),
            "completions": sum(file.completions or 0 for file in ours),
        },
        "others": dict(_others()),
    }


def _others() -> list[tuple[str, int]]:
    """The other kinds of files in preftune's cache folder, with their sizes in bytes."""
    sizes: dict[str, int] = {}
    for item in list_items(cache_folder(), now=time.time()):
        sizes[item.kind] = sizes.get(item.kind, 0) + item.size
    return sorted(sizes.items())


def _show(files: list[StoreFile]) -> None:
    from rich.console import Console

    console = Console(highlight=False, width=shutil.get_terminal_size((_IN_A_PIPE, 24)).columns)
    stores = [file for file in files if file.state == "store"]
    console.print(f"Reference scores in {_folder()}", soft_wrap=True, markup=False)
    if stores:
        if console.width < _NARROW:
            console.print(_lines(stores, console.width), markup=False, soft_wrap=True)
        else:
            console.print(_table(stores), markup=False)
    ours = [file for file in files if file.state != "foreign"]
    count, size = sum(file.completions or 0 for file in stores), sum(file.size for file in ours)
    console.print(
        f"{counted(len(stores), 'store')}, {counted(count, 'completion')}, {file_size(size)} in all.", markup=False
    )
    damaged = [file for file in files if file.state in ("torn", "aside")]
    foreign = len(files) - len(ours)
    if damaged:
        console.print(
            f"{counted(len(damaged), 'damaged file')} among them, {file_size(sum(file.size for file in damaged))}: "
            "preftune cache verify has the details."
        )
    if foreign:
        console.print(f"{counted(foreign, 'file was', 'files were')} not written by preftune: left unchanged.")
    for name, size in _others():
        console.print(f"Also kept: {name}, {file_size(size)} (preftune cache prune --kind {name}).", markup=False)


def _table(stores: list[StoreFile]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False, show_edge=False)
    for name in ("id", "model", "computed by"):
        table.add_column(name, overflow="fold")
    for name in ("completions", "size", "last used"):
        table.add_column(name, justify="right", no_wrap=True)
    for file in stores:
        computed = ", ".join(file.note[name] for name in ("engine", "dtype", "device") if name in file.note)
        numbers = (_completions(file), file_size(file.size), _ago(file.last_used))
        table.add_row(*map(Text, (file.id, file.model, computed or "unknown", *numbers)))
    return table


def _lines(stores: list[StoreFile], width: int) -> str:
    lines = []
    for file in stores:
        lines += textwrap.wrap(f"{file.id}  {file.model}", width, break_on_hyphens=False)
        figures = f"{_completions(file)} completions, {file_size(file.size)}, {_ago(file.last_used)}"
        lines += textwrap.wrap(figures, width, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines)


def _completions(file: StoreFile) -> str:
    return "?" if file.completions is None else f"{file.completions:,}"


# --- prune ---


def _prune(argv: Sequence[str]) -> int:
    parser = PlainParser(
        prog="preftune cache prune",
        description="Remove the cached files that meet all given conditions; scores that a run has open stay.",
    )
    parser.add_argument("--kind", nargs="+", choices=("reference", *KINDS), help="only this kind (default: all kinds)")
    parser.add_argument("--older_than", type=_duration, metavar="AGE", help="not used for this long: 30d, 12h, 2w")
    parser.add_argument("--model", metavar="NAME", help="only scores of reference models whose name contains this")
    parser.add_argument(
        "--max_size", type=_size, metavar="SIZE", help="the least recently used, until at most this size remains: 2GB"
    )
    parser.add_argument("--all", action="store_true", help="everything")
    parser.add_argument("--dry_run", action="store_true", help="only list what would be removed")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    asked = parser.read(argv)
    if asked.model is not None and not asked.model.strip():
        raise RequestError("preftune cache prune --model got an empty name, which every model contains. Name one.")
    conditional = any(condition is not None for condition in (asked.older_than, asked.model, asked.max_size))
    if (asked.all and conditional) or not (asked.all or conditional or asked.kind):
        raise RequestError(
            "preftune cache prune needs a condition: --older-than 30d, --model NAME, --max-size 2GB, --kind tokens, "
            "or --all for everything. Give --all alone, or some of the others."
        )

    from preftune.reference.inventory import choose

    chosen = choose(
        _everything(asked),
        now=time.time(),
        older_than=asked.older_than,
        model=asked.model,
        max_size=asked.max_size,
    )
    if not chosen:
        tell("There is nothing to remove.")
        return 0
    for file in chosen:
        tell(f"{file.id}  {file.name}, {file_size(file.size)}, last used {_ago(file.last_used)}")
    total = f"{counted(len(chosen), 'file')}, {file_size(sum(file.size for file in chosen))}"
    if asked.dry_run:
        tell(f"Would remove {total}.")
        return 0
    if not asked.yes and not _agreed(f"Remove {total}?"):
        tell("Nothing was removed.")
        return 0
    return _remove(chosen)


def _everything(asked: argparse.Namespace) -> list[Any]:
    """The files that the conditions apply to: the stores, and the other requested kinds."""
    from preftune.reference.inventory import list_stores

    kinds = set(asked.kind or ("reference", *KINDS))
    if asked.kind is None and asked.max_size is not None:
        kinds -= set(DEAR)
    stores = list_stores(_folder()) if "reference" in kinds else []
    items = list_items(cache_folder(), now=time.time(), older_than=asked.older_than or 0.0)
    return [*stores, *(item for item in items if item.kind in kinds)]


def _remove(chosen: list[Any]) -> int:
    from preftune.reference.inventory import remove

    reasons = {
        "in use": "another process has it open",
        "not ours": "it was not marked by preftune (preftune cache verify --repair sets it aside)",
        "failed": "the system refuses to delete it",
    }
    gone, stayed = [], 0
    for file in chosen:
        if isinstance(file, CacheItem):
            outcome = "removed" if remove_item(file) else "failed"
        else:
            outcome = remove(file)
        if outcome == "removed":
            gone.append(file)
        else:
            stayed += outcome == "failed"
            tell(f"Kept {file.path.name}: {reasons[outcome]}.")
    tell(f"Removed {counted(len(gone), 'file')}, {file_size(sum(file.size for file in gone))}.")
    return 1 if stayed else 0


def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise RequestError(
            f"{question} There is no terminal to ask on. Add --yes to remove them, or --dry-run to only list them."
        )
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


# --- verify ---


def _verify(argv: Sequence[str]) -> int:
    parser = PlainParser(
        prog="preftune cache verify",
        description="Check every file and the checksum of every score. Exit code 1 if something is damaged.",
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="remove damaged scores and set torn files aside; they are computed again when needed",
    )
    asked = parser.read(argv)

    from preftune.reference.inventory import list_stores, verify

    files = list_stores(_folder())
    checks = [(file, verify(file, repair=asked.repair)) for file in files if file.state in ("store", "torn")]
    for file, check in checks:
        tell(f"{file.id}  {file.model}: {_verdict(check)}.")
    aside = [file for file in files if file.state == "aside"]
    if aside:
        tell(
            f"{counted(len(aside), 'damaged file')} set aside earlier, {file_size(sum(file.size for file in aside))}: "
            "preftune cache prune removes old files."
        )
    bad = [check for _, check in checks if not check.repaired and (not check.sound or check.hindered is not None)]
    completions = sum(check.completions - check.damaged for _, check in checks)
    tell(
        f"{counted(len(checks), 'store')}, {counted(completions, 'intact completion')}, {counted(len(bad), 'problem')}."
    )
    if any(not check.sound and check.hindered is None for check in bad):
        tell("Damaged scores are never used. preftune cache verify --repair removes them.")
    return 1 if bad else 0


def _verdict(check: Check) -> str:
    if check.torn is not None:
        found = f"the file is torn ({check.torn})"
    elif check.damaged:
        found = f"{check.damaged:,} of {counted(check.completions, 'completion')} damaged"
    else:
        found = f"{counted(check.completions, 'completion')}, none damaged"
    if check.hindered is not None:
        return f"not checked: {check.hindered}" if check.sound else f"{found}; nothing was done: {check.hindered}"
    if check.repaired:
        return f"{found}; {'set aside' if check.torn is not None else 'removed'}"
    return found


# --- words ---


def _folder() -> Path:
    return cache_folder() / "reference"


def _duration(text: str) -> float:
    """Seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text.strip().lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration: write 30d, 12h or 2w")
    return float(found[1]) * _SECONDS[found[2]]


def _size(text: str) -> int:
    """Bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", text.strip().lower())
    if found is None or found[2] not in _BYTES:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write 2GB or 500MB")
    return int(float(found[1]) * _BYTES[found[2]])


def _ago(then: float) -> str:
    seconds = max(0.0, time.time() - then)
    for name, length in (("week", 604_800), ("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length or (name == "day" and seconds >= length):
            return f"{counted(int(seconds // length), name)} ago"
    return "just now"
