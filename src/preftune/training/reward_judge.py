"""A judge of one's own: a reward model trained once, on pairs that the policy did not train on.

It lies in the cache, under the model it was made of and the pairs it was trained and tested on, so the same question
finds it again.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.amounts import counted
from preftune.data import GroupDataset, PairDataset
from preftune.data.conversion.filters import split_key
from preftune.data.tokens.cache import keys_of_rows
from preftune.errors import DatasetError
from preftune.generation.lazy_model import ModelSource, contents
from preftune.log import say, warn
from preftune.models.locate import Location
from preftune.statistics.intervals import MeanInterval, share
from preftune.storage.cache_folder import cache_folder
from preftune.storage.jsonl import digest
from preftune.storage.run_directory import write_json

if TYPE_CHECKING:
    from preftune.training.trainers.reward import RewardTrainer

LEAST_PROMPTS = 20
"""Fewer teach nothing, and test less."""

_HELD_OUT = 0.25
_STEP = 8
"""Pairs per optimiser step."""
_EPOCHS = 2
_ABOUT = "judge.json"


@dataclass(frozen=True, slots=True)
class AutoJudge:
    """A trained judge and how good it is."""

    folder: str
    """Of a reward model: `reward:FOLDER` is the judge."""
    made_of: str
    pairs: int
    """It was trained on."""
    tested: int
    """Pairs on other prompts, which it was not trained on."""
    apart: bool
    """Whether the policy was trained on none of their prompts: False where it is unknown what it was trained on."""
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    """95% interval, clustered by prompt."""
    calibration_error: float

    @property
    def beats_chance(self) -> bool:
        return self.accuracy_low > 0.5

    def sentence(self) -> str:
        """How far its verdicts can be trusted."""
        of_policys = "the policy did not train on" if self.apart else "the policy may have been trained on as well"
        line = (
            f"The judge is a reward model trained on {counted(self.pairs, 'pair')} that {of_policys}. Of "
            f"{counted(self.tested, 'held-out pair')} it gets {self.accuracy:.0%} right (95% interval "
            f"{self.accuracy_low:.0%} to {self.accuracy_high:.0%})"
        )
        if not self.beats_chance:
            return (
                f"{line}: it may be guessing, and so may the win rate. Give it more pairs (--judge_data), or another "
                "judge."
            )
        return f"{line}; the win rate is this judge's, not people's."

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "sentence": self.sentence()}


def train_judge(
    base: str, pairs: PairDataset, *, unwanted: frozenset[int] | None, seed: int = 0, dtype: str = "auto"
) -> AutoJudge:
    """Trains a judge, or finds the one that was trained.

    Args:
        base: the model that the policy came from; the judge is a LoRA adapter and a head on it.
        pairs: what it may learn from. A quarter of their prompts is held out to test it.
        unwanted: `split_key` of prompts that the policy was trained on, which are left out; None if unknown.
        seed: of the split, the adapter and the head.
    Raises:
        DatasetError: too few prompts are left.
    """
    rows = _by_prompt(pairs, unwanted or frozenset())
    left_out = len(pairs) - sum(map(len, rows.values()))
    if left_out:
        say(f"{pairs.name}: the judge does not use {counted(left_out, 'pair')}; the policy trained on their prompts.")
    prompts = sorted(rows)
    if len(prompts) < LEAST_PROMPTS:
        gone = f" ({counted(len(unwanted), 'prompt')} that the policy was trained on left out)" if unwanted else ""
        raise DatasetError(
            f"{pairs.name} has pairs on {counted(len(prompts), 'prompt')} that a judge could learn from{gone}, but at "
            f"least {LEAST_PROMPTS} are needed. Give more with --judge_data PAIRS, or another judge."
        )
    random.Random(seed).shuffle(prompts)
    count = max(5, round(_HELD_OUT * len(prompts)))
    held_out = sorted(row for prompt in prompts[:count] for row in rows[prompt])
    kept = sorted(row for prompt in prompts[count:] for row in rows[prompt])
    apart = unwanted is not None
    facts = [ModelSource(base).identity, _identity(pairs), kept, held_out, apart, seed, dtype, _STEP, _EPOCHS]
    folder = cache_folder() / "judges" / digest(facts)[:24]
    found = _known(folder)
    if found is not None:
        return found
    train, tested = pairs.select(kept), pairs.held_out(held_out)
    return _train(base, train, tested, folder, apart=apart, seed=seed, dtype=dtype)


def _by_prompt(pairs: PairDataset, unwanted: frozenset[int]) -> dict[int, list[int]]:
    rows: dict[int, list[int]] = {}
    for place, pair in enumerate(pairs):
        key = split_key(pair)
        if key not in unwanted:
            rows.setdefault(key, []).append(place)
    return rows


def _identity(pairs: PairDataset) -> str:
    return keys_of_rows(pairs.needed, pairs.reader.facts)


def _known(folder: Path) -> AutoJudge | None:
    """A judge that was trained before; None without one, or with a damaged one, which is removed."""
    if not (folder / _ABOUT).is_file():
        return None
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        about.pop("sentence")
        if about.pop("contents", None) == _contents(folder):
            return AutoJudge(**about)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass
    warn(f"The judge that was trained before ({folder}) is damaged, or has another version; it is trained again.")
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _contents(folder: Path) -> str:
    """A digest of what makes the judge's scores: it was tested with these weights."""
    return contents(Location("folder", str(folder))).hex()


def _train(
    base: str, train: PairDataset, held_out: PairDataset, folder: Path, *, apart: bool, seed: int, dtype: str
) -> AutoJudge:
    from peft import LoraConfig

    from preftune.training.config.reward import RewardConfig
    from preftune.training.trainers.reward import RewardTrainer

    trainer = RewardTrainer(
        model=base,
        args=RewardConfig(
            output_dir=str(folder),
            per_device_train_batch_size=_STEP,
            num_train_epochs=_EPOCHS,
            center_rewards_coefficient=0.01,
            warmup_steps=0.1,
            seed=seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            model_init_kwargs={"dtype": dtype},
        ),
        train_dataset=train,
        eval_dataset=held_out,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    tested = trainer.eval_dataset
    assert isinstance(tested, GroupDataset)
    accuracy = _accuracy(trainer, tested)
    judge = AutoJudge(
        folder=str(folder),
        made_of=base,
        pairs=trainer.train_dataset.pairs,
        tested=tested.pairs,
        apart=apart,
        accuracy=accuracy.mean,
        accuracy_low=accuracy.low,
        accuracy_high=accuracy.high,
        calibration_error=float(metrics["eval_calibration_error"]),
    )
    write_json(folder / _ABOUT, {**judge.to_dict(), "contents": _contents(folder)})
    return judge


def _accuracy(trainer: RewardTrainer, tested: GroupDataset) -> MeanInterval:
    """On the pairs that were left after tokenising; ties count half."""
    scores = trainer.predict(tested).predictions
    margins = scores[:, 0] - scores[:, 1]
    right = [0.5 if margin == 0 else float(margin > 0) for margin in margins]
    return share(right, clusters=_clusters(tested))


def _clusters(groups: GroupDataset) -> Sequence[tuple[int, ...]]:
    """The prompt of every pair, so that pairs of one prompt are not taken for independent ones."""
    return [tuple(group.prompt_ids) for group in groups for _ in group.pairs]
