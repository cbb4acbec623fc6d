"""Base against aligned, prompt by prompt: answers, verdicts, a win rate with its interval, and advice.

`run` is the entry point and `summary` makes the verdict. Every step is kept in `eval/` and a second run continues it.

    advice        what to do next, from the numbers of this run
    answers       both models' answers, kept one by one, resumable
    cheats        ways to win without better answers, by name
    context       input of a suite: two models, a judge, settings
    correctness   whether answers became more correct, or only shorter
    degeneration  repetition, language, refusals of two models
    open_models   opens the two sides: local, adapter, endpoint, vLLM
    over_seeds    the win rate of several seeds' models
    pair_logps    log-probabilities of pairs under both models
    run           the comparison: generate, judge, count
    spread_sides  both sides on the workers of a cluster
    summary       eval/summary.json: the win rate, the verdict and the reasons
    types         AnsweredRow, JudgedRow, Outcome
    verdict_record  the verdict in summary.json and in the model card
"""

__all__ = [
    "advice",
    "answers",
    "context",
    "open_models",
    "over_seeds",
    "pair_logps",
    "run",
    "spread_sides",
    "summary",
    "types",
    "verdict_record",
]
