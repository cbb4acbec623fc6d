"""Many methods where the reward is known: gold reward against KL for each, and what wrong labels do to four of them.

    pip install 'preftune[sentiment]'
    python examples/sentiment/race.py

Language model, gold reward and preferences are made as in run.py. Every method has the strength of its authors (PPO a
target of the KL), and is measured on its way. Killed and started again, it goes on with the run it was in;
several processes share the work (--share 1/2 and --share 2/2). `python examples/sentiment/race_page.py` keeps the
result.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from corpus import load_corpus
from dpo_runs import Measure, after_every_step, train_dpo
from experiment import SMOKE, WHOLE, Experiment, Run
from ppo_runs import train_ppo
from preferences import Preferences, prompt_text
from run import Bench, check_packages, exit_code, keep_settings, provenance, write_json

from preftune.comparison.methods import METHODS
from preftune.data import GroupDataset
from preftune.types import Label, TokenizedGroup

RACED = (
    "dpo", "ipo", "hinge", "sigmoid_norm", "exo_pair", "nca_pair", "apo_zero", "simpo", "orpo", "kto", "grpo", "ppo",
)  # fmt: skip
NOISY = ("dpo", "ipo", "cdpo", "robust")
NOISE = (0.1, 0.2, 0.3)
STRENGTHS = 1
SETTINGS = replace(
    WHOLE,
    model=replace(WHOLE.model, epochs=1),
    train_prompts=512,
    samples_per_test_prompt=1,
    points=(0.25, 0.5, 1.0),
    ppo=replace(WHOLE.ppo, kl_targets=(6.0,), rounds=10),
)
"""Less of each run than in run.py, and of the language model: there are more runs."""


class RaceRun(NamedTuple):
    """One training."""

    method: str
    strength: float
    seed: int
    noise: float = 0.0
    """Share of labels that are turned round."""

    @property
    def name(self) -> str:
        noise = f"-noise{self.noise:g}" if self.noise else ""
        return f"{self.method}-{self.strength:g}{noise}-seed{self.seed}"

    @property
    def plain(self) -> Run:
        return Run(self.method, self.strength, self.seed)


def runs(experiment: Experiment) -> Iterator[RaceRun]:
    """Seed by seed, so that an early stop leaves whole seeds."""
    for seed in experiment.seeds:
        for method in RACED:
            for strength in strengths(method, experiment):
                yield RaceRun(method, strength, seed)
        for method in NOISY:
            for noise in NOISE:
                yield RaceRun(method, METHODS[method].values[0], seed, noise)


def strengths(method: str, experiment: Experiment) -> tuple[float, ...]:
    """What is tried of a method: of PPO targets of the KL, of others the authors' value that `preftune compare` has."""
    return experiment.ppo.kl_targets if method == "ppo" else tuple(METHODS[method].values[:STRENGTHS])


class Race(Bench):
    """Every run begins with the same language model and has the prompts of its seed."""

    def race(self, run: RaceRun) -> dict[str, Any]:
        self._noise, self._folder = run.noise, self.output / "trainers" / run.name
        return {**self.train(run.plain), "noise": run.noise}

    def preferences(self, seed: int) -> Preferences:
        return with_noise(super().preferences(seed), self._noise, seed=seed)

    def _train(self, run: Run, model: Any, after_step: Measure) -> dict[str, Any]:
        method, experiment = METHODS[run.method], self.experiment
        folder = self._folder
        if method.name == "ppo":
            prompts = [prompt_text(self.tokenizer, prompt) for prompt in self.train_prompts]
            return train_ppo(
                run, experiment.ppo, model, self.tokenizer, self.gold, prompts, folder,
                new_tokens=experiment.new_tokens, after_step=after_step,
            )  # fmt: skip
        if method.name == "grpo":
            return self._grpo(run, model, folder, after_step)
        pairs = self.preferences(run.seed)
        if method.command == "kto":
            return self._kto(run, model, pairs, folder, after_step)
        loss: dict[str, Any] = dict(method.fixed)
        if "label_smoothing" in loss:  # cDPO and robust DPO know how many labels are wrong, EXO has its own
            loss["label_smoothing"] = self._noise or float(loss["label_smoothing"])
        return train_dpo(run, experiment.dpo, model, self.tokenizer, pairs, folder, after_step=after_step, **loss)

    def _common(self, run: Run, folder: Path) -> dict[str, Any]:
        return {
            "output_dir": str(folder),
            "engine": "packed",
            "beta": run.strength,
            "learning_rate": self.experiment.dpo.learning_rate,
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 0.05,
            "max_grad_norm": 1.0,
            "save_strategy": "no",
            "logging_steps": 8,
            "seed": run.seed,
            "report_to": "none",
            "disable_tqdm": True,
        }

    def _kto(self, run: Run, model: Any, pairs: Preferences, folder: Path, after_step: Measure) -> dict[str, Any]:
        from preftune import KTOConfig, KTOTrainer

        groups = labelled(pairs.groups)
        # as many steps as the others have, over the same prompts
        rows = max(2, round(len(groups) * self.experiment.dpo.prompts_per_step / len(pairs.groups)))
        args = KTOConfig(**self._common(run, folder), per_device_train_batch_size=rows, num_train_epochs=1)
        trainer = KTOTrainer(
            model, args=args, train_dataset=groups, processing_class=self.tokenizer,
            callbacks=[after_every_step(after_step)],
        )  # fmt: skip
        return _trained(trainer)

    def _grpo(self, run: Run, model: Any, folder: Path, after_step: Measure) -> dict[str, Any]:
        from preftune import GRPOConfig, GRPOTrainer

        ppo = self.experiment.ppo
        answers = ppo.answers_per_step * ppo.steps_per_epoch
        args = GRPOConfig(
            **self._common(run, folder),
            per_device_train_batch_size=answers,
            num_generations=8,
            num_iterations=2,
            total_episodes=ppo.rounds * answers,
            max_new_tokens=self.experiment.new_tokens,
            generation_batch_size=256,
        )

        def gold(prompts: Any, completions: Any, **_: Any) -> list[float]:
            return [float(s) for s in self.gold([f"{p}{c}" for p, c in zip(prompts, completions, strict=True)])]

        trainer = GRPOTrainer(
            model,
            reward_funcs=gold,
            args=args,
            train_dataset=[{"prompt": prompt_text(self.tokenizer, prompt)} for prompt in self.train_prompts],
            processing_class=self.tokenizer,
            callbacks=[after_every_step(after_step)],
        )
        return _trained(trainer)


def _trained(trainer: Any) -> dict[str, Any]:
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)  # its figures are in the run directory
    result = trainer.train()
    return {"train_loss": round(float(result.training_loss), 5), "steps": trainer.state.global_step}


def with_noise(preferences: Preferences, share: float, *, seed: int) -> Preferences:
    """The same pairs with a share of them turned round, drawn by the seed."""
    if not share:
        return preferences
    draw = random.Random(f"{seed} {share}")
    turned = [
        replace(
            group,
            pairs=tuple(
                pair._replace(chosen=pair.rejected, rejected=pair.chosen) if draw.random() < share else pair
                for pair in group.pairs
            ),
        )
        for group in preferences.groups
    ]
    return Preferences(GroupDataset.from_groups(turned), preferences.facts)


def labelled(groups: GroupDataset) -> GroupDataset:
    """Each completion by itself: good if it wins more pairs than it loses, bad if it loses more, else left out."""
    found = []
    for group in groups:
        for index, completion in enumerate(group.completions):
            balance = sum((pair.chosen == index) - (pair.rejected == index) for pair in group.pairs)
            if balance:
                found.append(
                    TokenizedGroup(
                        group.prompt_ids, (completion,), (), id=f"{group.id}/{index}", labels=(Label(balance > 0),)
                    )
                )
    return GroupDataset.from_groups(found)


def main() -> int:
    options = arguments()
    return exit_code("race.py", lambda: run_race(options.experiment, options.corpora, options.output, options.share))


def run_race(experiment: Experiment, corpora: Path | None, output: Path, share: tuple[int, int]) -> None:
    """Every run of this share that is not yet in `output`."""
    began = time.perf_counter()

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - began:6.0f} s] {line}", flush=True)

    check_packages(["sklearn", "vaderSentiment", *(["nltk"] if corpora is None else [])])
    keep_settings(output / "settings.json", experiment)
    race = Race(experiment, load_corpus(corpora), output, say)
    write_json(output / "baseline.json", race.baseline)
    part, parts = share
    for number, run in enumerate(runs(experiment)):
        file = output / "runs" / f"{run.name}.json"
        if file.exists() or number % parts != part - 1:
            continue
        record = race.race(run)
        write_json(file, record)
        last = record["points"][-1]
        say(f"{run.name}: reward {last['reward']:.2f} at {last['kl']:.1f} nats, {record['seconds']:.0f} s")


def result_of(folder: Path, experiment: Experiment) -> Mapping[str, Any]:
    """All runs that are there, with the reference's figures and the settings."""
    files = [folder / "runs" / f"{run.name}.json" for run in runs(experiment)]
    records = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
    baseline = json.loads((folder / "baseline.json").read_text(encoding="utf-8"))
    return {**provenance(), "settings": experiment.record(), "baseline": baseline, "runs": records}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--corpora", type=Path, help="folder with both archives; default: nltk downloads them")
    parser.add_argument(
        "--output", type=Path, help="default: runs/sentiment-race, with --smoke runs/sentiment-race-smoke"
    )
    parser.add_argument("--smoke", action="store_true", help="a tiny version: does it run? Its numbers mean nothing")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 0 1 2")
    parser.add_argument("--share", default="1/1", help="which part of the runs, as 1/2: for several processes")
    options = parser.parse_args()
    part, _, parts = options.share.partition("/")
    options.share = int(part), int(parts or 1)
    options.experiment = replace(SMOKE, ppo=replace(SMOKE.ppo, rounds=2)) if options.smoke else SETTINGS
    if options.seeds:
        options.experiment = replace(options.experiment, seeds=tuple(dict.fromkeys(options.seeds)))
    options.output = options.output or Path("runs/sentiment-race-smoke" if options.smoke else "runs/sentiment-race")
    return options


if __name__ == "__main__":
    sys.exit(main())
