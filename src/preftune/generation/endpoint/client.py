"""Chat models behind an OpenAI-compatible address, through the official client, with its retries and backoff.

The client repeats a call after a timeout, a lost connection, 408, 409, 429 and 5xx, with growing and jittered pauses or
the pause that the server asks for (`Retry-After`, up to two minutes). The key is read from the environment, appears in
no message and is never written."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from preftune.amounts import counted
from preftune.errors import EndpointError, PreftuneError, RequestError, did_you_mean
from preftune.generation.endpoint.budget import Budget, guess_tokens
from preftune.generation.endpoint.replies import Reply, ReplyGuard, read_reply, without_system
from preftune.log import printable, warn
from preftune.secret_values import hidden, without_starred
from preftune.types import Message

PREFIX = "openai:"
KEY_VARIABLE = "OPENAI_API_KEY"
_OPENAI = "https://api.openai.com/v1"
_CHECK_S = 10.0
_LONGEST = 300
"""Maximum number of characters shown of a server's own message."""


def is_endpoint(name: str) -> bool:
    """Whether the name of a model or a judge stands for an address."""
    return name.startswith(PREFIX)


class EndpointName(NamedTuple):
    """A model and its address."""

    model: str
    base_url: str

    def __str__(self) -> str:
        return f"{PREFIX}{self.model}@{self.base_url}"

    @classmethod
    def parse(cls, spec: str) -> EndpointName:
        """Reads `openai:MODEL@BASE_URL`; without `@BASE_URL` the address is `OPENAI_BASE_URL`, or OpenAI's own.

        Raises: RequestError for another form, or an address with a password or a query, which would be written down.
        """
        rest = spec.removeprefix(PREFIX)
        at = min((found for found in (rest.find("@http://"), rest.find("@https://")) if found >= 0), default=-1)
        model, url = (rest[:at], rest[at + 1 :]) if at >= 0 else (rest, "")
        url = (url or os.environ.get("OPENAI_BASE_URL") or _OPENAI).rstrip("/")
        parts = urlsplit(url)
        if not spec.startswith(PREFIX) or not model or "@" in rest[:at] or ("@" in rest and at < 0):
            raise RequestError(
                f"{spec!r} does not name an endpoint. Write openai:MODEL@BASE_URL, such as "
                "openai:my-model@http://localhost:8000/v1."
            )
        if parts.username or parts.password or parts.query or not parts.hostname:
            raise RequestError(
                f"The address of openai:{model} must not contain a user, a password or a query, because it is written "
                "next to the results. Write http://HOST:PORT/v1 and give the key with --api_key_env VARIABLE."
            )
        return cls(model, url)


@dataclass(frozen=True, slots=True)
class Conduct:
    """Limits and settings for calls to an endpoint."""

    timeout: float = 120.0
    """Time limit in seconds of one attempt, including its whole reply."""
    retries: int = 5
    """Maximum number of retries."""
    concurrency: int = 8
    """Number of calls at the same time."""
    max_reply_bytes: int = 8_000_000
    """Maximum size of a reply in bytes."""
    api_key_env: str | None = None
    """The environment variable with the key; None means OPENAI_API_KEY if it is set."""

    def __post_init__(self) -> None:
        if self.max_reply_bytes < 1:
            raise RequestError(f"--max_reply_mb {self.max_reply_bytes / 1e6:g} must be above 0.")
        if not self.timeout > 0 or self.retries < 0 or self.concurrency < 1:
            raise RequestError(
                f"--timeout {self.timeout:g} must be above 0, --retries {self.retries} at least 0 and --concurrency "
                f"{self.concurrency} at least 1."
            )


_ODD_RETRIES, _ODD_PAUSE_S, _ODD_LETTERS = 2, 0.5, 120
_SHORTEST_KEY = 8
"""Length below which a key might also be an ordinary word in an answer."""
_SYSTEM = "system"
_NO_SYSTEM = re.compile(
    r"system (?:role|message|prompt)|roles must alternate|only (?:support )?user and assistant roles", re.IGNORECASE
)
"""Error messages of chat templates that do not support a system turn."""
_SPARE = ("max_tokens", "response_format", "seed", "logprobs")
"""Fields that are left out if a server refuses them."""
_TOP_LOGPROBS = 5
"""Alternatives that are requested for each token: the most that every server returns."""

_TOLD = {
    "seed": "does not support a seed: the same seed does not reproduce its answers.",
    "logprobs": "does not return log-probabilities: its judgements count as won or lost, not as probabilities.",
    "temperature": (
        "does not accept a temperature: it uses its own, and its answers may change when a question is repeated."
    ),
}
"""The consequence of leaving a field out, if there is one."""


class Endpoint:
    """One chat model at one address. It can be shared between threads."""

    def __init__(self, name: EndpointName, *, conduct: Conduct | None = None, budget: Budget | None = None) -> None:
        """Raises: RequestError if the package openai is missing, or if the named variable of the key is not set."""
        self.name = name
        self.conduct = conduct or Conduct()
        self.budget = budget or Budget()
        self._key = _key(self.conduct.api_key_env)
        self._refused: set[str] = set()
        self._is_chat = False
        """Whether the server has sent a chat completion before."""
        self._lock = threading.Lock()
        self._guard = ReplyGuard(str(name), most_bytes=self.conduct.max_reply_bytes)
        if find_spec("openai") is None:
            raise RequestError(f"{name} needs the package openai. Install it with: pip install 'preftune[endpoint]'")
        import openai

        self._client: Any = openai.OpenAI(
            base_url=name.base_url,
            api_key=self._key or "no-key",  # servers of one's own ask for none, and the client insists on one
            timeout=self.conduct.timeout,
            max_retries=self.conduct.retries,
            http_client=self._guard.client(openai.DefaultHttpxClient),
        )

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.close()

    def check(self) -> None:
        """Requests the list of models once, so that a wrong address is reported at once and not after five retries.

        A model missing in the list is not an error: some servers list nothing, and some support more names than they
        list.

        Raises: RequestError for an address that cannot be reached, or a key that is refused.
        """
        import openai

        try:
            self._client.with_options(max_retries=0, timeout=min(_CHECK_S, self.conduct.timeout)).models.list()
        except openai.APITimeoutError:
            pass
        except (openai.APIConnectionError, openai.AuthenticationError) as error:
            raise self._translated(error) from None
        except openai.APIError:
            pass

    def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        as_json: bool = False,
        logprobs: bool = False,
        extra: Mapping[str, Any] | None = None,
        about: str = "",
        spare: Sequence[str] = (),
    ) -> Reply:
        """Sends one request and waits for the answer.

        Args:
            max_tokens: maximum length of the answer.
            temperature, top_p, seed: None means the server's own. Not every server supports `seed`; if it is refused,
                it is left out, and this is reported once.
            as_json: request a JSON object; if this is refused, it is left out.
            logprobs: request the log-probabilities of the likeliest tokens; if this is refused, it is left out.
            extra: fields of the request that only some servers support, such as `top_k` or `chat_template_kwargs`.
            about: description of the request, for the message if only this request is refused.
            spare: more fields that are left out if they are refused, which is reported once.
        Raises: RequestError, EndpointError; see `_told`. EndpointError if a cap of the budget is reached.
        """
        wanted: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
        request = {name: value for name, value in wanted.items() if value is not None}
        if as_json:
            request["response_format"] = {"type": "json_object"}
        if logprobs:
            request |= {"logprobs": True, "top_logprobs": _TOP_LOGPROBS}
        asked = guess_tokens(sum(len(str(message.get("content") or "")) for message in messages))
        ticket = self.budget.begin(tokens_in=asked, tokens_out=max_tokens)
        self._guard.open = 0
        try:
            reply = self._reply(partial(self._ask, list(messages), request, dict(extra or {}), about, spare), asked)
        except BaseException as error:
            self.budget.forget(ticket)
            if not isinstance(error, RequestError):  # the server was not reached, or refused access
                self.budget.lost(self._guard.open, tokens_in=asked, tokens_out=max_tokens)
            raise
        self.budget.lost(self._guard.open, tokens_in=asked, tokens_out=max_tokens)
        self.budget.end(ticket, tokens_in=reply.prompt_tokens, tokens_out=reply.tokens)
        return reply

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """The JSON object that another address of the same server returns; None if it has no such address.

        Args:
            path: from the server's root, which is the base URL without `/v1`.
        Raises: RequestError, EndpointError; see `_told`.
        """
        import openai

        url = f"{self.name.base_url.removesuffix('/v1')}/{path}"
        try:
            reply = self._client.post(url, cast_to=object, body=dict(body))
        except openai.OpenAIError as error:
            if getattr(error, "status_code", None) in (400, 404, 405, 422, 501):
                return None
            raise self._translated(error) from None
        return reply if isinstance(reply, dict) else None

    def _reply(self, ask: Callable[[], Any], asked: int) -> Reply:
        """The answer; the request is repeated if a reply is not a chat completion.

        Raises: EndpointError if this persists; RequestError if no reply has been a chat completion so far.
        """
        attempts = 1 + min(self.conduct.retries, _ODD_RETRIES)
        for attempt in range(attempts):
            if attempt:
                time.sleep(_ODD_PAUSE_S * attempt)
            try:
                reply = read_reply(ask(), asked)
            except PreftuneError:
                raise
            except (ValueError, RecursionError, TypeError, AttributeError) as error:  # the client's JSON reader too
                self._guard.open += 1  # it may be billed
                odd = printable(" ".join(str(error).split()))[:_ODD_LETTERS] or type(error).__name__
            else:
                self._is_chat = True
                return self._without_key(reply)
        if self._is_chat:
            raise EndpointError(
                f"{self.name} sent {attempts} replies to one question that are not chat completions ({odd}). Check the "
                "server's log, and run again: the answers so far are kept."
            )
        raise RequestError(
            f"{self.name} answered, but not with a chat completion ({odd}). Check that the address is complete: it "
            "usually ends in /v1."
        )

    def _without_key(self, reply: Reply) -> Reply:
        """A reply without the key, for the disk: a server that repeats the request may repeat the key too."""
        if self._key is None or len(self._key) < _SHORTEST_KEY or self._key not in reply.text + reply.thought:
            return reply
        text, thought = (part.replace(self._key, "***") for part in (reply.text, reply.thought))
        return reply._replace(text=text, thought=thought)

    def _ask(
        self, messages: list[Message], request: dict[str, Any], extra: dict[str, Any], about: str, spare: Sequence[str]
    ) -> Any:
        import openai

        while True:
            refused = self._refused & {*_SPARE, *spare}
            sent = {name: value for name, value in request.items() if name not in refused}
            asked = without_system(messages) if _SYSTEM in self._refused else messages
            if "logprobs" in refused:  # one without the other is an error
                sent.pop("top_logprobs", None)
            if "max_tokens" in refused:  # OpenAI's newer models know it under another name only
                sent["max_completion_tokens"] = request["max_tokens"]
            try:
                return self._client.chat.completions.create(
                    model=self.name.model, messages=asked, extra_body=extra or None, **sent
                )
            except (openai.BadRequestError, openai.UnprocessableEntityError, openai.InternalServerError) as error:
                if self._takes_no_system(error, asked):
                    continue
                if isinstance(error, openai.InternalServerError):
                    raise self._translated(error) from None
                if not self._do_without(error, [name for name in (*_SPARE, *spare) if name in sent]):
                    raise self._translated(error, about) from None
            except openai.OpenAIError as error:
                raise self._translated(error) from None

    def _takes_no_system(self, error: Any, asked: Sequence[Message]) -> bool:
        """Whether the chat template behind the address refused the system turn, which is then put into the user's
        turn.
        """
        if not asked or asked[0].get("role") != "system" or len(asked) < 2 or not _NO_SYSTEM.search(str(error)):
            return False
        with self._lock:
            self._refused.add(_SYSTEM)
        return True

    def _do_without(self, error: Any, spare: Sequence[str]) -> bool:
        """Whether the server refused an optional field, which is left out from now on."""
        message = f"{getattr(error, 'param', '')} {error}"
        for field in spare:
            if field in message:
                with self._lock:
                    first = field not in self._refused
                    self._refused.add(field)
                if first and field in _TOLD:
                    warn(f"{self.name} {_TOLD[field]}")
                return True
        return False

    def _translated(self, error: Any, about: str = "") -> PreftuneError:
        """The client's error as one paragraph with the fix, without the key."""
        import openai

        where, conduct = str(self.name), self.conduct
        said = self._said(error)
        if isinstance(error, openai.APITimeoutError):
            return EndpointError(
                f"{where} gave no answer within {conduct.timeout:g} s in {counted(conduct.retries + 1, 'attempt')}. "
                "Raise --timeout, or lower --concurrency. Such calls may be billed: the budget counts each at its "
                "maximum."
            )
        if isinstance(error, openai.APIConnectionError):
            return RequestError(
                f"{where} cannot be reached ({self._said(error.__cause__ or error)}). Check the address, and that the "
                "server is running."
            )
        status = getattr(error, "status_code", None)
        if status in (401, 403):
            variable = conduct.api_key_env or KEY_VARIABLE
            fix = "Check the key in" if self._key else "Set the key in the environment variable"
            return RequestError(f"{where} refuses access ({status}: {said}). {fix} {variable}.")
        if status == 404:
            return RequestError(f"{where} does not have this model or address (404: {said}). {self._near_models()}")
        if status == 429:
            return EndpointError(
                f"{where} still reports too many calls after {counted(conduct.retries, 'retry', 'retries')} (429: "
                f"{said}). Lower --concurrency, or wait; if the message names a quota, it is used up. The answers so "
                "far are kept."
            )
        if status is not None and status < 500:
            what = f"{about} " if about else ""
            return RequestError(
                f"{where} does not accept the request {what}({status}: {said}). Change the setting that it names; the "
                "answers so far are kept."
            )
        return EndpointError(
            f"{where} failed in {counted(conduct.retries + 1, 'attempt')} ({status or type(error).__name__}: {said}). "
            "Check the server's log, and run again: the answers so far are kept."
        )

    def _said(self, error: Any) -> str:
        body = getattr(error, "body", None)
        text = str(body["message"]) if isinstance(body, dict) and body.get("message") else str(error)
        text = " ".join(printable(text).split()) or type(error).__name__
        text = without_starred(hidden(text, [self._key] if self._key else []))
        return text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."

    def _near_models(self) -> str:
        """A sentence that helps with a 404: similar names of models, or the usual form of an address."""
        import openai

        try:
            listed = self._client.with_options(max_retries=0, timeout=_CHECK_S).models.list()
            names = sorted(model.id for model in listed.data)
        except (openai.OpenAIError, AttributeError, TypeError):
            return "It lists no models either. Check that the address is complete: it usually ends in /v1."
        if self.name.model in names:
            return "It lists this model. Check that the address is complete: it usually ends in /v1."
        listing = f"It has: {', '.join(names[:8]) or 'no models'}."
        return did_you_mean(self.name.model, names, most=3, cutoff=0.4, otherwise=listing)


def _key(variable: str | None) -> str | None:
    key = (os.environ.get(variable or KEY_VARIABLE) or "").strip()
    if variable is not None and not key:
        raise RequestError(f"--api_key_env {variable}: this environment variable is not set. Set it to the key.")
    if key and not all("!" <= letter <= "~" for letter in key):  # the client's own error would show it
        raise RequestError(
            f"The key in {variable or KEY_VARIABLE} holds a blank, a line break or a character outside ASCII, which no "
            "key has. Set the variable to the key only."
        )
    return key or None
