"""Formats of preference data, one module per family, recognised by their columns or named with `--format`.

raw rows -> recognise -> Adapter -> columns named, or canonical rows made, and rows without a pair counted

A new format is an `Adapter` in the `ADAPTERS` of a module, which `registry` gathers; its example rows go to
tests/data/format_rows.

    adapter          what a format is; reasons for rows without a pair (LEFT)
    apply            raw rows -> canonical rows, with a count of the rest
    argilla          exports of Argilla
    columns          the columns of the prompt and of both sides
    demonstrations   shapes of demonstrations -> Example
    judgements       arenas, and annotators' labels of two outputs
    message_trees    OpenAssistant trees
    named_columns    formats that are pairs under other names
    registry         FORMATS: every format by its name
    select           recognises the format and converts rows to it
    several_answers  rated and ranked lists
    single_answers   one answer with a label or a thumb; Alpaca
    to_pair          one row of any shape -> PreferencePair
    two_answers      two answers and a verdict: SHP, SafeRLHF, HelpSteer, WebGPT
"""

from __future__ import annotations

from preftune.data.formats.adapter import LEFT, Adapter, Left, Made, Sample
from preftune.data.formats.registry import FORMATS, adapter_named, recognise

__all__ = [
    "FORMATS",
    "LEFT",
    "Adapter",
    "Left",
    "Made",
    "Sample",
    "adapter",
    "adapter_named",
    "apply",
    "columns",
    "demonstrations",
    "judgements",
    "recognise",
    "registry",
    "select",
    "single_answers",
    "to_pair",
]
