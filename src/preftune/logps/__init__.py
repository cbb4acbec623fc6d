"""Log-probabilities of completions: the engine. Pure: torch, transformers' attention registry, and types."""

from preftune.logps.batch import pack
from preftune.logps.engine import Engine, EngineName, make_engine, prepare_head
from preftune.logps.head import LogitTransform, token_logps
from preftune.logps.layers.fast_layers import plain_layers, quicken
from preftune.logps.layout import GroupLayout, Segment, plan_layout
from preftune.logps.naive import naive_logps
from preftune.logps.support import Support, choose_engine, supports

__all__ = [
    "Engine",
    "EngineName",
    "GroupLayout",
    "LogitTransform",
    "Segment",
    "Support",
    "choose_engine",
    "make_engine",
    "naive_logps",
    "pack",
    "plain_layers",
    "plan_layout",
    "prepare_head",
    "quicken",
    "supports",
    "token_logps",
]
