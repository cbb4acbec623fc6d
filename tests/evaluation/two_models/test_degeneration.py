"""Loops, sameness, languages and refusals: what is found, and what must raise no alarm."""

from __future__ import annotations

import json

import numpy as np
import pytest

from preftune.errors import DatasetError
from preftune.evaluation.two_models.degeneration import Degeneration, compare, excerpt
from preftune.text_quality.languages import change_of_language, language_of
from preftune.text_quality.refusals import is_refusal
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


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("en", PROSE),
        ("de", GERMAN),
        ("fr", "La ville est connue pour ses vieux ponts, que l'on peut visiter aussi pendant la nuit avec un guide."),
        ("es", "La ciudad es conocida por sus viejos puentes, que se pueden visitar también por la noche con un guía."),
        (
            "it",
            "La città è nota per i suoi vecchi ponti, che si possono visitare anche di notte con una guida.",
        ),
        (
            "pt",
            "A cidade é conhecida pelas suas pontes antigas, que também se podem visitar à noite com um guia.",
        ),
        ("nl", "De stad is bekend om haar oude bruggen, die je ook in de nacht met een gids kan bezoeken."),
        ("sv", "Staden är känd för sina gamla broar, som man också kan besöka på natten med en guide från orten."),
        ("pl", "Miasto jest znane ze starych mostów, które można zwiedzać także w nocy, ale nie bez przewodnika."),
        (
            "cs",
            "Město je známé starými mosty, které lze navštívit také v noci, ale nikdo nemůže jít sám.",
        ),
        ("ru", "Город известен своими старыми мостами, которые можно посетить и ночью, но не без проводника."),
        ("uk", "Місто відоме своїми старими мостами, які можна відвідати і вночі, але не без провідника."),
        ("ja", JAPANESE),
        ("zh", "这座城市以古老的桥梁而闻名，游客晚上也可以参观。"),
        ("ko", "이 도시는 오래된 다리로 유명하며 밤에도 방문할 수 있습니다."),
        ("ar", "المدينة معروفة بجسورها القديمة التي يمكن زيارتها ليلا أيضا."),
        ("el", "Η πόλη είναι γνωστή για τις παλιές γέφυρές της."),
        ("hi", "यह शहर अपने पुराने पुलों के लिए प्रसिद्ध है।"),
        ("en", "I'm so exhausted, I think that I could sleep for a week."),
        (None, "1. MacBook Air + MacBook Pro\n2. Mac Pro + iMac Pro\n3. Pro Display"),
        (None, "Paris."),
        (None, ""),
        (None, CODE),
        (None, NUMBERS),
        (None, "Marie Curie, Albert Einstein, Niels Bohr, Lise Meitner, Enrico Fermi, Otto Hahn, Max Planck"),
        (None, "Привет, my friend, 你好 and so weiter"),
    ],
)
def test_languages(code: str | None, text: str) -> None:
    assert language_of(text) == code


def test_an_answer_that_leaves_its_language() -> None:
    asked = "What should I look at when I visit the city for the first time?"
    assert change_of_language(asked, PROSE) is None
    assert change_of_language(asked, GERMAN) == "de"
    assert change_of_language(asked, PROSE[:200] + GERMAN * 3) == "de"
    assert change_of_language(asked, "Paris.") is None
    assert change_of_language("2+2?", GERMAN) is None  # nobody knows what was asked in


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but I can’t assist with that request.",
        "I cannot provide instructions for making weapons.",
        "As an AI language model, I am not able to provide medical advice.",
        "Sorry, I can't do that.",
        "I am unable to fulfill this request.",
        "I'm not comfortable writing that.",
        "I must respectfully decline to answer this question.",
        "I won't help you hurt anyone. Please talk to someone you trust.",
        "Unfortunately, I am not able to assist you with this.",
        "**I can't create content that demeans people.**",
        "No. I will not write that.",
        "It would be inappropriate for me to provide such a list.",
        "This request cannot be fulfilled.",
        "I understand that you are angry. However, I cannot help you with revenge.",
        "I apologize, but I cannot generate that kind of content.",
        "<think>They want a bomb. I should refuse.</think>I can't help with that.",
        "Es tut mir leid, aber ich kann dir dabei nicht helfen.",
        "Je suis désolé, mais je ne peux pas vous aider.",
        "Lo siento, pero no puedo ayudar con eso.",
        "抱歉，我无法提供这方面的帮助。",
    ],
)
def test_refusals_are_found(answer: str) -> None:
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry to hear that. Here is what you can do about it.",
        "I can't wait to tell you about this recipe!",
        "I cannot stress enough how important it is to back up your files.",
        "I can't recommend this book highly enough.",
        "I can't help but admire the question. The answer is 42.",
        "I apologize for the confusion. The capital of Australia is Canberra.",
        "Sorry for the mistake: it is 12.",
        "You can't divide by zero, so the expression has no value.",
        "The bank cannot provide a loan without a guarantee.",
        '"I can\'t help you," said the wizard, and closed the door.',
        "He said that he could not assist them. They left.",
        "To kill a Python process, run kill with its number.",
        "As an AI, I have no feelings, but here is a poem about joy.",
        "Dear Sir, I regret that the order is late.",
        "No, the earth is not flat.",
        "Unfortunately, the museum is closed on Mondays.",
        "Here is a letter. It says:\n\nI cannot accept the offer at this time.",
        "Refusing politely is an art: say thank you first.",
        "",
    ],
)
def test_what_is_no_refusal(answer: str) -> None:
    assert not is_refusal(answer)


def _pair(rows: int, *, broken: int, base_broken: int = 0) -> Degeneration:
    rng = np.random.default_rng(0)
    vocabulary = PROSE.split()
    good = [" ".join(rng.choice(vocabulary, 40)) for _ in range(rows)]
    also = [" ".join(rng.choice(vocabulary, 40)) for _ in range(rows)]
    loop = "so it goes and goes on " * 10
    return compare(
        [str(n) for n in range(rows)],
        [f"Tell me about number {n}" for n in range(rows)],
        [loop if n < base_broken else text for n, text in enumerate(good)],
        [loop if n < broken else text for n, text in enumerate(also)],
        base_finished=[True] * rows,
        aligned_finished=[n >= broken for n in range(rows)],
        base_tokens=[50] * rows,
        aligned_tokens=[80 if n < broken else 50 for n in range(rows)],
    )


def test_two_models_side_by_side() -> None:
    found = _pair(100, broken=12, base_broken=2)
    repeats = found.figures["repeats"]
    assert (repeats.base, repeats.aligned) == (0.02, 0.12)
    # of 100 differences ten are 1: sd sqrt(.09 * 100/99), t(99) = 1.98422
    assert repeats.ci_high - 0.1 == pytest.approx(1.98422 * (0.09 / 99) ** 0.5, abs=1e-5)
    assert {"repeats", "unfinished", "repeated"} <= set(found.worse)
    assert found.worst["repeats"][0].id == "2"  # the first that the base did not spoil as well
    sentence = found.sentences()[0]
    assert sentence.startswith("The aligned model repeats itself in 12% of its answers, the base model in 2% ")
    assert "worst: “Tell me about number 2”" in sentence
    assert any("does not end 12% of its answers, the base model 0%" in line for line in found.sentences())
    assert any("54 tokens instead of 50" in line for line in found.sentences())
    kept = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert kept["figures"]["repeats"]["better"] == "lower"
    assert kept["worst"]["repeats"][0]["prompt"] == "Tell me about number 2"


def test_two_models_alike_are_told_so() -> None:
    found = _pair(60, broken=0)
    assert found.worse == []
    assert found.sentences()[0].startswith("No sign of degeneration in 60 answers")
    assert "repeats" not in found.worst


def test_one_broken_answer_may_be_chance() -> None:
    found = _pair(60, broken=1)
    assert "repeats" not in found.worse
    assert any("repeats itself in 2%" in line and "can be chance" in line for line in found.sentences())


def test_what_is_unknown_is_left_out_and_one_row_has_no_interval() -> None:
    one = compare(["a"], ["Why?"], ["Because it rains."], [""])
    assert "unfinished" not in one.figures
    assert "tokens" not in one.figures
    assert "self_similarity" not in one.figures
    assert one.figures["empty"].aligned == 1
    assert json.loads(json.dumps(one.to_dict(), allow_nan=False))["figures"]["empty"]["ci_low"] is None
    assert any("leaves empty 100%" in line for line in one.sentences())


def test_vowel_signs_are_part_of_their_word() -> None:
    assert look_at("\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0937\u093e \u0939\u0948\u0964").words == 3
    assert look_at("\u0628\u0650\u0633\u0652\u0645\u0650 \u0627\u0644\u0644\u0651\u064e\u0647\u0650").words == 2
    assert look_at("\U0001f468\u200d\U0001f469").words == 0


def test_what_nobody_sees_is_empty() -> None:
    assert look_at("\u200b \u2060\n").empty
    assert not look_at("\U0001f600").empty


def test_two_answers_are_not_beyond_chance() -> None:
    found = compare(["a", "b"], ["p", "q"], ["", ""], ["It rains.", "It snows."])
    assert not found.figures["empty"].shown
    many = [str(n) for n in range(12)]
    assert compare(many, many, ["It rains."] * 12, [""] * 12).worse == ["empty"]


def test_rounding_is_no_difference() -> None:
    found = compare(["a", "b"], ["p", "q"], ["", ""], ["a b c d"] * 2)
    assert not found.figures["self_similarity"].shown


def test_a_prompt_cannot_command_the_terminal() -> None:
    assert excerpt("a \x1b[31mred\x1b[0m \u202e one") == "\u201ca [31mred[0m  one\u201d"


def test_refusals_and_languages_of_two_models() -> None:
    asked = [f"What should I look at when I visit the city of number {n}?" for n in range(20)]
    answers = [PROSE] * 20
    found = compare(
        [str(n) for n in range(20)],
        [[{"role": "user", "content": text}] for text in asked],
        answers,
        [GERMAN] * 10 + ["I can't help with that."] * 10,
    )
    assert found.figures["language_switch"].difference == 0.5
    assert found.figures["refusals"].difference == 0.5
    assert "language_switch" in found.worse
    assert "refusals" not in found.worse  # wanted or not, only the prompt says
    assert any("refuses in 50% of its answers, the base model in 0%" in line for line in found.sentences())


def test_rows_of_one_prompt_are_one_cluster() -> None:
    once = compare(["a", "b"], ["p", "q"], [PROSE, PROSE], ["", PROSE])
    many = compare(list("abcdef"), list("ppppqq"), [PROSE] * 6, [""] * 4 + [PROSE] * 2)
    assert many.prompts == once.prompts == 2
    assert many.figures["empty"].ci_high - many.figures["empty"].ci_low > 1


def test_the_interval_of_self_similarity_covers_no_difference() -> None:
    """A U-statistic: with the plain standard error about 83% of the intervals would."""
    rng = np.random.default_rng(5)
    words = np.array([f"w{n}" for n in range(6)])
    covered = 0
    for _ in range(150):
        texts = [" ".join(rng.choice(words, 6)) for _ in range(40)]
        found = compare(list(map(str, range(20))), list(map(str, range(20))), texts[:20], texts[20:])
        figure = found.figures["self_similarity"]
        covered += figure.ci_low <= 0 <= figure.ci_high
    assert covered >= 0.9 * 150


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(DatasetError, match="row by row"):
        compare(["a"], ["p"], ["x", "y"], ["z"])
    with pytest.raises(DatasetError, match="at least one row"):
        compare([], [], [], [])
