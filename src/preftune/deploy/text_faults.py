"""Faults that are seen in the text: vocabulary, chat template and end tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from preftune.deploy.artefact import Manifest
from preftune.deploy.served import Served, ServedModel
from preftune.types import Text

Stage: TypeAlias = Literal[
    "files",
    "vocabulary",
    "template",
    "end token",
    "head",
    "base",
    "adapter not applied",
    "weights",
    "precision",
    "generation",
    "win rate",
]
TEXTS = (
    "The quick brown fox jumps over the lazy dog: 12.5 metres?",
    "def f(x):\n    return x ** 2\t# done",
    "It's 7:30; she'll go!",
)
UNUSUAL = ("naïve café", "你好,世界", "こんにちは", "🙂🙃", "½ x²", "Ⅷ ٣", "e\u0301")
"""Plain texts whose token ids are compared. Of the unusual ones, another implementation may split a few differently."""


@dataclass(frozen=True, slots=True)
class Fault:
    """The stage at which what is served stops being what was aligned."""

    stage: Stage
    sentence: str


def faults_of_text(
    run: ServedModel, served: Served, prompts: Sequence[Text], manifest: Manifest | None, notes: list[str]
) -> list[Fault]:
    """Faults of vocabulary, template and end tokens.

    Args:
        notes: what could not be compared, or differs without being a fault, is added here.
    """
    faults: list[Fault] = []
    texts = (*TEXTS, *map(str, run.tokenizer.all_special_tokens), *UNUSUAL)
    mine, theirs = run.text_ids(texts), served.text_ids(texts)
    if theirs is None:
        notes.append("The server does not show token ids: vocabulary and template are seen in the answers only.")
    else:
        other = [at for at, (one, two) in enumerate(zip(mine, theirs, strict=True)) if one != two]
        if other and texts[other[0]] in UNUSUAL and len(other) < len(UNUSUAL) / 2:
            shown = ", ".join(repr(texts[at]) for at in other)
            notes.append(f"The server splits some unusual texts into other tokens than in training: {shown}.")
        elif other:
            first = other[0]
            sentence = f"{texts[first]!r} has the tokens {theirs[first][:8]}, and in training had {mine[first][:8]}."
            faults.append(Fault("vocabulary", sentence))
    rendered = served.prompt_ids(prompts)
    own = run.prompt_ids(prompts)
    if rendered is not None and not faults:
        faults += _faults_of_template(run.tokenizer, own, rendered)
    return faults + _faults_of_ends(run, served, manifest)


def _faults_of_template(tokenizer: Any, own: list[list[int]], rendered: list[list[int]]) -> list[Fault]:
    """The first prompt with another text; the same text in other tokens is a matter of the vocabulary."""
    for number, (mine, theirs) in enumerate(zip(own, rendered, strict=True)):
        if mine != theirs and tokenizer.decode(mine) != tokenizer.decode(theirs):
            place = next(i for i, (a, b) in enumerate(zip([*mine, -1], [*theirs, -1], strict=False)) if a != b)
            texts = [tokenizer.decode(ids[place : place + 8]) for ids in (theirs, mine)]
            sentence = f"prompt {number} is rendered differently from token {place}: {texts[0]!r}, not {texts[1]!r}."
            return [Fault("template", sentence)]
    return []


def _faults_of_ends(run: ServedModel, served: Served, manifest: Manifest | None) -> list[Fault]:
    """The tokens that end an answer of the run, at which the served model, or another server of its folder, goes on."""
    wanted = sorted(run.ends() if manifest is None else frozenset(manifest.ends) | run.ends())
    known = served.ending(wanted)
    if known is None or not (missing := [end for end in wanted if end not in known]):
        return []
    marks = ", ".join(str(run.tokenizer.convert_ids_to_tokens(end)) for end in missing)
    if isinstance(served, ServedModel):
        return [Fault("end token", f"generation_config.json does not name {marks} ({missing}): answers may not end.")]
    return [Fault("end token", f"the server goes on after {marks} ({missing}). Give it as `stop` in every request.")]
