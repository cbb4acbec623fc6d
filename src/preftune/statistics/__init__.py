"""Estimates with intervals, and the verdicts that follow from them.

All functions are pure: they use numbers only, no model and no file. Methods cite their source; intervals are
clustered by prompt.

    bradley_terry       scores of several models from comparisons between them
    calibration         reliability of a reward model's probabilities
    intervals           win rates, means and shares with intervals; sample sizes; the verdict in words
    length_control      win rates at equal length (AlpacaEval 2)
    over_seeds          win rates over prompts and training seeds
    paired              one metric of two models: difference, interval, better or worse
    profile_likelihood  intervals of one quantity of a fitted model
    verdict_rules       the rules of an evaluation's verdict
"""

__all__ = ["bradley_terry", "calibration", "intervals", "length_control", "over_seeds", "paired", "verdict_rules"]
