"""Sentences of film reviews, made up, with a mood."""

from __future__ import annotations

import random

GOOD = "brilliant wonderful moving funny charming superb clever warm".split()
_BAD = "awful boring dull tedious stupid lame clumsy cold".split()
_THINGS = "film plot cast script story music hero ending scene dialogue".split()
_MIDDLES = ["all the same", "in its own way", "from the first minute on", "for the most part", "as a whole"]


def sentence(draw: random.Random, mood: str | None = None) -> str:
    words = {"good": GOOD, "bad": _BAD}.get(mood or draw.choice(["good", "bad"]), GOOD)
    start = f"the {draw.choice(_THINGS)} of this {draw.choice(_THINGS)} number {draw.randrange(400)}"
    return f"{start} is {draw.choice(words)} and {draw.choice(words)} {draw.choice(_MIDDLES)} ."
