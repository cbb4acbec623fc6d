"""Diversity of the prompts without a column of topics: groups of prompts by their common words.

Words of fewer than two prompts or of 90% of them are not used. The others are weighted by their rarity (tf-idf) and
reduced to 50 dimensions (latent semantic analysis, Deerwester et al. 1990), and the prompts are joined into groups by
average linkage of cosine distances, with scipy. The distance was set by eye on five sets: in one of eight questions
about rivers it gives nine groups, in 1,200 prompts of hh-rlhf 120. Up to 2,000 prompts are drawn by their hash.
"""

from __future__ import annotations

import heapq
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from preftune.audit.checks.check import Check, Setting
from preftune.audit.checks.sources import NAMES
from preftune.audit.finding import Finding, Kind, Rows
from preftune.audit.seen import SeenPair
from preftune.text_quality.languages import language_of

_MOST = 2_000
_LEAST = 50
"""Least number of prompts for which groups are computed."""
_BUCKETS = 2**13
_DIMENSIONS = 50
_DISTANCE = 0.6
_NARROW = 0.5
"""Share of the largest group from which the prompts count as narrow."""
_LONG = 200
_SHOWN = 8

_WORD = re.compile(r"[^\W\d_]{3,}")
_CODE = re.compile(r"```|\bdef \w+\(|#include\b|\bSELECT\b.+\bFROM\b|</?\w+>|\bfunction\b.*\{|\bimport \w+")

NARROW = Kind(
    "narrow_prompts",
    "info",
    "Most prompts share their words",
    "The model is aligned for this one kind of prompt; on others it changes without control.",
    "Add prompts of other kinds, or use fewer of these: preftune convert --sample.",
)


class DiversityCheck(Check):
    """Finds groups of prompts, and kinds of prompts that are missing."""

    kinds = (NARROW,)
    section = "diversity"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.drawn: list[tuple[int, tuple[int, ...], str | None]] = []
        """A heap of the drawn prompts: negative hash, buckets of the words, language."""
        self.new: dict[int, tuple[tuple[str, ...], str]] = {}
        """Hash of a prompt of the block -> its traits and its text."""
        self.known: set[int] = set()
        self.words: dict[int, Counter[str]] = {}
        self.traits: Counter[str] = Counter()
        self.prompts = 0

    def take(self, seen: SeenPair) -> None:
        if not seen.blank and seen.prompt_key not in self.new and seen.prompt.strip():
            self.new[seen.prompt_key] = tuple(_traits(seen)), seen.prompt

    def extend(self, other: Self) -> None:
        for key, (traits, prompt) in other.new.items():
            if key in self.known:
                continue
            self.known.add(key)
            self.prompts += 1
            self.traits.update(traits)
            order = -(key & (2**63 - 1))
            if len(self.drawn) < _MOST or order > self.drawn[0][0]:
                item = (order, self._buckets(prompt), language_of(prompt[:2000]))
                (heapq.heappush if len(self.drawn) < _MOST else heapq.heapreplace)(self.drawn, item)

    def _buckets(self, prompt: str) -> tuple[int, ...]:
        words = set(_WORD.findall(prompt.casefold())[:400])
        found = {zlib.crc32(word.encode("utf-8", "surrogatepass")) % _BUCKETS: word for word in sorted(words)}
        for bucket, word in found.items():
            counted = self.words.setdefault(bucket, Counter())
            if len(counted) < 4 or word in counted:
                counted[word] += 1
        return tuple(sorted(found))

    def findings(self, pairs: int) -> Iterator[Finding]:
        found = self.figures()
        if found.get("groups") and found["largest"] >= _NARROW:
            rows = Rows(round(found["largest"] * self.prompts))
            yield from NARROW.found(rows, of=self.prompts, detail=found["sentences"][0])

    def figures(self) -> Mapping[str, Any]:
        return self._figures

    @cached_property
    def _figures(self) -> dict[str, Any]:
        languages = Counter(language for _, _, language in self.drawn if language is not None)
        found: dict[str, Any] = {
            "prompts": self.prompts,
            "looked_at": len(self.drawn),
            "languages": dict(languages.most_common(_SHOWN)),
            "missing": self._missing(languages),
            "sentences": [],
        }
        drawn = sorted(self.drawn)
        numbers, rarity = _groups([buckets for _, buckets, _ in drawn]) if len(drawn) >= _LEAST else (None, None)
        if numbers is not None and rarity is not None:
            sizes = np.bincount(numbers)
            shares = sizes[sizes > 0] / sizes.sum()
            largest = np.argsort(-sizes, kind="stable")[:_SHOWN]
            found |= {
                "groups": len(shares),
                "largest": round(float(shares.max()), 4),
                "as_many_as": round(float(np.exp(-(shares * np.log(shares)).sum())), 1),
                "of_groups": [
                    {
                        "share": round(float(sizes[group] / sizes.sum()), 4),
                        "words": self._named([drawn[at][1] for at in np.flatnonzero(numbers == group)], rarity),
                    }
                    for group in largest
                    if sizes[group]
                ],
            }
        found["sentences"] = list(self._sentences(found))
        return found

    def _named(self, members: Sequence[tuple[int, ...]], rarity: NDArray[np.float64]) -> list[str]:
        """Up to three words that are most characteristic of a group."""
        counts = Counter(bucket for buckets in members for bucket in buckets)
        best = sorted(counts, key=lambda bucket: (-counts[bucket] * rarity[bucket], bucket))[:3]
        return [self.words[bucket].most_common(1)[0][0] for bucket in best if rarity[bucket] > 0]

    def _missing(self, languages: Counter[str]) -> list[str]:
        kinds = {
            "several_turns": "conversations of several turns",
            "system": "system prompts",
            "tools": "tools",
            "code": "code",
            "long": f"prompts of more than {_LONG} words",
            "question": "questions",
        }
        missing = [words for trait, words in kinds.items() if not self.traits[trait]]
        if len(languages) == 1:
            missing.append(f"languages other than {next(iter(languages))!r}")
        return missing

    def _sentences(self, found: Mapping[str, Any]) -> Iterator[str]:
        if "groups" in found:
            top = found["of_groups"][0]
            words = f" ({', '.join(top['words'])})" if top["words"] else ""
            counted = f"{found['looked_at']:,} of them" if found["looked_at"] < self.prompts else "they"
            yield (
                f"{self.prompts:,} different prompts: by their words {counted} fall into {found['groups']:,} groups, "
                f"as many as {found['as_many_as']:g} of one size; the largest{words} has {found['largest']:.0%}."
            )
        if found["missing"] and self.prompts >= _LEAST:
            yield f"Not among the prompts: {', '.join(found['missing'])}."
        pairs = self.setting.data.pairs
        has_topics = pairs is not None and any(name.lower() in NAMES for name in pairs.raw.column_names)
        if self.prompts >= _LEAST and not has_topics:
            yield "No column names topics, so nothing is counted by topic; preftune convert --topic needs one."


def _traits(seen: SeenPair) -> Iterator[str]:
    prompt, text = seen.pair.prompt, seen.prompt
    if isinstance(prompt, list):
        if sum(turn["role"] == "user" for turn in prompt) > 1:
            yield "several_turns"
        if any(turn["role"] in ("system", "developer") for turn in prompt):
            yield "system"
    if seen.pair.tools:
        yield "tools"
    if _CODE.search(text):
        yield "code"
    if "?" in text or "？" in text:
        yield "question"
    if len(text.split(maxsplit=_LONG)) > _LONG:
        yield "long"


def _groups(rows: Sequence[tuple[int, ...]]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The number of each prompt's group, shape (n,), and the rarity of each bucket of words, shape (buckets,), 0 for
    words that are not used.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.sparse import csr_matrix
    from scipy.sparse.linalg import svds

    ends = np.cumsum([0, *map(len, rows)])
    places = np.fromiter((bucket for row in rows for bucket in row), np.int64, ends[-1])
    counts = np.bincount(places, minlength=_BUCKETS)
    rarity = np.where((counts >= 2) & (counts < 0.9 * len(rows)), np.log((1 + len(rows)) / (1.0 + counts)), 0.0)
    rarity *= 1 + 1e-4 * np.random.default_rng(0).random(_BUCKETS)  # else rounding decides between groups that tie
    matrix = csr_matrix((rarity[places], places, ends), shape=(len(rows), _BUCKETS))
    dimensions = min(_DIMENSIONS, len(rows) - 1, int((rarity > 0).sum()) - 1)
    if dimensions < 2:
        return np.zeros(len(rows), dtype=np.int64), rarity
    left, weights, _ = svds(matrix, k=dimensions, v0=np.ones(min(matrix.shape)))
    points = left * weights
    norms = np.linalg.norm(points, axis=1)
    alone = norms < 1e-9 * max(1.0, float(norms.max()))  # prompts without a word of another prompt
    unit = points[~alone] / norms[~alone, None]
    numbers = np.zeros(len(rows), dtype=np.int64)
    found = fcluster(linkage(unit, "average", metric="cosine"), _DISTANCE, "distance") if len(unit) > 1 else [1]
    numbers[~alone] = found
    start = int(max(found)) + 1
    numbers[alone] = start + np.arange(math.floor(alone.sum()))
    return numbers, rarity
