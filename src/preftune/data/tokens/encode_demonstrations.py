"""`Demonstration` -> token ids and which of them are trained.

Boundaries are those of `encode`: what the prompt, and the text up to where an answer begins or ends, are tokenised to
alone, as far as the whole begins with the same. So the ids of a row are those of its whole text, whatever is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, cast

from preftune.data.chat.messages import can_continue, has_text, joined
from preftune.data.chat.unwritten import unwritten
from preftune.data.formats.demonstrations import Demonstration
from preftune.data.tokens import spans
from preftune.data.tokens.assistant_turns import loses_prompt
from preftune.data.tokens.encode import Encoder
from preftune.errors import ConfigError, DatasetError, TemplateLimitError
from preftune.types import Message, PreferencePair


@dataclass(slots=True)
class EncodedDemonstration:
    """Token ids of one row, or the reason why it has none."""

    row: int
    ids: list[int] = field(default_factory=list)
    scored: list[int] = field(default_factory=list)
    """Where the trained tokens begin and end, in turn; the first begins at 1 or later."""
    reason: str | None = None
    detail: str = ""
    turns: int = 0
    moved: bool = False
    eos_added: bool = False
    trimmed: bool = False
    first_turn: bool = False
    context: bool = False
    ends_cut: bool = False
    typed_marks: bool = False
    unwritten: str = ""
    shortened: bool = False


@dataclass(frozen=True, slots=True)
class Covered:
    """Which part of a demonstration the loss covers; names and defaults of the parts are TRL's, but for one.

    TRL trains on what users say unless it is told otherwise. Here a conversation's default is its assistant's turns.
    """

    completion_only: bool | None = None
    """What follows the prompt (True; None where there is a prompt), or everything."""
    assistant_only: bool | None = None
    """In conversations, the assistant's turns alone (True or None)."""

    def check(self, demonstration: Demonstration) -> None:
        """Raises: ConfigError, if the data are not such that this can be asked of them."""
        if self.completion_only and demonstration.prompt is None:
            cure = "assistant_only_loss=True" if demonstration.is_chat else "--columns prompt=... completion=..."
            raise ConfigError(
                f"completion_only_loss=True, but row {demonstration.row} is a whole "
                f"{'conversation' if demonstration.is_chat else 'text'}, which nothing parts into prompt and "
                f"completion. Leave it out, or use {cure}."
            )
        if self.assistant_only and not demonstration.is_chat:
            raise ConfigError(
                f"assistant_only_loss=True, but row {demonstration.row} is plain text and has no turns. Leave it out, "
                "or read the data as conversations (--as_chat, load_demonstrations(...).as_chat())."
            )


class _Texts(NamedTuple):
    """What is tokenised for one row."""

    whole: str
    heads: tuple[str, ...]
    """Texts up to where something begins or ends: the prompt first, if there is one."""
    special_tokens: bool
    """Whether the tokeniser adds its bos and eos."""
    edges: tuple[int, ...] = ()
    """Where the assistant's turns begin and end in the text; empty for a single part from the prompt to the end."""
    ended: bool = True
    turns: int = 0
    trimmed: bool = False
    first_turn: bool = False
    context: bool = False
    ends_cut: bool = False
    typed_marks: bool = False
    unwritten: str = ""


class DemonstrationEncoder(Encoder):
    """Turns batches of demonstrations into token ids with one tokeniser."""

    covered = Covered()

    def encode_demonstrations(self, batch: Sequence[Demonstration]) -> list[EncodedDemonstration]:
        """Token ids of the rows, in order.

        Raises:
            ConfigError: something is asked of the data that they do not have.
            DatasetError: conversations, and no chat template.
        """
        short = batch if self.shorten is None else [self.shorten.demonstration(row) for row in batch]
        texts = [self._texts_of(demonstration) for demonstration in short]
        ids: dict[int, list[list[int]]] = {}
        for special in (True, False):
            places = [
                at for at, text in enumerate(texts) if isinstance(text, _Texts) and text.special_tokens is special
            ]
            parts = [[text.whole, *text.heads] for at in places if isinstance(text := texts[at], _Texts)]
            flat = iter(self._ids([part for row in parts for part in row], special_tokens=special))
            for at, row in zip(places, parts, strict=True):
                ids[at] = [next(flat) for _ in row]
        encoded = [
            text if isinstance(text, EncodedDemonstration) else self._assembled(row, text, ids[at])
            for at, (row, text) in enumerate(zip(batch, texts, strict=True))
        ]
        for one, before, after in zip(encoded, batch, short, strict=True):
            one.shortened = after is not before
        return encoded

    def _texts_of(self, demonstration: Demonstration) -> _Texts | EncodedDemonstration:
        self.covered.check(demonstration)
        if not has_text(demonstration.completion, self._marks):
            turns = demonstration.completion
            silent = isinstance(turns, list) and not any(turn["role"] == "assistant" for turn in turns)
            return EncodedDemonstration(demonstration.row, reason="no_answer" if silent else "empty_completion")
        if demonstration.is_chat:
            return self._conversation(demonstration)
        prompt, completion = cast("tuple[str | None, str]", (demonstration.prompt, demonstration.completion))
        eos = str(self.tokenizer.eos_token or "")
        while eos and completion.endswith(eos):
            completion = completion.removesuffix(eos)
        whole = (prompt or "") + completion + ("" if self._appends_eos else eos)
        alone = prompt is None or self.covered.completion_only is False
        typed = self.end_marks.inside([prompt or "", completion])
        heads = () if alone else (cast("str", prompt),)
        return _Texts(whole, heads, special_tokens=True, typed_marks=typed)

    def _conversation(self, demonstration: Demonstration) -> _Texts | EncodedDemonstration:
        row, given = demonstration.row, cast("list[Message]", demonstration.completion)
        asked_before = cast("list[Message] | None", demonstration.prompt) or []
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
            reason = "no_answer" if not spoken else "empty_completion" if context else "no_question"
            return EncodedDemonstration(row, reason=reason)
        last = spoken[-1] if whole_completion else wanted[-1]
        trimmed, turns = last < len(turns) - 1, turns[: last + 1]
        options, tools = demonstration.chat_template_kwargs, demonstration.tools
        pair = PreferencePair(prompt, completion, completion, chat_template_kwargs=options, tools=tools, row=row)
        self._require_template(row)
        first = wanted[0]
        asked = prompt if prompt and (continues or whole_completion) else turns[:first]
        try:
            header = not continues and turns[len(asked)]["role"] == "assistant"
            before = self._render(pair, asked, continues=continues, answer=header)
            whole, no_calls = self._rendered(pair, turns)
        except TemplateLimitError as error:
            raise TemplateLimitError(f"{self.name} row {row}: {error}") from error
        except Exception as error:  # templates are programs: jinja's errors, and whatever their expressions raise
            return EncodedDemonstration(row, reason="template_refused", detail=" ".join(str(error).split()))
        if no_calls:
            return EncodedDemonstration(row, reason="calls_not_written", detail=f"not in the text: {no_calls}")
        facts: dict[str, Any] = {
            "ended": self._ends(whole),
            "turns": len(wanted),
            "trimmed": trimmed,
            "first_turn": first_turn,
            "context": context,
            "ends_cut": completion is not given or prompt is not asked_before,
            "typed_marks": self.end_marks.inside([prompt, completion]),
            "unwritten": unwritten(turns, whole, wanted),
        }
        if whole_completion:
            alone = demonstration.prompt is None or self.covered.completion_only is False
            return _Texts(whole, () if alone else (before,), False, **facts)
        if (marked := self._by_marks(pair, turns, whole)) is not None:  # as the template has them, to the letter
            places = [edge for at in wanted for edge in marked[at]]
            facts["ended"] = facts["ended"] or places[-1] < len(whole)
            return _Texts(whole, (before, *(whole[:at] for at in places)), False, tuple(places), **facts)
        lost = loses_prompt([whole], before, asked[: len(asked) - continues], self._renderer(pair))
        begun = str(asked[-1]["content"]) if continues else ""
        edges = self._answers(pair, turns, whole, first, first, lost=lost, begun=begun)
        if edges is None:
            return EncodedDemonstration(row, reason="answers_not_found")
        found = [at for at in spoken if first <= at <= last]
        edges = _edges_of(edges, found, wanted)
        heads = (before, *(whole[:at] for at in edges[:-1]))
        return _Texts(whole, heads, False, tuple(edges), **facts)

    def _require_template(self, row: int) -> None:
        if not self._has_template():
            raise DatasetError(
                f"The tokenizer has no chat template, and row {row} is a conversation. Give one with "
                "--chat_template_path FILE, in Python tokenizer.chat_template (preftune.data.DIALOGUE_TEMPLATE suits "
                "any base model), or give plain prompts and completions."
            )

    def _teaches(self, turn: Message, row: int) -> bool:
        """Whether a turn of the assistant is to be learned: it says something, and its weight (1 or 0, as OpenAI's
        format of fine-tuning has it) is not 0.
        """
        weight = turn.get("weight", 1)
        if weight not in (0, 1):
            raise DatasetError(
                f"row {row}: a turn of the assistant has weight {weight!r}, and a turn is trained (1) or context (0). "
                "Write 1 or 0, or take the weight out of the turns."
            )
        return bool(weight) and has_text([turn], self._marks)

    def _assembled(self, demonstration: Demonstration, text: _Texts, ids: list[list[int]]) -> EncodedDemonstration:
        whole, *heads = ids
        if text.special_tokens and self._appends_eos:
            heads = [head[:-1] for head in heads]
        encoded = EncodedDemonstration(
            demonstration.row,
            turns=text.turns,
            trimmed=text.trimmed,
            first_turn=text.first_turn,
            context=text.context,
            ends_cut=text.ends_cut,
            typed_marks=text.typed_marks,
            unwritten=text.unwritten,
        )
        missing = whole[-1:] != [self.eos] if text.special_tokens else not text.ended
        if missing and self.eos is not None:
            whole.append(self.eos)
            encoded.eos_added = not text.special_tokens
        begin = spans.common(heads[0], whole) if heads else 0
        edges = [spans.common(head, whole) for head in heads[1:]] if text.edges else [begin]
        if not text.edges or text.edges[-1] == len(
            text.whole
        ):  # ends where the text does, with the eos that it is given
            edges = [*edges[: max(1, len(text.edges) - 1)], len(whole)]
        encoded.moved = bool(heads) and begin < len(heads[0]) and (not text.edges or edges[0] <= begin)
        edges[0] = max(begin, edges[0]) if text.edges else begin
        if any(at > then for at, then in pairwise(edges)):
            encoded.reason = "answers_not_found"  # tokens over which the text cannot be cut
            return encoded
        if begin == 0 and heads and self.start is not None:  # an empty prompt, as in preferences
            whole, edges = [self.start, *whole], [edge + 1 for edge in edges]
        # the first token of all needs no prediction
        encoded.ids = whole
        encoded.scored = [edge + 1 for edge in spans.after(1, edges)]
        if not encoded.scored:
            encoded.reason = "no_start_token" if len(whole) == 1 else "empty_completion"
        return encoded


def _edges_of(edges: Sequence[int], found: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """The edges of the turns that are trained, where each of several turns has a pair of edges."""
    if len(edges) != 2 * len(found):
        return list(edges)
    return [edge for at, both in zip(found, spans.pairs(edges), strict=True) if at in wanted for edge in both]
