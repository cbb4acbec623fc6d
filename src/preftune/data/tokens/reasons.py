"""Why a row cannot be trained, and how to correct it."""

from __future__ import annotations

from collections.abc import Mapping

REASONS: Mapping[str, tuple[str, str]] = {
    "empty_completion": ("chosen or rejected is empty", "Remove such rows, or fill in the empty side."),
    "identical": ("chosen and rejected are the same", "Remove such rows: they state no preference."),
    "identical_after_truncation": (
        "chosen and rejected differ only in the part that truncation cut off",
        "Raise max_length.",
    ),
    "prompt_too_long": ("the prompt leaves no room for an answer", "Raise max_length, or set max_prompt_length."),
    "too_long": ("longer than max_length", 'Raise max_length, or use truncation="truncate".'),
    "no_shared_prompt": (
        "chosen and rejected do not answer the same prompt",
        "Add a column 'prompt', or let both sides begin with the same turns.",
    ),
    "no_answer": ("a side does not end with a turn of the assistant", "Remove the turns after the last answer."),
    "answers_not_found": (
        "the assistant's turns cannot be located in the text of the chat template",
        "Mark them in the template with {% generation %}, or let only the last answer differ.",
    ),
    "no_answer_left": ("truncation cuts off all text of the assistant on a side", "Raise max_length."),
    "calls_not_written": (
        "the chat template does not write the tool calls",
        "Use a model whose template supports tools, or give one with --chat_template_path FILE.",
    ),
    "template_refused": ("the chat template refuses the conversation", "See the template's message below."),
    "no_start_token": (
        "the prompt is empty and the tokenizer has neither bos nor eos to begin with",
        "Give a prompt, or set tokenizer.bos_token.",
    ),
}
"""Why a row cannot be trained: reason -> (what is wrong, how to correct it)."""

_NO_LABEL = ("the label means neither good nor bad", "Write true or false, or remove such rows.")
DEMONSTRATION_REASONS: Mapping[str, tuple[str, str]] = {
    "bad_answer": ("the answer is labelled as bad", "No action is needed."),
    "no_label": _NO_LABEL,
    "repeated": ("the same answer to the same prompt occurs in an earlier row", "No action is needed."),
    "beaten": ("another row prefers another answer to this one", "No action is needed."),
    "empty_completion": ("the answer holds nothing to learn", "Remove such rows, or fill in the answer."),
    "no_answer": ("there is no turn of the assistant", "Remove such rows, or correct their roles."),
    "no_question": (
        "the assistant's only turn comes first, and answers no question",
        "Add a turn of the user before it.",
    ),
    "no_answer_left": ("truncation cuts off all trained tokens", "Raise max_length."),
    "answers_not_found": (
        "the assistant's turns cannot be located in the text of the chat template",
        "Mark them in the template with {% generation %}, or set assistant_only_loss=False.",
    ),
    "no_start_token": (
        "the row has one token, and no token before it to predict it from",
        "Remove such rows, or set tokenizer.bos_token.",
    ),
    **{reason: REASONS[reason] for reason in ("too_long", "calls_not_written", "template_refused")},
}
"""The same for a demonstration."""

LABELLED_REASONS: Mapping[str, tuple[str, str]] = {
    "no_label": _NO_LABEL,
    "no_answer": ("the conversation does not end with a turn of the assistant", "Remove the turns after the answer."),
    "empty_completion": ("the answer is empty", "Remove such rows, or fill in the answer."),
    "no_answer_left": ("truncation cuts off the whole answer", "Raise max_length."),
    **{
        reason: REASONS[reason]
        for reason in (
            "prompt_too_long",
            "too_long",
            "no_shared_prompt",
            "answers_not_found",
            "calls_not_written",
            "template_refused",
            "no_start_token",
        )
    },
}
"""The same for an answer with a label."""

REASONS_OF_METHOD: Mapping[str, Mapping[str, tuple[str, str]]] = {"sft": DEMONSTRATION_REASONS, "kto": LABELLED_REASONS}
"""Those of the methods that do not train on pairs, by the `method` of a run's run.json."""
