"""One optimiser step.

planning micro-batches within a token budget, computing them, starting again when memory runs out, and metrics.

    collate         groups -> batches
    kl_baseline     KTO's baseline over a whole step
    lockstep        ranks that run equally many passes
    measured        running moments of a step's pairs
    memory          out of memory: smaller parts
    memory_advice   what to change when one pair does not fit
    metrics         means over samples, one transfer per log
    micro_batches   which groups are computed together
    optimizer_step  one step, repeated whole when memory runs out
    pair_loss       the objective of a configuration on a batch's pairs
    ranks           what ranks exchange: gradients and memory limits
    shares          several ranks: a share of the work each, all results for all
    step_pairs      all pairs of a step before its loss
"""

__all__ = [
    "collate",
    "kl_baseline",
    "lockstep",
    "measured",
    "memory",
    "metrics",
    "micro_batches",
    "optimizer_step",
    "pair_loss",
    "shares",
    "step_pairs",
]
