"""What calls to an endpoint will cost, estimated beforehand, and caps that hold while they are made."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field

from preftune.errors import EndpointError, RequestError

LETTERS_PER_TOKEN = 4.0
"""A rough mean for English text; the bill counts the endpoint's own tokens."""


def guess_tokens(letters: int) -> int:
    """About how many tokens a text of this many letters has."""
    return math.ceil(letters / LETTERS_PER_TOKEN)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is going to be asked."""

    calls: int
    tokens_in: int
    tokens_out: int
    cost: float | None
    """In the currency of the prices; None without prices."""

    def line(self) -> str:
        """For people, before the first call."""
        money = "" if self.cost is None else f", about {self.cost:,.2f} at the prices given"
        return (
            f"about to make {self.calls:,} calls, with about {self.tokens_in:,} tokens asked and "
            f"{self.tokens_out:,} answered{money}"
        )


@dataclass(slots=True)
class Budget:
    """Caps on calls and money, and what has been used so far. Safe to share between threads."""

    max_calls: int | None = None
    max_cost: float | None = None
    price_in: float | None = None
    """Per million tokens that are asked; so in `price_out` for those that are answered."""
    price_out: float | None = None
    calls: int = 0
    """Questions answered; a question that the client repeats after a fault of the network is one."""
    tokens_in: int = 0
    tokens_out: int = 0
    unanswered: int = 0
    """Attempts that were sent and got no answer; their tokens are counted at their most, for they may be billed."""
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
        """Money spent so far, by the endpoint's own counts, and what got no answer at its most; None without prices."""
        return self.cost_of(self.tokens_in, self.tokens_out)

    def estimate(self, *, calls: int, tokens_in: int, tokens_out: int) -> Estimate:
        """What so much is going to cost.

        Raises: RequestError when that is more than is left under a cap, before anything of it is spent.
        """
        found = Estimate(calls, tokens_in, tokens_out, self.cost_of(tokens_in, tokens_out))
        spent = self.cost or 0.0
        before = "nothing was asked" if not self.calls else f"{self.calls:,} were made already, whose answers are kept"
        if self.max_calls is not None and calls and self.calls + calls > self.max_calls:
            raise RequestError(
                f"This takes {calls:,} calls, and --max_calls is {self.max_calls:,}; {before}. Raise "
                "--max_calls, or give fewer prompts or completions."
            )
        if self.max_cost is not None and calls and found.cost is not None and spent + found.cost > self.max_cost:
            before = "nothing was asked" if not self.calls else f"{spent:,.2f} are spent already"
            raise RequestError(
                f"This would cost about {found.cost:,.2f}, and --max_cost is {self.max_cost:,.2f}; {before}. "
                "Raise --max_cost, or give fewer prompts or completions."
            )
        return found

    def begin(self, *, tokens_in: int, tokens_out: int) -> int:
        """Sets aside what one call may cost at most; gives a ticket for `end`.

        Raises: EndpointError when a cap could be passed, counting the calls under way at their most.
        """
        with self._lock:
            calls = self.calls + len(self._open) + 1
            if self.max_calls is not None and calls > self.max_calls:
                raise EndpointError(
                    f"Stopped before call {calls:,}: --max_calls is {self.max_calls:,} (answers that could not be read "
                    "were asked for again). What was answered is kept; run again with a higher --max_calls to go on."
                )
            set_aside = [*self._open.values(), (tokens_in, tokens_out)]
            most = self.cost_of(
                self.tokens_in + sum(tokens for tokens, _ in set_aside),
                self.tokens_out + sum(tokens for _, tokens in set_aside),
            )
            if self.max_cost is not None and most is not None and most > self.max_cost:
                raise EndpointError(
                    f"Stopped at --max_cost {self.max_cost:,.2f}: {self.cost:,.2f} are spent, and the next call could "
                    "pass it. What was answered is kept; run again with a higher --max_cost to go on."
                )
            ticket = max(self._open, default=0) + 1
            self._open[ticket] = (tokens_in, tokens_out)
            return ticket

    def end(self, ticket: int, *, tokens_in: int, tokens_out: int) -> None:
        """The call was answered and cost so much."""
        with self._lock:
            del self._open[ticket]
            self.calls += 1
            self.tokens_in += tokens_in
            self.tokens_out += tokens_out

    def lost(self, attempts: int, *, tokens_in: int, tokens_out: int) -> None:
        """Attempts of one call, each of at most this many tokens, were sent and got no answer."""
        with self._lock:
            self.unanswered += attempts
            self.tokens_in += attempts * tokens_in
            self.tokens_out += attempts * tokens_out

    def forget(self, ticket: int) -> None:
        """The call failed."""
        with self._lock:
            del self._open[ticket]

    def line(self) -> str:
        """What was used, for people."""
        money = "" if self.cost is None else f", {self.cost:,.2f} at the prices given"
        lost = f"; {self.unanswered:,} attempts without an answer are counted at their most" if self.unanswered else ""
        return f"{self.calls:,} calls, {self.tokens_in:,} tokens asked, {self.tokens_out:,} answered{money}{lost}"
