"""Ways to win a comparison without a better answer, found in the answers and named.

Shares are of distinct prompts, and what the baseline does as well is subtracted: a task may ask for equal or copied
answers. On the public answers of 56 models to AlpacaEval's 805 instructions, the two that were made to cheat are found
(`NullModel`: one answer, written in the form of the judge's prompt; `gpt4_gamed`: ten letters where it would lose),
and none of the others.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from preftune.amounts import counted
from preftune.evaluation.two_models.types import AnsweredRow
from preftune.storage.jsonl import digest
from preftune.text_quality.near_duplicates import near_pairs, signatures
from preftune.text_quality.repetition import split_words
from preftune.types import Text

FEWEST = 5
"""Fewest prompts for a finding."""
_GRAM, _COPIED = 5, 0.7
"""Words of a passage, and the share of an answer's passages that makes it a copy of its prompt."""
_LABEL, _ALL = 4, 0.9
"""Words below which equal answers are labels, unless nearly all are the same one."""
_SHORT = 0.1
"""Of the baseline's letters: an answer that is shorter and breaks off is cut."""

_INSTRUCTIONS = re.compile(
    r"model_identifier|\[\[\s*(?:A|B|C|tie|rating)\b|\[\W*(?:start|end) of (?:the )?(?:answer|assistant|conversation)"
    r"|##\s*Model Outputs|ignore (?:all |the )*(?:above|previous)|<\|im_(?:start|end)\|>"
    r"|\"(?:better|winner|verdict|choice|preferred|preference)\"\s*:\s*\"|\[(?:answer|assistant) [ab]\]",
    re.IGNORECASE,
)
"""What stands in prompts and replies of judges, of this library and of others, and hardly in an answer."""
_RATED = r"(?:answer|response|output|reply)"
_ADDRESSED = re.compile(
    r"\b(?:dear|hello|hi|attention|note (?:to|for)|instructions? (?:to|for))(?: the| all)?[,:]? "
    r"(?:judge|evaluator|grader|rater|annotator)s?\b"
    rf"|\b(?:this|the above|my) {_RATED} (?:is|should be|must be|deserves)(?: \w+){{0,3}}? "
    r"(?:best|better|superior|preferred|preferable|highest|winner|winning|10 ?/ ?10)"
    rf"|\b(?:prefer|select|choose|rank|score|grade|rate) (?:this|my) {_RATED}\b"
    rf"|\b(?:prefer|select|choose|pick) (?:answer|response|output|assistant|model) [ABMm12]\b",
    re.IGNORECASE,
)


class Cheat(NamedTuple):
    """A cheat that was found."""

    name: str
    share: float
    """Of the aligned model's answers, 0..1."""
    base: float
    """Of the baseline's."""
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        return self._asdict()


class _Kind(NamedTuple):
    name: str
    excess: float
    """Share above the baseline's from which it counts."""
    found: str
    """What is said, after a share of the answers."""


_KINDS = {
    "constant": _Kind("constant answers", 0.3, "are identical"),
    "near": _Kind("near-identical answers", 0.2, "nearly repeat the answer to another prompt"),
    "copied": _Kind("copies of the prompt", 0.2, "are copied from their prompt"),
    "instructions": _Kind("copies of the judge's instructions", 0.05, "contain text in the form of a judge's prompt"),
    "addressed": _Kind("answers addressed to the judge", 0.05, "address the judge"),
    "cut": _Kind("answers cut off", 0.1, "are a few letters that break off inside a word"),
}


def find_cheats(answered: Sequence[AnsweredRow]) -> list[Cheat]:
    """The cheats of the aligned model, in the order of their weight; none for fewer than five distinct prompts."""
    first = list({digest(row.prompt): row for row in reversed(answered)}.values())[::-1]
    if len(first) < FEWEST:
        return []
    aligned, base = _shares(first, lambda row: row.aligned), _shares(first, lambda row: row.base)
    found = []
    for name, kind in _KINDS.items():
        share, before = aligned[name], base[name]
        if share - before < kind.excess or share * len(first) < 2:
            continue
        compared = f" ({before:.0%} of the baseline's)" if before else ""
        sentence = f"{share:.0%} of the answers to {counted(len(first), 'prompt')} {kind.found}{compared}."
        found.append(Cheat(kind.name, share, before, sentence))
    if any(cheat.name == _KINDS["constant"].name for cheat in found):  # the same finding, more exact
        found = [cheat for cheat in found if cheat.name != _KINDS["near"].name]
    return found


def _shares(rows: Sequence[AnsweredRow], answer: Callable[[AnsweredRow], str]) -> dict[str, float]:
    texts, prompts = [answer(row).strip() for row in rows], [_asked(row.prompt) for row in rows]
    known = {word for row, prompt in zip(rows, prompts, strict=True) for word in _words(row.base + " " + prompt)}
    common, times = Counter(texts).most_common(1)[0]
    times = times if len(common.split()) >= _LABEL or times >= _ALL * len(texts) else 0  # "yes" and "no" are answers
    full = [place for place, text in enumerate(texts) if len(text.split()) >= _LABEL]
    near = {int(place) for place in near_pairs(signatures([texts[n] for n in full])).ravel()} if full else set()

    def share(found: Callable[[int], object]) -> float:
        return float(np.mean([bool(found(place)) for place in range(len(rows))]))

    return {
        "constant": times / len(texts) if times > 1 else 0.0,
        "near": len(near) / len(texts),
        "copied": share(lambda n: _is_copy(texts[n], prompts[n])),
        "instructions": share(lambda n: _INSTRUCTIONS.search(texts[n]) and not _INSTRUCTIONS.search(prompts[n])),
        "addressed": share(lambda n: _ADDRESSED.search(texts[n]) and not _ADDRESSED.search(prompts[n])),
        "cut": share(lambda n: _is_cut(answer(rows[n]), rows[n].base, known)),
    }


def _asked(prompt: Text) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(str(turn.get("content") or "") for turn in prompt)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _is_copy(text: str, prompt: str) -> bool:
    passages = _passages(text)
    if len(passages) < 4:
        return False
    known = set(_passages(prompt))
    return sum(passage in known for passage in passages) >= _COPIED * len(passages)


def _passages(text: str) -> list[tuple[str, ...]]:
    words = split_words(text.casefold())
    return [tuple(words[start : start + _GRAM]) for start in range(len(words) - _GRAM + 1)]


def _is_cut(text: str, base: str, known: set[str]) -> bool:
    """Whether an answer is far shorter than the baseline's and ends inside its second word or later, or behind a blank.

    A single word may be a name that the baseline did not know.
    """
    if not text.strip() or len(text) > _SHORT * len(base) or re.search(r"[^\w\s]\s*$", text):
        return False
    words = _words(text)
    return text != text.rstrip() or (len(words) > 1 and words[-1].isalpha() and words[-1] not in known)
