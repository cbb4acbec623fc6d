"""What happens before the first step.

the model is made ready, data are tokenised, the reference is decided, and the first step is checked.

    advice          hints before training
    arguments       arguments of trainers, checked
    broken          whether training has destroyed the model
    chat_templates  the tokenizer's template and end of answer
    forecast        the plan of a trainer: memory, time, and what makes it fit
    measured_rate   two steps of a training, for the time of the whole
    dropout         no randomness in the policy's forward pass
    model           the model made ready: adapter, precision, engine; data tokenised
    neftune         noise on embeddings
    reference       which reference a run has, and its scores before the first step
    self_check      the check at the first step
    sharding        a model divided among ranks
    streams         rows that are trained on while they are read
"""

__all__ = [
    "advice",
    "arguments",
    "broken",
    "chat_templates",
    "dropout",
    "forecast",
    "measured_rate",
    "model",
    "neftune",
    "reference",
    "self_check",
    "sharding",
    "streams",
]
