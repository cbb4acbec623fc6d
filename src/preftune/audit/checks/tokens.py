"""Checks of tokenised rows: what the tokenizer and its chat template leave out, refuse or add."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from preftune.audit.checks.check import Check, Setting
from preftune.audit.finding import Finding, Kind
from preftune.audit.seen import SeenPair
from preftune.data.chat.unwritten import SYSTEM_PROMPT
from preftune.data.tokens.reasons import REASONS

NO_TEMPLATE = Kind(
    "no_chat_template",
    "error",
    "Conversations, and a tokenizer without a chat template",
    "preftune dpo cannot write these rows as text and stops.",
    "Use an instruction-tuned model, or set tokenizer.chat_template = preftune.data.DIALOGUE_TEMPLATE.",
)
REFUSED = Kind(
    "template_refused",
    "error",
    "Conversations that the chat template refuses",
    "preftune dpo leaves the row out.",
    "Reorder the turns as the template's message asks.",
)
LEFT_OUT = Kind(
    "left_out_by_tokenizing",
    "error",
    "Pairs that cannot be trained on after tokenising",
    "preftune dpo leaves the row out.",
    "The counts below say what is wrong, and how to fix it.",
)
DROPPED_SYSTEM = Kind(
    "system_prompt_dropped",
    "error",
    "System prompts that the chat template leaves out",
    "The model is trained, and will be used, without the instructions that the answers were written for.",
    "Write the system prompt into the first turn of the user, or use a model whose template has one.",
)
UNWRITTEN = Kind(
    "text_not_written",
    "error",
    "Text that the chat template leaves out",
    "The model is trained without it: on an answer without its reasoning, or on another question.",
    "Use a template that writes it (--chat_template_path FILE), or change the rows.",
)
PLAIN_TEXT = Kind(
    "plain_text_for_chat_model",
    "warning",
    "Plain text, and a tokenizer with a chat template",
    "The rows are tokenised without the turns that a chat model expects.",
    "preftune dpo --as_chat makes conversations of them.",
)
NO_EOS = Kind(
    "no_eos",
    "warning",
    "The tokenizer has no end-of-sequence token",
    "The end of an answer is not trained: the model may not learn to stop.",
    "Set tokenizer.eos_token and save the tokenizer.",
)
EOS_ADDED = Kind(
    "eos_missing",
    "info",
    "Answers that the chat template does not end",
    "Without an end-of-sequence token the model does not learn to stop; preftune appends it, other trainers may not.",
    "No action is needed for preftune; for other trainers correct the chat template.",
)
BOUNDARY = Kind(
    "boundary_moved",
    "info",
    "Prompts that are tokenised differently once an answer follows",
    "The answer is trained from the token where they part.",
    "No action is needed; prompts that end in white space are the usual cause.",
)


class TokensCheck(Check):
    """Checks the tokens of each pair; needs a tokenizer."""

    kinds = (NO_TEMPLATE, REFUSED, LEFT_OUT, DROPPED_SYSTEM, UNWRITTEN, PLAIN_TEXT, NO_EOS, EOS_ADDED, BOUNDARY)

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.words = ""
        self.reasons: Counter[str] = Counter()
        """Key of `REASONS` -> number of pairs that no other check reports."""
        self.verdicts: dict[int, bool] = {}
        """Hash of a system prompt -> whether the template writes it."""

    @classmethod
    def applies(cls, setting: Setting) -> bool:
        return setting.encoder is not None

    @property
    def tokenizer(self) -> Any:
        assert self.setting.encoder is not None
        return self.setting.encoder.tokenizer

    def take(self, seen: SeenPair) -> None:
        has_template = bool(getattr(self.tokenizer, "chat_template", None))
        if isinstance(seen.pair.prompt, str):
            if has_template:
                self.add(PLAIN_TEXT, seen)
        elif not has_template:
            self.add(NO_TEMPLATE, seen)
        elif self._drops_system(seen):
            self.add(DROPPED_SYSTEM, seen)
        encoded = seen.encoded
        if encoded is None:
            return
        if encoded.reason == "template_refused":
            self.words = self.words or encoded.detail
            self.add(REFUSED, seen, encoded.detail[:200])
        elif encoded.reason is not None:
            if not _is_reported(seen, encoded.reason):
                self.add(LEFT_OUT, seen, REASONS[encoded.reason][0])
                self.reasons[encoded.reason] += 1
        else:
            if encoded.eos_added:
                self.add(EOS_ADDED, seen)
            if encoded.moved_boundary:
                self.add(BOUNDARY, seen)
            if encoded.unwritten and encoded.unwritten != SYSTEM_PROMPT:
                self.add(UNWRITTEN, seen, encoded.unwritten)

    def _drops_system(self, seen: SeenPair) -> bool:
        """Whether the rendered prompt and answer lack the prompt's system turn.

        They are rendered together, because some templates write the system turn only before the last user turn, and
        leave it out once an answer follows.
        """
        prompt = seen.pair.prompt
        assert isinstance(prompt, list)
        system = next((turn for turn in prompt if turn["role"] in ("system", "developer")), None)
        content = str(system.get("content") or "").strip() if system is not None else ""
        if not content:
            return False
        key = hash(content)
        if key not in self.verdicts:
            user, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}
            try:
                text = self.tokenizer.apply_chat_template(
                    [system, user, answer], tokenize=False, **seen.pair.chat_template_kwargs
                )
            except Exception:  # the row itself is reported if the template refuses it
                text = content
            self.verdicts[key] = content not in str(text)
        return self.verdicts[key]

    def findings(self, pairs: int) -> Iterator[Finding]:
        if self.tokenizer.eos_token_id is None:
            self.rows[NO_EOS].count = pairs
        yield from super().findings(pairs)

    def details(self, kind: Kind) -> Mapping[str, Any]:
        if kind is LEFT_OUT:
            reasons = self.reasons.most_common()
            explained = " ".join(f"{count:,}: {REASONS[key][0]}. {REASONS[key][1]}" for key, count in reasons)
            return {"detail": explained, **self.reasons}
        return {"detail": self.words} if kind is REFUSED else {}


def _is_reported(seen: SeenPair, reason: str) -> bool:
    """Whether another check has a finding for pairs that tokenising leaves out for this reason."""
    if reason == "empty_completion":
        return seen.blank
    if reason == "identical":
        return not seen.usable
    return reason in ("no_answer", "no_shared_prompt")
