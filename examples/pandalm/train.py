"""People's judgements: train on some prompts, test on others, and compare with "choose the longer answer".

    python examples/pandalm/train.py --data pandalm_human.jsonl.gz

The file has one pair of answers per line with the majority judgement of three people (PandaLM's testset-v1): prompt,
chosen, rejected. The split is by prompt, so that no prompt is in both parts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

from preftune import DPOConfig, DPOTrainer, load_model, load_pairs, load_tokenizer


def main() -> None:
    options = arguments()
    from peft import LoraConfig

    from preftune.models import demo_model

    name = options.model or demo_model()
    pairs = load_pairs(options.data).as_chat()
    held_out = [is_held_out(prompt_of(pair), options.share) for pair in pairs]
    train = pairs.select([i for i, out in enumerate(held_out) if not out][: options.max_pairs])
    test = pairs.select([i for i, out in enumerate(held_out) if out][: options.max_pairs])
    trainer = DPOTrainer(
        load_model(name),
        args=DPOConfig(
            output_dir=options.output,
            per_device_train_batch_size=8,
            per_device_eval_batch_size=8,
            num_train_epochs=options.epochs,
            learning_rate=options.learning_rate,
            beta=options.beta,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            logging_steps=10,
            eval_strategy="epoch",
            save_strategy="no",
            seed=options.seed,
        ),
        train_dataset=train,
        eval_dataset=test,
        processing_class=load_tokenizer(name),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    trainer.save_model()
    result = {
        "model": Path(name).name,
        "training_pairs": len(train),
        "held_out_pairs": len(test),
        "held_out_prompts": len({prompt_of(pair) for pair in test}),
        "settings": {k: getattr(options, k) for k in ("learning_rate", "beta", "epochs", "seed")},
        **compare(test, trainer.predict(test).predictions),
        "train_seconds": round(seconds, 1),
    }
    text = json.dumps(result, indent=1)
    Path(options.output, "result.json").write_text(text + "\n", encoding="utf-8")
    print(text, table(result), sep="\n")


def compare(test: Any, rewards: Any) -> dict[str, Any]:
    """Accuracy of the trained model and of the length baseline on the same pairs, intervals clustered by prompt."""
    from preftune.statistics.intervals import paired_shares, share

    prompts = [prompt_of(pair) for pair in test]
    model = [(c > r) + 0.5 * (c == r) for c, r in rewards]
    lengths = [(len(answer(pair.chosen)), len(answer(pair.rejected))) for pair in test]
    longer = [(c > r) + 0.5 * (c == r) for c, r in lengths]
    agrees = [1.0 if (m > 0.5) == (n > 0.5) else 0.0 for m, n in zip(model, longer, strict=True)]
    short_wins = [i for i, n in enumerate(longer) if n < 0.5]
    return {
        "accuracy": interval(share(model, prompts)),
        "accuracy_of_choosing_the_longer": interval(share(longer, prompts)),
        "above_choosing_the_longer": interval(paired_shares(longer, model, prompts)),
        "accuracy_where_the_shorter_won": interval(
            share([model[i] for i in short_wins], [prompts[i] for i in short_wins])
        ),
        "pairs_where_the_shorter_won": len(short_wins),
        "agreement_with_choosing_the_longer": round(sum(agrees) / len(agrees), 3),
        "mean_margin": round(float((rewards[:, 0] - rewards[:, 1]).mean()), 4),
    }


def table(result: dict[str, Any]) -> str:
    """The table of the README."""
    shorter = result["pairs_where_the_shorter_won"]
    rows = {
        "the trained model's rewards": "accuracy",
        "choose the longer answer": "accuracy_of_choosing_the_longer",
        "difference, points": "above_choosing_the_longer",
        f"the trained model, where people preferred the shorter answer ({shorter} pairs)": (
            "accuracy_where_the_shorter_won"
        ),
    }
    lines = ["| | accuracy | 95% interval, clustered by prompt |", "|---|---|---|"]
    for name, key in rows.items():
        value, low, high = (100 * result[key][part] for part in ("value", "low", "high"))
        if key == "above_choosing_the_longer":
            lines.append(f"| {name} | {value:+.1f} | {low:+.1f} to {high:+.1f} |")
        else:
            lines.append(f"| {name} | {value:.1f}% | {low:.1f}-{high:.1f} |")
    return "\n".join(lines)


def interval(value: Any) -> dict[str, float]:
    return {"value": round(value.mean, 3), "low": round(value.low, 3), "high": round(value.high, 3)}


def prompt_of(pair: Any) -> str:
    return str(pair.prompt[-1]["content"])


def answer(side: Any) -> str:
    return str(side[-1]["content"])


def is_held_out(prompt: str, share: float) -> bool:
    """Decided by the prompt alone."""
    return position(prompt) < share


def position(prompt: str) -> float:
    """A place in [0, 1), the same on every machine."""
    digest = hashlib.sha256(prompt.encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model")
    parser.add_argument("--output", default="runs/pandalm")
    parser.add_argument("--share", type=float, default=0.25, help="share of prompts held out")
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max_pairs", type=int, help="use fewer, to try it out")
    return parser.parse_args()


if __name__ == "__main__":
    main()
