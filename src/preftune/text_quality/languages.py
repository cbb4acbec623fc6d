"""Identifies the language of a text: by its script, and for Latin and Cyrillic letters by its most common words.

This is only meant to notice that a model left the language of the question: a text that is short, mixed, or mostly code
has no language (None), and neither has a text in a language that is not listed."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_COMMON = {
    "en": "a i the of and to in is that it for was with as you are this be have on not or they by which from but "
    "his an can will your what their has more if there when how",
    "de": "der die das und ist nicht ein eine zu den mit sich auf für von dem des auch als es an werden aus er "
    "hat dass sie nach bei einer um am sind noch wie einem über kann wird oder ich",
    "fr": "le la les de des et est un une en que qui dans pour pas sur au avec ce il sont plus par vous nous je "
    "ne aux cette elle mais ou du se être leur d l",
    "es": "el la los las de que y en un una es por con no se para del al lo como más pero su le ya este sí "
    "porque esta son entre está cuando muy también puede",
    "it": "il la le di che e un una in per non con del della sono è si da i gli al dei nel come più anche ma "
    "alla questo se lo ha delle essere può",
    "pt": "o a os as de que e em um uma não para com do da no na é por mais dos se como mas ao das foi ele são "
    "você também pode pelo pela seu sua",
    "nl": "de het een en van is dat niet in op te zijn met voor ook aan er maar om bij als uit naar dan kan "
    "wordt deze ze je ik hij nog worden geen",
    "sv": "och att det som en på är av för med den inte till har de ett om var jag men kan eller vi så från när "
    "man ska också du",
    "da": "og at det en den til er på for af de med ikke som der har et jeg men kan eller vi så fra når man "
    "skal også du være",
    "nb": "og å det en den til er på for av de med ikke som har et jeg men kan eller vi så fra når man skal "
    "også du være ble noen",
    "fi": "ja on ei että se oli ovat mutta tai kun joka hän niin myös kuin voi olla tämä sen mitä ole jos sekä "
    "minä jotka",
    "pl": "i w nie na się z do to że jest jak po co za od przez dla są ale oraz może jego tym już być które "
    "który lub także",
    "cs": "a je se na v že to s z do o i jako pro si ale po které který jsou by nebo není jsem může také bude být když",
    "hu": "a az és hogy nem is egy van ez de meg csak volt már mint el vagy ha ezt lehet azt kell még ki amely között",
    "ro": "și de la în a cu pe nu că este o un din să care pentru mai se ce sunt fi sau poate acest dar al prin",
    "tr": "ve bir bu için ile de da çok daha olarak gibi olan ne var ama değil en kadar sonra veya ben her olduğu",
    "vi": "và của là có không cho được trong một những các với này đã người để thể khi như từ",
    "id": "yang dan di ini itu dengan untuk tidak dari dalam akan pada adalah ada bisa saya juga atau oleh karena",
    "ru": "и в не на что с как это по к но из у за от о так для же он она они бы или мы вы только его может быть также "
    "если чтобы при без можно нет были был была которые которая который этого того ещё еще уже очень когда",
    "uk": "і в не на що з як це до та за від про для або він вона вони але так є у може бути який які також його "
    "які яка можна без при щоб якщо бути дуже були цього коли ще вже",
    "bg": "и на да се за от е не с по че са като в до това но си или има може към той много което които",
}
"""Words that are frequent in nearly every text of the language."""
_SCRIPTS = {
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "HANGUL": "ko",
    "CJK": "zh",
    "GREEK": "el",
    "HEBREW": "he",
    "ARABIC": "ar",
    "DEVANAGARI": "hi",
    "BENGALI": "bn",
    "TAMIL": "ta",
    "TELUGU": "te",
    "GUJARATI": "gu",
    "THAI": "th",
    "ARMENIAN": "hy",
    "GEORGIAN": "ka",
    "MYANMAR": "my",
    "KHMER": "km",
    "LAO": "lo",
    "ETHIOPIC": "am",
}
"""The first word of a character's Unicode name, and the language that mostly uses this script."""
KNOWN = frozenset((*_COMMON, *_SCRIPTS.values()))
"""Every language that can be recognised."""
_ALPHABETS = {"LATIN": "en de fr es it pt nl sv da nb fi pl cs hu ro tr vi id".split(), "CYRILLIC": ["ru", "uk", "bg"]}
_LETTERS_LOOKED_AT = 3000
_LEAST_LETTERS = 20
_LEAST_CHARACTERS = 8
"""Minimum number of characters, in scripts in which a character stands for about a word or half of one."""
_MAIN_SHARE = 0.6
"""Minimum share of the letters that must belong to one script."""
_LEAST_HITS = 4
_LEAST_DIFFERENT = 3
"""Minimum number of different ones: "MacBook Pro, Mac Pro, Pro" is not Czech."""
_LEAST_SHARE = 0.12
"""Minimum share of common words; names and code have few."""
_AHEAD = 1.35
"""Minimum lead of the best language over the second."""

_LANGUAGES_OF: Counter[str] = Counter(word for words in _COMMON.values() for word in set(words.split()))
_WORDS = {code: frozenset(words.split()) for code, words in _COMMON.items()}
_CODE = re.compile(
    r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]*`|https?://\S+|<[^<>\n]{1,200}>|\$[^$\n]{1,200}\$", re.DOTALL
)
_LATIN_WORD = re.compile(r"[^\W\d_]+")


def language_of(text: str) -> str | None:
    """The language as an ISO 639-1 code, or None if unknown. Code, links and formulas are left out."""
    text = _CODE.sub(" ", text)
    letters = [character for character in text if character.isalpha()][:_LETTERS_LOOKED_AT]
    if not letters:
        return None
    scripts = Counter(map(_script, letters))
    # Japanese mixes Chinese characters with its own; Chinese contains no kana.
    if scripts["CJK"] and (kana := scripts["HIRAGANA"] + scripts["KATAKANA"]) >= 0.1 * scripts["CJK"]:
        scripts["HIRAGANA"] = scripts.pop("CJK") + kana
        scripts.pop("KATAKANA", None)
    script, count = scripts.most_common(1)[0]
    if count < _MAIN_SHARE * len(letters):
        return None
    if script in _ALPHABETS:
        return _by_words(text, _ALPHABETS[script]) if count >= _LEAST_LETTERS else None
    return _SCRIPTS.get(script) if count >= _LEAST_CHARACTERS else None


def _by_words(text: str, codes: list[str]) -> str | None:
    """The language with the most common words; a word of several languages counts as a fraction of a word in each."""
    words = _LATIN_WORD.findall(unicodedata.normalize("NFC", text[: 8 * _LETTERS_LOOKED_AT]).casefold())
    counts = Counter(words)
    votes = sorted(
        (
            sum(min(counts[word], 1 + len(words) // 20) / _LANGUAGES_OF[word] for word in _WORDS[code] & counts.keys()),
            sum(counts[word] for word in _WORDS[code] & counts.keys()),
            code,
        )
        for code in codes
    )
    (second, _, _), (best, hits, code) = votes[-2:]
    different = len(_WORDS[code] & counts.keys())
    if different < _LEAST_DIFFERENT or hits < _LEAST_HITS or hits < _LEAST_SHARE * len(words):
        return None
    if best < _AHEAD * second:
        return None
    return code


def _script(character: str) -> str:
    if character.isascii():
        return "LATIN"
    return unicodedata.name(character, "?").split()[0].removesuffix("-")


def change_of_language(asked: str, answer: str) -> str | None:
    """The language of an answer, or of its end, if it differs from the language of the question; otherwise None.

    The result is also None if either language cannot be recognised.
    """
    expected = language_of(asked)
    if expected is None:
        return None
    whole = language_of(answer)
    if whole is not None and whole != expected:
        return whole
    end = language_of(answer[len(answer) // 2 :])
    return end if end is not None and end != expected else None
