"""Measures whether a model got better.

`two_models` compares a base and an aligned model prompt by prompt, `suites` holds benchmarks with their own rules,
and `labelling` makes preference pairs from samples and a judge.

    labelling   preference pairs from samples and a judge
    suites      MT-Bench, AlpacaEval, Arena-Hard, XSTest, HHH, held-out pairs, general abilities
    two_models  base against aligned, prompt by prompt
"""

__all__ = ["labelling", "suites", "two_models"]
