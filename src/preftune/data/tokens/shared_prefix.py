"""Tokenises texts with a common beginning without tokenising the beginning again.

A tokeniser first cuts a text at its special tokens, and encodes the parts between them separately. So a text that
begins like a prompt, up to the prompt's last special token, has the prompt's ids up to there and then those of its
rest, which begins with that token. This is tested on the first texts, and not used if it does not hold; it is never
used for tokenisers written in Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokenize = Callable[[list[str]], list[list[int]]]

_TRIED = 32
"""Number of prompts of the first call whose texts are also tokenised whole."""


class _Cut(NamedTuple):
    """The place at which a prompt can be cut."""

    shared: str
    """The prompt up to the end of its last special token; a text must begin with it."""
    characters: int
    ids: list[int]
    """Token ids of the characters before the cut."""


class PromptOnce:
    """Tokenises lists of texts, each with the prompt of the other texts first."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokenize: Tokenize) -> None:
        """
        Args:
            tokenize: gives the ids of texts with written special tokens, and adds none.
        """
        self._tokenize = tokenize
        self._marks = _marks(tokenizer)
        self._tried = False
        self._rests: dict[str, list[int]] = {}

    def __call__(self, texts: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """The ids of every text, in the same lists."""
        prompts = self._tokenize([of_prompt[0] for of_prompt in texts])
        cuts = [self._cut(of_prompt[0], ids) for of_prompt, ids in zip(texts, prompts, strict=True)]
        found = self._others(texts, prompts, cuts)
        if not self._tried and any(cuts):
            self._tried = True
            tried = [place for place, cut in enumerate(cuts) if cut][:_TRIED]
            whole = self._others(
                [texts[place] for place in tried], [prompts[place] for place in tried], [None] * len(tried)
            )
            if whole != [found[place] for place in tried]:
                self._marks = {}
                return self._others(texts, prompts, [None] * len(texts))
        return found

    def _others(
        self, texts: Sequence[Sequence[str]], prompts: list[list[int]], cuts: Sequence[_Cut | None]
    ) -> list[list[list[int]]]:
        heads: list[list[int]] = []
        rests: list[str] = []
        for (_, *others), cut in zip(texts, cuts, strict=True):
            for text in others:
                shared = cut is not None and text.startswith(cut.shared)
                heads.append(cut.ids if cut is not None and shared else [])
                rests.append(text[cut.characters :] if cut is not None and shared else text)
        done = (head + rest for head, rest in zip(heads, self._tokenize(rests), strict=True))
        return [[ids, *(next(done) for _ in others)] for (_, *others), ids in zip(texts, prompts, strict=True)]

    def _cut(self, prompt: str, ids: list[int]) -> _Cut | None:
        """The last special token of a prompt; None if there is none, or if text and ids do not agree."""
        place = next((place for place in reversed(range(len(ids))) if ids[place] in self._marks), 0)
        if place == 0:
            return None
        mark = self._marks[ids[place]]
        at = prompt.rfind(mark)
        if at < 0 or self._ids_of_rest(prompt[at:]) != ids[place:]:
            return None
        return _Cut(prompt[: at + len(mark)], at, ids[:place])

    def _ids_of_rest(self, text: str) -> list[int]:
        """The ids of the text after the cut in a prompt, which is the same in nearly all prompts of a template."""
        if text not in self._rests:
            if len(self._rests) > 1000:
                self._rests.clear()
            (self._rests[text],) = self._tokenize([text])
        return self._rests[text]


def _marks(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Special tokens at which a text may be cut: those that are recognised literally, in any position."""
    if not getattr(tokenizer, "is_fast", False) or getattr(tokenizer, "split_special_tokens", False):
        return {}
    added = {number: token for number, token in tokenizer.added_tokens_decoder.items() if token.content}
    contents = [token.content for token in added.values()]
    return {
        number: token.content
        for number, token in added.items()
        if token.special
        and not token.normalized
        and not token.single_word
        and not any(token.content in other[1:] for other in contents)  # a longer token could straddle the cut
    }
