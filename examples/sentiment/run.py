"""The controlled experiment of the DPO paper (arXiv:2305.18290, section 6, figure 2 left), on two CPU cores.

    pip install 'preftune[sentiment]'
    python examples/sentiment/run.py

Killed and started again, it goes on with the run it was in. result.json and the plots are in --output.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from corpus import Corpus, load_corpus
from dpo_runs import Measure, train_dpo
from experiment import SMOKE, WHOLE, Experiment, Run
from frontier import summarise
from frontier_plot import write_plots
from gold import GoldReward, Vader
from language_model import trained_language_model
from measure import Ruler
from ppo_runs import train_ppo
from preferences import Preferences, make_preferences, prompt_text, prompts_of

from preftune import load_model
from preftune.errors import PreftuneError, RequestError
from preftune.storage.atomic import write_whole


def main() -> int:
    options = arguments()
    began = time.perf_counter()

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - began:6.0f} s] {line}", flush=True)

    return exit_code(
        "run.py",
        lambda: run_experiment(options.experiment, options.corpora, options.output, methods=options.methods, say=say),
    )


def exit_code(script: str, work: Callable[[], Any]) -> int:
    """Does the work of a script; an error of the request, or Ctrl-C, is one line on stderr."""
    try:
        work()
    except KeyboardInterrupt:
        print(f"\n{script}: stopped; the same command goes on with the run it was in.", file=sys.stderr)
        return 130
    except PreftuneError as error:
        print(f"{script}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def run_experiment(
    experiment: Experiment, corpora: Path | None, output: Path, *, methods: list[str], say: Callable[[str], None]
) -> dict[str, Any]:
    """Everything that is not yet in `output`; returns the result."""
    check_packages(["sklearn", "vaderSentiment", *(["nltk"] if corpora is None else [])])
    corpus = load_corpus(corpora)
    keep_settings(output / "settings.json", experiment)
    bench = Bench(experiment, corpus, output, say)
    write_json(output / "baseline.json", bench.baseline)
    runs = [run for run in experiment.runs() if run.method in methods]
    for number, run in enumerate(runs, start=1):
        file = output / "runs" / f"{run.name}.json"
        if file.exists():
            continue
        record = bench.train(run)
        write_json(file, record)
        last = record["points"][-1]
        say(f"{number}/{len(runs)} {run.name}: reward {last['reward']:.2f} at a KL of {last['kl']:.1f} nats, "
            f"{record['seconds']:.0f} s")  # fmt: skip
    records = [json.loads((output / "runs" / f"{run.name}.json").read_text(encoding="utf-8")) for run in runs]
    result = {
        **provenance(),
        "settings": experiment.record(),
        **bench.facts(),
        "baseline": bench.baseline,
        "summary": summarise(records, bench.baseline, kl_limit=experiment.kl_limit),
        "runs": records,
    }
    write_json(output / "result.json", result)
    write_plots(result, output)
    say(f"results are in {output}")
    return result


class Bench:
    """What all runs share, made when it is first needed: a second start finds it on disk."""

    def __init__(self, experiment: Experiment, corpus: Corpus, output: Path, say: Callable[[str], None]) -> None:
        self.experiment, self.output, self.say = experiment, output, say
        self.corpus = corpus
        began = time.perf_counter()
        self.gold, self.vader = GoldReward(self.corpus.gold_train), Vader()
        self.gold_seconds = time.perf_counter() - began
        self.gold_accuracy = self.gold.accuracy(self.corpus.gold_test)
        say(f"gold reward: {self.gold_accuracy:.1%} of held-out sentences on the right side")
        self.reference, self.tokenizer, self.model_facts = trained_language_model(
            output / "language_model", experiment.model, self.corpus.language_model, self.corpus.test_prompts, say=say
        )
        self._preferences: dict[int, Preferences] = {}

    @cached_property
    def train_prompts(self) -> list[list[int]]:
        return self._prompts(self.corpus.train_prompts, self.experiment.train_prompts)

    def _prompts(self, texts: list[str], count: int) -> list[list[int]]:
        return prompts_of(texts, self.tokenizer, count, self.experiment.prefix_tokens, seed=0)

    @cached_property
    def ruler(self) -> Ruler:
        return Ruler(
            self.reference,
            self.tokenizer,
            self.gold,
            self.vader,
            self._prompts(self.corpus.test_prompts, self.experiment.test_prompts),
            samples=self.experiment.samples_per_test_prompt,
            new_tokens=self.experiment.new_tokens,
        )

    @cached_property
    def baseline(self) -> dict[str, Any]:
        file = self.output / "baseline.json"
        if file.exists():
            return dict(json.loads(file.read_text(encoding="utf-8")))
        return self.ruler.baseline(self.experiment.best_of, seed=1)

    def preferences(self, seed: int) -> Preferences:
        """Pairs of one seed: other completions, on the same prompts."""
        if seed not in self._preferences:
            self._preferences[seed] = make_preferences(
                self.output / f"preferences-seed{seed}.json",
                self.reference,
                self.tokenizer,
                self.gold,
                self.train_prompts,
                completions=self.experiment.completions_per_prompt,
                new_tokens=self.experiment.new_tokens,
                seed=seed,
            )
        return self._preferences[seed]

    def train(self, run: Run) -> dict[str, Any]:
        """One run from the language model on, with its points."""
        points: list[dict[str, Any]] = []
        measuring = 0.0

        def after_step(policy: Any, step: int, steps: int) -> None:
            nonlocal measuring
            if step in {max(1, round(share * steps)) for share in self.experiment.points}:
                began = time.perf_counter()
                seed = 1000 * (run.seed + 1) + len(points)
                points.append({"step": step, "share": step / steps, **self.ruler.measure(policy, seed=seed)})
                measuring += time.perf_counter() - began

        began = time.perf_counter()
        model = load_model(str(self.output / "language_model"))
        outcome = self._train(run, model, after_step)
        seconds = time.perf_counter() - began
        return {
            **run._asdict(),
            **outcome,
            "seconds": round(seconds, 1),
            "seconds_measuring": round(measuring, 1),
            "points": points,
        }

    def _train(self, run: Run, model: Any, after_step: Measure) -> dict[str, Any]:
        experiment, folder = self.experiment, self.output / "trainers" / run.name
        if run.method == "dpo":
            pairs = self.preferences(run.seed)
            return train_dpo(run, experiment.dpo, model, self.tokenizer, pairs, folder, after_step=after_step)
        return train_ppo(
            run,
            experiment.ppo,
            model,
            self.tokenizer,
            self.gold,
            [prompt_text(self.tokenizer, prompt) for prompt in self.train_prompts],
            folder,
            new_tokens=experiment.new_tokens,
            after_step=after_step,
        )

    def facts(self) -> dict[str, Any]:
        """What the result says about model, reward and data."""
        return {
            "corpus": self.corpus.sizes(),
            "language_model": self.model_facts,
            "gold": {
                "training_sentences": len(self.corpus.gold_train.texts),
                "accuracy": round(self.gold_accuracy, 4),
                "held_out_sentences": len(self.corpus.gold_test.texts),
                "seconds": round(self.gold_seconds, 2),
                "strongest": self.gold.strongest(),
                "repeated_words": {name: round(value, 3) for name, value in self.gold.repeated_words().items()},
            },
            "preferences": {str(seed): self.preferences(seed).facts for seed in self.experiment.seeds},
        }


def keep_settings(file: Path, experiment: Experiment) -> None:
    """Write the settings, or see that they are those of the results that are already there.

    Raises: RequestError.
    """
    record = json.loads(json.dumps(experiment.record()))
    if not file.exists():
        write_json(file, record)
    elif json.loads(file.read_text(encoding="utf-8")) != record:
        raise RequestError(f"{file.parent} holds an experiment with other settings. Choose another --output.")


def check_packages(names: list[str]) -> None:
    """Raises: RequestError, naming what is missing and what installs it."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise RequestError(f"{', '.join(missing)} missing. Install all of it with: pip install 'preftune[sentiment]'")


def provenance() -> dict[str, Any]:
    """Machine, versions and date; no name and no path of this machine."""
    from preftune.cli.commands.env import environment

    facts = environment()
    hardware = dict(facts["hardware"])
    hardware["memory_gb"] = round((hardware.pop("memory_bytes") or 0) / 1e9, 1)
    names = ("preftune", "torch", "transformers", "python", "system")
    versions = {name: facts["versions"][name] for name in names}
    return {"machine": hardware, "versions": versions, "date": time.strftime("%Y-%m-%d")}


def write_json(file: Path, content: Any) -> None:
    write_whole(file, (json.dumps(content, indent=1) + "\n").encode())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--corpora", type=Path, help="folder with both archives; default: nltk downloads them")
    parser.add_argument("--output", type=Path, help="default: runs/sentiment, with --smoke runs/sentiment-smoke")
    parser.add_argument("--smoke", action="store_true", help="a tiny version: does it run? Its numbers mean nothing")
    parser.add_argument("--methods", nargs="+", default=["dpo", "ppo"], choices=("dpo", "ppo"))
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 0 1 2")
    parser.add_argument("--dpo_learning_rate", type=float, help="to choose it on a development seed: 100")
    parser.add_argument("--ppo_learning_rate", type=float, help="the same")
    options = parser.parse_args()
    experiment = SMOKE if options.smoke else WHOLE
    if options.seeds:
        experiment = replace(experiment, seeds=tuple(dict.fromkeys(options.seeds)))
    if options.dpo_learning_rate is not None:
        experiment = replace(experiment, dpo=replace(experiment.dpo, learning_rate=options.dpo_learning_rate))
    if options.ppo_learning_rate is not None:
        experiment = replace(experiment, ppo=replace(experiment.ppo, learning_rate=options.ppo_learning_rate))
    options.experiment = experiment
    options.output = options.output or Path("runs/sentiment-smoke" if options.smoke else "runs/sentiment")
    return options


if __name__ == "__main__":
    sys.exit(main())
