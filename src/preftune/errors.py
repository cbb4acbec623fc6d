"""The exceptions of preftune. Each message says what is wrong, where, and the one change that fixes it.

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
    """The request is not valid: an unknown option, an impossible value, a missing file."""

    exit_code = 2


class ConfigError(RequestError):
    """A field of the configuration has an impossible or unsupported value."""


class DatasetError(RequestError):
    """The data cannot be read as preferences: wrong columns, wrong types, nothing left to train on."""


class TemplateLimitError(DatasetError):
    """A chat template took too long for one conversation, or too much memory."""


class ModelError(RequestError):
    """The model cannot be found, loaded, quantised or adapted as requested."""


class ReferenceMismatchError(PreftuneError):
    """Policy and reference differ where they must agree, or no source can supply a reference score that is needed."""


class SelfCheckError(PreftuneError):
    """The check before (or just after) the first optimiser step found an error that would spoil the run."""


class NonFiniteError(PreftuneError):
    """A loss or a gradient is NaN or infinite."""


class CheckpointError(PreftuneError):
    """A checkpoint cannot be written or loaded."""


class OutOfMemoryError(PreftuneError):
    """The device ran out of memory; the message lists options with the memory that each would save."""


class PlanOnlyError(PreftuneError):
    """The run was asked to stop after its plan (`plan_only`), and has. `plan` holds the numbers."""

    exit_code = 0
    plan: object = None


class EndpointError(PreftuneError):
    """A model behind an address gave no answer, or a cap on its calls was reached; earlier answers are kept."""


class UnsupportedLayoutError(PreftuneError):
    """The packed engine cannot compute this model exactly. The engine catches this error, falls back and says why."""


def sentence(text: str) -> str:
    """A text with a mark at its end."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


def did_you_mean(
    name: str, names: Iterable[str], *, otherwise: str = "", most: int = 1, cutoff: float = 0.6, shown: str = "{!r}"
) -> str:
    """The question in an error message: the other known names that may have been meant, whatever their case.

    Args:
        otherwise: the sentence if no known name is similar.
        most: maximum number of names in the question.
        cutoff: minimum similarity of a name, from 0 to 1.
        shown: format of a name.
    """
    known = {one.lower(): one for one in names if one != name}
    near = [known[one] for one in difflib.get_close_matches(name.lower(), known, n=most, cutoff=cutoff)]
    return f"Did you mean {' or '.join(map(shown.format, near))}?" if near else otherwise
