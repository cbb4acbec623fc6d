"""`Example` -> token ids of a prompt and its completions, with the correct boundary.

The prompt alone and prompt + completion are each tokenised as one text (`shared_prefix` avoids tokenising the common
part twice); the prompt of the group is their common beginning. So a merge across the boundary, or a chat template that
renders a prompt differently once an answer follows (think blocks, generation prompts), moves the boundary but does not
change the tokens. Nothing is searched by pad or eos id, which may be equal.

Two conversations may diverge before the last answer. Then the assistant's turns after that point are scored, and the
other turns between them are context. The beginning and end of such a turn are found as for the prompt: the text up to
there is tokenised alone, and the tokens that the whole text also begins with precede the turn. The first answer is
found in the same way if a template removes part of the prompt's turns once an answer follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

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
from preftune.data.tokens.encoded import Encoded, Texts
from preftune.data.tokens.shared_prefix import PromptOnce
from preftune.data.tokens.shorten import Shorten
from preftune.errors import DatasetError, TemplateLimitError
from preftune.types import Example, Message, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DIALOGUE_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '\n\n' + ('Human' if message['role'] == 'user' else message['role'] | capitalize) + ': ' }}"
    "{{ message['content'] | trim }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
"""A chat template for base models without one: the plain "Human: ... Assistant: ..." of hh-rlhf."""


class Encoder:
    """Turns batches of examples into token ids with one tokeniser."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, chat_template: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.eos: int | None = tokenizer.eos_token_id
        self.start: int | None = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else self.eos
        """Token ids put before an empty prompt."""
        self._appends_eos = appends_eos(tokenizer)
        added = getattr(tokenizer, "added_tokens_decoder", {})
        marks = {str(token.content) for token in added.values()} | {str(tokenizer.eos_token or "")}
        self._marks = tuple(mark for mark in marks if mark.strip())
        self.end_marks = EndMarks(tokenizer, chat_template)
        self._rendered_ids = PromptOnce(tokenizer, partial(self._ids, special_tokens=False))

    name = "the dataset"
    """Name of the data in messages."""
    shorten: Shorten | None = None
    """Removes the middle of texts that are longer than any limit can need; None to tokenise them whole."""

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Token ids of the examples, in order.

        Raises:
            DatasetError: conversations without a chat template.
        """
        short = examples if self.shorten is None else [self.shorten.example(example) for example in examples]
        texts = [self._texts(example) for example in short]
        known = [text for text in texts if isinstance(text, Texts)]
        plain = [text.parts for text in known if text.special_tokens]
        flat = iter(self._ids([part for parts in plain for part in parts], special_tokens=True))
        of_plain = iter([[next(flat) for _ in parts] for parts in plain])
        of_rendered = iter(self._rendered_ids([text.parts for text in known if not text.special_tokens]))
        encoded = [
            text
            if isinstance(text, Encoded)
            else self._assemble(text, next(of_plain if text.special_tokens else of_rendered))
            for text in texts
        ]
        for one, before, after in zip(encoded, examples, short, strict=True):
            one.shortened = after is not before
        return encoded

    def _texts(self, example: Example) -> Texts | Encoded:
        if not isinstance(example.prompt, str):
            return self._conversation_texts(example)
        if self._blank(example):
            return refused(example, "empty_completion")
        prompt, *sides = cast("tuple[str, ...]", (example.prompt, *example.completions))
        return self._plain(example, prompt, sides)

    def _blank(self, example: Example) -> bool:
        return not all(has_text(side, self._marks) for side in example.completions)

    def _plain(self, example: Example, prompt: str | None, sides: Sequence[str]) -> Texts:
        """Tokenises plain texts, each with one eos at its end."""
        eos = str(self.tokenizer.eos_token or "")
        bare = []
        for side in sides:
            while eos and side.endswith(eos):
                side = side.removesuffix(eos)
            bare.append(side)
        typed = self.end_marks.inside([prompt or "", *bare])
        wholes = [(prompt or "") + side + ("" if self._appends_eos else eos) for side in bare]
        return Texts(prompt, wholes, True, Encoded(example.row, golden=example.golden, typed_marks=typed))

    def _conversation_texts(self, example: Example) -> Texts | Encoded:
        given = cast("tuple[list[Message], ...]", (example.prompt, *example.completions))
        prompt_turns, *sides = parts = [self.end_marks.without(turns) for turns in given]
        ends_cut = any(after is not before for after, before in zip(parts, given, strict=True))
        if not prompt_turns:
            return refused(example, "no_shared_prompt")
        if not all(sides):
            return refused(example, "empty_completion")
        if any(side[-1]["role"] != "assistant" for side in sides):
            return refused(example, "no_answer")
        if self._blank(example):
            return refused(example, "empty_completion")
        continues = can_continue(prompt_turns[-1]) and all(can_continue(side[0]) for side in sides)
        answer = not continues and any(side[0]["role"] == "assistant" for side in sides)
        self._require_template(example.row)
        try:
            prompt = self._render(example, prompt_turns, continues=continues, answer=answer)
            whole = [joined(prompt_turns, side, continues) for side in sides]
            full, no_calls = zip(*(self._rendered(example, messages) for messages in whole), strict=True)
        except TemplateLimitError as error:
            raise TemplateLimitError(f"{self.name} row {example.row}: {error}") from error
        except Exception as error:  # templates are programs: jinja's errors, and whatever their expressions raise
            return refused(example, "template_refused", " ".join(str(error).split()))
        if any(no_calls):
            return refused(example, "calls_not_written", f"not in the text: {' and '.join(filter(None, no_calls))}")
        first = len(prompt_turns) - continues
        parted = first + common_turns(*sides)
        lost = loses_prompt(full, prompt, prompt_turns[:first], self._renderer(example))
        begun = prompt_turns[-1]["content"] if continues else ""
        answers = [
            self._answers(example, *side, first, parted, lost=lost, begun=begun)
            for side in zip(whole, full, strict=True)
        ]
        found = [edges for edges in answers if edges is not None]
        if len(found) < len(answers):
            return refused(example, "answers_not_found")
        left_out = [unwritten(turns, text, range(parted, len(turns))) for turns, text in zip(whole, full, strict=True)]
        seen = Encoded(
            example.row,
            golden=example.golden,
            continued=continues,
            ends_cut=ends_cut,
            typed_marks=self.end_marks.inside(parts),
            unwritten=next(filter(None, left_out), ""),
        )
        return Texts(prompt, full, False, seen, [self._ends(text) for text in full], found)

    def _answers(
        self,
        example: Example,
        messages: list[Message],
        text: str,
        first: int,
        parted: int,
        *,
        lost: bool,
        begun: str,
    ) -> list[int] | None:
        """The beginnings and ends of the assistant's turns in a side's text; None if they cannot be found.

        Args:
            first: number of the turn after the prompt.
            parted: number of the first turn in which the sides differ.
            lost: whether a side's text lacks a part of the prompt, so that the end of the prompt is unknown.
            begun: the part of the turn `first` that is in the prompt.
        Returns: an empty result for a single answer that follows the prompt.
        """
        last = len(messages) - 1
        if first == last and not lost:
            return []
        render = self._renderer(example)
        wanted = [turn for turn in range(parted, last + 1) if messages[turn]["role"] == "assistant"]
        found = self._by_marks(example, messages, text)
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

    def _renderer(self, example: Example) -> Renderer:
        def render(messages: list[Message], *, answer: bool = False) -> str:
            return self._render(example, messages, answer=answer)

        return render

    def _by_marks(self, example: Example, messages: list[Message], text: str) -> dict[int, Span] | None:
        """The assistant's turns by number, from the template's marks; None if it does not mark all of them."""
        if not hasattr(self.tokenizer, "get_chat_template"):
            return None
        tools = None if example.tools is None else list(example.tools)
        template = self.tokenizer.get_chat_template(self.chat_template, tools)
        if not has_marks(template):
            return None
        # The tokenizer's own return_assistant_tokens_mask counts a token that only begins in an answer as a part of it.
        from transformers.utils.chat_template_utils import render_jinja_template

        kwargs = {**self.tokenizer.special_tokens_map, **example.chat_template_kwargs}
        outcome: Any = render_jinja_template(
            [messages], tools=tools, chat_template=template, return_assistant_tokens_mask=True, **kwargs
        )  # annotated as text, whatever is asked
        (rendered,), (marked,) = outcome
        return answers_by_marks(marked, messages) if rendered == text else None

    def _with_eos(self, text: str, end: int) -> int:
        """The end of a turn, including the eos that a template writes only once another turn follows."""
        eos = str(self.tokenizer.eos_token or "")
        closed = self._ends(text[:end]) or eos == self.tokenizer.bos_token
        return end + len(eos) if eos and not closed and text.startswith(eos, end) else end

    def _render(self, example: Example, messages: list[Message], **how: bool) -> str:
        return self._rendered(example, messages, **how)[0]

    def _rendered(
        self, example: Example, messages: list[Message], *, continues: bool = False, answer: bool = False
    ) -> tuple[str, str | None]:
        """The text, and the tool of a call that the template omits."""
        kwargs: Mapping[str, Any] = {"chat_template": self.chat_template, **example.chat_template_kwargs}
        return rendered(
            self.tokenizer,
            messages,
            tools=None if example.tools is None else list(example.tools),
            add_generation_prompt=answer,
            continue_final_message=continues,
            **kwargs,
        )

    def _require_template(self, row: int) -> None:
        if not (self.chat_template or getattr(self.tokenizer, "chat_template", None)):
            model = getattr(self.tokenizer, "name_or_path", "") or "The tokenizer"
            raise DatasetError(
                f"{model} has no chat template, but row {row} is a conversation. Use an instruction-tuned model, give "
                "a template with --chat_template_path FILE (in Python tokenizer.chat_template; "
                "preftune.data.DIALOGUE_TEMPLATE suits any base model), or give plain prompts and answers."
            )

    def _ends(self, text: str) -> bool:
        """Whether the template ends the last turn with a special token (eos, or its own end-of-turn mark)."""
        return text.rstrip().endswith(self._marks)

    def _ids(self, texts: list[str], *, special_tokens: bool) -> list[list[int]]:
        if not texts:
            return []
        distinct = list(dict.fromkeys(texts))  # pairs of one prompt share it, and their completions
        encoding = self.tokenizer(
            distinct,
            add_special_tokens=special_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # no warning about the model's maximum: limits come later, and are reported
        )
        ids = dict(zip(distinct, encoding["input_ids"], strict=True))
        return [list(ids[text]) for text in texts]

    def _close(self, text: Texts, wholes: Sequence[list[int]]) -> None:
        """Adds the end-of-sequence token if a text does not end with a special token."""
        ended = text.ended or [whole[-1:] == [self.eos] for whole in wholes]
        for whole, closed in zip(wholes, ended, strict=True):
            if not closed and self.eos is not None:
                whole.append(self.eos)
                text.seen.eos_added |= not text.special_tokens

    def _assemble(self, text: Texts, ids: list[list[int]]) -> Encoded:
        prompt, wholes, heads = ids[0], ids[1 : 1 + len(text.wholes)], ids[1 + len(text.wholes) :]
        if text.special_tokens and self._appends_eos:
            prompt = prompt[:-1]
        self._close(text, wholes)
        edges = text.edges(wholes, heads)
        length = min(spans.common(prompt, whole) for whole in wholes)
        if all(edges):  # what all completions say alike before the first answer belongs to the prompt
            alike = min(spans.common(wholes[0], whole) for whole in wholes)
            length = max(length, min(alike, *(own[0] for own in edges)))
        encoded = text.seen
        encoded.prompt, encoded.completions = wholes[0][:length], [whole[length:] for whole in wholes]
        encoded.scored = [
            spans.after(length, own or [length, len(whole)]) for own, whole in zip(edges, wholes, strict=True)
        ]
        encoded.moved_boundary = length < len(prompt)
        whole_answers = [[0, len(completion)] for completion in encoded.completions]
        encoded.several_turns = encoded.scored != whole_answers
        if not encoded.prompt:
            if self.start is None:
                encoded.reason = "no_start_token"
            else:
                encoded.prompt = [self.start]
        if any(at > then for own in edges for at, then in pairwise(own)):
            encoded.reason = "answers_not_found"  # tokens over which the text cannot be cut
        elif not all(encoded.scored):
            encoded.reason = "empty_completion"
        elif encoded.identical:
            encoded.reason = "identical"
        return encoded


def refused(example: Example, reason: str, detail: str = "") -> Encoded:
    """An example that cannot be trained."""
    return Encoded(example.row, reason=reason, detail=detail)
