"""Preference pairs from a model's own answers.

`sample` draws several completions per prompt, `scoring` lets a judge score them, and `pair_selection` chooses pairs.

    label           pairs from samples
    pair_selection  selection of the completions of a prompt that form pairs
    sample          several completions per prompt, resumable
    sample_groups   samples read back as completions per prompt
    scoring         a judge's score of every completion
"""

__all__ = ["label", "pair_selection", "sample", "sample_groups", "scoring"]
