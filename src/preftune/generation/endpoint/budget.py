"""The estimated cost of calls to an endpoint, and caps on it."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field

from preftune.amounts import counted
from preftune.errors import EndpointError, RequestError

LETTERS_PER_TOKEN = 4.0
"""Mean number of characters per token of English text, roughly; the bill counts the endpoint's own tokens."""


def guess_tokens(letters: int) -> int:
    """The approximate number of tokens of a text with this many characters."""
    return math.ceil(letters / LETTERS_PER_TOKEN)


@dataclass(frozen=True, slots=True)
class Estimate:
    """The expected number of calls and tokens."""

    calls: int
    tokens_in: int
    tokens_out: int
    cost: float | None
    """Cost in the currency of the prices; None without prices."""

    def line(self) -> str:
        """The estimate in words, for the time before the first call."""
        money = "" if self.cost is None else f", about {self.cost:,.2f} at the prices given"
        return (
            f"about to make {counted(self.calls, 'call')}, with about {self.tokens_in:,} input and {self.tokens_out:,} "
            f"output tokens{money}"
        )


@dataclass(slots=True)
class Budget:
    """Caps on calls and cost, and the usage so far. It can be shared between threads."""

    max_calls: int | None = None
    max_cost: float | None = None
    price_in: float | None = None
    """Price per million input tokens; `price_out` is that of output tokens."""
    price_out: float | None = None
    calls: int = 0
    """Number of answered questions; a question that the client repeats after a network error counts once."""
    tokens_in: int = 0
    tokens_out: int = 0
    unanswered: int = 0
    """Number of attempts without an answer; their tokens are counted at the maximum, because they may be billed."""
    _open: dict[int, tuple[int, int]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        for name in ("max_calls", "max_cost", "price_in", "price_out"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise RequestError(f"--{name} {value}: give a number that is not negative.")
        if (self.price_in is None) != (self.price_out is None):
            raise RequestError("--price_in and --price_out belong together: give both, per million tokens.")
        if self.max_cost is not None and self.price_in is None:
            raise RequestError("--max_cost needs prices: add --price_in and --price_out, per million tokens.")

    def cost_of(self, tokens_in: int, tokens_out: int) -> float | None:
        """The price of this many tokens; None without prices."""
        if self.price_in is None or self.price_out is None:
            return None
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6

    @property
    def cost(self) -> float | None:
        """Cost so far, by the endpoint's own counts, with attempts without an answer at their maximum; None without
        prices.
        """
        return self.cost_of(self.tokens_in, self.tokens_out)

    def estimate(self, *, calls: int, tokens_in: int, tokens_out: int) -> Estimate:
        """The estimated cost of this many calls and tokens.

        Raises: RequestError if it exceeds what is left under a cap, before anything is spent.
        """
        found = Estimate(calls, tokens_in, tokens_out, self.cost_of(tokens_in, tokens_out))
        spent = self.cost or 0.0
        before = (
            "no call was made"
            if not self.calls
            else (f"{counted(self.calls, 'call was', 'calls were')} already made, whose answers are kept")
        )
        if self.max_calls is not None and calls and self.calls + calls > self.max_calls:
            raise RequestError(
                f"This takes {counted(calls, 'call')}, but --max_calls is {self.max_calls:,}; {before}. Raise "
                "--max_calls, or give fewer prompts or completions."
            )
        if self.max_cost is not None and calls and found.cost is not None and spent + found.cost > self.max_cost:
            before = "no call was made" if not self.calls else f"{spent:,.2f} are already spent"
            raise RequestError(
                f"This would cost about {found.cost:,.2f}, but --max_cost is {self.max_cost:,.2f}; {before}. Raise "
                "--max_cost, or give fewer prompts or completions."
            )
        return found

    def begin(self, *, tokens_in: int, tokens_out: int) -> int:
        """Reserves the maximum cost of one call; returns a ticket for `end`.

        Raises: EndpointError if a cap could be exceeded, counting the running calls at their maximum.
        """
        with self._lock:
            calls = self.calls + len(self._open) + 1
            if self.max_calls is not None and calls > self.max_calls:
                raise EndpointError(
                    f"Stopped before call {calls:,}: --max_calls is {self.max_calls:,} (answers that could not be read "
                    "were requested again). The answers so far are kept; run again with a higher --max_calls to "
                    "continue."
                )
            set_aside = [*self._open.values(), (tokens_in, tokens_out)]
            most = self.cost_of(
                self.tokens_in + sum(tokens for tokens, _ in set_aside),
                self.tokens_out + sum(tokens for _, tokens in set_aside),
            )
            if self.max_cost is not None and most is not None and most > self.max_cost:
                raise EndpointError(
                    f"Stopped at --max_cost {self.max_cost:,.2f}: {self.cost:,.2f} are spent, and the next call could "
                    "exceed it. The answers so far are kept; run again with a higher --max_cost to continue."
                )
            ticket = max(self._open, default=0) + 1
            self._open[ticket] = (tokens_in, tokens_out)
            return ticket

    def end(self, ticket: int, *, tokens_in: int, tokens_out: int) -> None:
        """Records an answered call and its tokens."""
        with self._lock:
            del self._open[ticket]
            self.calls += 1
            self.tokens_in += tokens_in
            self.tokens_out += tokens_out

    def lost(self, attempts: int, *, tokens_in: int, tokens_out: int) -> None:
        """Records attempts of one call, each with at most this many tokens, that got no answer."""
        with self._lock:
            self.unanswered += attempts
            self.tokens_in += attempts * tokens_in
            self.tokens_out += attempts * tokens_out

    def forget(self, ticket: int) -> None:
        """Records that the call failed."""
        with self._lock:
            del self._open[ticket]

    def line(self) -> str:
        """The usage in words."""
        money = "" if self.cost is None else f", {self.cost:,.2f} at the prices given"
        lost = (
            (f"; {counted(self.unanswered, 'attempt')} without an answer counted at the maximum")
            if self.unanswered
            else ""
        )
        return (
            f"{counted(self.calls, 'call')}, {self.tokens_in:,} input and {self.tokens_out:,} output "
            f"tokens{money}{lost}"
        )
