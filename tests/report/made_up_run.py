"""Run directories with invented numbers, whole or broken, for what only reads files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HOSTILE = "<script>document.title='owned'</script></script><img src=x onerror=alert(1)> {{7*7}} ${7*7} <!-- @everyone"
BIDI = "\u202e drawkcab \u2066 مرحبا بالعالم"


def write_run(
    folder: Path,
    *,
    rate: float = 0.65,
    rows: int = 24,
    hostile: bool = False,
    alarms: bool = True,
    steps: int = 80,
    beta: float = 0.1,
) -> Path:
    """A run that trained, was guarded and was evaluated. With `hostile` every text of a model attacks a page."""
    (folder / "eval").mkdir(parents=True)
    write(folder / "run.json", facts(folder, steps, beta))
    write_lines(folder / "metrics.jsonl", metrics(steps))
    write(folder / "audit.json", {"train": tokenised(), "eval": {**tokenised(), "rows_in": 64, "rows_out": 64}})
    write_lines(folder / "samples.jsonl", samples(4, hostile=hostile))
    write_lines(folder / "guard.jsonl", guard(hostile=hostile) if alarms else [])
    write_lines(folder / "eval/generations.jsonl", generations(rows, hostile=hostile))
    write_lines(folder / "eval/verdicts.jsonl", verdicts(rows))
    write(folder / "eval/summary.json", summary(rate, rows, hostile=hostile))
    write(folder / "eval/xstest/summary.json", suite())
    return folder


def facts(folder: Path, steps: int, beta: float) -> dict[str, Any]:
    return {
        "versions": {"python": "3.11.7", "preftune": "0.1.0", "torch": "2.13.0"},
        "hardware": {"platform": "Linux", "processor": "x86_64", "threads": 2, "devices": []},
        "command": ["/somewhere/preftune/cli/main.py", "dpo", "--model", "a/model", "--output_dir", str(folder)],
        "method": "dpo",
        "configuration": {"beta": beta, "learning_rate": 5e-6, "loss_type": ["sigmoid"], "seed": 0, "note": HOSTILE},
        "precision": "precision: float32",
        "engine": {"name": "packed", "reason": ""},
        "data": {"train": {"pairs": 640, "tokens": 9000, "fingerprint": "ab"}, "eval_0": {"pairs": 64}},
        "model": {"name": "someone/a-model", "full_fine_tuning": False},
        "reference": {"source": "the same model with its adapter switched off", "fingerprint": "cd"},
        "seeds": {"seed": 0, "data_seed": None},
        "steps": steps,
        "outcome": "finished",
        "timings": {"seconds": 83.2},
        "guard": {"mode": "warn", "checks": 4, "alarms": ["repetition"]},
    }


def metrics(steps: int) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(2, steps + 1, 2):
        done = step / steps
        lines.append(
            {
                "step": step, "time": 1e9 + step, "loss": 0.69 - 0.5 * done, "learning_rate": 5e-6 * (1 - done),
                "grad_norm": 1.0, "rewards/margins": 3 * done, "rewards/accuracies": 0.5 + 0.45 * done,
                "rewards/chosen": done, "rewards/rejected": -2 * done, "logps/chosen": -14 - done,
                "logps/rejected": -200 - 60 * done, "completions/chosen_length": 12, "completions/rejected_length": 70,
                "tokens_per_second": 1900 + step, "memory/peak_gb": 3.5,
            }
        )  # fmt: skip
        if step % 20 == 0:
            lines.append({"step": step, "eval_loss": 0.6 - 0.3 * done, "eval_rewards/margins": 2.5 * done,
                          "eval_rewards/accuracies": 0.5 + 0.4 * done})  # fmt: skip
            lines.append({"step": step, "guard/repeated": 0.02 + 0.2 * done, "guard/repeated_reference": 0.02,
                          "guard/distinct_2": 0.9, "guard/length_ratio": 1 - 0.3 * done, "guard/finished": 0.97,
                          "guard/self_similarity": 0.1, "guard/kl_per_token": 0.1 * done})  # fmt: skip
    return lines


def tokenised() -> dict[str, Any]:
    return {
        "name": "the dataset", "rows_in": 643, "rows_out": 640, "total_tokens": 9000, "longest": 150,
        "dropped": {"identical": {"count": 3, "rows": [1, 2, 3]}}, "truncated": {"chosen": {"count": 2, "rows": [7]}},
        "notes": [],
    }  # fmt: skip


def samples(count: int, *, hostile: bool = False) -> list[dict[str, Any]]:
    return [
        {"step": step, "id": f"s{i}", "prompt": f"Sampled question {i}?", "reference": f"before {i} at {step}",
         "policy": f"{HOSTILE if hostile else ''} after {i} at {step}", "reference_tokens": 4, "policy_tokens": 5,
         "reference_finished": True, "policy_finished": False}
        for step in (20, 40) for i in range(count)
    ]  # fmt: skip


def guard(*, hostile: bool = False) -> list[dict[str, Any]]:
    attack = HOSTILE if hostile else ""
    return [
        {"step": 30, "name": "length-drift", "level": "note", "seen": f"Answers grow shorter. {attack}",
         "cause": "The data.", "remedy": "Balance the lengths.", "action": "warn"},
        {"step": 50, "name": "repetition", "level": "alarm", "seen": f"22% of the words are repeated. {attack}",
         "cause": "The learning rate is too high.", "remedy": "Halve the learning rate: --learning_rate 2.5e-6.",
         "action": "stop"},
    ]  # fmt: skip


def generations(rows: int, *, hostile: bool = False) -> list[dict[str, Any]]:
    made = [
        {"id": f"row-{i}", "prompt": [{"role": "user", "content": f"Question number {i} about zebras?"}],
         "base": f"A long answer {i} that hedges before it says anything.", "aligned": f"Short answer {i}.",
         "tokens": {"base": 12, "aligned": 4}, "finished": {"base": True, "aligned": True},
         "category": ["ordinary", "edge case", "out of domain"][i % 3]}
        for i in range(rows)
    ]  # fmt: skip
    made[1]["aligned"] = made[1]["base"]
    if hostile:
        made[2] |= {"prompt": HOSTILE, "base": f"{HOSTILE} \x00\x1b[31m", "aligned": f"{HOSTILE} \ud800"}
        made[3] |= {"aligned": "huge " * 200_000, "category": HOSTILE}
        made[4] |= {"prompt": BIDI, "aligned": f"{BIDI} `````` [x](http://evil.example) | @user #1 GH-1"}
    return made


def verdicts(rows: int) -> list[dict[str, Any]]:
    return [{"id": f"row-{i}", "outcome": ["win", "tie", "loss", "win"][i % 4]} for i in range(rows)]


def summary(rate: float, rows: int, *, hostile: bool = False) -> dict[str, Any]:
    low, high = rate - 0.09, rate + 0.09
    category = {"win_rate": rate, "ci_low": low, "ci_high": high, "n": 8}
    return {
        "win_rate": rate, "ci_low": low, "ci_high": high, "n": rows, "wins": 12, "ties": 6, "losses": 6,
        "confidence": 0.95, "verdict": "better" if low > 0.5 else "worse" if high < 0.5 else "undecided",
        "verdict_sentence": "A sentence.", "judge": "key-fact", "baseline_name": HOSTILE if hostile else "a-model",
        "categories": {"ordinary": category, "edge case": {**category, "win_rate": 0.4, "ci_low": 0.1}},
        "length_controlled": {**category, "win_rate": rate - 0.05},
        "position_bias": {"disagreed": 3, "first_preferred": 2, "asked": rows},
        "mean_tokens": {"base": 42.0, "aligned": 21.0}, "finished": {"base": 0.9, "aligned": 1.0},
        "key_fact_rate": {"base": {"rate": 0.7}, "aligned": {"rate": 0.6},
                          "difference": {"ci_low": -0.2, "ci_high": -0.01}},
        "correctness_verdict": "shorter and less correct", "correctness_sentence": "It is less correct.",
        "degeneration": {"figures": {"repeats": {"base": 0.01, "aligned": 0.2, "ci_low": 0.1, "ci_high": 0.3}},
                         "worse": ["repeats"], "sentences": ["It repeats itself in 20% of its answers."],
                         "worst": {"repeats": [{"id": "row-7"}]}},
        "next_steps": ["Keep it: preftune merge."], "settings": {"sampling": "greedy", "max_new_tokens": 96},
    }  # fmt: skip


def suite() -> dict[str, Any]:
    return {
        "suite": "xstest",
        "headline": {"name": "unwanted refusals", "base": 0.12, "aligned": 0.19, "difference": 0.07, "ci_low": 0.01,
                     "ci_high": 0.13, "better": "lower"},
        "sentences": ["Refuses 19% of harmless prompts instead of 12%."], "worse": ["Unwanted refusals rose."],
    }  # fmt: skip


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path: Path, values: Iterable[Any]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
