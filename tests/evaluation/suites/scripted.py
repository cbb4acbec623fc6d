"""A contest of two scripted models and a scripted judge behind the real asker and its cache. Nothing is random."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from preftune.evaluation.two_models.context import Contest, PairOfModels
from preftune.generation.endpoint.budget import Budget
from preftune.judges.cache import VerdictCache
from preftune.judges.llm_client import EndpointAsker


class Said(NamedTuple):
    text: str
    tokens: int
    finished: bool = True


class Speaker:
    """Answers by a function of (side, prompt); remembers what it was asked; stops after so many prompts."""

    def __init__(self, answer: Callable[[str, Any], str], *, stop_after: int | None = None) -> None:
        self.answer, self.stop_after = answer, stop_after
        self.asked: list[tuple[str, Any, Mapping[str, Any]]] = []

    def __call__(self, side: str, prompts: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> list[Said]:
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked += [(side, prompt, row) for prompt, row in zip(prompts, rows, strict=True)]
        return [Said(text := self.answer(side, prompt), len(text.split())) for prompt in prompts]


class Reply(NamedTuple):
    text: str
    cut: bool = False
    first_token: Mapping[str, float] | None = None


class Conduct(NamedTuple):
    concurrency: int = 1


class ScriptedJudge:
    """An endpoint whose replies are a function of the question (again after a reminder); stops after so many calls."""

    name = "scripted@nowhere"
    conduct = Conduct()

    def __init__(
        self,
        reply: Callable[[str], str],
        *,
        stop_after: int | None = None,
        first_token: Callable[[str], Mapping[str, float]] | None = None,
    ) -> None:
        self.reply, self.stop_after, self.first_token = reply, stop_after, first_token
        self.asked: list[Sequence[Mapping[str, Any]]] = []
        self.budget = Budget()

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Reply:
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked.append(messages)
        asked = next(turn["content"] for turn in messages if turn["role"] == "user")
        given = self.first_token if options.get("logprobs") else None
        return Reply(self.reply(asked), first_token=None if given is None else given(asked))


def contest(
    folder: Path,
    *,
    generate: Any = None,
    endpoint: ScriptedJudge | None = None,
    judge: Any = None,
    load_models: Callable[[], PairOfModels] | None = None,
    **more: Any,
) -> Contest:
    """A contest that writes below `folder`; the judge's replies are kept below it, too."""
    asker = None if endpoint is None else EndpointAsker(endpoint, VerdictCache(folder / "verdicts"))
    return Contest(
        generate=generate,
        settings={"models": ["base", "aligned"]},
        folder=folder / "eval",
        judge=judge,
        asker=asker,
        baseline="base-model",
        aligned="aligned-model",
        load_models=load_models,
        **more,
    )


def last(prompt: Any) -> str:
    """What was asked last."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def two_models(base: Any, aligned: Any, tokenizer: Any) -> Callable[[], PairOfModels]:
    """Two models of one tokeniser, as a contest loads them."""

    @contextmanager
    def baseline():
        yield base

    return lambda: PairOfModels(aligned, tokenizer, baseline, tokenizer)
