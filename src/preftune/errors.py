"""The exceptions a user can meet. Each message says what is wrong, where, and the one change that fixes it.

Exit codes of the command line follow the class: a `RequestError` was wrong before any work began (2), every other
`PreftuneError` is a job that could not be finished (1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PreftuneError(Exception):
    """Base of every error that preftune raises on purpose."""

    exit_code = 1


class RequestError(PreftuneError, ValueError):
    """What was asked for cannot be done as asked: an unknown option, an impossible value, a missing file."""

    exit_code = 2


class ConfigError(RequestError):
    """A field of the configuration has an impossible value, or stands for something preftune does not do."""


class DatasetError(RequestError):
    """The data cannot be read as preferences: wrong columns, wrong types, nothing left to train on."""


class TemplateLimitError(DatasetError):
    """A chat template took too long for one conversation, or too much memory."""


class ModelError(RequestError):
    """The model cannot be found, loaded, quantised or adapted as asked."""


class ReferenceMismatchError(PreftuneError):
    """Policy and reference disagree where they must agree, or a reference score is needed that no source can supply."""


class SelfCheckError(PreftuneError):
    """The check before (or just after) the first optimiser step found something that would ruin the run."""


class NonFiniteError(PreftuneError):
    """A loss or a gradient is NaN or infinite."""


class CheckpointError(PreftuneError):
    """A checkpoint cannot be written or loaded."""


class OutOfMemoryError(PreftuneError):
    """The device ran out of memory; the message names what would save how much."""


class EndpointError(PreftuneError):
    """A model behind an address gave no answer, or a cap on its calls was reached; what was answered is kept."""


class UnsupportedLayoutError(PreftuneError):
    """The packed engine cannot serve this model exactly. Caught by the engine, which falls back and says why."""


def did_you_mean(
    name: str, names: Iterable[str], *, otherwise: str = "", most: int = 1, cutoff: float = 0.6, shown: str = "{!r}"
) -> str:
    """The question of an error message: which known name was meant.

    Args:
        otherwise: the sentence where no known name is near.
        most: names in the question.
        cutoff: similarity from 0 to 1 below which a name is not near.
        shown: format of a name.
    """
    near = difflib.get_close_matches(name, list(names), n=most, cutoff=cutoff)
    return f"Did you mean {' or '.join(map(shown.format, near))}?" if near else otherwise
