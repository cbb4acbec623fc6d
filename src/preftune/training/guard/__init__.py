"""The guard: it watches a run while it trains, and reports what goes wrong, why, and the change that fixes it.

Figures go to `rules`, pure functions that raise alarms; `callback` is the thin part that transformers calls.

    alarms    Alarm
    callback  Guard, the callback
    figures   figures of a run
    looking   evaluation passes on a sample
    rollback  the last good weights
    rules     figures -> alarms
    samples   prompts, answers and held-out pairs of the guard
    schedule  when to evaluate, within the guard's share of time
    tally     sums over a step's pairs, on the device
"""

__all__ = ["alarms", "callback", "rollback", "samples"]
