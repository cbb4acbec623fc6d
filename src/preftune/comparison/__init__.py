"""The comparison of `preftune compare`: methods on the same model, data, budget and judge.

`run` is the entry point. Each training is a separate process (`training.stages`).

    chart      reward against KL
    data       three parts of the data without a shared prompt
    measure    answers and KL divergence of a policy
    methods    the methods that can be compared
    page       the page
    plan       budget and trials
    result     the result and its sentences
    run        the comparison
    trainings  recipes of the trainings
"""

__all__ = ["data", "measure", "methods", "page", "plan", "result", "run", "trainings"]
