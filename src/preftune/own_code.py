"""Digests of a program's own functions, for caches whose values such a function may change."""

from __future__ import annotations

import dis
import functools
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from numbers import Number
from types import CodeType, ModuleType
from typing import Any

_LIBRARIES = frozenset({"accelerate", "transformers", "tokenizers", "peft", "torch", "bitsandbytes", "preftune"})


_MOST_ENTRIES = 100
"""Entries of a mapping that count; a larger one counts by its class, as it is more likely a cache than a setting."""


def of_a_library(function: Any) -> bool:
    """Whether one of the libraries wrote a function or a class, of which their versions say what it does."""
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    maker = str(getattr(function, "__module__", None) or type(function).__module__)
    return maker.partition(".")[0] in _LIBRARIES


def own_functions(thing: Any) -> list[str]:
    """Digests of the functions of an object that no library wrote: those of its classes, and those set on it."""
    own = [vars(one) for one in type(thing).__mro__ if one is not object and not of_a_library(one)]
    functions = [(key, getattr(value, "fget", value)) for held in (*own, vars(thing)) for key, value in held.items()]
    return [f"{key} {written(one)}" for key, one in functions if callable(one) and not of_a_library(one)]


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a switch, a text, None, or a list of them."""
    if isinstance(value, tuple | list):
        return all(map(is_plain, value))
    return value is None or isinstance(value, Number | str | bytes)


def written(value: Any, depth: int = 3) -> str:
    """A digest of a function's code and the values that it holds or names, or of a value; the same in every process.
    What is neither plain, nor a mapping, nor a tensor or array, nor a function counts by its class.

    Args:
        depth: how many functions in functions are read; a function may hold itself.
    """
    if is_plain(value):
        return repr(value)
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if hasattr(value, "untyped_storage"):  # a tensor, without the import of torch for what holds none
        import torch

        value = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    if hasattr(value, "tobytes") and not getattr(getattr(value, "dtype", None), "hasobject", False):  # an array
        return hashlib.blake2b(value.tobytes(), digest_size=8).hexdigest()
    function = getattr(value, "__func__", value)
    if depth == 0:
        return type(value).__qualname__
    if isinstance(value, Mapping) and len(value) <= _MOST_ENTRIES:
        code, held = type(value).__qualname__, tuple(one for pair in value.items() for one in pair)
    elif isinstance(value, functools.partial):
        code, held = written(value.func, depth - 1), (*value.args, *_pairs(value.keywords))
    elif hasattr(function, "__code__"):
        code = repr(_instructions(function.__code__))
        held = (*(function.__defaults__ or ()), *_cells(function), *_pairs(function.__kwdefaults__ or {}))
        held += tuple(_named(function.__code__, function.__globals__))
    elif hasattr(call := vars(type(value)).get("__call__"), "__code__"):
        code, held = type(value).__qualname__, (call, *_pairs(vars(value)))
    else:  # a function that is not Python's has a name
        return str(getattr(value, "__qualname__", type(value).__qualname__))
    return hashlib.blake2b(repr((code, [written(one, depth - 1) for one in held])).encode(), digest_size=8).hexdigest()


def _cells(function: Any) -> Iterator[Any]:
    """The variables of outer functions that a function uses."""
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # not assigned yet
            yield cell.cell_contents


def _named(code: CodeType, values: Mapping[str, Any]) -> Iterator[Any]:
    """The module's variables and functions that a code and the codes in it name, without classes, modules, and what a
    library wrote, and without variables that this code or a function of the module sets, such as a count of calls.
    """
    changed = {name for one in values.values() for name in _set_by(getattr(one, "__code__", None))} | _set_by(code)
    for name in sorted({*code.co_names} - changed):
        value = values.get(name)
        known = isinstance(value, type | ModuleType) or (callable(value) and of_a_library(value))
        if name in values and not known:
            yield value
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _named(constant, values)


@functools.lru_cache(maxsize=10_000)
def _set_by(code: Any) -> frozenset[str]:
    """The module's variables that a code sets; empty for what is no code."""
    found = dis.get_instructions(code) if isinstance(code, CodeType) else ()
    return frozenset(step.argval for step in found if step.opname == "STORE_GLOBAL")


def _pairs(values: Mapping[str, Any]) -> list[Any]:
    return [one for pair in sorted(values.items()) for one in pair]


def _instructions(code: CodeType) -> tuple[Any, ...]:
    return code.co_code, code.co_names, [_constant(one) for one in code.co_consts]


def _constant(value: Any) -> Any:
    if isinstance(value, CodeType):
        return _instructions(value)
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)  # a set has no order of its own
