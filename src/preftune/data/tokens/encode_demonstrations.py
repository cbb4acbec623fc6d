"""A demonstration -> token ids, and the spans of trained tokens.

Boundaries are found as in `encode`: the prompt, and the text up to the beginning or end of an answer, are tokenised
separately, and count as far as the whole text begins with the same tokens. So the ids of a row are those of its whole
text, independent of what is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

from preftune.data.chat.messages import can_continue, has_text, joined
from preftune.data.chat.unwritten import unwritten
from preftune.data.tokens import spans
from preftune.data.tokens.assistant_turns import loses_prompt
from preftune.data.tokens.encode import Encoder, refused
from preftune.data.tokens.encoded import Encoded, Texts
from preftune.errors import ConfigError, DatasetError, TemplateLimitError
from preftune.types import Example, Message


@dataclass(frozen=True, slots=True)
class Covered:
    """The part of a demonstration that the loss covers; names and defaults are TRL's, with one exception.

    By default TRL trains on the users' turns too, and preftune only on the assistant's turns.
    """

    completion_only: bool | None = None
    """The text after the prompt (True; also None if there is a prompt), or everything."""
    assistant_only: bool | None = None
    """In conversations, only the assistant's turns (True or None)."""

    def check(self, example: Example) -> None:
        """Raises: ConfigError, if the setting does not apply to the data."""
        if self.completion_only and example.prompt is None:
            remedy = "assistant_only_loss=True" if example.is_chat else "--columns prompt=... completion=..."
            raise ConfigError(
                f"completion_only_loss=True, but row {example.row} is one "
                f"{'conversation' if example.is_chat else 'text'}, without a separate prompt and completion. Leave it "
                f"out, or use {remedy}."
            )
        if self.assistant_only and not example.is_chat:
            raise ConfigError(
                f"assistant_only_loss=True, but row {example.row} is plain text and has no turns. Leave it out, "
                "or read the data as conversations (--as_chat, load_demonstrations(...).as_chat())."
            )


class DemonstrationEncoder(Encoder):
    """Turns batches of demonstrations into token ids with one tokeniser."""

    covered = Covered()

    def _texts(self, example: Example) -> Texts | Encoded:
        self.covered.check(example)
        completion = example.completion
        if self._blank(example):
            silent = isinstance(completion, list) and not any(turn["role"] == "assistant" for turn in completion)
            return refused(example, "no_answer" if silent else "empty_completion")
        if isinstance(completion, list):
            return self._conversation(example, completion)
        prompt = cast("str | None", example.prompt)
        text = self._plain(example, prompt, [completion])
        return text._replace(prompt=None) if self.covered.completion_only is False else text

    def _conversation(self, example: Example, given: list[Message]) -> Texts | Encoded:
        row = example.row
        asked_before = cast("list[Message] | None", example.prompt) or []
        completion, prompt = self.end_marks.without(given), self.end_marks.without(asked_before)
        continues = bool(prompt) and can_continue(prompt[-1]) and can_continue(completion[0])
        turns = joined(prompt, completion, continues)
        whole_completion = self.covered.assistant_only is False
        spoken = [at for at, turn in enumerate(turns) if turn["role"] == "assistant"]
        begins = 0 if self.covered.completion_only is False else len(prompt) - continues
        first_turn = spoken[:1] == [0] and begins == 0 and not continues
        answers = [at for at in spoken if at >= begins][first_turn:]
        wanted = [at for at in answers if whole_completion or self._teaches(turns[at], row)]
        context = len(wanted) < len(answers)
        if not wanted:
            return refused(example, "no_answer" if not spoken else "empty_completion" if context else "no_question")
        last = spoken[-1] if whole_completion else wanted[-1]
        trimmed, turns = last < len(turns) - 1, turns[: last + 1]
        self._require_template(row)
        first = wanted[0]
        asked = prompt if prompt and (continues or whole_completion) else turns[:first]
        try:
            header = not continues and turns[len(asked)]["role"] == "assistant"
            before = self._render(example, asked, continues=continues, answer=header)
            whole, no_calls = self._rendered(example, turns)
        except TemplateLimitError as error:
            raise TemplateLimitError(f"{self.name} row {row}: {error}") from error
        except Exception as error:  # templates are programs: jinja's errors, and whatever their expressions raise
            return refused(example, "template_refused", " ".join(str(error).split()))
        if no_calls:
            return refused(example, "calls_not_written", f"not in the text: {no_calls}")
        seen = Encoded(
            row,
            turns=len(wanted),
            trimmed=trimmed,
            first_turn=first_turn,
            context=context,
            ends_cut=completion is not given or prompt is not asked_before,
            typed_marks=self.end_marks.inside([prompt, completion]),
            unwritten=unwritten(turns, whole, wanted),
        )
        ended = self._ends(whole)
        if whole_completion:
            alone = example.prompt is None or self.covered.completion_only is False
            return Texts(None if alone else before, [whole], False, seen, [ended])
        if (marked := self._by_marks(example, turns, whole)) is not None:  # as the template has them, to the letter
            edges = [edge for at in wanted for edge in marked[at]]
            return Texts(before, [whole], False, seen, [ended or edges[-1] < len(whole)], [edges])
        lost = loses_prompt([whole], before, asked[: len(asked) - continues], self._renderer(example))
        begun = str(asked[-1]["content"]) if continues else ""
        found = self._answers(example, turns, whole, first, first, lost=lost, begun=begun)
        if found is None:
            return refused(example, "answers_not_found")
        edges = _edges_of(found, [at for at in spoken if first <= at <= last], wanted)
        return Texts(before, [whole], False, seen, [ended], [edges])

    def _teaches(self, turn: Message, row: int) -> bool:
        """Whether a turn of the assistant is trained: it is not empty, and its weight (1 or 0, as in OpenAI's
        fine-tuning format) is not 0.
        """
        weight = turn.get("weight", 1)
        if weight not in (0, 1):
            raise DatasetError(
                f"row {row}: a turn of the assistant has weight {weight!r}, but a turn is either trained (1) or "
                "context (0). Write 1 or 0, or remove the weight."
            )
        return bool(weight) and has_text([turn], self._marks)

    def _assemble(self, text: Texts, ids: list[list[int]]) -> Encoded:
        prompt = None if text.prompt is None else ids.pop(0)
        whole, *heads = ids
        if prompt and text.special_tokens and self._appends_eos:
            prompt = prompt[:-1]
        self._close(text, [whole])
        encoded = text.seen
        begin = 0 if prompt is None else spans.common(prompt, whole)
        (edges,) = text.edges([whole], heads)
        encoded.moved_boundary = prompt is not None and begin < len(prompt) and (not edges or edges[0] <= begin)
        edges = [max(begin, edges[0]), *edges[1:]] if edges else [begin, len(whole)]
        if any(at > then for at, then in pairwise(edges)):
            encoded.reason = "answers_not_found"  # tokens over which the text cannot be cut
            return encoded
        if begin == 0 and prompt is not None and self.start is not None:  # an empty prompt, as in preferences
            whole, edges = [self.start, *whole], [edge + 1 for edge in edges]
        length = max(1, edges[0])  # the first token of all needs no prediction
        encoded.prompt, encoded.completions = whole[:length], [whole[length:]]
        encoded.scored = [spans.after(length, edges)]
        if not all(encoded.scored):
            encoded.reason = "no_start_token" if len(whole) == 1 else "empty_completion"
        return encoded


def _edges_of(edges: Sequence[int], found: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """The edges of the trained turns, one pair of edges per turn."""
    if len(edges) != 2 * len(found):
        return list(edges)
    return [edge for at, both in zip(found, spans.pairs(edges), strict=True) if at in wanted for edge in both]
