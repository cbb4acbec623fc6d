"""Sources of answers for the two sides of an evaluation: a model on this machine, a model behind an address, or the
dataset's own answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from preftune.errors import RequestError
from preftune.generation.endpoint.budget import Estimate, guess_tokens
from preftune.generation.endpoint.parallel import in_parallel
from preftune.generation.finite_check import check_logits
from preftune.generation.protocol import Answer, Generator, Kept, Rows, Side, Take, Wanted, row_id
from preftune.generation.settings import SamplingSettings, generate_options, letters_of, messages_of, resolved
from preftune.generation.thoughts import Spoken, share_of_tokens
from preftune.types import Text

if TYPE_CHECKING:
    from preftune.generation.endpoint.client import Endpoint
    from preftune.generation.endpoint.replies import Reply
    from preftune.generation.lazy_model import ModelSource


_SEED_BITS = 31
"""Number of bits of a seed that servers accept."""


class TwoSides:
    """Both sides as a `PairGenerator` for `answer_rows`."""

    def __init__(self, base: Generator, aligned: Generator) -> None:
        self.sides: dict[Side, Generator] = {"base": base, "aligned": aligned}

    def __call__(self, side: Side, prompts: Sequence[Text], rows: Rows) -> list[Answer]:
        answers: dict[int, Answer] = {}
        self.stream(side, prompts, rows, answers.__setitem__)
        return [answers[number] for number in range(len(prompts))]

    def stream(self, side: Side, prompts: Sequence[Text], rows: Rows, take: Take) -> None:
        """Yields every answer as soon as it exists. The other side's weights are released, unless both sides share
        them.
        """
        asked, other = self.sides[side], self.sides["aligned" if side == "base" else "base"]
        if getattr(other, "source", None) is not getattr(asked, "source", asked):
            other.release()
        asked.answer(prompts, rows, take)

    def release(self) -> None:
        """Ends what both sides share."""

    def settings(self) -> dict[str, Any]:
        """Identity of the model; together with the sampling settings it determines which answers may be reused."""
        return {side: dict(answerer.identity()) for side, answerer in self.sides.items()}


def settings_of(row: Mapping[str, Any], settings: SamplingSettings) -> SamplingSettings:
    """The sampling settings of a row, which override the general settings."""
    own = row.get("sampling") or {}
    unknown = sorted(set(own) - set(asdict(settings)))
    if unknown:
        raise RequestError(f"A row's 'sampling' has {unknown[0]!r}. It takes {', '.join(asdict(settings))}.")
    return replace(settings, **own) if own else settings


def seed_of(seed: int, prompt: Text, row: Mapping[str, Any]) -> int:
    """A seed of 63 bits: the row's own, or one derived from the run's seed, the prompt and the row's id."""
    if "seed" in row:
        return int(row["seed"])
    text = json.dumps([seed, prompt, str(row.get("id"))], sort_keys=True, ensure_ascii=False, default=str)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def template_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the chat template for a row: `chat_template_kwargs`, and `tools`."""
    tools = {"tools": row["tools"]} if row.get("tools") else {}
    return {**(row.get("chat_template_kwargs") or {}), **tools}


def batches(
    lengths: Sequence[int], rows: Rows, settings: SamplingSettings, size: int
) -> Iterator[tuple[SamplingSettings, list[int]]]:
    """Prompts with the same sampling settings in batches of similar length, the longest first, so that a lack of memory
    shows at once.
    """
    groups: dict[SamplingSettings, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(settings_of(row, settings), []).append(number)
    for own, numbers in groups.items():
        numbers.sort(key=lambda number: -lengths[number])
        for start in range(0, len(numbers), size):
            yield own, numbers[start : start + size]


class OfSource:
    """The common part of the generators of a named model: its identity, and the release of its memory."""

    def __init__(
        self,
        source: ModelSource,
        settings: SamplingSettings,
        *,
        base: ModelSource | None = None,
        tokenizer: Callable[[], Any] | None = None,
        seed: int = 0,
    ) -> None:
        """
        Args:
            base: the base of the adapter `source`, when this side answers with the adapter off.
            tokenizer: default: the model's own.
        """
        self._own = base or source
        self.name = self._own.name
        self.source, self.adapter_off = source, base is not None
        self.tokenizer = tokenizer or (lambda: self._own.tokenizer)
        self.settings, self._seed = settings, seed

    def release(self) -> None:
        self.source.release()


class ModelAnswerer(OfSource):
    """A model of transformers, or the base of an adapter, which is the same loaded model."""

    def __init__(
        self, source: ModelSource, settings: SamplingSettings, *, batch_size: int = 16, raw: bool = False, **more: Any
    ) -> None:
        """
        Args:
            raw: return answers as the model writes them, with reasoning in the text; prompts are batched by length in
                tokens.
            more: arguments of `OfSource`.
        """
        if batch_size < 1:
            raise RequestError(f"--batch_size {batch_size}: give at least 1.")
        super().__init__(source, settings, **more)
        self._batch_size, self._raw = batch_size, raw

    def identity(self) -> Mapping[str, Any]:
        from preftune.generation.generate import end_ids

        # with its adapter off, a model still follows the generation config that the adapter brought
        used, own = self.source.generation_config, self._own.generation_config
        generation = resolved(self.settings, SimpleNamespace(generation_config=used), self.tokenizer())
        shaping = {name: value for name, value in generation.items() if not name.endswith("_id") and name[0] != "_"}
        ends = end_ids(used, self.tokenizer())
        if set(ends) != set(end_ids(own, self.tokenizer())):
            shaping["ends"] = sorted(ends)
        return {"identity": self._own.identity, "generation": shaping}

    def answer(self, prompts: Sequence[Text], rows: Rows, take: Take, wanted: Wanted = None) -> None:
        from preftune.generation.generate import baseline, generate

        model, tokenizer = self.source.model, self.tokenizer()
        token_ids = self._token_ids(prompts, rows)
        lengths = [len(ids) for ids in token_ids] if self._raw else [letters_of(prompt) for prompt in prompts]
        with baseline(model) if self.adapter_off else nullcontext():
            check_logits(model, min(token_ids, key=len))
            for settings, numbers in batches(lengths, rows, self.settings, self._batch_size):
                if wanted is not None and wanted.isdisjoint(numbers):
                    continue
                sampled = settings.temperature > 0
                answers = generate(
                    model,
                    tokenizer,
                    [prompts[n] for n in numbers],
                    batch_size=len(numbers),
                    seeds=[seed_of(self._seed, prompts[n], rows[n]) for n in numbers] if sampled else None,
                    chat_template_kwargs=[template_of(rows[n]) for n in numbers],
                    thoughts_apart=not self._raw,
                    **generate_options(settings, model),
                )
                for number, answer in zip(numbers, answers, strict=True):
                    take(number, answer)

    def batches_of(self, prompts: Sequence[Text], rows: Rows) -> list[list[int]]:
        """The numbers of the prompts in each of its batches, without loading the model."""
        from preftune.generation.encode_prompts import encode_prompts

        if self._raw:
            token_ids = encode_prompts(self.tokenizer(), prompts, [template_of(row) for row in rows])
            lengths = [len(ids) for ids in token_ids]
        else:
            lengths = [letters_of(prompt) for prompt in prompts]
        return [numbers for _, numbers in batches(lengths, rows, self.settings, self._batch_size)]

    def _token_ids(self, prompts: Sequence[Text], rows: Rows) -> list[list[int]]:
        """The prompts' token ids; a prompt that does not fit is reported before any work, by the row's id."""
        from preftune.generation.encode_prompts import check_fit, encode_prompts

        token_ids = encode_prompts(self.tokenizer(), prompts, [template_of(row) for row in rows])
        for settings, numbers in batches([0] * len(rows), rows, self.settings, len(rows)):
            ids, names = [token_ids[n] for n in numbers], [row_id(rows[n], n) for n in numbers]
            check_fit(self.source.model, ids, settings.max_new_tokens, names=names)
        return token_ids


class EndpointAnswerer:
    """A model behind an OpenAI-compatible address, with several calls at once."""

    def __init__(self, endpoint: Endpoint, settings: SamplingSettings, *, seed: int = 0, raw: bool = False) -> None:
        """
        Args:
            raw: return answers as the server sends them; reasoning in the text stays there.
        """
        self.endpoint, self.settings, self._seed, self._raw = endpoint, settings, seed, raw
        self.name = str(endpoint.name)

    def identity(self) -> Mapping[str, Any]:
        return {"model": self.name}

    def release(self) -> None:
        pass

    def estimate(self, prompts: Sequence[Text], rows: Rows) -> Estimate:
        """The maximum cost of these answers. Raises: RequestError if it exceeds a cap."""
        return self.endpoint.budget.estimate(
            calls=len(prompts),
            tokens_in=sum(guess_tokens(letters_of(prompt)) for prompt in prompts),
            tokens_out=sum(settings_of(row, self.settings).max_new_tokens for row in rows),
        )

    def answer(self, prompts: Sequence[Text], rows: Rows, take: Take, wanted: Wanted = None) -> None:
        """The answers in the order of the prompts."""
        for number, row in enumerate(rows):
            if row.get("tools"):
                raise RequestError(
                    f"Prompt {row.get('id', number)} has tools, and an endpoint does not return tool calls as text. "
                    "Use a model of transformers, or leave the column out with --columns tools=."
                )

        def ask(number: int) -> Reply:
            row, prompt = rows[number], prompts[number]
            settings = settings_of(row, self.settings)
            template = row.get("chat_template_kwargs")
            known_to_some = {"top_k": settings.top_k, "min_p": settings.min_p, "chat_template_kwargs": template}
            return self.endpoint.chat(
                messages_of(prompt),
                max_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
                top_p=settings.top_p,
                seed=seed_of(self._seed, prompt, row) >> (63 - _SEED_BITS),
                extra={name: value for name, value in known_to_some.items() if value is not None},
                about=f"for prompt {str(row.get('id', number))!r}",
            )

        in_parallel(
            ask,
            (number for number in range(len(prompts)) if wanted is None or number in wanted),
            workers=self.endpoint.conduct.concurrency,
            take=lambda number, reply: take(number, reply if self._raw else _answer_of(reply)),
        )


def _answer_of(reply: Reply) -> Kept:
    """A reply with its reasoning separated, and the answer's number of tokens, from the server's count or from the
    share of characters.
    """
    if not reply.thought:
        return Kept.of(reply)
    guess = reply.tokens - share_of_tokens(Spoken(reply.text, reply.thought), reply.thought + reply.text, reply.tokens)
    thought_tokens = min(reply.tokens, reply.thought_tokens or guess)
    return Kept(reply.text, reply.tokens - thought_tokens, reply.finished, reply.thought, thought_tokens)


class GivenAnswers:
    """The answers in the rows' column `given`: the chosen ones of held-out pairs."""

    name = "dataset"

    def __init__(self, count_tokens: Callable[[str], int] = lambda text: guess_tokens(len(text))) -> None:
        """
        Args:
            count_tokens: counts the tokens of an answer; by default estimated from its length.
        """
        self._count_tokens = count_tokens

    def identity(self) -> Mapping[str, Any]:
        return {"model": self.name}

    def release(self) -> None:
        pass

    def answer(self, prompts: Sequence[Text], rows: Rows, take: Take, wanted: Wanted = None) -> None:
        for number, row in enumerate(rows):
            text = str(row["given"])
            take(number, Kept.of(Kept(text, self._count_tokens(text), finished=True)))
