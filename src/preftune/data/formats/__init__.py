"""Formats of preference data, one small module per family, recognised by their shape or named with `--format`.

raw rows -> recognise -> Adapter -> columns named, or canonical rows made and what gives none counted
"""

from __future__ import annotations

from preftune.data.formats.adapter import LEFT, Adapter, Left, Made, Sample
from preftune.data.formats.registry import FORMATS, adapter_named, recognise

__all__ = ["FORMATS", "LEFT", "Adapter", "Left", "Made", "Sample", "adapter_named", "recognise"]
