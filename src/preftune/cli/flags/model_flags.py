"""Flags that several commands share: for a model loaded here, and for a model behind an address."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from preftune.cli.flags.messages import tell
from preftune.cli.flags.plain_parser import PlainParser
from preftune.errors import RequestError

if TYPE_CHECKING:
    from preftune.generation.endpoint.budget import Budget
    from preftune.generation.endpoint.client import Conduct
    from preftune.generation.prompts import Prompts
    from preftune.generation.settings import SamplingSettings

_ENDPOINT: dict[str, tuple[type, str]] = {
    "timeout": (float, "seconds for one attempt with its whole reply (120)"),
    "retries": (int, "attempts after the first (5)"),
    "concurrency": (int, "calls under way at once (8)"),
    "max_reply_mb": (float, "longest reply that is read, in megabytes (8)"),
    "api_key_env": (str, "environment variable with the key (OPENAI_API_KEY)"),
    "max_calls": (int, "hard cap on the number of calls"),
    "max_cost": (float, "hard cap on what is spent; needs both prices"),
    "price_in": (float, "price of a million tokens asked"),
    "price_out": (float, "price of a million tokens answered"),
}
ENDPOINT_FLAGS = tuple(_ENDPOINT)
"""What `add_endpoint_options` adds."""
_CONDUCT = ("timeout", "retries", "concurrency", "max_reply_bytes", "api_key_env")

MODEL_FLAGS = ("batch_size", "base", "dtype", "load_in_4bit", "trust_remote_code")
"""What `add_model_options` adds, and the batch size."""


def add_model_options(group: Any, *, base: bool = True) -> None:
    """Flags for loading a model here.

    Args:
        base: the one of an adapter whose base has moved too.
    """
    if base:
        group.add_argument(
            "--base", "--base_model", dest="base", metavar="MODEL", help="of an adapter, instead of the base it names"
        )
    group.add_argument("--dtype", choices=["auto", "bfloat16", "float16", "float32"], help="of the weights (auto)")
    group.add_argument(
        "--trust_remote_code", action="store_true", default=None, help="allow models that bring their own code"
    )
    group.add_argument("--load_in_4bit", action="store_true", default=None, help="load in 4 bits (extra: quant)")


def model_options(asked: argparse.Namespace) -> dict[str, Any]:
    """The flags of `add_model_options` as `load_model` takes them."""
    base = getattr(asked, "base", None)
    return {
        **({} if base is None else {"base_model": base}),
        "dtype": asked.dtype or "auto",
        "load_in_4bit": bool(asked.load_in_4bit),
        "trust_remote_code": bool(asked.trust_remote_code),
    }


def add_endpoint_options(parser: PlainParser) -> None:
    """Flags for a model behind an address."""
    group = parser.add_argument_group("a model behind an address (extra: endpoint)")
    for name, (kind, words) in _ENDPOINT.items():
        group.add_argument(f"--{name}", type=kind, metavar="VARIABLE" if kind is str else None, help=words)


def refuse(asked: argparse.Namespace, flags: Sequence[str], *, unless: str) -> None:
    """Raises: RequestError for a flag that is there and would be ignored."""
    for flag in flags:
        if getattr(asked, flag) is not None:
            raise RequestError(f"--{flag} has no effect unless {unless}. Leave it out.")


def conduct_and_budget(asked: argparse.Namespace, opened: ExitStack) -> tuple[Conduct, Budget]:
    """The flags of `add_endpoint_options`; what was used is said when `opened` is closed.

    Raises: RequestError for impossible values.
    """
    from preftune.generation.endpoint.budget import Budget
    from preftune.generation.endpoint.client import Conduct

    given = {name: getattr(asked, name) for name in ENDPOINT_FLAGS if getattr(asked, name) is not None}
    if "max_reply_mb" in given:
        given["max_reply_bytes"] = round(1e6 * given.pop("max_reply_mb"))
    conduct = {name: given.pop(name) for name in _CONDUCT if name in given}
    budget = Budget(**given)
    opened.callback(lambda: tell(f"preftune: used {budget.line()}") if budget.calls else None)
    return Conduct(**conduct), budget


def sampling_settings(asked: argparse.Namespace) -> SamplingSettings:
    """The flags that say how answers are drawn. Raises: RequestError for impossible values."""
    from preftune.generation.settings import SamplingSettings

    return SamplingSettings(**{name: getattr(asked, name) for name in SamplingSettings.__slots__})


def tell_prompts(prompts: Prompts) -> None:
    """How many prompts are asked, and what of the source is not."""
    again = f" ({prompts.repeated:,} rows repeat one)" if prompts.repeated else ""
    tell(f"preftune: {len(prompts.prompts):,} distinct prompts in {prompts.name}{again}")
    for note in prompts.notes:
        tell(f"preftune: {note}")
