"""What was seen, in words and tables, written into README.md from result.json: no figure there is by hand.

    python examples/sentiment/results_page.py runs/sentiment

Keeps result.json and the plots in `results/` beside this file, and fills README.md between its two marks.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiment import SMOKE
from frontier_plot import NAMES
from run import exit_code

from preftune.errors import RequestError
from preftune.storage.atomic import write_whole

HERE = Path(__file__).parent
BEGIN, END = "<!-- written by results_page.py from results/result.json -->", "<!-- end -->"
_KEPT = ("result.json", "frontier.svg", "hacking.svg")
Result = Mapping[str, Any]


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    return exit_code("results_page.py", lambda: keep(Path(sys.argv[1]), HERE))


def keep(source: Path, here: Path) -> None:
    """Copies a result into `here/results` and writes its page into `here/README.md`.

    Raises: RequestError when there is no whole result, or only that of a smoke run; nothing is changed then.
    """
    missing = [name for name in _KEPT if not (source / name).is_file()]
    if missing:
        raise RequestError(f"{source} has no {missing[0]}. Let run.py finish, and name its --output here.")
    result = json.loads((source / "result.json").read_text(encoding="utf-8"))
    if result["settings"]["model"] == asdict(SMOKE.model):
        raise RequestError(f"{source} holds a smoke run, whose numbers mean nothing. Name a whole run's --output.")
    kept, readme = here / "results", here / "README.md"
    text = filled(readme.read_text(encoding="utf-8"), page(result))
    kept.mkdir(exist_ok=True)
    for name in _KEPT:
        if source.resolve() != kept.resolve():
            shutil.copyfile(source / name, kept / name)
    write_whole(readme, text.encode())


def filled(text: str, section: str) -> str:
    """The text with the section between its marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{section}\n{END}{rest.split(END)[1]}"


def page(result: Result) -> str:
    """The section about a result."""
    parts = [_setting(result), _rise(result), _frontier(result), _agreement(result), _strengths(result)]
    parts += [_hacking(result), _samples(result)]
    return "\n\n".join(parts) + "\n"


def _setting(result: Result) -> str:
    model, gold, baseline = result["language_model"], result["gold"], result["baseline"]
    said = gold["repeated_words"]
    pairs = [facts["pairs"] for facts in result["preferences"].values()]
    minutes = (model["seconds"] + sum(run["seconds"] for run in result["runs"])) / 60
    size = f"{model['parameters'] / 1e6:.2f} million parameters and a vocabulary of {model['vocabulary']:,}"
    length = f"{model['epochs']} epochs on {model['training_sentences']:,} sentences"
    machine = result["machine"]
    threads = machine.get("torch threads", "?")
    where = f"{threads} {'thread' if threads == 1 else 'threads'} of a machine with {machine.get('cores', '?')} cores"
    return (
        f"The language model has {size}; trained for {length} in {model['seconds'] / 60:.0f} minutes, its perplexity "
        f"on held-out sentences is {model['held_out_perplexity_per_token']:.1f} per token. The gold reward is right "
        f"about {gold['accuracy']:.1%} of {gold['held_out_sentences']:,} held-out sentences. Its strongest word "
        f"({gold['strongest'][0]}) alone has a reward of {said['once']:.1f}, said twenty times of "
        f"{said['twenty times']:.1f}; the twelve strongest together have {said['the twelve strongest']:.1f}. The "
        f"reference's completions have a reward of {baseline['reward']:.2f} with a standard deviation of "
        f"{baseline['reward_deviation']:.2f}. A seed has {min(pairs):,} to {max(pairs):,} pairs. Training and "
        f"measuring took {minutes:.0f} minutes on {where} ({machine.get('cpu', 'unknown')})."
    )


def _rise(result: Result) -> str:
    summary = result["summary"]
    lines = [
        f"**How far the gold reward rose** at a KL of at most {summary['kl_limit']:g} nats, in standard deviations of "
        "the reference's reward, each seed's best measured point (in brackets: two standard errors below it):",
        "",
        "| | " + " | ".join(f"seed {seed}" for seed in _seeds(result)) + " | above 1 on every seed |",
        "|---|" + "---|" * (len(_seeds(result)) + 1),
    ]
    for method, rise in summary["rise"].items():
        cells = []
        for seed in _seeds(result):
            best = rise["seeds"].get(str(seed))
            cells.append(
                "none within" if best is None else f"{best['deviations']:.2f} ({best['lower']:.2f}) at {best['kl']:.1f}"
            )
        verdict = "yes" if rise["above_one_on_all_seeds"] else "**no**"
        lines.append(f"| {NAMES[method]} | {' | '.join(cells)} | {verdict} |")
    return "\n".join(lines)


def _frontier(result: Result) -> str:
    methods = list(result["summary"]["rise"])
    lines = [
        "![gold reward against KL](results/frontier.svg)",
        "",
        "**The frontier**: the best rise of all strengths where their lines in the plot pass a KL; mean and standard "
        "deviation over seeds" + (", and the difference with its 95% interval." if len(methods) == 2 else "."),
        "",
        "| KL | "
        + " | ".join(NAMES[method] for method in methods)
        + (f" | {NAMES[methods[0]]} minus {NAMES[methods[1]]} | |" if len(methods) == 2 else " |"),
        "|---|" + "---|" * (len(methods) + 2 * (len(methods) == 2)),
    ]
    for row in result["summary"]["frontier"]:
        cells = [f"{row['kl']:g} nats", *(_spread(row[method]) for method in methods)]
        if len(methods) == 2:
            cells += _difference_cells(row.get("difference"), methods)
        lines.append(f"| {' | '.join(cells)} |")
    best_of = ", ".join(
        f"{row['n']}: {_gain(result, row['reward']):.2f} at {row['kl']:.2f}" for row in result["baseline"]["best_of"]
    )
    return "\n".join([*lines, "", f"Best of n samples of the reference, for comparison (n: rise at KL): {best_of}."])


def _agreement(result: Result) -> str:
    """What the rows of the frontier come to, beside what the paper says."""
    rows = [row for row in result["summary"]["frontier"] if "difference" in row]
    if not rows:
        return "Whether this agrees with the paper takes both methods and several seeds."
    shown = [row["difference"]["mean"] for row in rows if row["difference"]["shown"]]
    ahead, behind = sum(mean > 0 for mean in shown), sum(mean < 0 for mean in shown)
    counts = f"DPO is ahead at {ahead} of the {len(rows)} KLs where both were, and PPO at {behind}"
    paper = "The paper has DPO ahead of PPO at every KL, also where PPO is given the ground truth."
    if ahead == len(rows):
        verdict = "**This agrees with it.**"
    elif behind:
        verdict = "**This does not agree with it.**"
    else:
        verdict = "**This neither confirms nor contradicts it.**"
    elsewhere = "; no difference is shown elsewhere" if ahead + behind < len(rows) else ""
    return f"{paper} Here {counts}{elsewhere}. {verdict}"


def _difference_cells(difference: Mapping[str, Any] | None, methods: Sequence[str]) -> list[str]:
    if difference is None:
        return ["", ""]
    interval = f"{difference['mean']:+.2f} ({difference['low']:+.2f} to {difference['high']:+.2f})"
    if not difference["shown"]:
        return [interval, "no difference shown"]
    return [interval, f"{NAMES[methods[0] if difference['mean'] > 0 else methods[1]]} is ahead"]


def _strengths(result: Result) -> str:
    lines = [
        "**Each strength at its end**, means over seeds:",
        "",
        "| | KL, nats | gold reward, rise | VADER, rise | tokens | ended by itself | repeated |",
        "|---|---|---|---|---|---|---|",
    ]
    for curve in result["summary"]["curves"]:
        point = curve["points"][-1]
        lines.append(
            f"| {_named(curve)} | {point['kl']:.1f} ± {point['kl_deviation']:.1f} "
            f"| {point['reward_gain']:.2f} | {point['vader_gain']:.2f} | {point['tokens']:.0f} "
            f"| {point['finished']:.0%} | {point['repeated']:.1%} |"
        )
    return "\n".join([*lines, *_same_runs(result)])


def _same_runs(result: Result) -> list[str]:
    """That strengths made no difference, where all their runs were measured at exactly the same points."""
    alike: dict[str, list[Mapping[str, Any]]] = {}
    for curve in result["summary"]["curves"]:
        alike.setdefault(json.dumps([curve["method"], curve["points"]]), []).append(curve)
    return [
        f"\n**{' and '.join(map(_named, same))} are one run**: the figures are equal at every point, so what was to "
        "hold the policy back played no part."
        for same in alike.values()
        if len(same) > 1
    ]


def _hacking(result: Result) -> str:
    """Whether the lexicon that nothing optimised goes along with the reward that was."""
    lines = ["![VADER against gold reward](results/hacking.svg)"]
    for method in result["summary"]["rise"]:
        points = [p for curve in result["summary"]["curves"] if curve["method"] == method for p in curve["points"]]
        most = max(points, key=lambda point: point["reward_gain"])
        best = max(points, key=lambda point: point["vader_gain"])
        sentence = (
            f"**{NAMES[method]} and VADER**: where the gold reward is highest (a rise of {most['reward_gain']:.2f} at "
            f"{most['kl']:.1f} nats), VADER has risen by {most['vader_gain']:.2f} of its standard deviations. "
        )
        if (
            best["vader_gain"] - most["vader_gain"]
            > 2 * most["vader_deviation"] / result["baseline"]["vader_deviation"]
        ):
            sentence += (
                f"At {best['kl']:.1f} nats it was at {best['vader_gain']:.2f}: the rest of the gold reward was bought "
                "with what only the classifier likes."
            )
        elif most["vader_gain"] < most["reward_gain"] / 2:
            sentence += "Less than half of the rise is seen by a judge that was not optimised."
        else:
            sentence += "A judge that was not optimised sees at least half of it."
        lines.append(sentence)
    return "\n\n".join(lines)


def _samples(result: Result) -> str:
    """A text of every method at its end, as it is."""
    first = [run for run in result["runs"] if run["seed"] == _seeds(result)[0]]
    lines = [f"- {_named(run)}: {_plain(run['points'][-1]['texts'][0])}" for run in first]
    return "\n".join(["Texts of the first seed at the end of training, not chosen:", "", *lines])


def _plain(text: str) -> str:
    """On one line, and shown as it is: no sign of it is markup."""
    return re.sub(r"([\\`*_<>\[\]|&#~])", r"\\\1", " ".join(text.split()))


def _named(curve: Mapping[str, Any]) -> str:
    """The method and how strong it was held back."""
    return f"{NAMES[curve['method']]}, {'beta' if curve['method'] == 'dpo' else 'target'} {curve['strength']:g}"


def _gain(result: Result, reward: float) -> float:
    baseline = result["baseline"]
    return float((reward - baseline["reward"]) / baseline["reward_deviation"])


def _seeds(result: Result) -> list[int]:
    return list(result["settings"]["seeds"])


def _spread(value: Mapping[str, Any]) -> str:
    if value["mean"] is None:
        return "none there"
    return f"{value['mean']:.2f}" + (f" ± {value['deviation']:.2f}" if value["deviation"] is not None else "")


if __name__ == "__main__":
    sys.exit(main())
