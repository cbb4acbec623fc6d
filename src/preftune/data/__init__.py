"""Preference data: from files and datasets in any known format to token ids. Every dropped or cut row is counted.

load_rows -> read_pairs / load_pairs -> tokenize_pairs -> GroupDataset, TokenizeReport
          -> load_demonstrations     -> tokenize_demonstrations -> GroupDataset, DemonstrationReport
          -> load_labelled           -> tokenize_labelled -> GroupDataset, LabelledReport

    chat            turns, tool calls and chat templates
    conversion      preftune convert
    demonstrations  answers to imitate, for SFT
    formats         shapes and named formats of preference data
    labelled        single answers that are good or bad, for KTO
    pairs           preference pairs: opened, checked, mixed, streamed
    reading         files, hub ids and lists -> raw rows
    row_dataset     records of a table, each made when it is read
    streams         rows that are trained on while they are read
    tokens          token ids, their report and their cache
    tokens_version  TOKENS_VERSION, part of the key of cached pairs and tokens
"""

from __future__ import annotations

from preftune.data.demonstrations.dataset import DemonstrationDataset, load_demonstrations
from preftune.data.formats import FORMATS
from preftune.data.formats.columns import CANONICAL
from preftune.data.formats.demonstrations import DEMONSTRATION_FORMATS
from preftune.data.labelled import LabelledDataset, load_labelled, mix_labelled
from preftune.data.pairs.dataset import PairDataset
from preftune.data.pairs.open import load_pairs, read_pairs
from preftune.data.reading.load import load_rows
from preftune.data.tokens.encode import DIALOGUE_TEMPLATE
from preftune.data.tokens.group_by_prompt import group_by_prompt
from preftune.data.tokens.groups import GroupDataset
from preftune.data.tokens.lists import ListCounts, as_lists
from preftune.data.tokens.report import DemonstrationReport, LabelledReport, TokenizeReport
from preftune.data.tokens.tokenize import tokenize_demonstrations, tokenize_labelled, tokenize_pairs

__all__ = [
    "CANONICAL",
    "DEMONSTRATION_FORMATS",
    "DIALOGUE_TEMPLATE",
    "FORMATS",
    "DemonstrationDataset",
    "DemonstrationReport",
    "GroupDataset",
    "LabelledDataset",
    "LabelledReport",
    "ListCounts",
    "PairDataset",
    "TokenizeReport",
    "as_lists",
    "chat",
    "conversion",
    "demonstrations",
    "formats",
    "group_by_prompt",
    "load_demonstrations",
    "load_labelled",
    "load_pairs",
    "load_rows",
    "mix_labelled",
    "pairs",
    "read_pairs",
    "reading",
    "streams",
    "tokenize_demonstrations",
    "tokenize_labelled",
    "tokenize_pairs",
    "tokens",
]
