"""What suites ask of a contest: a judge to be asked in a suite's own words, two models, answers of one side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from preftune.amounts import counted
from preftune.errors import RequestError
from preftune.evaluation.two_models import answers
from preftune.evaluation.two_models.answers import answer_key
from preftune.evaluation.two_models.types import AnsweredRow
from preftune.generation.answer_store import AnswerStore
from preftune.generation.protocol import Kept, Rows, Side
from preftune.log import say
from preftune.progress import Counting
from preftune.types import Message, Text

if TYPE_CHECKING:
    from preftune.evaluation.two_models.context import Contest, PairOfModels
    from preftune.judges.llm_client import Asker
    from preftune.judges.protocol import Judge

T = TypeVar("T")


def need_asker(contest: Contest, suite: str) -> Asker:
    """The judge that can be asked in the suite's own words.

    Raises: RequestError when the contest lacks one.
    """
    if contest.asker is None:
        raise RequestError(
            f"The suite {suite} asks a chat model with its own prompts. Name one with --judge openai:MODEL@BASE_URL, "
            "or --judge local:MODEL."
        )
    return contest.asker


def need_judge(contest: Contest, suite: str) -> Judge:
    """The judge that compares two answers.

    Raises: RequestError when the contest lacks one.
    """
    if contest.judge is None:
        raise RequestError(
            f"The suite {suite} needs a judge that compares two answers. Name one with --judge, for example "
            "--judge openai:MODEL@BASE_URL."
        )
    return contest.judge


def check_models(contest: Contest, suite: str) -> None:
    """Raises: RequestError for endpoints, which give text and no log-probabilities of given text."""
    if contest.load_models is None:
        raise RequestError(
            f"The suite {suite} reads log-probabilities, which a model behind an address does not return. Name the "
            "models themselves with --model and --baseline."
        )


def need_models(contest: Contest, suite: str) -> PairOfModels:
    """Both models, loaded. Raises: see `check_models`."""
    check_models(contest, suite)
    assert contest.load_models is not None
    return contest.load_models()


def ask(
    contest: Contest,
    questions: Sequence[Sequence[Message]],
    *,
    read: Callable[[str], T | None],
    kind: str,
    max_tokens: int,
    suite: str,
) -> list[T | None]:
    """What the contest's asker replies, read; None where two replies could not be read. Kept on disk, asked once."""
    asker = need_asker(contest, suite)
    if not questions:
        return []
    estimate = asker.estimate(questions, kind=kind, max_tokens=max_tokens)
    if estimate.calls:
        say(f"{suite}: {estimate.line()}")
    with Counting(f"{suite}: judging", unit="questions") as progress:
        return asker.ask_all(questions, read=read, kind=kind, max_tokens=max_tokens, progress=progress)


def cut_off(sides: Mapping[Side, Sequence[bool]], *, usual: int) -> list[str]:
    """A note where answers did not end by themselves, mostly at the limit of tokens: a judge takes it for a fault.

    Args:
        sides: whether each answer ended by itself.
        usual: tokens that the suite's makers allow.
    """
    cut = {side: sum(not one for one in finished) for side, finished in sides.items()}
    if not any(cut.values()):
        return []
    return [
        f"{counted(cut['base'], 'answer')} of the baseline and {cut['aligned']} of the aligned model were cut "
        f"before their end, at the limit of tokens or by a filter of the server. The suite's makers allow {usual:,} "
        f"tokens: add --max_new_tokens {usual}."
    ]


def ended(answered: Sequence[AnsweredRow]) -> dict[Side, list[bool]]:
    """Whether the answers of both sides ended by themselves."""
    return {"base": [a.base_finished for a in answered], "aligned": [a.aligned_finished for a in answered]}


def answer_both(contest: Contest, rows: Rows, folder: Path) -> list[AnsweredRow]:
    """Both models' answers to every row, kept in `generations.jsonl`."""
    return answers.answer_rows(
        rows,
        generate=contest.generate,
        path=folder / "generations.jsonl",
        settings=contest.settings,
        thoughts=contest.judge_thoughts,
        progress=contest.progress,
    )


def answer_side(contest: Contest, side: Side, prompts: Sequence[Text], rows: Rows, *, path: Path) -> list[Kept]:
    """One model's answers to prompts of its own (a second turn holds its first answer).

    Appended to `path` as they come, and found there again by content: a run that was killed goes on.
    """
    keys = [answer_key(prompt, row, [side, contest.settings]) for prompt, row in zip(prompts, rows, strict=True)]
    store = AnswerStore(path)
    with Counting(f"answering, {side}", unit="answers") as progress:
        answers.answer_side(store, keys, contest.generate, side, prompts, rows, progress=progress)
    kept = [Kept.read(store.known[key]) for key in keys]
    return [one.whole for one in kept] if contest.judge_thoughts else kept
