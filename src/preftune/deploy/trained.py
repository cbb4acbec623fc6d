"""The trained model and its base as references: their answers and scores, computed once for several artefacts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from preftune.deploy.served import Scores, ServedModel, pair_of
from preftune.errors import RequestError
from preftune.generation.protocol import Kept
from preftune.storage.run_directory import run_facts
from preftune.types import PreferencePair, Text, TokenizedGroup


@dataclass(frozen=True, slots=True)
class Questions:
    """What all models are asked."""

    prompts: list[Text]
    pairs: list[PreferencePair]
    """The same prompts with two answers; empty: the answers of the trained model and of its base are the pairs."""
    max_new_tokens: int = 64
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Per prompt the columns of the data, which a judge may read (`key_fact`); empty without data."""


def questions_of(data: str | None, *, limit: int = 16, max_new_tokens: int = 64, **reading: Any) -> Questions:
    """The prompts and pairs of a dataset, spread evenly over it; without one, preftune's own prompts.

    Args:
        reading: options of `load_pairs`: `split`, `columns`, `format`.
    """
    from preftune.data import load_pairs
    from preftune.generation.own_prompts import own_prompts

    if limit < 1:
        raise RequestError(f"--limit {limit}: give at least 1 prompt.")
    if data is None:
        return Questions([prompt.prompt for prompt in own_prompts(limit).prompts], [], max_new_tokens)
    rows = load_pairs(data, **reading)
    count = min(limit, len(rows))
    pairs = [rows[index * len(rows) // count] for index in range(count)]
    raw = [rows.raw[pair.row] for pair in pairs]
    columns = [{name: value for name, value in row.items() if value is not None} for row in raw]
    return Questions([pair.prompt for pair in pairs], pairs, max_new_tokens, columns)


@dataclass(frozen=True, slots=True)
class Answers:
    """What the trained model and its base answer, and how both score the compared groups."""

    run: list[Kept]
    base: list[Kept]
    groups: list[TokenizedGroup]
    run_scores: Scores
    base_scores: Scores


class Trained:
    """The trained model and its base. Each is loaded when it is needed and released when it has answered."""

    def __init__(
        self,
        run: str,
        questions: Questions | None = None,
        *,
        base_model: str | None = None,
        dtype: str = "float32",
        trust_remote_code: bool = False,
    ) -> None:
        """
        Args:
            base_model: used instead of the base that the run names.
            dtype: of the computation with transformers; float32 shows the weights without the rounding of a
                computation.
        """
        self.questions = questions or questions_of(None)
        self.base_model = base_model
        self.options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code}
        self.run = ServedModel(run, base_model=base_model, **self.options)

    @cached_property
    def prompt_ids(self) -> list[list[int]]:
        return self.run.prompt_ids(self.questions.prompts)

    @cached_property
    def answers(self) -> Answers:
        """Raises: RequestError if the run does not name its base."""
        prompts, limit = self.questions.prompts, self.questions.max_new_tokens
        base = ServedModel(self.base_name(), **self.options)
        run_answers = self.run.answers(prompts, limit)
        self.run.close()
        base_answers = base.answers(prompts, limit)
        groups = self._groups(run_answers, base_answers)
        base_scores = base.scores(groups)
        base.close()
        scores = self.run.scores(groups)
        self.run.close()
        return Answers(run_answers, base_answers, groups, scores, base_scores)

    def base_name(self) -> str:
        """The base that the run names. Raises: RequestError if it names none."""
        if self.base_model is not None:
            return self.base_model
        if self.run.source.is_adapter:
            return self.run.source.base_name
        name = str(run_facts(self.run.name, "model").get("name") or "")
        if not name:
            raise RequestError(
                f"{self.run.name} does not say what it was trained from. Give it with --base MODEL; "
                "preftune export also exports without a comparison (--no_verify)."
            )
        return name

    def gaps(self, served: Sequence[Kept]) -> dict[int, float]:
        """By prompt whose served answer differs: how much likelier, in nats, the trained model's token is than the
        served one at the first place where they differ. A gap near 0 is a tie, which rounding decides.
        """
        places, groups = [], []
        for number, (own, other) in enumerate(zip(self.answers.run, served, strict=True)):
            if own.text == other.text and own.finished == other.finished:
                continue
            one, two = self._ids_of(own), self._ids_of(other)
            at = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), None)
            if at is not None:
                places.append(number)
                groups.append(pair_of([*self.prompt_ids[number], *one[:at]], one[at : at + 1], two[at : at + 1]))
        return {} if not groups else {n: a - b for n, (a, b) in zip(places, self.run.scores(groups), strict=True)}

    def _groups(self, mine: list[Kept], theirs: list[Kept]) -> list[TokenizedGroup]:
        """The pairs, or the answers of the trained model and its base with the token that ends them. Where both answer
        the same, the other side is the trained model's answer to another prompt.
        """
        if self.questions.pairs:
            from preftune.data.tokens.encode import DIALOGUE_TEMPLATE, Encoder

            tokenizer = self.run.tokenizer
            encoder = Encoder(tokenizer, chat_template=None if tokenizer.chat_template else DIALOGUE_TEMPLATE)
            examples = [pair.example for pair in self.questions.pairs]
            encoded = encoder.encode(examples)
            return [one.group(example) for one, example in zip(encoded, examples, strict=True) if one.reason is None]
        groups = []
        for number, (ids, own, other) in enumerate(zip(self.prompt_ids, mine, theirs, strict=True)):
            chosen = self._ids_of(own)
            candidates = (self._ids_of(answer) for answer in (other, *mine[number + 1 :], *mine[:number]))
            rejected = next((found for found in candidates if found and found != chosen), None)
            if chosen and rejected:
                groups.append(pair_of(ids, chosen, rejected))
        return groups

    def _ids_of(self, answer: Kept) -> list[int]:
        """The token ids of an answer, with the token that ended it."""
        from preftune.data.chat.end_marks import closing_token

        end = closing_token(self.run.tokenizer) if answer.finished else None
        return self.run.text_ids([answer.text])[0] + ([] if end is None else [end])
