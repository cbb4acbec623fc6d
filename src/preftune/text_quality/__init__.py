"""Properties of one text that need no judge.

The guard, the comparison of two models and the audit use them. All functions are pure and read only the text.

    languages        the language of a text
    near_duplicates  MinHash signatures and the pairs of texts that agree
    refusals         whether an answer refuses
    repetition       how much of a text repeats itself
    single_answer    all of these for one answer
"""

__all__ = ["languages", "near_duplicates", "repetition", "single_answer"]
