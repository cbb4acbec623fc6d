"""The first lines of a report: the request, the result, and what to do next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple, TypeAlias

from preftune.amounts import counted, duration
from preftune.report.reading.run_files import Answers, Run, columns, short_name
from preftune.report.reading.seeds import Seeds
from preftune.shell_words import path_word
from preftune.statistics.verdict_names import BELOW_BAR, FORGETFUL, level_of
from preftune.statistics.verdict_rules import decide
from preftune.storage.untrusted_json import Figures, at, items, mapping, number, sentences, text, truth

Tone: TypeAlias = Literal["good", "bad", "unsure", "none"]

_FINE = ("", "not measured", "more correct", "no difference shown")
"""Verdicts about correctness that need no caution."""


class Rate(NamedTuple):
    """A win rate with its interval; shares of 1."""

    rate: float
    low: float
    high: float
    confidence: float


class Headline(NamedTuple):
    """The first lines about a run."""

    tone: Tone
    word: str
    """One or two words: better, worse, undecided, not judged."""
    rest: str
    """The rest of the headline."""
    rate: Rate | None
    interval: str
    """The interval and the counts in words; empty without an evaluation."""


def headline(run: Run) -> Headline:
    """The verdict of an evaluation; without one, how training ended."""
    rate = win_rate(run)
    if rate is None:
        return _unjudged(run)
    decision = decide(run.summary)
    name = decision.name if decision is not None else "judged"
    tone: Tone = "none" if decision is None else decision.tone
    word = "A little better:" if name == BELOW_BAR else f"{name[0].upper()}{name[1:]}:"
    counts = [
        f"{int(value):,} {name if value != 1 else one}"
        for name, one in (("wins", "win"), ("ties", "tie"), ("losses", "loss"))
        if (value := number(run.summary.get(name))) is not None
    ]
    baseline = text(run.summary.get("baseline_name"))
    named = "the chosen answers of the data" if baseline == "dataset" else short_name(baseline)
    against = "the model before training" if baseline in ("", "base") else named
    counted = f"{', '.join(counts)} against" if counts else "Against"
    return Headline(
        tone,
        word,
        f"it wins {rate.rate:.1%} of comparisons",
        rate,
        f"{rate.confidence:.0%} interval {rate.low:.1%} to {rate.high:.1%}. {counted} {against}.",
    )


def headline_over_seeds(seeds: Seeds, count: int) -> Headline:
    """The verdict over all seeds: on the rate over them, or of the seed with the lowest verdict, as `--fail_under` has
    it. Without an evaluation of these seeds, their number.
    """
    rate = rate_in(mapping(seeds.summary.get("win_rate")))
    verdicts = Counter(text(name) for name in mapping(seeds.summary.get("verdicts")).values())
    if rate is None or verdicts.total() != count:
        return Headline("none", f"{count} seeds,", "and not judged together yet", None, "")
    word = min((seeds.verdict, *verdicts), key=level_of)
    level = min(level_of(word), int(number(seeds.summary.get("level")) or 0))
    tone: Tone = "good" if level == 4 else "bad" if level < 2 else "unsure"
    of_seeds = ", ".join(f"{times} {name}" for name, times in verdicts.items())
    return Headline(
        tone,
        f"{word[:1].upper()}{word[1:]}:",
        f"{count} seeds win {rate.rate:.1%} of comparisons",
        rate,
        f"{rate.confidence:.0%} interval over prompts and seeds {rate.low:.1%} to {rate.high:.1%}. Verdicts of the "
        f"seeds: {of_seeds}.",
    )


def spreads(seeds: Seeds) -> list[str]:
    """The held-out figures over all seeds, a line each."""
    names = ("loss", "rewards/margins", "rewards/accuracies", "mean_token_accuracy")
    return [f"{name}: {seeds.spread(name)}" for name in seeds.figures if name.endswith(tuple(f"_{n}" for n in names))]


def verdict_name(run: Run) -> str:
    """The name of the verdict by the rules; empty without a win rate."""
    decision = decide(run.summary)
    return "" if decision is None else decision.name


def rules(run: Run) -> list[str]:
    """The rules of the verdict with their numbers, those that fail first."""
    decision = decide(run.summary)
    if decision is None:
        return []
    order = sorted(decision.rules, key=lambda rule: (rule.passed is not False, rule.passed is None))
    return [rule.line() for rule in order]


def win_rate(run: Run) -> Rate | None:
    """The win rate of a run's evaluation, if it has one."""
    return rate_in(run.summary)


def rate_in(values: Figures) -> Rate | None:
    """The win rate of a summary; None if it has none."""
    rate, low, high = (number(values.get(name)) for name in ("win_rate", "ci_low", "ci_high"))
    if rate is None or low is None or high is None:
        return None
    return Rate(rate, low, high, number(values.get("confidence")) or 0.95)


def _unjudged(run: Run) -> Headline:
    outcome = text(run.facts.get("outcome"))
    margin, accuracy = last(run, "eval_rewards/margins"), last(run, "eval_rewards/accuracies")
    if outcome == "failed":
        error = text(run.facts.get("error")).partition("\n")[0]
        return Headline("bad", "Failed", f"after {_steps(run)}" + (f": {error[:200]}" if error else ""), None, "")
    if outcome in ("interrupted", "running"):
        word = "Stopped" if outcome == "interrupted" else "Not finished"
        return Headline("unsure", word, f"after {_steps(run)}", None, "")
    if accuracy is not None:
        beside = f", margin {margin:.2f}" if margin is not None else ""
        rest = f"{accuracy:.1%} of held-out pairs ranked correctly{beside}; the answers are not judged yet"
        return Headline("none", "Trained:", rest, None, "")
    if not run.metrics and not run.facts:
        return Headline("none", "No result", "to show yet", None, "")
    return Headline("none", "Trained,", "and not judged yet", None, "")


def asked(run: Run) -> str:
    """What was asked, in one sentence: method, model, data and the settings that matter most."""
    facts = run.facts
    if not facts:
        return ""
    model = short_name(text(at(facts, "model", "name")))
    full = truth(at(facts, "model", "full_fine_tuning"))
    kind = "" if full is None else " (all weights)" if full else " (an adapter)"
    pairs = number(at(facts, "data", "train", "pairs"))
    parts = [f"{text(facts.get('method')).upper() or 'Training'} of {model or 'a model'}{kind}"]
    prompts = number(at(facts, "data", "train", "prompts"))
    answers = number(at(facts, "data", "train", "answers"))
    if answers is not None:
        parts.append(f"on {counted(int(answers), 'answer')} with labels")
    elif pairs is not None:
        parts.append(f"on {counted(int(pairs), 'pair')}")
    elif prompts is not None:
        parts.append(f"on its answers to {counted(int(prompts), 'prompt')}")
    settings = [
        f"{label} {value:g}"
        for label, key in (("beta", "beta"), ("learning rate", "learning_rate"))
        if (value := number(at(facts, "configuration", key))) is not None
    ]
    seconds = number(at(facts, "timings", "seconds"))
    spent = f" in {duration(seconds)}" if seconds is not None else ""
    resumed = number(facts.get("resumed_from_step"))
    if spent and resumed:  # the clock began again with the resume
        spent = f" (those after step {int(resumed):,}, where it was resumed,{spent})"
    return f"{' '.join(parts)}, {', '.join(settings)}{', ' * bool(settings)}{_steps(run)}{spent}."


def cautions(run: Run) -> list[str]:
    """What must be known besides the verdict: rules that failed, other figures that got worse, alarms. Each once: what
    a failed rule says is not repeated by the figures that it is about."""
    decision = decide(run.summary)
    failed = {} if decision is None else {rule.name: rule for rule in decision.rules if rule.passed is False}
    found = [text(run.summary.get("seen_sentence"))]
    found += [rule.sentence for name, rule in failed.items() if name != "win rate"]
    if "equal length" not in failed:
        found.append(_at_equal_length(run))
    if "correct answers" not in failed and text(run.summary.get("correctness_verdict")) not in _FINE:
        found.append(text(run.summary.get("correctness_sentence")))
    if "degeneration" not in failed:
        worse = len(items(at(run.summary, "degeneration", "worse")))  # these sentences stand first
        found += sentences(at(run.summary, "degeneration", "sentences"))[: min(2, worse)]
    forgot = any(rule.verdict == FORGETFUL for rule in failed.values())
    for name, suite in run.suites.items():
        if not (forgot and name == "general"):
            found += sentences(suite.get("worse"))
    alarms = [alarm for alarm in run.alarms if alarm.get("level") == "alarm"]
    if alarms:
        names = dict.fromkeys(text(alarm.get("name")).replace("-", " ") for alarm in alarms)
        found.append(f"The guard raised {counted(len(alarms), 'alarm')} while training: {', '.join(names)}.")
    return [line for line in dict.fromkeys(found) if line]


def _at_equal_length(run: Run) -> str:
    """The sentence about equal length, if the advantage is not shown there; else empty."""
    low = number(at(run.summary, "length_controlled", "ci_low"))
    plain = number(run.summary.get("ci_low"))
    if low is None or plain is None or not low <= 0.5 < plain:
        return ""
    return text(at(run.summary, "length_controlled", "sentence"))


def judged_unlike(runs: Sequence[Run]) -> str:
    """A warning if judge, baseline or prompts of these runs differ, so that win rates cannot be ranked; else empty."""
    rated = [run.summary for run in runs if win_rate(run) is not None]
    kinds: dict[str, set[str | float | None]] = {
        "judges": {text(summary.get("judge")) for summary in rated},
        "baselines": {text(summary.get("baseline_name")) for summary in rated},
        "numbers of comparisons": {number(summary.get("n")) for summary in rated},
    }
    differ = [name for name, values in kinds.items() if len(values) > 1]
    return f"These runs were evaluated with different {' and '.join(differ)}: do not rank them by win rate." * bool(
        differ
    )


def next_steps(run: Run) -> list[str]:
    """What to do now: what the evaluation advises, the fix of each alarm; without an evaluation, to evaluate."""
    found = sentences(run.summary.get("next_steps"))
    if win_rate(run) is None and run.facts:
        place = path_word(str(run.folder))
        found.append(
            "Compare its answers with those of the model before training, with a judge that preftune eval --help "
            f"names: preftune eval --model {place} --judge JUDGE"
        )
    remedies = (text(alarm.get("remedy")) for alarm in run.alarms if alarm.get("level") == "alarm")
    return list(dict.fromkeys([*found, *filter(None, remedies)]))


def example(run: Run) -> tuple[str, Answers] | None:
    """A pair of answers for the first screen, and a caption for it.

    It has the outcome of the verdict and the median length among those: it is typical, not the best one.
    """
    answers = run.shown_answers()
    if not answers:
        return None
    rate = win_rate(run)
    wanted = "win" if rate is None or rate.rate >= 0.5 else "loss"
    outcomes = [answer for answer in answers if answer.outcome == wanted and answer.before != answer.after]
    changed = outcomes or [answer for answer in answers if answer.before != answer.after] or answers
    middle = sorted(changed, key=lambda answer: len(answer.prompt + (answer.before or "") + answer.after))
    chosen = middle[(len(middle) - 1) // 2]
    if outcomes:
        if len(outcomes) == 1:
            return f"The only {wanted} with another answer", chosen
        name = {"win": "wins", "loss": "losses"}[wanted]
        return f"One of {len(outcomes):,} {name}", chosen
    if chosen.step is not None:
        return f"One of {len(answers):,} samples at step {chosen.step:,}", chosen
    return f"One of {counted(len(answers), 'answer')}", chosen


def last(run: Run, name: str) -> float | None:
    """The last finite value of a metric."""
    return next((value for _, value in reversed(columns(run.metrics).get(name, [])) if value is not None), None)


def length(run: Run) -> int:
    """The last step with a record."""
    steps = [number(line.get("step")) or 0 for line in [*run.metrics, *run.alarms]]
    return int(max([number(run.facts.get("steps")) or 0, *steps]))


def ranking(runs: Sequence[Run]) -> tuple[str, list[Run]]:
    """By what runs are ranked, and the runs, the best first: the first measure that all of them have.

    Accuracy stands before loss and margin, whose scale depends on the loss and on beta. No measure leaves the order.
    """
    measures: list[tuple[str, Callable[[Run], float | None]]] = [
        ("win rate", lambda run: None if (rate := win_rate(run)) is None else rate.rate),
        ("held-out accuracy", lambda run: last(run, "eval_rewards/accuracies")),
        ("held-out loss", lambda run: None if (loss := last(run, "eval_loss")) is None else -loss),
    ]
    for name, measure in measures:
        values = [measure(run) for run in runs]
        known = [value for value in values if value is not None]
        if len(known) == len(runs):
            order = sorted(range(len(runs)), key=lambda i: -known[i])
            return name, [runs[i] for i in order]
    return "", list(runs)


def day(seconds: float | None) -> str:
    """A timestamp as a date in UTC; empty for none, or one outside of the calendar."""
    try:
        return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return ""


def missing_files(runs: Sequence[Run]) -> Iterator[str]:
    """A sentence for every file that could not be read completely; optional files may be missing."""
    for run in runs:
        where = f"{run.name}: " if len(runs) > 1 else ""
        for file, problem in run.missing.items():
            if problem != "is missing" or file in ("run.json", "metrics.jsonl"):
                yield f"{where}{file} {problem}."


def _steps(run: Run) -> str:
    return counted(length(run), "step")
