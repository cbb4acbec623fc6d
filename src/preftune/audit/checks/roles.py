"""Turns of conversations: the order of the roles, and the turn from which the two sides differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from preftune.audit.checks.check import Check, Setting
from preftune.audit.finding import Kind
from preftune.audit.seen import SeenPair
from preftune.types import Message

_SYSTEM = ("system", "developer")

NO_ANSWER = Kind(
    "no_answer",
    "error",
    "Conversations that do not end with an answer",
    "There is no answer to prefer; preftune dpo leaves the row out.",
    "Remove the turns after the last turn of the assistant.",
)
NO_SHARED_PROMPT = Kind(
    "no_shared_prompt",
    "error",
    "The two sides answer different prompts",
    "They cannot be compared; preftune dpo leaves the row out.",
    "Start both sides with the same turns, or name the prompt: --columns prompt=NAME.",
)
OUT_OF_ORDER = Kind(
    "roles_out_of_order",
    "warning",
    "Turns out of order",
    "Many chat templates refuse such a conversation, and no model is used in this way.",
    "Join neighbouring turns of one role, and put the system prompt first.",
)
CONTINUED = Kind(
    "continued_turn",
    "info",
    "Answers that continue a turn of the assistant",
    "The answer is trained as the rest of the turn that starts in the prompt.",
    "No action is needed if a prefix was given to the model on purpose.",
)
SEVERAL_TURNS = Kind(
    "several_turns",
    "info",
    "Pairs that differ in more than the last answer",
    "More than one turn is compared, and they may differ for several reasons at once.",
    "No action is needed if whole conversations were compared.",
)


class RolesCheck(Check):
    """Checks the turns of conversational pairs."""

    kinds = (NO_ANSWER, NO_SHARED_PROMPT, OUT_OF_ORDER, CONTINUED, SEVERAL_TURNS)
    section = "turns"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.conversations = self.with_system = 0
        self.turns: dict[int, int] = {}

    def take(self, seen: SeenPair) -> None:
        prompt, chosen, rejected = seen.pair.prompt, seen.pair.chosen, seen.pair.rejected
        if isinstance(prompt, str) or isinstance(chosen, str) or isinstance(rejected, str):
            return
        sides = chosen, rejected
        self.conversations += 1
        self.with_system += any(turn["role"] in _SYSTEM for turn in prompt)
        count = min(len(prompt) + max(map(len, sides)), 20)
        self.turns[count] = self.turns.get(count, 0) + 1
        if not prompt:
            self.add(NO_SHARED_PROMPT, seen)
        if any(not side or side[-1]["role"] != "assistant" for side in sides):
            self.add(NO_ANSWER, seen)
            return
        if prompt and all(turns[0]["role"] == "assistant" for turns in (prompt[-1:], *sides)):
            self.add(CONTINUED, seen)
        wrong = next((found for side in sides if (found := disorder([*prompt, *side], ends=len(prompt)))), None)
        if wrong:
            self.add(OUT_OF_ORDER, seen, wrong)
        if any(turn["role"] == "user" for side in sides for turn in side):
            self.add(SEVERAL_TURNS, seen)

    def figures(self) -> Mapping[str, Any]:
        return {
            "conversations": self.conversations,
            "with_system": self.with_system,
            "turns": {str(count): pairs for count, pairs in sorted(self.turns.items())},
        }


def disorder(turns: Sequence[Message], *, ends: int) -> str | None:
    """The first error in the order of turns, in a few words; None without an error.

    Args:
        ends: number of turns of the prompt. An assistant's turn may be divided between prompt and answer there.
    """
    before = ""
    for number, turn in enumerate(turns):
        role = str(turn["role"])
        if role in _SYSTEM and number and before not in _SYSTEM:
            return f"turn {number} is a system prompt"
        if role == before and role == "user":
            return f"turns {number - 1} and {number} are both the user's"
        if role == before == "assistant" and number != ends and not turns[number - 1].get("tool_calls"):
            return f"turns {number - 1} and {number} are both the assistant's"
        if role == "assistant" and (not number or before in _SYSTEM):
            return "the assistant speaks first"
        before = role
    return None
