"""The guard: it watches a run while it trains, and reports a problem, its likely cause and the change that fixes it.

It reads two kinds of measurements. A `Glance` holds the means of training metrics and costs no computation. A `Look` is
an evaluation pass: the policy's answers to a few prompts, and scores of held-out pairs. `rules` are pure functions from
these to alarms; `callback` connects them to transformers' Trainer.

    alarms    Alarm
    callback  Guard, the callback
    figures   Glance, Look and the history of a run
    looking   evaluation passes on a sample
    rollback  the last good weights
    rules     measurements -> alarms
    samples   prompts and answers of the guard
    schedule  the steps of evaluation passes, within the guard's share of time
    tally     sums over a step's pairs, on the device
"""

__all__ = ["alarms", "callback", "rollback", "samples"]
