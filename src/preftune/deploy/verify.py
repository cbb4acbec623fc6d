"""Verifies that what is served is what was aligned, by token ids, end tokens, scores and greedy answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from preftune.deploy.artefact import Manifest, damaged_files, read_manifest
from preftune.deploy.distances import Figures, Scored, figures_of
from preftune.deploy.files import check_base, check_head, check_weights
from preftune.deploy.served import Served, ServedModel, gguf_of, pair_of
from preftune.errors import RequestError
from preftune.generation.protocol import Kept
from preftune.types import PreferencePair, Text, TokenizedGroup

Stage: TypeAlias = Literal[
    "files", "vocabulary", "template", "end token", "head", "base", "adapter not applied", "weights", "precision"
]
TEXTS = (
    "The quick brown fox, 12.5 metres: naïve café?",
    "def f(x):\n    return x ** 2\t# done",
    "你好,世界 – こんにちは",
    "🙂🙃 ½",
)
"""Plain texts whose token ids are compared."""


@dataclass(frozen=True, slots=True)
class Fault:
    """The stage at which what is served stops being what was aligned."""

    stage: Stage
    sentence: str


@dataclass(slots=True)
class Verification:
    """The result: `faults` is empty for an artefact that is what was aligned."""

    name: str
    faults: list[Fault] = field(default_factory=list)
    figures: Figures | None = None
    """None if the served model shows neither scores nor answers that could be compared."""
    unseen: list[str] = field(default_factory=list)
    """What could not be compared, in sentences."""
    form: str = ""
    """The number format of the weights where it rounds and they are known to be the run's; otherwise empty."""

    @property
    def holds(self) -> bool:
        return not self.faults

    def verdict(self) -> str:
        """One sentence."""
        if self.faults:
            return f"{self.faults[0].stage}: {self.faults[0].sentence}"
        if self.figures is None or not self.figures.moved:
            return "No difference was found, but the trained model can hardly be told from its base."
        return self.figures.cost(self.form) if self.form else "What is served is what was aligned."


@dataclass(frozen=True, slots=True)
class Questions:
    """What all models are asked."""

    prompts: list[Text]
    pairs: list[PreferencePair]
    """The same prompts with two answers; empty: the answers of the trained model and of its base are the pairs."""
    max_new_tokens: int = 64


def questions_of(data: str | None, *, limit: int = 16, max_new_tokens: int = 64, **reading: Any) -> Questions:
    """The prompts and pairs of a dataset, spread evenly over it; without one, preftune's own prompts.

    Args:
        reading: options of `load_pairs`: `split`, `columns`, `format`.
    """
    from preftune.data import load_pairs
    from preftune.generation.own_prompts import own_prompts

    if data is None:
        return Questions([prompt.prompt for prompt in own_prompts(limit).prompts], [], max_new_tokens)
    rows = load_pairs(data, **reading)
    count = min(limit, len(rows))
    pairs = [rows[index * len(rows) // count] for index in range(count)]
    return Questions([pair.prompt for pair in pairs], pairs, max_new_tokens)


def verify(
    artefact: str | os.PathLike[str] | Served,
    against: str | os.PathLike[str],
    questions: Questions,
    *,
    base_model: str | None = None,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    progress: Callable[[str], None] = lambda what: None,
) -> Verification:
    """Compares a served model with the run that it was made from.

    Args:
        artefact: a folder of `preftune export`, a model, an adapter, a GGUF file, or a model that is served already.
        against: the run: an adapter, or a whole model with the name of its base in run.json.
        base_model: used instead of the base that the run names.
        dtype: of the computation with transformers; float32 shows the weights without the rounding of a computation.
        progress: called with what is done next.
    Raises: ModelError if the artefact or the run cannot be loaded.
    """
    options = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    run = ServedModel(os.fspath(against), base_model=base_model, **options)
    folder = None if isinstance(artefact, Served) else Path(artefact).expanduser()
    manifest = None if folder is None else read_manifest(folder)
    found = Verification(str(getattr(artefact, "name", artefact)))
    found.form = _coarse_form(folder, manifest)
    if folder is not None and manifest is not None and (damaged := damaged_files(folder, manifest)):
        found.faults.append(Fault("files", f"{', '.join(damaged[:3])} differ from the export. Export again."))
        return found
    with _opened(artefact, base_model, options) as served:
        progress("token ids")
        found.faults += _faults_of_text(run, served, questions, manifest, found)
        if folder is not None and not found.faults:
            found.faults += [Fault("head", fault) for fault in check_head(run, folder)]
            found.faults += [Fault("base", fault) for fault in check_base(run, served, manifest)]
            run.close()
            _check_weights(run, served, found)
        progress("answers and scores of the trained model and its base")
        compared = _compare(run, _base_of(run, base_model, options), served, questions, progress, found)
    if compared is None:
        return found
    found.figures = compared
    if not any(fault.stage in ("vocabulary", "template") for fault in found.faults):
        known = {fault.stage for fault in found.faults}
        shown = (Fault(stage, sentence) for stage, sentence in compared.faults(found.form))
        found.faults += [fault for fault in shown if fault.stage not in known]
    _order(found.faults)
    return found


_STAGES: tuple[Stage, ...] = Stage.__args__  # type: ignore[attr-defined]


def _order(faults: list[Fault]) -> None:
    """The cause first: a missing adapter also gives other answers."""
    faults.sort(key=lambda fault: _STAGES.index(fault.stage))


def _coarse_form(folder: Path | None, manifest: Manifest | None) -> str:
    """The type of a GGUF file that rounds more than float16 does."""
    from preftune.deploy.gguf import TYPES

    if manifest is not None:
        form = manifest.form if manifest.kind in ("gguf", "ollama") else ""
    else:
        file = folder if folder is not None and folder.suffix == ".gguf" else gguf_of(folder) if folder else None
        name = "" if file is None else file.stem.lower().replace("-", "_")
        form = next((kind for kind in sorted(TYPES, key=len, reverse=True) if name.endswith(kind)), "")
    return "" if form in ("f32", "f16") else form


def _check_weights(run: ServedModel, served: Served, found: Verification) -> None:
    """The faults of a whole model's weights; its dtype is taken as the cause of a distance only if there is none."""
    weights = check_weights(run, served)
    if weights is None:
        return
    if weights.other_base:
        sentence = f"{weights.other_base} is not the base's, and the adapter does not change it: it is another base."
        found.faults.append(Fault("base", sentence))
    elif weights.other:
        found.faults.append(Fault("weights", f"{weights.other} is not the run's: another run or checkpoint."))
    else:
        found.form = weights.form


@contextmanager
def _opened(artefact: Any, base_model: str | None, options: dict[str, Any]) -> Iterator[Served]:
    """The artefact, served as it will be: by llama.cpp for a GGUF file, otherwise by transformers and PEFT."""
    with ExitStack() as stack:
        if isinstance(artefact, Served):
            yield artefact
            return
        path = Path(artefact).expanduser()
        file = path if path.suffix == ".gguf" else gguf_of(path)
        if file is not None:
            from preftune.deploy.llama_server import LlamaServer
            from preftune.deploy.served_http import ServedEndpoint
            from preftune.generation.endpoint.client import Conduct, Endpoint, EndpointName

            server = LlamaServer(file)
            stack.callback(server.close)
            name = EndpointName(file.stem, f"{server.address}/v1")
            served: Served = ServedEndpoint(Endpoint(name, conduct=Conduct(timeout=600, concurrency=1)))
        else:
            served = ServedModel(str(artefact), base_model=base_model, **options)
        stack.callback(served.close)
        yield served


def _base_of(run: ServedModel, base_model: str | None, options: dict[str, Any]) -> ServedModel:
    from preftune.storage.run_directory import run_facts

    if base_model is not None:
        return ServedModel(base_model, **options)
    if run.source.is_adapter:
        return ServedModel(run.source.base_name, **options)
    name = str(run_facts(run.name, "model").get("name") or "")
    if not name:
        raise RequestError(f"{run.name} does not say what it was trained from. Give it with --base MODEL.")
    return ServedModel(name, **options)


def _faults_of_text(
    run: ServedModel, served: Served, questions: Questions, manifest: Manifest | None, found: Verification
) -> list[Fault]:
    """Faults of vocabulary, template and end tokens."""
    faults: list[Fault] = []
    specials = tuple(str(mark) for mark in run.tokenizer.all_special_tokens)
    texts = (*TEXTS, *specials)
    mine, theirs = run.text_ids(texts), served.text_ids(texts)
    if theirs is None:
        found.unseen.append(
            "The server does not show token ids: vocabulary and template were compared by answers only."
        )
    elif (at := _first_other(mine, theirs)) is not None:
        faults.append(
            Fault("vocabulary", f"{texts[at]!r} has the tokens {theirs[at][:8]}, and in training had {mine[at][:8]}.")
        )
    rendered = served.prompt_ids(questions.prompts)
    own = run.prompt_ids(questions.prompts)
    if rendered is not None and not faults and (at := _first_other(own, rendered)) is not None:
        place = next(
            i for i, pair in enumerate(zip([*own[at], -1], [*rendered[at], -1], strict=False)) if pair[0] != pair[1]
        )
        shown = [run.tokenizer.decode(ids[place : place + 8]) for ids in (own[at], rendered[at])]
        faults.append(
            Fault(
                "template", f"prompt {at} is rendered differently from token {place}: {shown[1]!r}, not {shown[0]!r}."
            )
        )
    return faults + _faults_of_ends(run, served, manifest)


def _faults_of_ends(run: ServedModel, served: Served, manifest: Manifest | None) -> list[Fault]:
    """A folder of transformers must name, in its generation config, every token that ends an answer of the run."""
    if not isinstance(served, ServedModel):
        return []
    wanted = run.ends() if manifest is None else frozenset(manifest.ends) | run.ends()
    missing = sorted(wanted - served.ends_of_config())
    if not missing:
        return []
    marks = ", ".join(str(run.tokenizer.convert_ids_to_tokens(end)) for end in missing)
    return [Fault("end token", f"generation_config.json does not name {marks} ({missing}): answers may not end.")]


def _first_other(mine: Sequence[Any], theirs: Sequence[Any]) -> int | None:
    return next((at for at, (one, other) in enumerate(zip(mine, theirs, strict=True)) if one != other), None)


def _compare(
    run: ServedModel,
    base: ServedModel,
    served: Served,
    questions: Questions,
    progress: Callable[[str], None],
    found: Verification,
) -> Figures | None:
    """Scores and greedy answers of all three. Models of transformers are loaded one after the other."""
    prompts, limit = questions.prompts, questions.max_new_tokens
    prompt_ids = run.prompt_ids(prompts)
    run_answers = run.answers(prompts, limit)
    run.close()
    base_answers = base.answers(prompts, limit)
    groups = _groups(run, questions, prompt_ids, run_answers, base_answers)
    base_scores = base.scores(groups)
    base.close()
    run_scores = run.scores(groups)
    progress("answers and scores of what is served")
    scores = served.scores(groups)
    if scores is None:
        found.unseen.append("The server does not show log-probabilities of given tokens: scores were not compared.")
    answers = served.answers(prompts, limit)
    served.close()
    lengths = [(len(group.completions[0]), len(group.completions[1])) for group in groups]
    scored = None if scores is None else Scored(run_scores, base_scores, scores, lengths)
    gaps = _gaps(run, prompt_ids, run_answers, answers)
    run.close()
    return figures_of(scored, run_answers, base_answers, answers, gaps)


def _groups(
    run: ServedModel, questions: Questions, prompt_ids: Sequence[Sequence[int]], mine: list[Kept], theirs: list[Kept]
) -> list[TokenizedGroup]:
    """The pairs, or the answers of the trained model and its base with the token that ends them."""
    if questions.pairs:
        from preftune.data.tokens.encode import DIALOGUE_TEMPLATE, Encoder

        encoder = Encoder(run.tokenizer, chat_template=None if run.tokenizer.chat_template else DIALOGUE_TEMPLATE)
        examples = [pair.example for pair in questions.pairs]
        encoded = encoder.encode(examples)
        return [one.group(example) for one, example in zip(encoded, examples, strict=True) if one.reason is None]
    groups = []
    for ids, own, other in zip(prompt_ids, mine, theirs, strict=True):
        sides = _answer_ids(run, own), _answer_ids(run, other)
        if sides[0] != sides[1] and all(sides):
            groups.append(pair_of(ids, *sides))
    return groups


def _answer_ids(run: ServedModel, answer: Kept) -> list[int]:
    from preftune.data.chat.end_marks import closing_token

    end = closing_token(run.tokenizer) if answer.finished else None
    return run.text_ids([answer.text])[0] + ([] if end is None else [end])


def _gaps(
    run: ServedModel, prompt_ids: Sequence[Sequence[int]], mine: list[Kept], served: list[Kept]
) -> dict[int, float]:
    """By prompt whose answers differ: how much likelier, in nats, the trained model's token is than the served one at
    the first place where they differ. A gap near 0 is a tie, which rounding decides.
    """
    places, groups = [], []
    for number, (own, other) in enumerate(zip(mine, served, strict=True)):
        if own.text == other.text and own.finished == other.finished:
            continue
        one, two = _answer_ids(run, own), _answer_ids(run, other)
        at = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), None)
        if at is not None:
            places.append(number)
            groups.append(pair_of([*prompt_ids[number], *one[:at]], one[at : at + 1], two[at : at + 1]))
    return {} if not groups else {n: a - b for n, (a, b) in zip(places, run.scores(groups), strict=True)}
