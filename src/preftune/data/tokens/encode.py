"""`PreferencePair` -> token ids of prompt, chosen and rejected, with the boundary where it belongs.

The prompt alone, prompt + chosen and prompt + rejected are tokenised each as one text (`prompt_once` spares what they
share); the prompt of the group is what all three begin with. So a merge across the boundary, or a chat template that
renders a prompt differently once an answer follows (think blocks, generation prompts), moves the boundary and never the
tokens. Nothing is looked up by pad or eos id, which may be one and the same.

Two conversations may part before the last answer. Then the assistant's turns after that are scored, and what others say
between them is context. Where such a turn begins and ends is decided as for the prompt: the text up to there is
tokenised alone, and the tokens that the whole begins with too are those before it. The first answer is looked for in
the same way where a template takes something out of the prompt's turns once an answer follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from preftune.data.chat.end_marks import EndMarks, appends_eos
from preftune.data.chat.messages import can_continue, common_turns, has_text, joined
from preftune.data.chat.tool_calls import rendered
from preftune.data.chat.unwritten import unwritten
from preftune.data.tokens import spans
from preftune.data.tokens.assistant_turns import (
    Renderer,
    answers_by_marks,
    answers_by_rendering,
    continuation,
    has_marks,
    loses_prompt,
    with_endings,
)
from preftune.data.tokens.shared_prefix import PromptOnce
from preftune.data.tokens.shorten import Shorten
from preftune.errors import DatasetError, TemplateLimitError
from preftune.types import Message, PreferencePair, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DIALOGUE_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '\n\n' + ('Human' if message['role'] == 'user' else message['role'] | capitalize) + ': ' }}"
    "{{ message['content'] | trim }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
"""A chat template for base models, which have none: the plain "Human: ... Assistant: ..." of hh-rlhf."""


@dataclass(slots=True)
class Encoded:
    """Token ids of one pair, or the reason why it has none."""

    row: int
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    reason: str | None = None
    """Why the pair cannot train: a key of `tokenize_report.REASONS`."""
    detail: str = ""
    moved: bool = False
    """The boundary is not at the end of the prompt as it is rendered alone."""
    eos_added: bool = False
    continues: bool = False
    """The answer continues a turn of the assistant that the prompt began."""
    several_turns: bool = False
    """A side holds turns that are not scored."""
    ends_cut: bool = False
    """An answer ended with the mark that the template writes."""
    typed_marks: bool = False
    """A text holds special tokens, which become control tokens."""
    unwritten: str = ""
    """What the chat template leaves out, one of `unwritten.PARTS`."""
    shortened: bool = False
    """A text was longer than the limits can need, and its middle was not tokenised."""
    chosen_scored: list[int] = field(default_factory=list)
    """Where the scored tokens of chosen begin and end, in turn."""
    rejected_scored: list[int] = field(default_factory=list)

    @property
    def identical(self) -> bool:
        """Both sides train the same; what follows the last scored token plays no part."""
        alike = self.chosen_scored == self.rejected_scored
        return alike and self.chosen[: self.chosen_scored[-1]] == self.rejected[: self.rejected_scored[-1]]


class _Texts(NamedTuple):
    """What is tokenised for one pair."""

    prompt: str
    chosen: str
    rejected: str
    special_tokens: bool
    """Whether the tokeniser adds its bos and eos; a chat template has already written them."""
    ended: tuple[bool, bool] = (True, True)
    """Whether each side's text ends with an end-of-turn mark."""
    continues: bool = False
    ends_cut: bool = False
    typed_marks: bool = False
    unwritten: str = ""
    answers: tuple[Sequence[int], Sequence[int]] = ((), ())
    """Where each side's turns of the assistant begin and end in its text, in turn, the last where the text does;
    empty for a single answer, which is all that follows the prompt."""

    @property
    def parts(self) -> list[str]:
        """All texts to tokenise: the prompt, the sides, and each side up to where an answer begins or ends."""
        sides = zip((self.chosen, self.rejected), self.answers, strict=True)
        return [self.prompt, self.chosen, self.rejected, *(side[:at] for side, edges in sides for at in edges[:-1])]


class Encoder:
    """Turns batches of pairs into token ids with one tokeniser."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, chat_template: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.eos: int | None = tokenizer.eos_token_id
        self.start: int | None = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else self.eos
        """Stands in front of an empty prompt."""
        self._appends_eos = appends_eos(tokenizer)
        added = getattr(tokenizer, "added_tokens_decoder", {})
        marks = {str(token.content) for token in added.values()} | {str(tokenizer.eos_token or "")}
        self._marks = tuple(mark for mark in marks if mark.strip())
        self.end_marks = EndMarks(tokenizer, chat_template)
        self._rendered_ids = PromptOnce(tokenizer, partial(self._ids, special_tokens=False))

    name = "the dataset"
    """As messages call the data."""
    shorten: Shorten | None = None
    """Takes the middle out of texts that are longer than any limit can need; None to tokenise them whole."""

    def encode(self, pairs: Sequence[PreferencePair]) -> list[Encoded]:
        """Token ids of the pairs, in order.

        Raises:
            DatasetError: conversations, and no chat template.
        """
        short = pairs if self.shorten is None else [self.shorten.pair(pair) for pair in pairs]
        texts: list[_Texts | Encoded] = [self._texts(pair) for pair in short]
        known = [(i, text) for i, text in enumerate(texts) if isinstance(text, _Texts)]
        plain = [(i, text.parts) for i, text in known if text.special_tokens]
        rendered = [(i, text.parts) for i, text in known if not text.special_tokens]
        flat = iter(self._ids([part for _, parts in plain for part in parts], special_tokens=True))
        ids = {i: [next(flat) for _ in parts] for i, parts in plain}
        shared = self._rendered_ids([parts for _, parts in rendered])
        ids |= {i: parts for (i, _), parts in zip(rendered, shared, strict=True)}
        encoded = [
            text if isinstance(text, Encoded) else self._assemble(pair.row, text, ids[i])
            for i, (pair, text) in enumerate(zip(pairs, texts, strict=True))
        ]
        for one, before, after in zip(encoded, pairs, short, strict=True):
            one.shortened = after is not before
        return encoded

    def _texts(self, pair: PreferencePair) -> _Texts | Encoded:
        return self._standard_texts(pair) if isinstance(pair.prompt, str) else self._conversation_texts(pair)

    def _blank(self, pair: PreferencePair) -> bool:
        return not (has_text(pair.chosen, self._marks) and has_text(pair.rejected, self._marks))

    def _standard_texts(self, pair: PreferencePair) -> _Texts | Encoded:
        if self._blank(pair):
            return _refused(pair, "empty_completion")
        prompt, *answers = cast("tuple[str, str, str]", (pair.prompt, pair.chosen, pair.rejected))
        eos = self.tokenizer.eos_token
        sides = []
        for side in answers:
            while eos and side.endswith(eos):
                side = side.removesuffix(eos)
            sides.append(side)
        typed = self.end_marks.inside([prompt, *sides])
        chosen, rejected = (prompt + side + ("" if self._appends_eos or not eos else str(eos)) for side in sides)
        return _Texts(prompt, chosen, rejected, special_tokens=True, typed_marks=typed)

    def _conversation_texts(self, pair: PreferencePair) -> _Texts | Encoded:
        given = cast("tuple[list[Message], ...]", (pair.prompt, pair.chosen, pair.rejected))
        prompt_turns, *sides = parts = [self.end_marks.without(turns) for turns in given]
        ends_cut = any(after is not before for after, before in zip(parts, given, strict=True))
        if not prompt_turns:
            return _refused(pair, "no_shared_prompt")
        if not all(sides):
            return _refused(pair, "empty_completion")
        if any(side[-1]["role"] != "assistant" for side in sides):
            return _refused(pair, "no_answer")
        if self._blank(pair):
            return _refused(pair, "empty_completion")
        continues = can_continue(prompt_turns[-1]) and all(can_continue(side[0]) for side in sides)
        answer = not continues and any(side[0]["role"] == "assistant" for side in sides)
        if not self._has_template():
            raise _no_template(pair, self.tokenizer)
        try:
            prompt = self._render(pair, prompt_turns, continues=continues, answer=answer)
            whole = [joined(prompt_turns, side, continues) for side in sides]
            full, no_calls = zip(*(self._rendered(pair, messages) for messages in whole), strict=True)
        except TemplateLimitError as error:
            raise TemplateLimitError(f"{self.name} row {pair.row}: {error}") from error
        except Exception as error:  # templates are programs: jinja's errors, and whatever their expressions raise
            return _refused(pair, "template_refused", " ".join(str(error).split()))
        if any(no_calls):
            return _refused(pair, "calls_not_written", f"not in the text: {' and '.join(filter(None, no_calls))}")
        first = len(prompt_turns) - continues
        parted = first + common_turns(*sides)
        lost = loses_prompt(full, prompt, prompt_turns[:first], self._renderer(pair))
        begun = prompt_turns[-1]["content"] if continues else ""
        chosen, rejected = (
            self._answers(pair, *side, first, parted, lost=lost, begun=begun) for side in zip(whole, full, strict=True)
        )
        if chosen is None or rejected is None:
            return _refused(pair, "answers_not_found")
        ended = (self._ends(full[0]), self._ends(full[1]))
        typed = self.end_marks.inside(parts)
        left_out = [unwritten(turns, text, range(parted, len(turns))) for turns, text in zip(whole, full, strict=True)]
        left = left_out[0] or left_out[1]
        return _Texts(prompt, full[0], full[1], False, ended, continues, ends_cut, typed, left, (chosen, rejected))

    def _answers(
        self,
        pair: PreferencePair,
        messages: list[Message],
        text: str,
        first: int,
        parted: int,
        *,
        lost: bool,
        begun: str,
    ) -> list[int] | None:
        """Where the turns of the assistant begin and end in a side's text; None if the template hides it.

        Args:
            first: number of the turn after the prompt.
            parted: number of the turn from which on the sides differ.
            lost: whether a side's text lacks something of the prompt's, which then does not tell where it ends.
            begun: what the prompt holds of the turn `first`.
        Returns: nothing at all for a single answer that follows the prompt.
        """
        last = len(messages) - 1
        if first == last and not lost:
            return []
        render = self._renderer(pair)
        wanted = [turn for turn in range(parted, last + 1) if messages[turn]["role"] == "assistant"]
        found = self._by_marks(pair, messages, text)
        if found is None:
            known = None if lost and not begun else first
            found = answers_by_rendering(text, messages, wanted, render, first=known, marks=self._marks)
        else:
            found = with_endings(text, found)
        if found is None:
            return None
        edges = [self._with_eos(text, at) if is_end else at for turn in wanted for is_end, at in enumerate(found[turn])]
        begin: int | None = edges[0]
        # The outermost are those of a single answer: the prompt's end, and the text's.
        if wanted[0] == first and not lost:
            begin = 0
        elif wanted[0] == first and begun:
            begin = continuation(text, messages, first, render, begun=begun)
        return None if begin is None else [begin, *edges[1:-1], len(text)]

    def _renderer(self, pair: PreferencePair) -> Renderer:
        def render(messages: list[Message], *, answer: bool = False) -> str:
            return self._render(pair, messages, answer=answer)

        return render

    def _by_marks(self, pair: PreferencePair, messages: list[Message], text: str) -> dict[int, Span] | None:
        """The turns of the assistant by number, as the template marks them; None if it does not mark them all."""
        return answers_by_marks(self._marked(pair, messages, text), messages)

    def _marked(self, pair: PreferencePair, messages: list[Message], text: str) -> list[Span]:
        """The characters that the template marks as the assistant's, if it has such marks."""
        if not hasattr(self.tokenizer, "get_chat_template"):
            return []
        tools = None if pair.tools is None else list(pair.tools)
        template = self.tokenizer.get_chat_template(self.chat_template, tools)
        if not has_marks(template):
            return []
        # The tokenizer's own return_assistant_tokens_mask counts a token that only begins in an answer as a part of it.
        from transformers.utils.chat_template_utils import render_jinja_template

        kwargs = {**self.tokenizer.special_tokens_map, **pair.chat_template_kwargs}
        outcome: Any = render_jinja_template(
            [messages], tools=tools, chat_template=template, return_assistant_tokens_mask=True, **kwargs
        )  # annotated as text, whatever is asked
        (rendered,), (marked,) = outcome
        return list(marked) if rendered == text else []

    def _with_eos(self, text: str, end: int) -> int:
        """The end of a turn, after the eos that a template writes only once another turn follows."""
        eos = str(self.tokenizer.eos_token or "")
        closed = self._ends(text[:end]) or eos == self.tokenizer.bos_token
        return end + len(eos) if eos and not closed and text.startswith(eos, end) else end

    def _render(self, pair: PreferencePair, messages: list[Message], **how: bool) -> str:
        return self._rendered(pair, messages, **how)[0]

    def _rendered(
        self, pair: PreferencePair, messages: list[Message], *, continues: bool = False, answer: bool = False
    ) -> tuple[str, str | None]:
        """The text, and the tool of a call that the template leaves out."""
        kwargs: Mapping[str, Any] = {"chat_template": self.chat_template, **pair.chat_template_kwargs}
        return rendered(
            self.tokenizer,
            messages,
            tools=None if pair.tools is None else list(pair.tools),
            add_generation_prompt=answer,
            continue_final_message=continues,
            **kwargs,
        )

    def _has_template(self) -> bool:
        return bool(self.chat_template or getattr(self.tokenizer, "chat_template", None))

    def _ends(self, text: str) -> bool:
        """Whether the template closes the last turn with a special token (eos, or its own end-of-turn mark)."""
        return text.rstrip().endswith(self._marks)

    def _ids(self, texts: list[str], *, special_tokens: bool) -> list[list[int]]:
        if not texts:
            return []
        encoding = self.tokenizer(
            texts,
            add_special_tokens=special_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # no word about the model's maximum: limits come later, and are told
        )
        return list(encoding["input_ids"])

    def _assemble(self, row: int, text: _Texts, ids: list[list[int]]) -> Encoded:
        prompt, chosen, rejected, *heads = ids
        sides = (chosen, rejected)
        if text.special_tokens and self._appends_eos:
            prompt = prompt[:-1]
        eos_added = False
        for side, ended in zip(sides, text.ended, strict=True):
            missing = side[-1:] != [self.eos] if text.special_tokens else not ended
            if missing and self.eos is not None:
                side.append(self.eos)
                eos_added |= not text.special_tokens
        edges = _edges(text, sides, heads)  # after eos was added, which belongs to the last answer
        length = min(spans.common(prompt, side) for side in sides)
        if edges[0] and edges[1]:  # what both sides say alike before the first answer belongs to the prompt
            length = max(length, min(spans.common(*sides), edges[0][0], edges[1][0]))
        scored = [spans.after(length, own or [length, len(side)]) for own, side in zip(edges, sides, strict=True)]
        encoded = Encoded(
            row,
            chosen[:length],
            chosen[length:],
            rejected[length:],
            moved=length < len(prompt),
            eos_added=eos_added,
            continues=text.continues,
            several_turns=any(own != [0, len(side) - length] for own, side in zip(scored, sides, strict=True)),
            ends_cut=text.ends_cut,
            typed_marks=text.typed_marks,
            unwritten=text.unwritten,
            chosen_scored=scored[0],
            rejected_scored=scored[1],
        )
        if not encoded.prompt:
            if self.start is None:
                encoded.reason = "no_start_token"
            else:
                encoded.prompt = [self.start]
        if any(at > then for own in edges for at, then in pairwise(own)):
            encoded.reason = "answers_not_found"  # tokens over which the text cannot be cut
        elif not all(scored):
            encoded.reason = "empty_completion"
        elif encoded.identical:
            encoded.reason = "identical"
        return encoded


def _edges(text: _Texts, sides: tuple[list[int], list[int]], heads: list[list[int]]) -> list[list[int]]:
    """Where each side's answers begin and end, in tokens of the whole side, as `_Texts.answers` is in characters.

    Args:
        heads: the ids of each side's text up to there, as in `_Texts.parts`.
    """
    edges: list[list[int]] = []
    for side, known in zip(sides, text.answers, strict=True):
        own, heads = heads[: len(known[:-1])], heads[len(known[:-1]) :]
        edges.append([*(spans.common(head, side) for head in own), len(side)] if known else [])
    return edges


def _refused(pair: PreferencePair, reason: str, detail: str = "") -> Encoded:
    return Encoded(pair.row, [], [], [], reason, detail)


def _no_template(pair: PreferencePair, tokenizer: PreTrainedTokenizerBase) -> DatasetError:
    model = getattr(tokenizer, "name_or_path", "") or "The tokenizer"
    return DatasetError(
        f"{model} has no chat template, and row {pair.row} is a conversation. Use an instruction-tuned model, set "
        "tokenizer.chat_template (preftune.data.DIALOGUE_TEMPLATE suits any base model), or give prompt, chosen and "
        "rejected as plain strings."
    )
