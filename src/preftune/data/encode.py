"""`PreferencePair` -> token ids of prompt, chosen and rejected, with the boundary where it belongs.

The prompt alone, prompt + chosen and prompt + rejected are tokenised each as one text; the prompt of the group is what
all three begin with. So a merge across the boundary, or a chat template that renders a prompt differently once an
answer follows (think blocks, generation prompts), moves the boundary and never the tokens. Nothing is looked up by pad
or eos id, which may be one and the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from preftune.errors import DatasetError
from preftune.types import Message, PreferencePair

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


class Encoder:
    """Turns batches of pairs into token ids with one tokeniser."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, chat_template: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.eos: int | None = tokenizer.eos_token_id
        self.start: int | None = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else self.eos
        """Stands in front of an empty prompt."""
        probe = self._ids(["a"], special_tokens=True)[0]
        self._appends_eos = self.eos is not None and len(probe) > 1 and probe[-1] == self.eos
        added = getattr(tokenizer, "added_tokens_decoder", {})
        marks = {str(token.content) for token in added.values()} | {str(tokenizer.eos_token or "")}
        self._marks = tuple(mark for mark in marks if mark.strip())

    def encode(self, pairs: Sequence[PreferencePair]) -> list[Encoded]:
        """Token ids of the pairs, in order.

        Raises:
            DatasetError: conversations, and no chat template.
        """
        texts: list[_Texts | Encoded] = [self._texts(pair) for pair in pairs]
        ids: dict[int, list[list[int]]] = {}
        for special_tokens in (False, True):
            alike = {
                i: text
                for i, text in enumerate(texts)
                if isinstance(text, _Texts) and text.special_tokens == special_tokens
            }
            flat = self._ids([part for text in alike.values() for part in text[:3]], special_tokens=special_tokens)
            ids |= {i: flat[3 * at : 3 * at + 3] for at, i in enumerate(alike)}
        return [
            text if isinstance(text, Encoded) else self._assemble(pair.row, text, ids[i])
            for i, (pair, text) in enumerate(zip(pairs, texts, strict=True))
        ]

    def _texts(self, pair: PreferencePair) -> _Texts | Encoded:
        blank = not (_has_text(pair.chosen, self._marks) and _has_text(pair.rejected, self._marks))
        if blank:
            return _refused(pair, "empty_completion")
        if isinstance(pair.prompt, str):
            return self._standard_texts(pair)
        return self._conversation_texts(pair)

    def _standard_texts(self, pair: PreferencePair) -> _Texts:
        prompt, *answers = cast("tuple[str, str, str]", (pair.prompt, pair.chosen, pair.rejected))
        eos = self.tokenizer.eos_token
        sides = []
        for side in answers:
            while eos and side.endswith(eos):
                side = side.removesuffix(eos)
            sides.append(prompt + side + ("" if self._appends_eos or not eos else str(eos)))
        return _Texts(prompt, sides[0], sides[1], special_tokens=True)

    def _conversation_texts(self, pair: PreferencePair) -> _Texts | Encoded:
        prompt_turns, *sides = cast("tuple[list[Message], ...]", (pair.prompt, pair.chosen, pair.rejected))
        if not prompt_turns:
            return _refused(pair, "no_shared_prompt")
        if any(side[-1]["role"] != "assistant" for side in sides):
            return _refused(pair, "no_answer")
        continues = _can_continue(prompt_turns[-1]) and all(_can_continue(side[0]) for side in sides)
        if not self._has_template():
            raise _no_template(pair, self.tokenizer)
        try:
            prompt = self._render(pair, prompt_turns, continues=continues, answer=not continues)
            full = [self._render(pair, _joined(prompt_turns, side, continues)) for side in sides]
        except Exception as error:  # templates are programs: jinja's errors, and whatever their expressions raise
            return _refused(pair, "template_refused", " ".join(str(error).split()))
        ended = (self._ends(full[0]), self._ends(full[1]))
        return _Texts(prompt, full[0], full[1], special_tokens=False, ended=ended, continues=continues)

    def _render(
        self,
        pair: PreferencePair,
        messages: list[Message],
        *,
        continues: bool = False,
        answer: bool = False,
    ) -> str:
        kwargs: Mapping[str, Any] = {"chat_template": self.chat_template, **pair.chat_template_kwargs}
        return str(
            self.tokenizer.apply_chat_template(
                messages,
                tools=None if pair.tools is None else list(pair.tools),
                add_generation_prompt=answer,
                continue_final_message=continues,
                tokenize=False,
                **kwargs,
            )
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
        prompt, *sides = ids
        if text.special_tokens and self._appends_eos:
            prompt = prompt[:-1]
        eos_added = False
        for side, ended in zip(sides, text.ended, strict=True):
            missing = side[-1:] != [self.eos] if text.special_tokens else not ended
            if missing and self.eos is not None:
                side.append(self.eos)
                eos_added |= not text.special_tokens
        length = min(_common(prompt, side) for side in sides)
        encoded = Encoded(
            row,
            prompt[:length],
            sides[0][length:],
            sides[1][length:],
            moved=length < len(prompt),
            eos_added=eos_added,
            continues=text.continues,
        )
        if not encoded.prompt:
            if self.start is None:
                encoded.reason = "no_start_token"
            else:
                encoded.prompt = [self.start]
        if not encoded.chosen or not encoded.rejected:
            encoded.reason = "empty_completion"
        elif encoded.chosen == encoded.rejected:
            encoded.reason = "identical"
        return encoded


def _refused(pair: PreferencePair, reason: str, detail: str = "") -> Encoded:
    return Encoded(pair.row, [], [], [], reason, detail)


def _no_template(pair: PreferencePair, tokenizer: PreTrainedTokenizerBase) -> DatasetError:
    model = getattr(tokenizer, "name_or_path", "") or "The tokenizer"
    return DatasetError(
        f"{model} has no chat template, and row {pair.row} is a conversation. Use an instruction-tuned model, set "
        "tokenizer.chat_template (preftune.data.DIALOGUE_TEMPLATE suits any base model), or give prompt, chosen and "
        "rejected as plain strings."
    )


def _has_text(side: str | list[Message], marks: Iterable[str]) -> bool:
    """Whether there is something to learn: text beyond white space and special tokens, or a tool call."""
    if isinstance(side, list):
        return any(_has_text(turn.get("content", ""), marks) or turn.get("tool_calls") for turn in side)
    if not side.strip():
        return False
    if len(side) < 200:  # text made of special tokens only is short; long texts need no second look
        for mark in marks:
            side = side.replace(mark, "")
    return bool(side.strip())


def _can_continue(turn: Message) -> bool:
    return turn["role"] == "assistant" and bool(turn.get("content")) and not turn.get("tool_calls")


def _joined(prompt: list[Message], side: list[Message], continues: bool) -> list[Message]:
    if not continues:
        return [*prompt, *side]
    begun = {**prompt[-1], **side[0], "content": prompt[-1]["content"] + side[0]["content"]}
    return [*prompt[:-1], begun, *side[1:]]


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning."""
    limit = min(len(left), len(right))
    if left[:limit] == right[:limit]:  # nearly always, and at the speed of C
        return limit
    return next(i for i in range(limit) if left[i] != right[i])
