"""Opens the two sides of an evaluation, and the contest, from the names on a command line."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from preftune.errors import RequestError
from preftune.evaluation.two_models.context import PairOfModels
from preftune.generation.backends import EndpointAnswerer, GivenAnswers, ModelAnswerer, OfSource, TwoSides
from preftune.generation.endpoint.budget import Budget
from preftune.generation.endpoint.client import Conduct, Endpoint, EndpointName, is_endpoint
from preftune.generation.generate import base_changed_by_adapter, baseline
from preftune.generation.lazy_model import ModelSource
from preftune.generation.protocol import Generator, Side
from preftune.generation.settings import SamplingSettings
from preftune.models.locate import locate, same_model
from preftune.storage.run_directory import run_facts

if TYPE_CHECKING:
    from preftune.judges.reward_model import RewardModel

DATASET = "dataset"
"""The baseline that is the chosen answers of held-out pairs."""
_NAME_IT = f"Name that model with --baseline MODEL, or give --baseline {DATASET}: the chosen answers of held-out pairs."

Backend: TypeAlias = Literal["auto", "transformers", "vllm"]


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """How both sides answer."""

    sampling: SamplingSettings = field(default_factory=lambda: SamplingSettings(temperature=0.0))
    seed: int = 0
    batch_size: int | None = None
    """Answers at once; None: 16 with transformers, and what vLLM sees fit."""
    backend: Backend = "auto"
    model: Mapping[str, Any] = field(default_factory=dict)
    """For models on this machine: `dtype`, `load_in_4bit`, `trust_remote_code`."""
    conduct: Conduct | None = None
    budget: Budget | None = None
    """Both for endpoints."""


@dataclass(frozen=True, slots=True)
class Matchup:
    """Two sides, ready to answer; nothing is loaded yet."""

    generate: TwoSides
    settings: dict[str, Any]
    """For `answer_rows`: who answers, and how it is sampled."""
    notes: list[str]
    """What a user should know, in sentences."""
    load_models: Callable[[], PairOfModels] | None

    @property
    def baseline(self) -> str:
        return self.generate.sides["base"].name

    @property
    def aligned(self) -> str:
        return self.generate.sides["aligned"].name

    def evaluated(self) -> dict[str, dict[str, str]]:
        """What exactly answers on each side, by what a reader can compare: files and template, or an address."""
        return {side: _evidence_of(generator) for side, generator in self.generate.sides.items()}

    @property
    def endpoints(self) -> list[EndpointAnswerer]:
        return [side for side in self.generate.sides.values() if isinstance(side, EndpointAnswerer)]

    def release(self) -> None:
        """Lets go of all weights; they are loaded again when they are needed again."""
        for side in self.generate.sides.values():
            side.release()
        self.generate.release()

    def takes_conversations(self) -> bool:
        """Whether a text prompt can be a user's turn on both sides."""
        return all(
            not isinstance(side, OfSource) or side.tokenizer().chat_template for side in self.generate.sides.values()
        )


def _evidence_of(generator: Generator) -> dict[str, str]:
    found = {"name": generator.name}
    if isinstance(generator, OfSource):
        template = generator.tokenizer().chat_template
        found["weights"] = str(generator.identity().get("identity") or "")
        found["template"] = hashlib.sha256(str(template).encode()).hexdigest() if template else "none"
    elif isinstance(generator, EndpointAnswerer):
        found |= {"weights": "those of the server", "template": "that of the server"}
    return found


def match_up(model: str, base: str | None, opened: ExitStack, options: AnswerOptions) -> Matchup:
    """The sides of an evaluation.

    An adapter and its base are one loaded model, the base answering with the adapter off; where that would not be the
    model as received, the base is loaded apart. Models that are two are loaded one after the other.

    Args:
        model: a run directory, an adapter, a model, or `openai:MODEL@BASE_URL`.
        base: the same, or `dataset`; None takes an adapter's base, or what the run directory says it was trained from.
        opened: closes connections.
    Raises: RequestError for a baseline that cannot be guessed or is the model itself; ModelError for a missing model.
    """
    notes: list[str] = []
    if base is not None and same_model(model, base):
        raise RequestError(
            f"--model and --baseline are both {model}. Name as --baseline the model that it was trained from."
        )
    if is_endpoint(model):
        if base is None:
            raise RequestError(f"--baseline is missing: it is unknown what {model} was trained from. {_NAME_IT}")
        aligned: Generator = _endpoint(model, opened, options)
        return _matched(_other_side(base, aligned, opened, options, notes), aligned, options, notes, None)
    source = ModelSource(model, **options.model)
    if base is None:
        base = source.base_name if source.is_adapter else _trained_from(source)
        if same_model(model, base):
            raise RequestError(
                f"{model} was trained from {base} and saved in its folder. Name another model with --baseline."
            )
    if source.is_adapter and base != DATASET and same_model(base, source.base_name):
        changed = base_changed_by_adapter(source.place.name)
        if changed is None:
            return _one_model(source, base, options, notes)
        notes.append(
            f"The adapter was made with {changed}, which changes the base weights: the base is loaded separately."
        )
    aligned = _model_side(source, options, notes)()
    other = _other_side(base, aligned, opened, options, notes)
    return _matched(other, aligned, options, notes, _loader(other, aligned))


def _matched(
    base: Generator,
    aligned: Generator,
    options: AnswerOptions,
    notes: list[str],
    load: Callable[[], PairOfModels] | None,
) -> Matchup:
    sides = TwoSides(base, aligned)
    settings = {"sampling": asdict(options.sampling), "seed": options.seed, **sides.settings()}
    return Matchup(sides, settings, notes, load)


def _one_model(source: ModelSource, base: str, options: AnswerOptions, notes: list[str]) -> Matchup:
    """An adapter: the base is the same loaded model with the adapter off, with the base's own tokenizer."""
    base_source = ModelSource(base, **options.model)
    tokenizer = _base_tokenizer(base_source, source, notes)
    side = _model_side(source, options, notes)
    aligned = side()

    def load() -> PairOfModels:
        return PairOfModels(source.model, source.tokenizer, lambda: baseline(source.model), tokenizer())

    loads = load if isinstance(aligned, ModelAnswerer) else None
    return _matched(side(base=base_source, tokenizer=tokenizer), aligned, options, notes, loads)


def _model_side(source: ModelSource, options: AnswerOptions, notes: list[str]) -> Callable[..., Generator]:
    """Makes a side that a model on this machine answers for."""
    if _use_vllm(source, options, notes):
        from preftune.generation.vllm_backend import VllmAnswerer, engine_for

        engine = engine_for(source, **_vllm_options(options))
        return partial(VllmAnswerer, source, engine, options.sampling, seed=options.seed)
    size = 16 if options.batch_size is None else options.batch_size
    return partial(ModelAnswerer, source, options.sampling, batch_size=size, seed=options.seed)


def _other_side(
    base: str, aligned: Generator, opened: ExitStack, options: AnswerOptions, notes: list[str]
) -> Generator:
    if base == DATASET:
        if not isinstance(aligned, OfSource):
            return GivenAnswers()
        return GivenAnswers(lambda text: len(aligned.tokenizer()(text, add_special_tokens=False)["input_ids"]))
    if is_endpoint(base):
        return _endpoint(base, opened, options)
    return _model_side(ModelSource(base, **options.model), options, notes)()


def _endpoint(name: str, opened: ExitStack, options: AnswerOptions) -> EndpointAnswerer:
    endpoint = Endpoint(EndpointName.parse(name), conduct=options.conduct, budget=options.budget)
    return EndpointAnswerer(opened.enter_context(endpoint), options.sampling, seed=options.seed)


def _loader(base: Generator, aligned: Generator) -> Callable[[], PairOfModels] | None:
    """Two models; the baseline is in memory only while it is entered."""
    if not isinstance(base, ModelAnswerer) or not isinstance(aligned, ModelAnswerer):
        return None
    base_source, source = base.source, aligned.source

    @contextmanager
    def base_model() -> Iterator[Any]:
        try:
            yield base_source.model
        finally:
            base_source.release()

    def load() -> PairOfModels:
        enter: Callable[[], AbstractContextManager[Any]] = base_model
        return PairOfModels(source.model, source.tokenizer, enter, base.tokenizer())

    return load


def _trained_from(source: ModelSource) -> str:
    """The base that `run.json` in the folder of a whole model names."""
    name = run_facts(source.place.name, "model").get("name")
    if not name:
        raise RequestError(
            f"--baseline is missing: {source.name} is a whole model, and no run.json in it says what it was trained "
            f"from. {_NAME_IT}"
        )
    return str(name)


def _base_tokenizer(base: ModelSource, source: ModelSource, notes: list[str]) -> Callable[[], Any]:
    """The base's own tokenizer, or the adapter's where the base has no chat template."""
    tokenizer = base.tokenizer
    if not tokenizer.chat_template and source.tokenizer.chat_template:
        notes.append("The base has no chat template, so the aligned model's is used for it.")
        tokenizer = source.tokenizer
    return lambda: tokenizer


def _use_vllm(source: ModelSource, options: AnswerOptions, notes: list[str]) -> bool:
    if options.backend == "transformers":
        return False
    from preftune.generation.vllm_backend import available, refused_by

    if not available():
        if options.backend == "vllm":
            raise RequestError("--backend vllm needs the package vllm and a GPU. Use --backend transformers.")
        return False
    if options.backend == "vllm":
        return True  # the engine says what it cannot serve
    reason = "it is loaded in 4 bits" if options.model.get("load_in_4bit") else refused_by(source)
    if reason is not None:
        notes.append(f"The answers of {source.name} come from transformers, not vLLM: {reason}.")
    return reason is None


def _vllm_options(options: AnswerOptions) -> dict[str, Any]:
    if options.model.get("load_in_4bit"):
        raise RequestError("--load_in_4bit goes with --backend transformers. Leave one of them out.")
    chosen = {name: options.model[name] for name in ("dtype", "trust_remote_code") if name in options.model}
    return {**chosen, "batch_size": options.batch_size}


def reward_models_of(
    model: str, base: str | None, options: AnswerOptions, opened: ExitStack
) -> dict[Side, RewardModel]:
    """The two sides where they are reward models: `aligned`, and `base` if one was named; empty for language models.

    Raises: RequestError where only one of the two is a reward model; ModelError for a missing model.
    """
    from preftune.judges.registry import JudgeOptions, open_judge
    from preftune.models.classifier import is_classifier

    named: dict[Side, str] = {"aligned": model} if base is None else {"base": base, "aligned": model}
    code = options.model.get("trust_remote_code")
    rates = {
        side: not is_endpoint(name) and name != DATASET and is_classifier(locate(name), {"trust_remote_code": code})
        for side, name in named.items()
    }
    if not rates["aligned"] and not rates.get("base"):
        return {}
    if not all(rates.values()):
        one, other = (model, base) if rates["aligned"] else (base, model)
        raise RequestError(
            f"{one} is a reward model and {other} is not. Name another reward model as --baseline, or leave it out."
        )
    if options.model.get("load_in_4bit"):
        raise RequestError("--load_in_4bit has no effect on reward models. Leave it out.")
    judged = JudgeOptions(batch_size=options.batch_size, model={k: v for k, v in options.model.items() if v})
    return {
        side: cast("RewardModel", open_judge(f"reward:{name}", opened, judged).scorer) for side, name in named.items()
    }
