"""Every format by its name, and the recognition of a dataset's format."""

from __future__ import annotations

from collections.abc import Mapping

from preftune.data.formats import (
    argilla,
    judgements,
    message_trees,
    named_columns,
    several_answers,
    single_answers,
    two_answers,
)
from preftune.data.formats.adapter import Adapter, Sample
from preftune.errors import DatasetError, did_you_mean

FORMATS: Mapping[str, Adapter] = {
    adapter.name: adapter
    for module in (named_columns, several_answers, message_trees, two_answers, judgements, argilla, single_answers)
    for adapter in module.ADAPTERS
}


def adapter_named(name: str) -> Adapter:
    """The format with this name.

    Raises:
        DatasetError: an unknown name.
    """
    if name in FORMATS:
        return FORMATS[name]
    hint = did_you_mean(name, FORMATS, otherwise=f"Known are {known_formats()}.")
    raise DatasetError(f"format: {name!r} is not a format that preftune reads. {hint}")


def recognise(sample: Sample, *, name: str) -> Adapter | None:
    """The format of these rows; None if it is unknown.

    Args:
        name: of the dataset, for messages.
    Raises:
        DatasetError: the rows fit more than one format.
    """
    fitting = [adapter for adapter in FORMATS.values() if adapter.recognises(sample)]
    if len(fitting) > 1:
        found = " and ".join(f"{adapter.name!r} ({adapter.holds})" for adapter in fitting)
        raise DatasetError(f"{name} fits more than one format: {found}. Name the right one with --format (format=).")
    return fitting[0] if fitting else None


def known_formats() -> str:
    """The names of all formats, for messages."""
    return ", ".join(FORMATS)
