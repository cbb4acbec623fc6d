"""One optimiser step.

It is split into micro-batches within a token budget, and repeated when memory runs out.

    collate         groups -> batches
    kl_baseline     KTO's baseline over a whole step
    lockstep        ranks that run equally many passes
    measured        running moments over the pairs of a step
    memory          the token limit, which falls when memory runs out
    memory_advice   what to change when one pair does not fit
    metrics         means over samples, one transfer per log
    micro_batches   which groups are computed together
    optimizer_step  one step, repeated whole when memory runs out
    pair_loss       the objective of a configuration on a batch's pairs
    ranks           exchange of gradients and memory limits between ranks
    shares          work divided among the ranks, results gathered on all of them
    step_pairs      scores of all pairs of a step before its loss
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
