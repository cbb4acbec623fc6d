"""Judges and scorers: which of two answers is better, or how good one answer is.

`protocol` defines `Judge` and `Scorer`. A new rule is a class with that signature and a line in `registry.RULES`; a
judge with a prefix of its own (`openai:`) is also a branch of `registry.open_judge`. `cache` keeps paid verdicts.

    cache               verdicts on disk, by content
    ensemble            several scorers as one
    exact_match         the final answer against the expected one
    from_scores         a judge from a scorer: the higher score wins
    llm_client          questions to a chat model, cached and in parallel
    pairwise_llm        a chat model that compares two answers
    people              agreement of a judge with people, and their labels
    probability_judge   a chat model that compares two answers by log-probabilities
    prompt_and_reply    marks around answers in a prompt, and the verdict at the end of a reply
    protocol            Judge, Scorer, Question, and calling them
    registry            RULES; --judge SPEC -> a judge (open_judge), a rule alone (load_judge)
    reward_model        a reward model as scorer
    reward_model_input  prompt and answer as the tokens that a reward model was trained on
    rules               key facts and length
    spread              judges on the workers of a cluster
    text_matching       whether a text contains a fact
    user_rules          Python functions of the user
"""

__all__ = [
    "ensemble",
    "exact_match",
    "from_scores",
    "llm_client",
    "pairwise_llm",
    "people",
    "probability_judge",
    "prompt_and_reply",
    "protocol",
    "registry",
    "reward_model",
    "reward_model_input",
    "rules",
    "spread",
    "text_matching",
    "user_rules",
]
