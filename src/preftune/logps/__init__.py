"""Log-probabilities of completions: the engine. Pure: torch, transformers' attention registry, and types.

`engine.make_engine` gives the engine, `support` decides whether the fast one is exact for a model, and `naive` is the
oracle.

    attention     attention over packed groups
    batch         PackedBatch, GroupLogps, pack
    engine        packed, separate and naive engines
    head          log-probabilities without the full logits
    layers        faster forwards of known layers
    layout        GroupLayout: which query sees which keys
    naive         the oracle: one sequence at a time
    request       what the hooks in a forward pass compute
    score_groups  groups scored within a budget of tokens
    scores        scores of completions from reward heads
    states        hidden states of completions
    support       whether the packed engine is exact for a model
"""

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
    "attention",
    "batch",
    "choose_engine",
    "engine",
    "head",
    "layers",
    "layout",
    "make_engine",
    "naive_logps",
    "pack",
    "plain_layers",
    "plan_layout",
    "prepare_head",
    "quicken",
    "request",
    "score_groups",
    "scores",
    "states",
    "supports",
    "token_logps",
]
