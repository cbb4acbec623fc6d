"""Properties of one text that no judge is needed for.

They feed the guard, the comparison of two models and the audit. All functions are pure and read the text alone.

    languages        the language of a text
    near_duplicates  MinHash signatures and the pairs of texts that agree
    refusals         whether an answer refuses
    repetition       how much of a text repeats itself
    single_answer    all of these for one answer
"""

__all__ = ["languages", "near_duplicates", "single_answer"]
