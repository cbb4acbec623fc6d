"""Sends questions to a chat model, behind an address or on this machine; no reply is paid for twice.

Replies are kept as text under (model, kind, conversation), so a reader that has become cleverer needs no new call. The
judge of two answers (`preftune.judges.pairwise_llm`) and the suites ask through this.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from preftune.amounts import counted
from preftune.errors import ModelError, RequestError
from preftune.generation.backends import ModelAnswerer
from preftune.generation.endpoint.budget import Estimate, guess_tokens
from preftune.generation.endpoint.parallel import in_parallel
from preftune.generation.endpoint.replies import without_system
from preftune.generation.settings import SamplingSettings, letters_of
from preftune.generation.thoughts import split_thoughts
from preftune.judges.cache import VerdictCache, verdict_key
from preftune.judges.protocol import Progress
from preftune.models.positions import check_token_ids
from preftune.types import Message, Text

if TYPE_CHECKING:
    from preftune.generation.endpoint.client import Endpoint
    from preftune.generation.lazy_model import ModelSource

T = TypeVar("T")
Conversation: TypeAlias = Sequence[Message]
Questions: TypeAlias = Mapping[str, Conversation]
"""By the key of their replies."""
Take: TypeAlias = Callable[[str, str], None]
"""Called with a key and the reply."""

USUAL_TOKENS = 200
"""Tokens of a usual reply, for estimates."""
REMINDER = "That could not be read. Reply once more, in exactly the form that was asked for and with nothing else."
_QUOTED = 1000
"""Letters of an unreadable reply that are shown to the model again."""
_CUT = "\n\n[the reply ended at its limit]"
"""What a kept reply ends with where the model did not end it."""
_VERDICT_ALONE = 24
"""Letters of a line that has room for a verdict and for little else."""


_ALTERNATIVES = 20
"""First tokens of a local model whose log-probabilities are kept."""


def with_logprobs(first_token: Mapping[str, float]) -> str:
    """The text under which the log-probabilities of a first token are kept; `read_logprobs` reads it."""
    return json.dumps({"logprobs": dict(first_token)})


def read_logprobs(text: str) -> dict[str, float] | None:
    """The log-probabilities of a first token; None for another text."""
    try:
        found = json.loads(text)["logprobs"]
        return {str(token): float(value) for token, value in found.items()}
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


class Asker(ABC):
    """A chat model that is asked many questions: looks up, asks what is missing, reminds once, keeps."""

    name: str
    """As the user wrote it: `openai:MODEL@BASE_URL` or `local:MODEL`."""
    cache_key: str
    """Which model this is, for the address of its replies."""

    def __init__(self, cache: VerdictCache | None) -> None:
        self._cache: Any = cache

    @abstractmethod
    def _reply_to(self, questions: Questions, take: Take, *, max_tokens: int, as_json: bool, logprobs: bool) -> None:
        """Calls `take` with the key and the reply of every question as they come.

        With `logprobs` the text is `with_logprobs` of the first token, where the model gives them.
        """

    def ask_all(
        self,
        questions: Sequence[Conversation],
        *,
        read: Callable[[str], T | None],
        kind: str,
        max_tokens: int = 512,
        as_json: bool = False,
        logprobs: bool = False,
        reminder: str = REMINDER,
        again: bool = False,
        progress: Progress | None = None,
    ) -> list[T | None]:
        """What `read` made of the reply to every question; None where it could make nothing of two replies.

        Args:
            questions: conversations that end with a user's turn; equal ones are asked once.
            read: takes a reply, without thoughts between think tags.
            kind: what is asked, as a name with a version (`mt-bench-single-1`): part of the address of a reply.
            max_tokens: longest reply; models that think aloud need more.
            as_json: ask for a JSON object, where the model can be held to one.
            logprobs: keep the log-probabilities of the first token instead of the reply (`with_logprobs`).
            reminder: what is said after a reply that could not be read.
            again: ask anew where an earlier run could not read either reply.
            progress: called with questions done and questions in all.
        Raises: RequestError, EndpointError, ModelError; what was answered until then is kept.
        """
        if max_tokens < 1:
            raise RequestError(f"--judge_max_tokens {max_tokens}: give at least 1.")
        keys = [self._key(messages, kind, max_tokens) for messages in questions]
        wanted = dict(zip(keys, questions, strict=True))
        replies = self._known(wanted)
        found = {key: _read(read, texts[-1]) for key, texts in replies.items()}
        for key in [key for key, texts in replies.items() if again and len(texts) > 1 and found[key] is None]:
            del replies[key], found[key]

        done = sum(value is not None or len(replies[key]) > 1 for key, value in found.items())

        def take(key: str, text: str) -> None:
            nonlocal done
            found[key] = _read(read, text)
            replies.setdefault(key, []).append(text)
            self._cache.put({key: replies[key]}, judge=self.name)
            done += found[key] is not None or len(replies[key]) > 1
            if progress is not None:
                progress(done, len(wanted))

        if progress is not None:
            progress(done, len(wanted))
        missing = {key: messages for key, messages in wanted.items() if key not in replies}
        self._reply_to(missing, take, max_tokens=max_tokens, as_json=as_json, logprobs=logprobs)
        unread = {
            key: _reminded(messages, replies[key][0], reminder)
            for key, messages in wanted.items()
            if found[key] is None and len(replies[key]) == 1
        }
        self._reply_to(unread, take, max_tokens=max_tokens, as_json=as_json, logprobs=logprobs)
        return [found[key] for key in keys]

    def known(self, questions: Sequence[Conversation], *, kind: str, max_tokens: int = 512) -> int:
        """How many of these (distinct) questions have a reply from an earlier run."""
        return len(self._known(self._key(messages, kind, max_tokens) for messages in questions))

    def estimate(
        self,
        questions: Sequence[Conversation],
        *,
        kind: str,
        max_tokens: int = 512,
        usual_tokens: int = USUAL_TOKENS,
        again: Callable[[str], object] | None = None,
    ) -> Estimate:
        """What is still to be asked will cost.

        Args:
            again: the reader, when what it cannot read is to be asked anew.
        Raises: RequestError when that is more than a cap.
        """
        wanted = {self._key(messages, kind, max_tokens): messages for messages in questions}
        known = self._known(wanted)
        if again is not None:
            known = {key: texts for key, texts in known.items() if _read(again, texts[-1]) is not None}
        missing = [messages for key, messages in wanted.items() if key not in known]
        tokens_in = sum(guess_tokens(letters_of(list(messages))) for messages in missing)
        return self._priced(len(missing), tokens_in, len(missing) * min(usual_tokens, max_tokens))

    def _known(self, keys: Iterable[str]) -> dict[str, list[str]]:
        """The replies from earlier runs: one, or two where the first could not be read."""
        found = {key: texts for key, texts in self._cache.get(keys).items() if isinstance(texts, list) and texts}
        return {key: texts for key, texts in found.items() if all(isinstance(text, str) for text in texts)}

    def _priced(self, calls: int, tokens_in: int, tokens_out: int) -> Estimate:
        return Estimate(calls, tokens_in, tokens_out, None)

    def _key(self, messages: Conversation, kind: str, max_tokens: int) -> str:
        return verdict_key("asked", self.cache_key, kind, max_tokens, [dict(turn) for turn in messages])


def _reminded(messages: Conversation, reply: str, reminder: str) -> list[Message]:
    said: list[Message] = [
        {"role": "assistant", "content": _answer_of(reply)[:_QUOTED] or "(nothing)"},
        {"role": "user", "content": reminder},
    ]
    return [*messages, *said]


def _answer_of(reply: str) -> str:
    return split_thoughts(reply.removesuffix(_CUT)).answer


def _read(read: Callable[[str], T | None], reply: str) -> T | None:
    """What a reader makes of a reply's answer; None also where the reply is such that the reader fails.

    Of a reply that ended at its limit only a verdict that it begins with counts: one in the middle of its reasons might
    not have been the last.
    """
    answer = _answer_of(reply)
    try:
        value = read(answer)
        if not answer.strip() or not reply.endswith(_CUT):
            return value
        first = answer.lstrip().partition("\n")[0]
        begun = read(first) if len(first) <= _VERDICT_ALONE or first[0] in "{[" else None
        return begun if value in (None, begun) else None
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError):
        return None


class EndpointAsker(Asker):
    """A chat model at an OpenAI-compatible address; several calls under way at once, each kept when it comes."""

    def __init__(self, endpoint: Endpoint, cache: VerdictCache) -> None:
        super().__init__(cache)
        self.endpoint = endpoint
        self.name = str(endpoint.name)
        self.cache_key = verdict_key("endpoint", self.name)

    def _priced(self, calls: int, tokens_in: int, tokens_out: int) -> Estimate:
        return self.endpoint.budget.estimate(calls=calls, tokens_in=tokens_in, tokens_out=tokens_out)

    def _reply_to(self, questions: Questions, take: Take, *, max_tokens: int, as_json: bool, logprobs: bool) -> None:
        def ask(item: tuple[str, Conversation]) -> str:
            # Models that think answer at a temperature of their own only; theirs will do.
            reply = self.endpoint.chat(
                item[1],
                max_tokens=max_tokens,
                temperature=0.0,
                as_json=as_json,
                logprobs=logprobs,
                spare=("temperature",),
            )
            if logprobs and reply.first_token:
                return with_logprobs(reply.first_token)
            return reply.text + _CUT if reply.cut else reply.text

        in_parallel(
            ask,
            questions.items(),
            workers=self.endpoint.conduct.concurrency,
            take=lambda item, text: take(item[0], text),
        )


class LocalAsker(Asker):
    """A chat model of transformers on this machine, asked in batches, always taking the likeliest token."""

    def __init__(self, source: ModelSource, cache: VerdictCache | None, *, batch_size: int = 8) -> None:
        """
        Args:
            cache: None on a worker, whose caller keeps the replies.
            source: loaded when the first question needs it, and not for replies that are known.
        """
        if batch_size < 1:
            raise RequestError(f"--judge_batch_size {batch_size}: give at least 1.")
        super().__init__(cache)
        self.name = f"local:{source.name}"
        self.cache_key = verdict_key("local", source.identity)
        self._source, self._batch_size = source, batch_size

    def _reply_to(self, questions: Questions, take: Take, *, max_tokens: int, as_json: bool, logprobs: bool) -> None:
        if not questions:
            return
        prompts, keys = [self._as_taken(messages) for messages in questions.values()], list(questions)
        self._check_lengths(prompts, max_tokens)
        if logprobs:
            for key, prompt in zip(keys, prompts, strict=True):
                take(key, with_logprobs(self._first_token(prompt)))
            return
        model = self._answerer(max_tokens)
        model.answer(prompts, [{}] * len(keys), lambda number, answer: take(keys[number], answer.text))

    def _answerer(self, max_tokens: int) -> ModelAnswerer:
        settings = SamplingSettings(max_new_tokens=max_tokens, temperature=0.0)
        return ModelAnswerer(self._source, settings, batch_size=self._batch_size)

    def batches_of(self, questions: Sequence[Conversation]) -> list[list[int]]:
        """The numbers of the questions that are asked together, without loading the model."""
        prompts = [self._as_taken(messages) for messages in questions]
        return self._answerer(1).batches_of(prompts, [{}] * len(prompts))

    def _first_token(self, prompt: Text) -> dict[str, float]:
        """Log-probabilities of the likeliest first tokens of the reply."""
        import torch

        from preftune.generation.encode_prompts import encode_prompts

        model, tokenizer = self._source.model, self._source.tokenizer
        (ids,) = encode_prompts(tokenizer, [prompt], None)
        check_token_ids(model, max(ids))
        with torch.inference_mode():
            logits = model(torch.tensor([ids], device=model.device), logits_to_keep=1).logits[0, -1]
        values, places = torch.log_softmax(logits.to(torch.float32), dim=-1).topk(min(_ALTERNATIVES, len(logits)))
        found: dict[str, float] = {}
        for value, place in zip(values.tolist(), places.tolist(), strict=True):
            found.setdefault(tokenizer.decode([place]), value)
        return found

    def _check_lengths(self, prompts: Sequence[Text], max_tokens: int) -> None:
        """Before any work. Raises: ModelError for a question that the model has no room for."""
        from preftune.generation.encode_prompts import encode_prompts
        from preftune.models.positions import limit_of

        limit = limit_of(self._source.model)
        if limit is None:
            return
        longest = max(map(len, encode_prompts(self._source.tokenizer, prompts, None)))
        if longest + max_tokens > limit:
            raise ModelError(
                f"{self.name} has {limit} positions, but the longest question takes {counted(longest, 'token')}, with "
                f"{max_tokens} more for the reply. Lower --judge_max_tokens, leave out the longest prompts, or use a "
                "judge with more."
            )

    def _as_taken(self, messages: Conversation) -> list[Message]:
        """As it is, or with the system's words before the user's where the template knows no system."""
        turns = list(messages)
        if not turns or turns[0].get("role") != "system" or self._takes_a_system:
            return turns
        return without_system(turns)

    @property
    def _takes_a_system(self) -> bool:
        from jinja2 import TemplateError

        probe = [{"role": "system", "content": "judge-probe"}, {"role": "user", "content": "y"}]
        try:
            return "judge-probe" in str(self._source.tokenizer.apply_chat_template(probe, tokenize=False))
        except TemplateError:
            return False
        except ValueError:  # no template at all: generating says so
            return True
