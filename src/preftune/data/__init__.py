"""Preference data: from whatever people have to token ids, with every dropped or cut row accounted for.

load_rows -> read_pairs / load_pairs -> tokenize_pairs -> GroupDataset, TokenizeReport
          -> load_demonstrations     -> tokenize_demonstrations -> GroupDataset, DemonstrationReport
"""

from __future__ import annotations

from preftune.data.adapters import FORMATS
from preftune.data.columns import CANONICAL
from preftune.data.demonstration_formats import DEMONSTRATION_FORMATS, Demonstration
from preftune.data.demonstration_report import DemonstrationReport
from preftune.data.demonstration_tokens import tokenize_demonstrations
from preftune.data.demonstrations import DemonstrationDataset, load_demonstrations
from preftune.data.encode import DIALOGUE_TEMPLATE
from preftune.data.groups import GroupDataset
from preftune.data.load import load_rows
from preftune.data.pairs import PairDataset, load_pairs, read_pairs
from preftune.data.prompt_groups import group_by_prompt
from preftune.data.tokenize import tokenize_pairs
from preftune.data.tokenize_report import TokenizeReport

__all__ = [
    "CANONICAL",
    "DEMONSTRATION_FORMATS",
    "DIALOGUE_TEMPLATE",
    "FORMATS",
    "Demonstration",
    "DemonstrationDataset",
    "DemonstrationReport",
    "GroupDataset",
    "PairDataset",
    "TokenizeReport",
    "group_by_prompt",
    "load_demonstrations",
    "load_pairs",
    "load_rows",
    "read_pairs",
    "tokenize_demonstrations",
    "tokenize_pairs",
]
