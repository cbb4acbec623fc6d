"""Rules that guess the chosen answer from one feature of the answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

LIST_ITEM = re.compile(r"^[ \t]*(?:[-*•+]|\d{1,3}[.)])[ \t]+\S", re.MULTILINE)
MARKDOWN = re.compile(
    r"\*\*[^*\n]+\*\*|^#{1,6} \S|^>[ \t]|\[[^\[\]\n]{1,300}\]\([^()\n]{1,300}\)|^\|.*\|", re.MULTILINE
)
CODE = re.compile(r"```|`[^`\n]+`")
PUNCTUATION = re.compile(r"[.,;:!?\"'()\[\]{}…–—-]")
DIGIT = re.compile(r"\d")
EMOJI = re.compile("[\U0001f300-\U0001faff\u2600-\u27bf]")
CAPITALISED = re.compile(r"\b[A-Z]")
REFUSAL = re.compile(
    r"\b(?:i(?:'|’)?m sorry|i am sorry|i apologi[sz]e|sorry, (?:but )?i|i can(?:'|’)?(?:no)?t (?:help|assist|provide|do"
    r"|answer|fulfil|comply|support|create|write|share|give|discuss|engage)|i(?:'|’)?m (?:not able|unable)|i am (?:not "
    r"able|unable)|i won(?:'|’)?t|as an? (?:ai|artificial|language model)|i must (?:decline|refuse))",
    re.IGNORECASE,
)

_BEGINNING = 300
"""Characters at the start of an answer in which a refusal is searched."""


def refuses(answer: str) -> bool:
    """Whether the start of an answer holds the words of a refusal."""
    return REFUSAL.search(answer[:_BEGINNING]) is not None


def punctuation_share(answer: str) -> float:
    return len(PUNCTUATION.findall(answer)) / max(1, len(answer))


def capital_share(answer: str) -> float:
    return len(CAPITALISED.findall(answer)) / max(1, len(answer.split()))


class Rule(NamedTuple):
    """A rule with one feature. It guesses the side that has more of it; equal sides are not decided."""

    more: str
    """The feature of the guessed answer, as text after "the answer with"."""
    less: str
    """The same for the opposite guess."""
    measure: Callable[[str], float]


RULES: Mapping[str, Rule] = {
    "lists": Rule("more list items", "fewer list items", lambda answer: len(LIST_ITEM.findall(answer))),
    "markdown": Rule("more markdown", "less markdown", lambda answer: len(MARKDOWN.findall(answer))),
    "code": Rule("more code", "less code", lambda answer: len(CODE.findall(answer))),
    "paragraphs": Rule("more lines", "fewer lines", lambda answer: answer.strip().count("\n")),
    "digits": Rule("more digits", "fewer digits", lambda answer: len(DIGIT.findall(answer))),
    "punctuation": Rule("denser punctuation", "sparser punctuation", punctuation_share),
    "capitals": Rule("more capitalised words", "fewer capitalised words", capital_share),
    "exclamations": Rule("more exclamation marks", "fewer exclamation marks", lambda answer: answer.count("!")),
    "emoji": Rule("more emoji", "fewer emoji", lambda answer: len(EMOJI.findall(answer))),
    "question": Rule("a question at its end", "no question at its end", lambda answer: answer.rstrip().endswith("?")),
    "refusal": Rule("a refusal", "no refusal", refuses),
}
"""The rules by name. Punctuation and capitals are shares of an answer, because counts would depend on its length."""


def first_letter(answer: str) -> int:
    """The code point of the first character that is not white space, in lower case; 0 without one."""
    stripped = answer.lstrip()
    return ord(stripped[0].lower()[0]) if stripped else 0
