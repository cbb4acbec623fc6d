"""The computations of the guard: the reference's answers before the first step, and evaluation passes. They run on one
rank, or with sharded weights on all ranks alike.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from preftune.data import GroupDataset
from preftune.generation.generate import Completion
from preftune.log import say
from preftune.logps import pack
from preftune.reference import inference, unwrap
from preftune.training.guard import samples
from preftune.training.guard.figures import ALIKE_IN_LENGTH, Look
from preftune.training.guard.schedule import LEAST_SECONDS, SIZES, Costs, allowed_seconds, size_for
from preftune.training.protocol import WatchedTrainerView
from preftune.training.record.run_record import parts
from preftune.training.step.memory import item_rows
from preftune.training.step.optimizer_step import RandomState
from preftune.types import TokenizedGroup


class Prepared(NamedTuple):
    """The result of the preparation before the first step."""

    answers: samples.ReferenceAnswers | None
    """None if the budget is too small for looks."""
    look_seconds: float
    """Expected seconds of a look."""


class Looker:
    """Answers and scores for one trainer.

    Args:
        source: the dataset of the prompts, as `samples.opened` returns it.
        held_out: whether this dataset is not trained on.
    """

    def __init__(self, trainer: WatchedTrainerView, source: Any, *, held_out: bool) -> None:
        self._trainer, self._source, self._held_out = trainer, source, held_out

    # --- before the first step ---

    def prepare(self, *, budget: float) -> Prepared:
        """Draw the reference's answers, in the largest size that the budget allows, and write them to disk.

        The smallest size is drawn first; its time decides which size is drawn.

        Args:
            budget: the guard's share of the run's time, 0 to 0.5.
        """
        began = self._now()
        trainer, least = self._trainer, SIZES[-1]
        pairs = self._groups(least.pairs)
        scoring = self._score(pairs, keep=self._held_out) / max(1, sum(group.tokens for group in pairs))
        run = self._run_seconds(scoring)
        if allowed_seconds(run, budget) < LEAST_SECONDS:
            return Prepared(None, 0.0)
        asked = trainer.args.guard_prompts
        prompts = self._prompts(max(SIZES[0].prompts, asked if isinstance(asked, int) else 0))
        settled = None if asked is None else len(prompts)
        at_first = prompts[: settled or least.prompts]
        answering = self._now()
        greedy = self._greedy(at_first, least.tokens)
        costs = Costs(
            answers=(self._now() - answering) * least.prompts / max(1, len(at_first)),
            per_token=scoring,
            tokens_per_pair=sum(group.tokens for group in pairs) / max(1, sum(len(g.pairs) or 1 for g in pairs)),
            tokens_per_prompt=sum(len(group.prompt_ids) for group in pairs) / max(1, len(pairs)),
            spent=self._now() - began,
        )
        size = size_for(run, budget, costs, prompts=settled)
        if size is None:
            return Prepared(None, 0.0)
        answers = samples.ReferenceAnswers(prompts[: size.prompts], size.tokens, size.pairs, greedy)
        if size.tokens > least.tokens:
            answers.greedy = self._greedy(answers.prompts, size.tokens)
        if size.tokens > least.tokens and not trainer.args.sync_ref_model:  # its answers would not be the reference's
            answers.distance = samples.sampled_answers(
                self._model(),
                trainer.processing_class,
                answers.prompts,
                tokens=size.distance_tokens,
                autocast=trainer.precision.autocast,
            )
            self._score(answers.distance)
        if trainer.is_world_process_zero():
            answers.save(Path(trainer.args.output_dir))
        return Prepared(answers, costs.of_look(size))

    def resumed(self) -> samples.ReferenceAnswers | None:
        """The reference's answers from the start of a resumed run; None if they cannot be read."""

        def load() -> samples.ReferenceAnswers | None:
            return samples.ReferenceAnswers.load(Path(self._trainer.args.output_dir))

        answers = load() if self._trainer.args.sharding is None else self._trainer._on_first_rank(load)
        if answers is not None and answers.distance:
            try:
                self._trainer.reference(self._model(), pack(answers.distance).to(self._trainer.args.device))
            except Exception as error:
                say(f"guard: the distance to the reference is no longer measured ({error})")
                answers.distance = []
        return answers

    def _prompts(self, count: int) -> list[samples.Prompt]:
        asked, tokenizer = self._trainer.args.guard_prompts, self._trainer.processing_class
        if isinstance(asked, str):
            first = samples.prompts_of(self._source, 1, tokenizer)
            chat = bool(first) and not isinstance(first[0].text, str)
            return samples.as_the_model_is_asked(samples.prompts_from_file(asked), tokenizer, chat=chat)
        return samples.prompts_of(self._source, asked or count, tokenizer)

    def _greedy(self, prompts: Sequence[samples.Prompt], tokens: int) -> list[Completion]:
        trainer = self._trainer
        dtype = trainer.precision.autocast
        return samples.answers_now(self._model(), trainer.processing_class, prompts, tokens=tokens, autocast=dtype)

    def _score(self, groups: Sequence[TokenizedGroup], *, keep: bool = True) -> float:
        """Score groups under the reference; returns the seconds that it took.

        Args:
            keep: whether the scores are cached. Those of training rows must not be: training scores the rows in another
                packing, which rounds differently, and a run must have the same numbers with and without a guard.
        """
        reference, device = self._trainer.reference, self._trainer.args.device
        began = self._now()
        if groups and keep:
            reference.score_groups(self._model(), groups, device)
        elif groups:
            reference.fresh(self._model(), pack(groups).to(device))
        return self._now() - began

    def _now(self) -> float:
        """Seconds of the clock; of the first rank's, where all ranks take part and must decide alike."""
        now = time.perf_counter()
        if self._trainer.args.sharding is None:
            return now
        clock = torch.tensor(now, dtype=torch.float64, device=self._trainer.args.device)
        torch.distributed.broadcast(clock, src=0)
        return float(clock)

    def _run_seconds(self, per_token: float) -> float:
        """Estimated seconds of all steps, from the seconds per token of the reference's forward pass."""
        trainer = self._trainer
        args, data = trainer.args, trainer.train_dataset
        per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps  # of this rank
        groups = trainer_steps(trainer) * per_step
        # forward and backward to activations, then one each: backward to weights, recomputation, a live reference
        passes = 2 + trainer.full + bool(args.activation_checkpointing) + trainer.reference.source.live
        return groups * data.total_tokens / max(1, len(data)) * per_token * passes

    # --- a look ---

    def look(self, step: int, answers: samples.ReferenceAnswers) -> tuple[Look, list[dict[str, Any]]]:
        """An evaluation pass of the policy, and its lines for samples.jsonl. It restores the random state."""
        random = RandomState.of(self._trainer.args.device)
        try:
            policy = self._greedy(answers.prompts, answers.tokens)
            look = samples.text_figures(Look(step=step, answers=0), answers.greedy, policy)
            look = self._distance(look, answers.distance)
            look = self._pairs(look, answers.pairs)
        finally:
            random.restore()
        return look, samples.sample_lines(step, time.time(), answers.prompts, answers.greedy, policy)

    def _distance(self, look: Look, groups: Sequence[TokenizedGroup]) -> Look:
        if not groups:
            return look
        trainer, model = self._trainer, self._model()
        batch = pack(groups).to(trainer.args.device)
        before = trainer.reference(model, batch)
        with inference(model), trainer.autocast():
            now = trainer.engine(model, batch)
        apart = (before.token_logps_T - now.token_logps_T).double()
        lengths = torch.bincount(batch.owner_T, minlength=len(groups)).double()
        sums = torch.zeros_like(lengths).index_add_(0, batch.owner_T, apart)
        mean = float(apart.mean())
        # the standard error of a ratio of sums, from the residuals of the answers
        stray = sums - mean * lengths
        error = float((stray.square().sum() * len(groups) / max(1, len(groups) - 1)).sqrt() / lengths.sum())
        return look._replace(kl_per_token=mean, kl_error=error)

    def _pairs(self, look: Look, pairs: int) -> Look:
        if not self._held_out:  # the glances have new training pairs, which serve as held-out pairs
            return look
        trainer, model, groups = self._trainer, self._model(), self._groups(pairs)
        if not any(group.pairs for group in groups):
            return look
        with inference(model):
            rows = item_rows(trainer, model, pack(groups).to(trainer.args.device))[:, 1:].double().cpu()
        columns = dict(zip(trainer.columns, rows.unbind(1), strict=True))
        margin, right = columns["rewards/margins"], columns["rewards/accuracies"]
        chosen, rejected = columns["completions/chosen_length"], columns["completions/rejected_length"]
        alike = (chosen - rejected).abs() <= ALIKE_IN_LENGTH * torch.maximum(chosen, rejected)
        count = len(margin)
        return look._replace(
            pairs=count,
            margin_held_out=float(margin.mean()),
            margin_error=float(margin.std() / count**0.5) if count > 1 else None,
            accuracy_held_out=float(right.mean()),
            accuracy_alike=float(right[alike].mean()) if bool(alike.any()) else None,
            alike=int(alike.sum()),
        )

    def _groups(self, pairs: int) -> list[TokenizedGroup]:
        """Groups with about this many pairs, spread over the held-out data; without these, over the training data."""
        data = parts(self._trainer.eval_dataset) if self._held_out else [self._trainer.train_dataset.known]
        return [group for part in data for group in _some(part, -(-pairs // max(1, len(data))))]

    def _model(self) -> Any:
        return unwrap(self._trainer.model)


def trainer_steps(trainer: WatchedTrainerView) -> int:
    """Optimiser steps of the whole run."""
    args = trainer.args
    if args.max_steps > 0:
        return int(args.max_steps)
    per_step: int = args.rows_per_step
    return max(1, round(args.num_train_epochs * len(trainer.train_dataset) / per_step))


def _some(data: GroupDataset, pairs: int) -> list[TokenizedGroup]:
    """Groups evenly over a dataset, about this many pairs (or single answers) in all."""
    wanted = max(1, round(pairs * len(data) / max(1, data.pairs or len(data))))
    wanted = min(wanted, len(data))
    return [data[index * len(data) // wanted] for index in range(wanted)]
