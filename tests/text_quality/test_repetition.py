"""Repetition: loops are found, and repetition on purpose is not."""

from __future__ import annotations

import pytest

from preftune.text_quality.repetition import distinct_bigrams, longest_run, looped, repeated, split_words
from preftune.text_quality.single_answer import look_at, self_similarity

PROSE = """The harbour lies on the north side of the island, where the water is deep enough for ferries. In summer three
boats a day bring visitors, who walk up the hill to the old lighthouse and look out over the bay. Most of them leave
again in the evening, because the only hotel has twelve rooms and is booked a year ahead. Those who stay see what the
others miss: fishermen mending nets under the lamps, and a sky without any light but the stars."""


CODE = """```python
def add(self, other):
    result = Matrix(self.rows, self.columns)
    for i in range(self.rows):
        for j in range(self.columns):
            result.cells[i][j] = self.cells[i][j] + other.cells[i][j]
    return result

def subtract(self, other):
    result = Matrix(self.rows, self.columns)
    for i in range(self.rows):
        for j in range(self.columns):
            result.cells[i][j] = self.cells[i][j] - other.cells[i][j]
    return result
```"""


CALCULATOR = """if operator == "+":
    return first + second
elif operator == "-":
    return first - second
elif operator == "*":
    return first * second
elif operator == "/":
    return first / second"""


LIST = "\n".join(
    f"{number}. **{what}**: a good way to improve your health."
    for number, what in enumerate("Sleep Walking Swimming Reading Friends Vegetables Water Sunlight".split(), 1)
)


POEM = """Over the hills the evening falls,
    sing, my heart, for the day is done.
Shadows climb on the orchard walls,
    sing, my heart, for the day is done.
Swallows return to the silent eaves,
    sing, my heart, for the day is done.
Wind goes whispering through the leaves,
    sing, my heart, for the day is done."""


NUMBERS = " ".join(str(n) for n in range(1, 120)) + "\n" + "\n".join("0 0 0 1 0 0" for _ in range(5))


TABLE = "| name | price | stock |\n|------|-------|-------|\n" + "\n".join(
    f"| {name} | {price}.00 | yes |" for price, name in enumerate("apple pear plum fig date lime melon".split(), 3)
)


RULER = "Title\n" + "=" * 60 + "\nText follows here.\n" + "-" * 60 + "\n" + "." * 40


JAPANESE = "東京は日本の首都であり、世界でも有数の大都市です。多くの人が働き、暮らしています。春には桜が咲きます。"


GERMAN = "Die Stadt liegt an einem Fluss und ist für ihre alten Brücken bekannt, die man auch bei Nacht besuchen kann."


HARMLESS = {
    "prose": PROSE,
    "code": CODE,
    "list": LIST,
    "poem": POEM,
    "numbers": NUMBERS,
    "table": TABLE,
    "ruler": RULER,
    "japanese": JAPANESE,
    "branches": CALCULATOR,
    "sums": "\n".join(f"Row {n}: ({n}*5) + ({n + 1}*7) = {n * 5 + (n + 1) * 7}" for n in range(1, 9)),
    "short": "Paris.",
    "yes": "Yes, yes, yes!",
    "emphasis": "It was a very, very, very long day.",
    "laughter": "Hahaha, that is funny!",
    "bars": "Loading:\n" + "\u2588" * 16 + " 100%",
    "contents": "\u7b2c\u4e00\u7ae0 " + "\u2026" * 20 + "1",
    "brackets": "(a (b (c (d (e (f (g (h (i (j (k (l (m x)))))))))))))",
    "markup": "\n".join(f'<li class="item item-large"><a href="#">Link {n}</a></li>' for n in range(20)),
    "nothing": "",
}


LOOPS = {
    "sentence": "I think so. " + "This is the best answer for you. " * 6,
    "late": PROSE + " and then the man said " * 12,
    "word": "The answer is no no no no no no no no no no no no no no",
    "letters": "Aaaaaaaaaaaaaaaaaaaaaaaargh",
    "marks": "Great!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!",
    "paragraph": f"{PROSE}\n\n{PROSE}\n\n{PROSE}",
    "growing list": "\n".join(f"{n}. Eat more vegetables and drink water every day." for n in range(1, 15)),
    "chinese": "我认为这是一个很好的主意。" * 8,
    "numbers": "The result is " + "0 " * 300,
    "tags": "<p>" + "<b>" * 60,
    "hindi": "\u092f\u0939 \u090f\u0915 \u0935\u093e\u0915\u094d\u092f \u0939\u0948\u0964 " * 10,
    "code": "x = 1\n" + "print(value)\n" * 30,
}


@pytest.mark.parametrize("name", HARMLESS)
def test_no_alarm_on_what_is_repeated_on_purpose(name: str) -> None:
    figures = look_at(HARMLESS[name])
    assert not figures.repeats, figures
    assert figures.looped < 0.1
    assert not figures.refusal


@pytest.mark.parametrize("name", LOOPS)
def test_loops_are_found(name: str) -> None:
    assert look_at(LOOPS[name]).repeats, look_at(LOOPS[name])


def test_repeated_by_hand() -> None:
    words = split_words("a b c x y a b c z")
    # n=3: "a b c" begins again at 5; words 5, 6, 7 of 9
    assert repeated(words, n=3) == pytest.approx(3 / 9)
    assert repeated(words, n=4) == 0
    assert repeated([], n=4) == 0
    # period 3 in 12 words: all but the first three
    assert repeated(split_words("to be or " * 4), n=6) == pytest.approx(9 / 12)


def test_looped_by_hand() -> None:
    # twice in a row is no loop; three times it is, with all of its words
    assert looped("one two three four " * 2) == 0
    assert looped("one two three four " * 3 + "five six seven eight") == pytest.approx(12 / 16)
    assert looped("no no no no no no no") == 0  # seven words
    assert looped("no no no no no no no no") == 1
    assert looped("1 2 " * 50) == 0
    # what differs in code and formulas is a symbol or a number
    assert looped("if sign is plus: return a + b\nif sign is plus: return a - b\nif sign is plus: return a * b") == 0
    assert looped("".join(f"{n}. Drink more water.\n" for n in range(1, 6))) == 1


def test_distinct_bigrams_by_hand() -> None:
    # a b, b a, a b, b c: three of four
    assert distinct_bigrams("a b a b c".split()) == pytest.approx(3 / 4)
    assert distinct_bigrams(["alone"]) == 1
    assert distinct_bigrams(["no"] * 11) == pytest.approx(1 / 10)
    # windows: 200 different words are as varied as 60, which a count over the whole text would not say of a language
    words = [f"w{n % 60}" for n in range(600)]
    assert distinct_bigrams(words) == 1


def test_longest_run() -> None:
    assert longest_run("no no no", ["no"] * 3) == 3
    assert longest_run("7 7 7 7", ["7"] * 4) == 0
    assert longest_run("", []) == 0
    assert longest_run("sooo", ["sooo"]) == 3


def test_self_similarity_by_hand() -> None:
    assert self_similarity(["one two three four"] * 3) == pytest.approx(1)
    assert self_similarity(["one two three", "four five six"]) == 0
    # trigrams {abc, bcd} and {abc, bce}: cosine 1 / 2
    assert self_similarity(["a b c d", "a b c e"]) == pytest.approx(0.5)
    # pairs (same 1, other 0, other 0): mean 1/3
    assert self_similarity(["a b c", "a b c", "x y z"]) == pytest.approx(1 / 3)
    assert self_similarity(["alone"]) == 0
    assert self_similarity(["", ""]) == 1
