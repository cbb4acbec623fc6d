"""Which column of a dataset holds the prompt and which the chosen side: resolved once per dataset, guessed only in
errors.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from preftune.data.formats.adapter import Sample
from preftune.data.formats.apply import sample_of
from preftune.data.formats.registry import known_formats
from preftune.errors import DatasetError, did_you_mean
from preftune.shell_words import word

CANONICAL = (
    "prompt",
    "chosen",
    "rejected",
    "weight",
    "margin",
    "agreement",
    "id",
    "chat_template_kwargs",
    "tools",
    "system",
    "source",
)
"""The columns that preftune reads; every other column is ignored."""

SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "prompt": (
        "instruction+input",
        "input.messages",
        "prompts",
        "question",
        "instruction",
        "query",
        "conversations",
        "conversation",
        "messages",
        "context",
        "history",
        "user",
        "task",
        "problem",
        "input",
    ),
    "chosen": (
        "chosen_response",
        "response_chosen",
        "chosen_output",
        "good",
        "better",
        "best",
        "preferred",
        "preferred_output",
        "preferred_response",
        "accepted",
        "winner",
        "win",
        "positive",
        "pos",
        "response_w",
        "y_w",
        "better_response",
        "output_1",
    ),
    "rejected": (
        "rejected_response",
        "response_rejected",
        "rejected_output",
        "bad",
        "worse",
        "worst",
        "dispreferred",
        "non_preferred",
        "non_preferred_output",
        "non_preferred_response",
        "unpreferred",
        "declined",
        "loser",
        "lose",
        "negative",
        "neg",
        "response_l",
        "y_l",
        "worse_response",
        "output_2",
    ),
}
"""Other names of the three columns, the likeliest first. They are suggested in errors, and never applied
automatically.
"""

_LONGEST_LABEL = 60
"""Characters of the longest label or id; texts may repeat where they are longer."""
_FEW = 4
"""How often values recur, at least, where they are labels."""
_ID = re.compile(r"(?=.*\d)[\w.-]{3,}")
_NAME_OF_ID = re.compile(r"(?:^|[_.-])(?:u?u?id|idx|index|hash|key)s?$", re.IGNORECASE)
_SENTENCE = re.compile(r"\S\s+\S+.*[.?!]\s*$|(?:\S+\s+){4}")
"""A cell of data in the place of a name."""

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Columns:
    """The place of each canonical value in a row: a column, a path into it, or several texts to join."""

    paths: Mapping[str, tuple[Path, ...]]

    def __contains__(self, canonical: object) -> bool:
        return canonical in self.paths

    @property
    def needed(self) -> list[str]:
        """The raw columns that must be read."""
        return list(dict.fromkeys(path[0] for paths in self.paths.values() for path in paths))

    def pick(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The canonical values of a raw row; missing and null values are left out."""
        picked = {}
        for canonical, paths in self.paths.items():
            values = [value for path in paths if (value := _follow(row, path)) is not None]
            if len(paths) > 1:
                plain = all(isinstance(value, str | int | float) and not isinstance(value, bool) for value in values)
                joined = "\n\n".join(str(value) for value in values if str(value).strip())
                values = [joined if plain else values]  # other values than text are refused where text is read
            if values:
                picked[canonical] = values[0]
        return picked


def resolve_columns(
    features: Mapping[str, Any], asked: Mapping[str, str | None] | None, *, name: str, rows: Any = None
) -> Columns:
    """Finds the columns of a dataset.

    Args:
        features: the dataset's columns and their types (`Dataset.features`).
        asked: canonical name -> column, if they differ. A dot reaches inside a column ("input.messages"), a plus
            joins texts with a blank line ("instruction+input"), and None or "" leaves a column unread.
        name: of the dataset, for messages.
        rows: the dataset, by whose values an error suggests columns; None to suggest by names alone.
    Raises:
        DatasetError: an unknown canonical name, a missing column, or no chosen or rejected.
    """
    paths = named_paths(
        features, {column: column for column in CANONICAL}, asked, reads="that preftune reads", name=name
    )
    missing = [canonical for canonical in ("chosen", "rejected") if canonical not in paths]
    if missing:
        raise missing_columns(missing, features, paths, name=name, rows=rows)
    return Columns(paths)


def named_paths(
    features: Mapping[str, Any],
    defaults: Mapping[str, str | None],
    asked: Mapping[str, str | None] | None,
    *,
    reads: str,
    name: str,
) -> dict[str, tuple[Path, ...]]:
    """The paths of the columns by canonical name: the requested ones (`asked`), and those of the others that exist.

    Args:
        reads: description of these columns, for messages.
    Raises:
        DatasetError: a name that `defaults` does not have, or a requested column that does not exist.
    """
    asked = asked or {}
    for canonical in asked:
        if canonical not in defaults:
            hint = did_you_mean(canonical, defaults, otherwise=f"Known are {listing(defaults)}.")
            raise DatasetError(f"columns: {canonical!r} is not a column {reads}. {hint}")
    paths: dict[str, tuple[Path, ...]] = {}
    for canonical, default in defaults.items():
        wanted = asked.get(canonical, default)
        found = find_column(wanted, features) if wanted else None
        if found is not None:
            paths[canonical] = found
        elif wanted and canonical in asked:
            hint = did_you_mean(wanted, features, cutoff=0.5, otherwise="Name one of those.")
            raise DatasetError(
                f"{name} has no column {wanted!r}, which was named as {canonical!r} (found: {listing(features)}). "
                f"{hint}"
            )
    return paths


def missing_columns(
    missing: Sequence[str],
    features: Mapping[str, Any],
    paths: Mapping[str, tuple[Path, ...]],
    *,
    name: str,
    row: int = 0,
    because: str = "",
    rows: Any = None,
) -> DatasetError:
    """The error for missing columns, with the rename that corrects it."""
    if "prompt" not in paths and "prompt" not in missing:
        missing_or_likely = [*missing, "prompt"]
    else:
        missing_or_likely = list(missing)
    taken = {path[0] for found in paths.values() for path in found}
    labels = set() if rows is None else _no_texts(sample_of(rows))
    guesses = guess_columns(missing_or_likely, features, taken | labels)

    plural = "s" if len(missing) > 1 else ""
    head = f"{name} has no column{plural} {' and '.join(map(repr, missing))}{because}"
    head += f" (found: {listing(features)}; first bad row: {row})."
    if "chosen" in missing and (cells := [column for column in features if _SENTENCE.search(column)]):
        return DatasetError(
            f"{head} The first line seems to hold data ({cells[0][:60]!r}), not the names of columns, and is not read "
            "as a row. Write the line prompt,chosen,rejected before it, in the order of the columns."
        )
    if {"label"} & set(features) and {"messages", "completion", "response"} & set(features) and "chosen" in missing:
        return DatasetError(
            f"{head} The rows look like single answers with a label, not like pairs. Combine a good and a bad answer "
            "to the same prompt in one row, with the columns 'prompt', 'chosen' and 'rejected'."
        )
    if "chosen" in missing and (unclear := _of_several(set(features))):
        return DatasetError(f"{head} {unclear}")
    if {"chosen", "rejected"} <= set(missing) and not {"chosen", "rejected"} & set(guesses) and _one_answer(features):
        return DatasetError(
            f"{head} The rows look like demonstrations, with one answer each and no preference. Train on them with "
            "preftune sft. Pairs need a second, worse answer in a column 'rejected'."
        )
    options = " ".join(
        f"{canonical}={word(guesses[canonical]) if canonical in guesses else f'<{canonical} column>'}"
        for canonical in CANONICAL
        if canonical in guesses or canonical in missing
    )
    verb = "Rename it" if len(missing) == 1 else "Rename them"
    if not any(canonical in guesses for canonical in missing):
        verb = "Name it" if len(missing) == 1 else "Name them"
    remedy = f"{verb} with --columns {options}"
    plain = {column: canonical for canonical, column in guesses.items() if column in features}
    if plain and len(plain) == len(guesses):
        remedy += f" (in Python: dataset.rename_columns({plain}), or columns={guesses})."
    elif guesses:
        remedy += f" (in Python: columns={guesses})."
    else:
        remedy += "."
    if len(missing) == 2:
        remedy += f" Or name their format: --format is one of {known_formats()}."
    return DatasetError(f"{head} {remedy}")


def _of_several(features: set[str]) -> str | None:
    """The advice for rated answers that no format reads; None for other columns."""
    answers = {"completion", "response", "answer", "output"} & features
    if answers and {"score", "rating", "reward"} & features:
        return (
            "The rows look like single answers with a score. Combine the answers to one prompt in one row, with the "
            "columns 'prompt', 'responses' (a list) and 'scores' (a list)."
        )
    if "ranking" in features and {"completions", "responses", "answers", "generations", "outputs"} & features:
        return (
            "The column 'ranking' may hold the rank of each answer or the order of the answers. Call it 'ranks' if it "
            "holds a rank for each answer (1 is the best); otherwise write the answers from best to worst into "
            "'ranked_responses'."
        )
    return None


def _one_answer(features: Mapping[str, Any]) -> bool:
    """Whether the columns are those of demonstrations: conversations, prompts with an answer, or texts."""
    names = {name.lower() for name in features}
    answers = {"completion", "response", "answer", "output"}
    asked = {"prompt", *SYNONYMS["prompt"]}
    return bool(names & {"messages", "conversations", "conversation"} or names == {"text"}) or bool(
        names & answers and names & asked
    )


def guess_columns(wanted: Iterable[str], features: Mapping[str, Any], taken: Iterable[str] = ()) -> dict[str, str]:
    """Canonical name -> the column that most likely holds it; names without a likely column are left out."""
    out = set(taken)
    free = {column.lower(): column for column in features if column not in out and not _NAME_OF_ID.search(column)}
    guesses: dict[str, str] = {}
    for canonical in sorted(wanted, key=CANONICAL.index):
        candidates = SYNONYMS.get(canonical, ())
        exact = [name for name in (canonical, *candidates) if find_column(name, free) is not None]
        near = difflib.get_close_matches(canonical, list(free), n=1, cutoff=0.75)
        found = next((name for name in exact if _plausible(name, features, free)), None) or (near[0] if near else None)
        if found is None:
            continue
        guesses[canonical] = free.get(found, "+".join(free.get(part, part) for part in found.split("+")))
        for part in found.replace(".", "+").split("+"):
            free.pop(part, None)
    return guesses


def _no_texts(sample: Sample) -> set[str]:
    """The columns whose values cannot be prompts or answers: numbers, ids, labels, names that other columns hold."""
    found = {column: sample.values(column) for column in sample.columns}
    return {column for column, values in found.items() if values and _is_label(column, values, found)}


def _is_label(column: str, values: Sequence[Any], found: Mapping[str, Sequence[Any]]) -> bool:
    if not all(isinstance(value, str) for value in values):
        return all(isinstance(value, int | float) for value in values)
    distinct = set(values)
    if max(map(len, distinct)) > _LONGEST_LABEL:
        return False
    few = len(values) >= _FEW and len(distinct) * _FEW <= len(values)
    ids = len(values) > 1 and all(_ID.fullmatch(value) for value in distinct)
    models = {str(value) for other in found if other != column and "model" in other.lower() for value in found[other]}
    named = len(values) > 1 and distinct <= {*found, "a", "b", "A", "B", "tie"} - {column}
    return few or ids or named or distinct <= models


def listing(names: Iterable[str]) -> str:
    """Names as 'a', 'b', 'c', cut after a dozen."""
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:12])
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown or "none"


def _plausible(name: str, features: Mapping[str, Any], free: Mapping[str, str]) -> bool:
    """Whether a path exists: 'input.messages' needs a struct with that field."""
    head, dot, rest = name.partition(".")
    if not dot:
        return True
    feature = features[free[head]]
    return type(feature).__name__ == "Json" or (isinstance(feature, Mapping) and rest in feature)


def find_column(wanted: str, features: Mapping[str, Any]) -> tuple[Path, ...] | None:
    if wanted in features:
        return ((wanted,),)
    if "+" in wanted:
        parts = [find_column(part.strip(), features) for part in wanted.split("+")]
        return None if any(part is None for part in parts) else tuple(path for part in parts if part for path in part)
    head, dot, rest = wanted.partition(".")
    if dot and head in features:
        return ((head, *rest.split(".")),)
    return None


def _follow(row: Mapping[str, Any], path: Path) -> Any:
    value: Any = row.get(path[0])
    for step in path[1:]:
        value = value.get(step) if isinstance(value, Mapping) else None
    return value
