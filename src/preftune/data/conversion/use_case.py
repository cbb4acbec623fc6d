"""Selects the pairs of a use case: by topic, by keywords, by language, or by a Python rule.

    def about_billing(row):  # the row's own columns, with prompt, chosen and rejected as they are read
        return "invoice" in row["text"]["prompt"]

`row["text"]` has the plain texts of prompt, chosen and rejected. The rule returns True for rows to keep.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from preftune.data.chat.messages import text_of
from preftune.errors import ConfigError, DatasetError
from preftune.text_quality.languages import language_of
from preftune.types import PreferencePair
from preftune.user_functions import load_function

if TYPE_CHECKING:
    from preftune.data.pairs.dataset import PairDataset
    from preftune.data.pairs.stream import PairStream

TOPICS = ("topic", "category", "domain", "subject", "task", "task_type", "subset")
"""Columns that may name a row's topic, the likeliest first."""
_LETTERS = 4000
"""Number of characters from which a language is identified."""

Leaves = Callable[[PreferencePair], str | None]


@dataclass(slots=True)
class UseCase:
    """The conditions of a use case."""

    topics: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    rule: str | None = None
    seen: Counter[str] = field(default_factory=Counter)
    """Topics of the pairs that were read."""

    def of(self, pairs: PairDataset | PairStream, name: str) -> Leaves:
        """Returns why a pair of these data is left out: a key of `filters.REASONS`, or None for a pair that stays.

        Raises:
            ConfigError: a rule that cannot be imported.
            DatasetError: no column of topics, a stream whose own columns are needed, or a rule that fails on a row.
        """
        raw = self._raw(pairs, name)
        column = _topic_column(raw, name) if self.topics else ""
        wanted = {topic.casefold() for topic in self.topics}
        words = "|".join(re.escape(word) for word in self.keywords)
        pattern = re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)
        rule = _loaded(self.rule) if self.rule is not None else None

        def leaves(pair: PreferencePair) -> str | None:
            if column:
                topic = str(raw[pair.row][column])
                self.seen[topic] += 1
                if topic.casefold() not in wanted:
                    return "topic"
            if self.keywords and not pattern.search(text_of(pair.prompt)):
                return "keyword"
            if self.languages:
                text = f"{text_of(pair.prompt)[:_LETTERS]}\n{text_of(pair.chosen)[:_LETTERS]}"
                if language_of(text) not in self.languages:
                    return "language"
            if rule is not None and not _said(rule, raw[pair.row], pair, f"{name} row {pair.row}", str(self.rule)):
                return "rule"
            return None

        return leaves

    def check(self) -> None:
        """Raises: DatasetError, for a topic that no pair has."""
        known = {topic.casefold(): topic for topic in self.seen}
        for topic in self.topics:
            if self.seen and topic.casefold() not in known:
                near = difflib.get_close_matches(topic.casefold(), known, n=1)
                hint = f"Did you mean {known[near[0]]!r}?" if near else "Name one of those."
                found = ", ".join(repr(name) for name, _ in self.seen.most_common(12))
                raise DatasetError(f"No pair has the topic {topic!r} (found: {found}). {hint}")

    def _raw(self, pairs: PairDataset | PairStream, name: str) -> Any:
        if not self.topics and self.rule is None:
            return None
        if not hasattr(pairs, "raw"):
            raise DatasetError(
                f"{name} is streamed, and --topic and --rule read its own columns again. Leave --streaming out."
            )
        return pairs.raw.with_format(None)


def check_languages(languages: Iterable[str]) -> None:
    """Raises: ConfigError, for a name that is not the code of a known language."""
    from preftune.text_quality.languages import KNOWN

    for language in languages:
        if language not in KNOWN:
            raise ConfigError(f"--language {language} is not known. Known are {', '.join(sorted(KNOWN))}.")


def _topic_column(raw: Any, name: str) -> str:
    columns: dict[str, str] = {column.lower(): column for column in raw.column_names}
    found = next((columns[topic] for topic in TOPICS if topic in columns), None)
    if found is None:
        raise DatasetError(
            f"{name} has no column of topics (known are {', '.join(TOPICS)}; found: {', '.join(raw.column_names)}). "
            "Rename one, or use --keyword or --rule."
        )
    return found


def _loaded(spec: str) -> Callable[[Mapping[str, Any]], Any]:
    """The function of `MODULE:FUNCTION` or `FILE.py:FUNCTION`."""
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise ConfigError(f"--rule {spec}: write MODULE:FUNCTION or FILE.py:FUNCTION.")
    found: Callable[[Mapping[str, Any]], Any] = load_function(place, name, asked=f"--rule {spec}", error=ConfigError)
    return found


def _said(rule: Callable[[Mapping[str, Any]], Any], raw: Any, pair: PreferencePair, where: str, spec: str) -> bool:
    sides = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    row = {**raw, **sides, "text": {side: text_of(value) for side, value in sides.items()}}
    try:
        said = rule(row)
    except Exception as error:  # a function of the user
        raise DatasetError(
            f"{where}: --rule {spec} fails ({type(error).__name__}: {error}). Correct the rule."
        ) from error
    if not isinstance(said, bool):
        raise DatasetError(f"{where}: --rule {spec} returns {said!r}. Return True to keep the row, or False.")
    return said
