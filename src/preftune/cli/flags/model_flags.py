"""Flags that several commands share: for a model loaded on this machine, and for a model behind an address."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from preftune.amounts import counted
from preftune.cli.flags.messages import echo
from preftune.cli.flags.plain_parser import PlainParser
from preftune.errors import RequestError

if TYPE_CHECKING:
    from preftune.generation.endpoint.budget import Budget
    from preftune.generation.endpoint.client import Conduct
    from preftune.generation.prompts import Prompts
    from preftune.generation.settings import SamplingSettings

_ENDPOINT: dict[str, tuple[type, str]] = {
    "timeout": (float, "time limit of one attempt, including its whole reply, in seconds (120)"),
    "retries": (int, "maximum number of retries (5)"),
    "concurrency": (int, "number of calls at the same time (8)"),
    "max_reply_mb": (float, "maximum size of a reply, in megabytes (8)"),
    "api_key_env": (str, "environment variable with the key (OPENAI_API_KEY)"),
    "max_calls": (int, "hard cap on the number of calls"),
    "max_cost": (float, "hard cap on the cost; needs both prices"),
    "price_in": (float, "price of a million input tokens"),
    "price_out": (float, "price of a million output tokens"),
}
ENDPOINT_FLAGS = tuple(_ENDPOINT)
"""The flags that `add_endpoint_options` adds."""
_CONDUCT = ("timeout", "retries", "concurrency", "max_reply_bytes", "api_key_env")

MODEL_FLAGS = ("batch_size", "base", "dtype", "load_in_4bit", "trust_remote_code")
"""The flags that `add_model_options` adds, and the batch size."""


def add_model_options(group: Any, *, base: bool = True) -> None:
    """Adds the flags for loading a model on this machine.

    Args:
        base: also add the flag for the base of an adapter whose base has moved.
    """
    if base:
        group.add_argument(
            "--base",
            "--base_model",
            dest="base",
            metavar="MODEL",
            help="base model of an adapter, instead of the one that it names",
        )
    group.add_argument(
        "--dtype", choices=["auto", "bfloat16", "float16", "float32"], help="number format of the weights (auto)"
    )
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
    """Adds the flags for a model behind an address."""
    group = parser.add_argument_group("a model behind an address (extra: endpoint)")
    for name, (kind, words) in _ENDPOINT.items():
        group.add_argument(f"--{name}", type=kind, metavar="VARIABLE" if kind is str else None, help=words)


def refuse(asked: argparse.Namespace, flags: Sequence[str], *, unless: str) -> None:
    """Raises: RequestError for a given flag that would be ignored."""
    for flag in flags:
        if getattr(asked, flag) is not None:
            raise RequestError(f"--{flag} has no effect unless {unless}. Leave it out.")


def conduct_and_budget(asked: argparse.Namespace, opened: ExitStack) -> tuple[Conduct, Budget]:
    """The values of the flags of `add_endpoint_options`; the usage is printed when `opened` is closed.

    Raises: RequestError for impossible values.
    """
    from preftune.generation.endpoint.budget import Budget
    from preftune.generation.endpoint.client import Conduct

    given = {name: getattr(asked, name) for name in ENDPOINT_FLAGS if getattr(asked, name) is not None}
    if "max_reply_mb" in given:
        given["max_reply_bytes"] = round(1e6 * given.pop("max_reply_mb"))
    conduct = {name: given.pop(name) for name in _CONDUCT if name in given}
    budget = Budget(**given)
    opened.callback(lambda: echo(f"preftune: used {budget.line()}") if budget.calls else None)
    return Conduct(**conduct), budget


def add_sampling_options(group: Any, what: str, *, temperature: float) -> None:
    """Adds the flags of sampling; `what` is sampled."""
    add = group.add_argument
    add("--max_new_tokens", type=int, default=512, help=f"maximum length of {what}, in tokens (512)")
    always = f"sampling temperature; 0 always takes the likeliest token ({temperature:g})"
    add("--temperature", type=float, default=temperature, help=always)
    add("--top_p", type=float, help="sample from the likeliest tokens with this total probability (the model's value)")
    add("--top_k", type=int, help="sample from this number of likeliest tokens, 0 for all (the model's value)")
    add("--min_p", type=float, help="minimum probability of a token, as a share of the likeliest token's")


def sampling_settings(asked: argparse.Namespace) -> SamplingSettings:
    """The values of the flags of sampling. Raises: RequestError for impossible values."""
    from preftune.generation.settings import SamplingSettings

    return SamplingSettings(**{name: getattr(asked, name) for name in SamplingSettings.__slots__})


def echo_prompts(prompts: Prompts) -> None:
    """Prints the number of prompts, and what was left out of the source."""
    again = f" ({counted(prompts.repeated, 'row repeats', 'rows repeat')} another)" if prompts.repeated else ""
    echo(f"preftune: {counted(len(prompts.prompts), 'distinct prompt')} in {prompts.name}{again}")
    for note in prompts.notes:
        echo(f"preftune: {note}")
