"""Replies of an endpoint, which are untrusted: limited in size, time and host, and validated; and questions in a form
that every server takes.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from preftune.errors import EndpointError
from preftune.generation.endpoint.budget import guess_tokens
from preftune.generation.protocol import is_token_count
from preftune.types import Message

_THOUGHT_FIELDS = ("reasoning_content", "reasoning")
"""Fields in which servers return reasoning separately from the answer."""


class Reply(NamedTuple):
    """One answer."""

    text: str
    """The unchanged text; it contains reasoning only if the server leaves it in the text."""
    tokens: int
    """Number of tokens of the whole reply, as the server counts and bills it; estimated if the count is missing or
    impossible.
    """
    finished: bool
    """Whether the answer was not cut, at its limit or by a filter."""
    prompt_tokens: int
    thought: str = ""
    """Reasoning that the server returns separately, as `reasoning_content`, `reasoning` or a part of type
    `thinking`.
    """
    thought_tokens: int = 0
    """Number of these tokens that belong to the reasoning, if the server reports it."""
    cut: bool = False
    """Whether the reply ended at its limit."""
    first_token: Mapping[str, float] | None = None
    """Log-probabilities (nats) of the likeliest first tokens, if they were requested and the server returned them."""


class OddReplyError(ValueError):
    """A reply with status 200 that is not a chat completion."""


def read_reply(answer: Any, asked: int) -> Reply:
    """A chat completion as a `Reply`.

    Args:
        asked: estimated number of tokens of the question.
    Raises: OddReplyError that names the fault.
    """
    choices = getattr(answer, "choices", None)
    if not isinstance(choices, list) or not choices:
        error = getattr(answer, "error", None)  # some servers say with status 200 what went wrong
        said = error.get("message") if isinstance(error, dict) else error
        raise OddReplyError(f"it has no choices, and says: {str(said)[:200]}" if said else "it has no choices")
    message = getattr(choices[0], "message", None)
    if message is None:
        raise OddReplyError("its first choice has no message")
    text, thought = _content(getattr(message, "content", None))
    apart = (getattr(message, name, None) for name in _THOUGHT_FIELDS)
    thought = next((said for said in apart if isinstance(said, str) and said), thought)
    reason = getattr(choices[0], "finish_reason", None)  # servers also send null, lists and words of their own
    usage = getattr(answer, "usage", None)
    details = getattr(usage, "completion_tokens_details", None)
    tokens = _count(usage, "completion_tokens")
    prompt_tokens = _count(usage, "prompt_tokens")
    return Reply(
        text=_encodable(text),
        tokens=guess_tokens(len(text) + len(thought)) if tokens is None else tokens,
        finished=reason not in ("length", "content_filter"),
        cut=reason == "length",
        prompt_tokens=asked if prompt_tokens is None else prompt_tokens,
        thought=_encodable(thought),
        thought_tokens=_count(details, "reasoning_tokens") or 0,
        first_token=_first_token(getattr(choices[0], "logprobs", None)),
    )


def _first_token(logprobs: Any) -> dict[str, float] | None:
    """Token -> log-probability of the alternatives at the first place; None unless all of them can be read."""
    content = getattr(logprobs, "content", None)
    listed = getattr(content[0], "top_logprobs", None) if isinstance(content, list) and content else None
    if not isinstance(listed, list) or not listed:
        return None
    found = [(getattr(one, "token", None), getattr(one, "logprob", None)) for one in listed]
    if not all(isinstance(token, str) and isinstance(value, int | float) and value <= 1e-6 for token, value in found):
        return None
    return {str(token): float(value) for token, value in found if value is not None}


def _content(content: Any) -> tuple[str, str]:
    """Text and reasoning of a message's content: a text, or a list of parts as Mistral and others send it."""
    if content is None or isinstance(content, str):
        return content or "", ""
    if not isinstance(content, list):
        raise OddReplyError(f"its content is of type {type(content).__name__}, not text")
    texts: dict[bool, list[str]] = {True: [], False: []}
    for part in content:
        fields = part if isinstance(part, Mapping) else vars(part) if hasattr(part, "__dict__") else {"text": part}
        said = fields.get("text") or fields.get("thinking") or ""
        if isinstance(said, list):
            said, _ = _content(said)
        if not isinstance(said, str):
            raise OddReplyError("its content has a part without text")
        texts[fields.get("type") in ("thinking", "reasoning")].append(said)
    return "".join(texts[False]), "".join(texts[True])


def _encodable(text: str) -> str:
    """The text with U+FFFD for half surrogate pairs, which UTF-8 cannot hold: a server has cut an emoji."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _count(holder: Any, name: str) -> int | None:
    value = getattr(holder, name, None)
    return value if isinstance(value, int) and is_token_count(value) else None


class ReplyGuard(threading.local):
    """Limits of the HTTP client, for one thread's call at a time.

    It counts attempts without an answer: the client repeats them silently, and a server that was too slow may have done
    and billed the work."""

    open = 0
    """Number of attempts of this call without an answer. An attempt includes its redirects."""
    until = 0.0
    """When the attempt of this thread ends."""

    def __init__(self, where: str, *, most_bytes: int) -> None:
        self.where, self.most_bytes = where, most_bytes

    def client(self, kind: Any) -> Any:
        """An HTTP client of this kind that keeps the limits."""
        http = kind(event_hooks={"response": [self.answered]})
        http.send = partial(self.attempt, http.send)
        return http

    def attempt(self, send: Callable[..., Any], request: Any, **more: Any) -> Any:
        """Sends a request and returns the whole reply.

        The client limits the time of each read only, which a server that sends single bytes of a header never exceeds.
        The attempt therefore runs in a thread that is left alone at the limit, and ends with the connection.

        Raises: ReadTimeout of the HTTP client, which then repeats the call: the whole reply took too long.
        """
        seconds = request.extensions["timeout"]["read"]
        until, outcome = time.monotonic() + seconds, SimpleQueue[tuple[Any, BaseException | None]]()

        def work() -> None:
            self.until = until
            try:
                outcome.put((send(request, **more), None))
            except BaseException as error:  # raised in the thread that waits
                outcome.put((None, error))

        self.open += 1
        threading.Thread(target=work, name="preftune-attempt", daemon=True).start()
        try:
            response, error = outcome.get(timeout=seconds)
        except Empty:
            raise _too_late(request) from None
        if error is not None:
            raise error
        self.open -= 1
        return response

    def answered(self, response: Any) -> None:
        """Reads the reply, or the page of a redirect, while it is within its limits.

        Raises: EndpointError: it is too long, or redirects to another host. ReadTimeout; see `attempt`.
        """
        if response.has_redirect_location:
            asked, there = response.request.url, response.request.url.join(response.headers["location"])
            if (there.scheme, there.host, there.port) != (asked.scheme, asked.host, asked.port):
                raise EndpointError(
                    f"{self.where} redirects to {there.scheme}://{there.netloc.decode()}, but requests to one host are "
                    "not passed on to another. If that is the right host, name that address."
                )
        guard, packed = self, response.stream

        class Limited(_http(response).SyncByteStream):  # type: ignore[misc]
            """The reply before it is unpacked: one that never yields anything is limited too."""

            def __iter__(self) -> Iterator[bytes]:
                size = 0
                for part in packed:
                    guard.check_size(size := size + len(part))
                    if time.monotonic() > guard.until:
                        raise _too_late(response.request)
                    yield part

            def close(self) -> None:
                packed.close()

        response.stream = Limited()
        content = bytearray()
        for part in response.iter_bytes():
            content += part
            self.check_size(len(content))
        response._content = bytes(content)  # the stream is consumed: what `response.read()` would have kept

    def check_size(self, size: int) -> None:
        """Raises: EndpointError: the reply is too long."""
        if size > self.most_bytes:
            raise EndpointError(
                f"{self.where} sent a reply of more than {self.most_bytes / 1e6:g} MB. Lower the maximum length of "
                "an answer, or raise --max_reply_mb."
            )


def _http(holder: Any) -> Any:
    """The HTTP library that the official client uses."""
    return sys.modules[type(holder).__module__.partition(".")[0]]


def _too_late(request: Any) -> Exception:
    found: Exception = _http(request).ReadTimeout("the whole reply took too long", request=request)
    return found


def without_system(messages: Sequence[Message]) -> list[Message]:
    """The conversation with the system turn's text at the start of the first user turn."""
    if len(messages) < 2 or messages[0].get("role") != "system":
        return list(messages)
    first: Message = {**messages[1], "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
    return [first, *messages[2:]]
