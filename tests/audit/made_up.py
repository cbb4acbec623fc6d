"""Clean preference data in which no check finds anything, and the same with defects planted."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from preftune.audit import Audit, Setting, audit, open_data

Row = dict[str, Any]

_WORDS = (
    "anchor basket candle desert engine feather garden hammer island jacket kettle ladder magnet needle orange pencil "
    "quarry ribbon saddle tunnel umbrella valley window yellow zipper autumn bridge copper dragon emerald forest "
    "glacier harbour insect jungle kitchen lantern meadow nutmeg oyster pepper quilt river silver thunder velvet "
    "walnut yonder"
).split()
VERBS = "paint build mend carry sell clean draw store wrap measure".split()


def sentence(words: int, random_: random.Random) -> str:
    """So many random words with a capital and a full stop."""
    return " ".join(random_.choice(_WORDS) for _ in range(words)).capitalize() + "."


def clean_rows(count: int = 60, *, seed: int = 1) -> list[Row]:
    """Distinct prompts and answers of one distribution on both sides, so that nothing but the text tells them apart."""
    random_ = random.Random(seed)
    rows = []
    for _ in range(count):
        words = [random_.choice(_WORDS) for _ in range(6)]
        rows.append(
            {
                "prompt": f"How do I {random_.choice(VERBS)} {' and '.join(words)}?",
                "chosen": f"{sentence(random_.randint(6, 20), random_)} {sentence(8, random_)}",
                "rejected": f"{sentence(random_.randint(6, 20), random_)} {sentence(8, random_)}",
            }
        )
    return rows


def clean_chats(count: int = 60, *, seed: int = 1, system: str | None = None) -> list[Row]:
    """The same as conversations."""
    start = [] if system is None else [{"role": "system", "content": system}]
    return [
        {
            "prompt": [*start, {"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in clean_rows(count, seed=seed)
    ]


def run(
    rows: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]] | None = None, **options: Any
) -> Audit:
    """The audit of a list of rows."""
    given = {key: options.pop(key) for key in ("columns", "format") if key in options}
    other = None if held_out is None else open_data(list(held_out), **given)
    return audit(Setting(open_data(list(rows), **given), held_out=other, **options))


def found(result: Audit) -> dict[str, tuple[int, list[int]]]:
    """Name -> count and example rows, without what is said of every small dataset."""
    return {
        finding.name: (finding.count, [example.row for example in finding.examples])
        for finding in result.findings
        if finding.name != "few_pairs"
    }
