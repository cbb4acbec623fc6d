"""Makes a judge from the value of `--judge`, for `label`, `eval` and `judge-check`.

exact, key-fact, shorter, longer    rules that ship with preftune
rule:MODULE:FUNCTION                a Python function of the user: compares two answers, or scores one; MODULE may be
                                    the path of a .py file
reward:MODEL                        a sequence classifier with one label; reward:A,B,C is an ensemble of several
openai:MODEL@BASE_URL               a chat model at an OpenAI-compatible address
local:MODEL                         a chat model of transformers on this machine
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from preftune.errors import RequestError
from preftune.judges.exact_match import ExactJudge
from preftune.judges.from_scores import TIE_WITHIN, ScoreJudge
from preftune.judges.protocol import Judge, Scorer, checked, finite_score, judge_name
from preftune.judges.rules import KeyFactJudge, LengthJudge
from preftune.judges.user_rules import adapted
from preftune.user_functions import load_function

if TYPE_CHECKING:
    from preftune.generation.endpoint.budget import Budget
    from preftune.generation.endpoint.client import Conduct, Endpoint
    from preftune.judges.cache import VerdictCache
    from preftune.judges.llm_client import Asker
    from preftune.workers import Pool, Team
    from preftune.workers.team import Build

RULES: Mapping[str, Callable[[], Judge]] = {
    "exact": ExactJudge,
    "key-fact": KeyFactJudge,
    "shorter": lambda: LengthJudge(prefer="shorter"),
    "longer": lambda: LengthJudge(prefer="longer"),
}
"""The rules that ship. A new one is a class and a line here."""
FORMS = ", ".join(("openai:MODEL@BASE_URL", "local:MODEL", "reward:MODEL", "rule:MODULE:FUNCTION", *RULES))
"""For help pages."""

Kind: TypeAlias = Literal["rule", "reward", "openai", "local"]
_KINDS: tuple[Kind, ...] = ("rule", "reward", "openai", "local")


def judge_kind(spec: str) -> Kind:
    """What sort of judge a spec names; the rules that ship are `rule` too. Loads nothing.

    Raises: RequestError for a spec of no such form, with the nearest one.
    """
    if spec in RULES:
        return "rule"
    kind, colon, rest = spec.partition(":")
    if colon and rest and kind in _KINDS:
        return kind
    if kind in _KINDS:
        raise RequestError(f"--judge {spec} does not name a {'function' if kind == 'rule' else 'model'}. Give {FORMS}.")
    known = difflib.get_close_matches(kind, [*RULES, *_KINDS], n=1)
    near = f" Did you mean {known[0] + (colon + rest if known[0] in _KINDS else '')!r}?" if known else ""
    raise RequestError(f"There is no judge {spec!r}.{near} Give {FORMS}.")


@dataclass(frozen=True, slots=True)
class JudgeOptions:
    """What shapes a judge besides its name; what does not concern its kind is left alone."""

    criteria: str | None = None
    """What is better, in a sentence or two; for chat models."""
    max_tokens: int = 512
    """Longest reply of a chat model."""
    batch_size: int | None = None
    """Questions at once, for a model on this machine: 16 scores or 8 verdicts."""
    tie_within: float = TIE_WITHIN
    """Scores that differ by no more are a tie."""
    ensemble: str = "mean"
    """How the scores of reward:A,B,C become one: mean, min or mean-std."""
    conduct: Conduct | None = None
    budget: Budget | None = None
    """Both for endpoints."""
    model: dict[str, Any] = field(default_factory=dict)
    """For a model on this machine: `dtype`, `trust_remote_code`, `load_in_4bit`."""
    pool: Pool | None = None
    """The cluster whose workers do the work."""


@dataclass(frozen=True, slots=True)
class OpenedJudge:
    """A judge, ready to be asked."""

    judge: Judge
    """Compares two answers, whatever it is made of."""
    scorer: Scorer | None = None
    """Where the judge rates single answers."""
    asker: Asker | None = None
    """Where the judge is a chat model."""
    endpoint: Endpoint | None = None
    """Where that stands at an address: `endpoint.check()` before the first question, `endpoint.budget` afterwards."""

    @property
    def name(self) -> str:
        return judge_name(self.judge)


def open_judge(spec: str, opened: ExitStack, options: JudgeOptions | None = None) -> OpenedJudge:
    """The judge that a spec names. Models are loaded when they are first needed; connections and the cache of verdicts
    are closed with `opened`.

    Raises: RequestError for a spec that names no judge, or a rule that cannot be had; ModelError for a missing model.
    """
    from preftune.judges.cache import VerdictCache

    options = options or JudgeOptions()
    kind = judge_kind(spec)
    cache = opened.enter_context(closing(VerdictCache()))
    if kind in ("openai", "local"):
        return _chat_judge(spec, opened, cache, options)
    scorer: Any
    if kind == "reward":
        scorer = _reward_scorer(spec.partition(":")[2], opened, cache, options)
        return OpenedJudge(ScoreJudge(scorer, tie_within=options.tie_within), scorer=scorer)
    rule, scores = adapted(load_judge(spec))
    if options.pool is not None:
        from preftune.judges.spread.rules import calling

        team = _team(opened, options.pool, partial(calling, partial(_adapted_rule, spec)), gpu=False)
        rule = _spread_rule(rule, scores, team, cache)
    elif getattr(rule, "cache_key", None) is not None and not (
        hasattr(rule, "score_all") or hasattr(rule, "judge_all")
    ):
        rule = RememberedRule(rule, cache)
    if scores:
        return OpenedJudge(ScoreJudge(rule, tie_within=options.tie_within), scorer=rule)
    return OpenedJudge(rule)


def as_judge(rule: Judge | Scorer) -> Judge:
    """A judge of what the caller gives: a judge, or a scorer, whose higher score wins.

    Raises: RequestError for a function whose signature is neither's.
    """
    found = adapted(rule)
    return ScoreJudge(found.call) if found.scores else found.call


def reward_models(name: str) -> list[str]:
    """The models of reward:A,B,C; one, where the whole is a folder."""
    return [name] if Path(name).expanduser().exists() else [part for part in name.split(",") if part]


def _adapted_rule(spec: str) -> tuple[Any, bool]:
    return adapted(load_judge(spec))


def _team(opened: ExitStack, pool: Pool, build: Build, *, gpu: bool) -> Team:
    team = pool.team(build, gpu=gpu)
    opened.callback(team.close)
    return team


def _spread_rule(rule: Any, scores: bool, team: Team, cache: VerdictCache) -> Any:
    from preftune.judges.spread.rules import SpreadJudge, SpreadScorer

    return (SpreadScorer if scores else SpreadJudge)(rule, team, cache)


def _reward_scorer(name: str, opened: ExitStack, cache: VerdictCache, options: JudgeOptions) -> Any:
    from preftune.judges.reward_model import open_reward_model

    more: dict[str, Any] = {"batch_size": _or(options.batch_size, 16), **options.model}
    make: Callable[..., Any] = partial(open_reward_model, cache=cache, **more)
    if options.pool is not None:
        from preftune.judges.spread.reward import rating, spread_reward_model

        team = _team(opened, options.pool, partial(rating, more), gpu=True)  # each worker holds all of an ensemble
        make = partial(spread_reward_model, team=team, cache=cache, **more)
    members = [make(one) for one in reward_models(name)]
    if len(members) == 1:
        return members[0]
    from preftune.judges.ensemble import EnsembleScorer

    return EnsembleScorer(members, how=options.ensemble)


def _chat_judge(spec: str, opened: ExitStack, cache: VerdictCache, options: JudgeOptions) -> OpenedJudge:
    from preftune.generation.endpoint.client import PREFIX, Endpoint, EndpointName
    from preftune.generation.lazy_model import ModelSource
    from preftune.judges.llm_client import EndpointAsker, LocalAsker
    from preftune.judges.pairwise_llm import CRITERIA, ChatJudge

    endpoint = None
    asker: Asker
    if spec.startswith(PREFIX):
        name = EndpointName.parse(spec)
        endpoint = opened.enter_context(Endpoint(name, conduct=options.conduct, budget=options.budget))
        asker = EndpointAsker(endpoint, cache)
    else:
        source, size = ModelSource(spec.partition(":")[2], **options.model), _or(options.batch_size, 8)
        asker = LocalAsker(source, cache, batch_size=size)
        if options.pool is not None:
            from preftune.judges.spread.chat import SpreadAsker, replying

            build = partial(replying, source.name, options.model, size)
            asker = SpreadAsker(asker, cache, _team(opened, options.pool, build, gpu=True))
    judge = ChatJudge(asker, criteria=options.criteria or CRITERIA, max_tokens=options.max_tokens)
    return OpenedJudge(judge, asker=asker, endpoint=endpoint)


def _or(given: int | None, usual: int) -> int:
    return usual if given is None else given


class RememberedRule:
    """A rule with a `cache_key`, that compares or that scores, and is never called twice with the same."""

    def __init__(self, rule: Any, cache: VerdictCache) -> None:
        self._rule, self._cache = rule, cache
        self.name, self.cache_key = judge_name(rule), rule.cache_key
        self.symmetric = bool(getattr(rule, "symmetric", False))
        self.scores_one = adapted(rule).scores

    def __call__(self, *content: Any) -> Any:
        from preftune.judges.cache import verdict_key

        key = verdict_key("rule", self.cache_key, *content)
        read: Callable[[Any, Any], Any] = finite_score if self.scores_one else checked
        for known in self._cache.get([key]).values():
            with suppress(RequestError):  # earlier versions kept whatever a judge answered
                return read(known, self._rule)
        verdict = read(self._rule(*content), self._rule)
        self._cache.put({key: verdict}, judge=self.name)
        return verdict


def load_judge(spec: str) -> Judge:
    """A rule: one of `RULES` by name, or `rule:module:function` or `rule:file.py:function` for a
    function of the user.

    The module is searched in the current folder too; a class is called without arguments to make the judge.

    Raises: RequestError naming what could not be found.
    """
    if spec in RULES:
        return RULES[spec]()
    kind, _, rest = spec.partition(":")
    place, _, attribute = rest.rpartition(":")
    if kind != "rule" or not place or not attribute:
        raise RequestError(
            f"Unknown judge {spec!r}. Use {', '.join(RULES)}, rule:module:function or rule:file.py:function, for "
            "example rule:my_rules.py:prefer_polite for the function prefer_polite in my_rules.py."
        )
    return cast(Judge, load_function(place, attribute, asked=f"Judge {spec!r}"))
