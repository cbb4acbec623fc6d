"""`JudgedEvaluationFields`: the options of a judge that compares answers at every evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from preftune.errors import ConfigError, RequestError
from preftune.training.config.options import option
from preftune.training.config.sharding import Sharding

PROMPTS = 32
"""Held-out prompts where no number is given."""
NEW_TOKENS = 256

AT_LENGTH = "win_rate_length_controlled"
WIN_RATES = (
    "win_rate",
    "win_rate_low",
    "win_rate_high",
    AT_LENGTH,
    "answer_tokens",
    "answer_tokens_reference",
)
"""What an evaluation with a judge reports, without prefix."""


@dataclass
class JudgedEvaluationFields:
    """The fields, and their checks. Without `eval_judge` nothing is answered."""

    no_eval_judge: ClassVar[str] = ""
    """Why a method cannot have one; empty if it can."""

    eval_judge: str | None = option(
        None,
        "At every evaluation, answer held-out prompts and compare the answers with the reference's by this judge: "
        "openai:MODEL@URL, local:MODEL, reward:MODEL, rule:MODULE:FUNCTION, shorter, longer, key-fact or exact. "
        "Adds eval_win_rate, its 95% interval and the rate at equal length to the metrics.",
    )
    eval_prompts: int | str | None = option(
        None,
        "For eval_judge: number of prompts, taken from each held-out set, or a file or dataset with prompts. Default: "
        "32.",
    )
    eval_max_new_tokens: int | None = option(
        None, "For eval_judge: maximum length of an answer, in tokens. Default: 256."
    )

    def _check_judged_evaluation(self, *, eval_strategy: object, sharding: Sharding | None) -> None:
        """Raises: ConfigError, naming field and value."""
        if self.eval_judge is None:
            for name in ("eval_prompts", "eval_max_new_tokens"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"{name}={getattr(self, name)} has no effect without eval_judge. Leave it out.")
            return
        if self.no_eval_judge:
            raise ConfigError(f"eval_judge={self.eval_judge!r} is not honoured: {self.no_eval_judge}. Leave it out.")
        if str(getattr(eval_strategy, "value", eval_strategy)) == "no":
            raise ConfigError(
                f"eval_judge={self.eval_judge!r} compares answers at every evaluation, and eval_strategy is 'no'. Set "
                "eval_strategy='steps' (with eval_steps) or 'epoch'."
            )
        if sharding is not None and sharding.cpu_offload:
            raise ConfigError(
                f"eval_judge={self.eval_judge!r} needs answers, which fsdp does not generate from weights in main "
                "memory. Leave out one of eval_judge and offload."
            )
        number = "" if self.eval_prompts is None else str(self.eval_prompts).strip()
        if number.lstrip("-").isdigit():
            self.eval_prompts = int(number)
            if int(number) < 2:
                raise ConfigError(f"eval_prompts={number}: give at least 2, or a file with prompts.")
        if self.eval_max_new_tokens is not None and self.eval_max_new_tokens < 1:
            raise ConfigError(f"eval_max_new_tokens={self.eval_max_new_tokens} must be at least 1.")
        self._check_judge()

    def _check_judge(self) -> None:
        from preftune.judges.registry import judge_kind

        try:
            judge_kind(str(self.eval_judge))
        except RequestError as error:
            raise ConfigError(f"eval_judge: {error}") from error


def judged_metrics(config: Any) -> tuple[str, ...]:
    """The metrics that `eval_judge` adds to an evaluation."""
    return WIN_RATES if getattr(config, "eval_judge", None) is not None else ()
