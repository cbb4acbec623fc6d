"""Many trainings of one recipe with settings drawn from ranges: what `preftune sweep` does, on Optuna.

`run` is the entry point. A trial is a run directory with the recipe that repeats it; trials share the reference cache.

    objective  what a trial is worth
    page       the page over all trials
    plan       the recipe's `sweep` block
    run        the study
"""

__all__ = ["page", "plan", "run"]
