"""Estimates with intervals, and the verdicts that follow from them.

All functions are pure: they use numbers only, no model and no file. Methods cite their source; intervals are
clustered by prompt.

    bradley_terry       scores of several models from comparisons between them
    calibration         reliability of a reward model's probabilities
    clusters            the uncertainty of a mean over values that come in clusters
    confidence_sequence  an interval of a win rate that stays valid however often one looks
    intervals           win rates, means and shares with intervals; sample sizes; the verdict in words
    l1_logistic         logistic regression with an L1 penalty, cross-validated
    length_control      win rates at equal length (AlpacaEval 2), for prompts of one's own
    over_seeds          win rates over prompts and training seeds
    paired              one metric of two models: difference, interval, better or worse
    profile_likelihood  intervals of one quantity of a fitted model
    published_length_control  the estimator of AlpacaEval's leaderboard
    verdict_names       the names of the verdicts, and their order
    verdict_rules       the rules of an evaluation's verdict
"""

__all__ = [
    "bradley_terry",
    "calibration",
    "clusters",
    "confidence_sequence",
    "intervals",
    "length_control",
    "over_seeds",
    "paired",
    "published_length_control",
    "verdict_names",
    "verdict_rules",
]
