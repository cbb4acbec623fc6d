"""Why a row cannot train, and what corrects it."""

from __future__ import annotations

from collections.abc import Mapping

REASONS: Mapping[str, tuple[str, str]] = {
    "empty_completion": ("chosen or rejected is empty", "Remove such rows, or fill the empty side in."),
    "identical": ("chosen and rejected are the same", "Remove such rows: they prefer nothing."),
    "identical_after_truncation": (
        "chosen and rejected differ only in what truncation cut off",
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
        "the chat template does not tell where the assistant's turns begin and end",
        "Mark them in the template with {% generation %}, or let only the last answer differ.",
    ),
    "no_answer_left": ("truncation cuts off all that the assistant says on a side", "Raise max_length."),
    "calls_not_written": (
        "the chat template does not write the calls of tools",
        "Use a model whose template knows tools, or give one with --chat_template_path FILE.",
    ),
    "template_refused": ("the chat template refuses the conversation", "See the template's words below."),
    "no_start_token": (
        "the prompt is empty and the tokenizer has neither bos nor eos to begin with",
        "Give a prompt, or set tokenizer.bos_token.",
    ),
}
"""Why a row cannot train: reason -> (what is wrong, what corrects it)."""

DEMONSTRATION_REASONS: Mapping[str, tuple[str, str]] = {
    "bad_answer": ("the answer is labelled as a bad one", "No action is needed."),
    "repeated": ("the same answer to the same prompt is there already", "No action is needed."),
    "beaten": ("another answer is preferred to this one elsewhere", "No action is needed."),
    "empty_completion": ("there is nothing to learn in the answer", "Remove such rows, or fill the answer in."),
    "no_answer": ("no turn is the assistant's", "Remove such rows, or correct their roles."),
    "no_question": ("the assistant's only turn comes first, and answers nothing", "Add a turn of the user before it."),
    "no_answer_left": ("truncation cuts off all that is trained", "Raise max_length."),
    "answers_not_found": (
        "the chat template does not tell where the assistant's turns begin and end",
        "Mark them in the template with {% generation %}, or set assistant_only_loss=False.",
    ),
    "no_start_token": (
        "there is a single token, and nothing before it that could predict it",
        "Remove such rows, or set tokenizer.bos_token.",
    ),
    **{reason: REASONS[reason] for reason in ("too_long", "calls_not_written", "template_refused")},
}
"""The same for a demonstration."""

LABELLED_REASONS: Mapping[str, tuple[str, str]] = {
    "no_label": ("the label says neither good nor bad", "Write true or false, or remove such rows."),
    "no_answer": ("the conversation does not end with a turn of the assistant", "Remove the turns after the answer."),
    "empty_completion": ("the answer is empty", "Remove such rows, or fill the answer in."),
    "no_answer_left": ("truncation cuts off all of the answer", "Raise max_length."),
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
