"""Preparation before the first step.

The model is prepared, data are tokenised, the reference is chosen, and the first step is checked.

    advice          hints before training
    arguments       checks of the trainers' arguments
    broken          detection of a model that training has destroyed
    chat_templates  the tokenizer's chat template and end-of-answer token
    dropout         dropout and other noise of the forward pass, switched off
    forecast        the plan of a trainer: memory and time
    measured_rate   the speed of two real steps, from which a plan estimates the time
    model           preparation of the model (adapter, precision, engine) and of the data
    neftune         noise on embeddings
    reference       the reference of a run, and its scores before the first step
    rehearsal       optimiser, schedule and loader, made once before the model is loaded
    self_check      the check at the first step
    sharding        a model divided among ranks
    streams         rows that are trained on while they are read
    unsaved         what was changed in memory and is in no file
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
    "rehearsal",
    "self_check",
    "sharding",
    "streams",
    "unsaved",
]
