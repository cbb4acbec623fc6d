"""The language of a text, and whether it refuses."""

from __future__ import annotations

import pytest

from preftune.text_quality.languages import change_of_language, language_of
from preftune.text_quality.refusals import is_refusal
from tests.text_quality.test_repetition import CODE, GERMAN, JAPANESE, NUMBERS, PROSE


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
