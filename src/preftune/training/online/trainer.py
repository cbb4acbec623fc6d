"""`OnlineTrainer`: what PPO and online DPO share. A policy answers prompts, and is trained on what it wrote.

The loop, callbacks, loggers and checkpoints are transformers'. Its data loader samples: it yields the optimiser steps
of one round of fresh answers, then samples again with the policy as it has become. Checkpoints are written between
rounds, so that a resumed run samples, draws and steps as the uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from preftune.amounts import counted
from preftune.data.conversion.filters import prompt_key
from preftune.errors import ConfigError, RequestError
from preftune.generation.encode_prompts import check_fit
from preftune.log import detail, say, warn
from preftune.logps import pack
from preftune.logps.batch import PackedBatch
from preftune.reference import ReferenceScores, inference
from preftune.reference.sources import Source, trainable
from preftune.storage.run_directory import check_writable
from preftune.training.online.config import SamplingConfig
from preftune.training.online.fresh import STEP, Fresh, FreshStep, choose_reference, choose_sampler, plan_steps
from preftune.training.online.prompts import PromptSet, prepare_prompts, shared_answers
from preftune.training.online.rollout import Rollout, Sampler, figures_of_answers
from preftune.training.online.watch import Watch
from preftune.training.record import model_card
from preftune.training.setup import arguments
from preftune.training.setup import model as assemble
from preftune.training.setup.advice import about_rate
from preftune.training.setup.self_check import check_before_training
from preftune.training.step.collate import BATCH, collate, probes
from preftune.training.step.memory import score_in_parts
from preftune.training.step.metrics import Averages
from preftune.training.step.optimizer_step import whole_step
from preftune.training.step.shares import count_once, everyones, share, shared
from preftune.training.trainers.recorded import RecordedTrainer
from preftune.types import TokenizedGroup

_MOST_EMPTY_ROUNDS = 10


class OnlineTrainer(RecordedTrainer):
    """The common part. A subclass says how many answers a round has, what it makes of them, and the loss.

    Args:
        model: a model (plain, quantised, with or without a PEFT adapter), a hub id or a folder: the policy.
        ref_model: usually None: the reference is the policy as received.
        args: the configuration.
        train_dataset: prompts in any form, or pairs, whose prompts are taken.
        processing_class: the tokenizer, or its name; loaded from the model's name if left out.
        peft_config: a PEFT configuration for a fresh adapter.
        sampler: who answers; by default the model itself with transformers (or vLLM: `use_vllm`).
    """

    def __init__(
        self,
        model: Any,
        args: Any,
        train_dataset: Any,
        *,
        ref_model: Any = None,
        processing_class: Any = None,
        peft_config: Any = None,
        quantization_config: Any = None,
        eval_dataset: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        sampler: Sampler | None = None,
        **removed: Any,
    ) -> None:
        arguments.refuse_arguments(type(self), removed)
        arguments.check_optimizers(optimizers)
        model = arguments.checked_model(model)
        check_writable(args.output_dir)
        assemble.one_device(args)
        tokenizer = arguments.tokenizer_of(processing_class, model, args)
        if train_dataset is None:
            raise ConfigError("`train_dataset` is required: pass prompts, or pairs, of which the prompts are used.")
        self.prompts = prepare_prompts(train_dataset, tokenizer, max_prompt_length=args.max_prompt_length)
        if self.prompts.too_long:
            warn(
                f"{counted(self.prompts.too_long, 'prompt')} of more than max_prompt_length={args.max_prompt_length} "
                "tokens left out."
            )
        self._plan(args)
        assemble.seed(args)
        model = assemble.prepare_model(model, args, peft_config=peft_config, quantization_config=quantization_config)
        check_fit(model, self.prompts.token_ids, args.max_new_tokens, names=[p.id for p in self.prompts.prompts])
        self.settle(model, args, tokenizer)
        self._window = Averages()
        self._rounds = self._sampled = 0
        self._at_boundary = True
        self._epoch: int | None = None
        self._checked = False
        super().__init__(
            model=model,
            args=args,
            data_collator=lambda groups: {STEP: groups},
            train_dataset=self.prompts,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=arguments.with_early_stopping(callbacks, args),
            optimizers=optimizers,
        )
        self.reference = choose_reference(self, ref_model)
        self.sampler = sampler or choose_sampler(self, tokenizer)
        self.trained = self._what_trains()
        self._as_made = trainable(self.trained)
        self.begin_record()
        for line in self.advice():
            say(f"advice: {line}")
        self.guard = None if args.guard == "off" else Watch(self, str(args.guard))
        if self.guard is not None:
            self.add_callback(self.guard)

    args: SamplingConfig
    train_dataset: PromptSet
    _window: Averages

    # --- what a subclass says ---

    @property
    def reference_source(self) -> Source:
        return self.reference

    @property
    def needs_reference(self) -> bool:
        """Whether the loss or the reward compares with a reference."""
        return True

    holds_back: ClassVar[str] = "beta (double it)"
    """The option that keeps the policy near the reference, as the guard names it."""
    repeats: ClassVar[str] = "max_new_tokens"
    """The option that makes a round's update smaller, besides the learning rate."""
    prompts_per_round: int
    answers_per_prompt = 1
    steps_per_round = 1

    def make_steps(self, rollouts: Sequence[Rollout], round_number: int) -> list[list[TokenizedGroup]]:
        """The optimiser steps that a round of answers makes; none if none of them is fit for training."""
        raise NotImplementedError

    def compute_part(self, part: PackedBatch, step: FreshStep) -> tuple[Tensor, Mapping[str, Tensor], Tensor]:
        """Forward and backward of some groups of a step.

        Returns: their share of the step's loss, figures as sums, and what the sums are over.
        """
        raise NotImplementedError

    def _what_trains(self) -> nn.Module:
        """A module with everything the optimiser moves."""
        return self.model

    rated_by: str
    """Who says what is good, for people."""
    rated_with: list[str | None]
    """Their content addresses; None for a rule of the user's."""

    @property
    def sampled(self) -> int:
        """Answers so far."""
        return self._sampled

    def advice(self) -> list[str]:
        """Sentences about settings that are far from what people use."""
        args = self.args
        return about_rate(args.learning_rate, args.full_learning_rate, full=self.full, few=len(self.prompts) < 1000)

    # --- the plan ---

    def _plan(self, args: Any) -> None:
        """How many steps: `max_steps` if it is given, else what the episodes make."""
        of_a_rank = args.per_device_train_batch_size * args.gradient_accumulation_steps
        if args.gradient_accumulation_steps > 1:
            # one step is one piece of work already, split by tokens as memory allows
            args.per_device_train_batch_size, args.gradient_accumulation_steps = of_a_rank, 1
        self._plan_round(args, of_a_rank * args.world_size)
        plan_steps(
            args,
            prompts=len(self.prompts),
            asked=self.prompts_per_round,
            answers=self.answers_per_prompt,
            steps=self.steps_per_round,
        )

    def _plan_round(self, args: Any, step: int) -> None:
        self.prompts_per_round = step

    # --- rounds ---

    def get_train_dataloader(self) -> Any:
        return Fresh(self)

    def fresh_steps(self) -> list[FreshStep]:
        """Sample a round with the policy as it is, and the steps to be made of it.

        Raises:
            RequestError: no answer of many rounds was fit for training.
        """
        args = self.args
        seed = args.seed if args.data_seed is None else args.data_seed
        for _ in range(_MOST_EMPTY_ROUNDS):
            number = self._rounds
            draws = self.prompts.drawn(number * self.prompts_per_round, self.prompts_per_round, seed=seed)
            asked = [draw for draw in draws for _ in range(self.answers_per_prompt)]
            rollouts = self.sample(asked)
            count_once(self, sum(len(one.prompt_ids) + len(one.response_ids) for one in rollouts))
            self._rounds += 1
            self._sampled += len(rollouts)
            self._check_first(rollouts)
            own = self.own_answers(rollouts)
            if self.guard is not None:
                self.guard.saw(own)
            steps = self.make_steps(rollouts, number)
            self._window.add(figures_of_answers(own), weight=len(own))
            if steps:
                return [FreshStep(groups, last=place == len(steps)) for place, groups in enumerate(steps, start=1)]
        raise RequestError(
            f"none of the answers of {_MOST_EMPTY_ROUNDS} rounds could be trained on: they were filtered, unrated or "
            "all equal. Lower score_threshold, sample at a higher temperature, or check the judge's verdicts."
        )

    def sample(self, asked: Sequence[int]) -> list[Rollout]:
        """One answer to each of these prompts of the data, by number."""
        return self.answers(self.sampler, self.model, asked, first=self._sampled)

    def answers(self, sampler: Sampler, model: nn.Module, asked: Sequence[int], *, first: int) -> list[Rollout]:
        """One answer of a model to each of these prompts."""
        return shared_answers(self, self.prompts, asked, partial(sampler, model), first=first)

    def own_answers(self, rollouts: Sequence[Rollout]) -> Sequence[Rollout]:
        """Those of the policy, which the guard reads."""
        return rollouts

    def in_parts(
        self, groups: Sequence[TokenizedGroup], measure: Callable[[PackedBatch], Tensor], *, per_token: bool = True
    ) -> list[Tensor]:
        """What is measured of each answer, on the CPU, without gradients, within the limits of memory.

        Args:
            per_token: there is a number (or a row of them) for each token of an answer, otherwise for each answer.
        """

        def score(part: Sequence[TokenizedGroup]) -> Sequence[list[Tensor]]:
            with inference(self.trained), self.autocast():
                flat = measure(pack(part).to(self.args.device)).float().cpu()
            sizes = [len(one) if per_token else 1 for group in part for one in group.completions]
            answers = iter(flat.split(sizes))
            return [[next(answers) for _ in group.completions] for group in part]

        def of(places: range) -> list[list[Tensor]]:
            found = score_in_parts(self, [groups[place] for place in places], score, work="scoring")
            return [[answer for part in parts for answer in part] for parts in found]

        return [answer for of_group in shared(self, len(groups), of) for answer in of_group]

    def _check_first(self, rollouts: Sequence[Rollout]) -> None:
        """The engine against the naive path and policy against reference, on the first answers of the run."""
        if self._checked:
            return
        self._checked = True
        lengths = [len(rollout.prompt_ids) + len(rollout.response_ids) for rollout in rollouts]
        batch = pack([rollouts[place].group for place in probes(lengths)]).to(self.args.device)
        result = check_before_training(
            self.model,
            batch,
            self.engine,
            ReferenceScores(self.reference, self.engine, None, autocast=self.autocast),
            autocast=self.precision.autocast,
            resumed=self.state.global_step > 0 or not self.needs_reference,
            allow_mismatch=bool(getattr(self.args, "allow_reference_mismatch", False)),
        )
        detail(result.describe())
        self._record.note(
            self_check={"engine_error": result.engine_error, "reference_distance": result.reference_distance}
        )
        self._after_check()

    def _after_check(self) -> None:
        """The place for what would make the engine differ from the naive path on purpose."""

    # --- training ---

    def begin_training(self, *, resumed: bool) -> None:
        if unfrozen := sorted(trainable(self.trained) - self._as_made):
            raise ConfigError(
                f"{counted(len(unfrozen), 'parameter was', 'parameters were')} unfrozen after the trainer was made "
                f"(first: {unfrozen[0]}), so the reference would be trained along with the policy. Unfreeze them "
                "first, then make the trainer."
            )
        self._epoch = None
        self.keep_prompts([prompt_key(one.prompt) for one in self.prompts.prompts], resumed=resumed)

    def recall(self, state: Mapping[str, Any]) -> None:
        self._rounds, self._sampled = state.get("rounds", 0), state.get("sampled", 0)

    def data_facts(self) -> dict[str, Any]:
        return {"train": self.prompts.facts()}

    def result_facts(self) -> dict[str, Any]:
        return {"episodes": self._sampled}

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """A whole optimiser step, in parts within the token budget."""
        step: FreshStep = inputs[STEP]
        self.model.train()
        self.trained.train()
        getattr(self.optimizer, "train", lambda: None)()  # a schedule-free optimiser
        self.trained.zero_grad(set_to_none=True)
        self._step = [collate([step.groups[place] for place in share(self, len(step.groups))])[BATCH]]
        figures: list[tuple[Mapping[str, Tensor], Tensor]] = []

        def compute(part: PackedBatch) -> tuple[Tensor, Tensor]:
            if not part.groups:
                return torch.zeros((), device=self.args.device), torch.zeros((0, 1), dtype=torch.int64)
            loss, sums, weight = self.compute_part(part.to(self.args.device), step)
            figures.append((sums, weight))
            return loss.detach(), torch.tensor([[len(figures) - 1]])

        loss, counted = whole_step(self, self.trained, self._step, compute, added=True)
        lasting = [figures[place] for place in counted[:, 0].tolist()]  # of the attempt that memory sufficed for
        for sums, weight in everyones(self, lasting):
            self._window.add({name: value / weight for name, value in sums.items()}, weight)
        self._at_boundary = step.last
        count_once(self, sum(group.tokens for group in step.groups))
        return loss.mul(self.args.world_size)  # transformers logs the mean of the ranks

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """The policy's norm, clipped for itself; other roles' gradients, of another scale, by themselves as well."""
        own = self.policy_parameters()
        known = {id(parameter) for parameter in own}
        others = [p for p in self.trained.parameters() if p.grad is not None and id(p) not in known]
        norm = self.accelerator.clip_grad_norm_(own, self.args.max_grad_norm)
        if others:
            torch.nn.utils.clip_grad_norm_(others, self.args.max_grad_norm)
        return norm

    def policy_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if grad_norm is None:  # nothing is clipped
            grad_norm = self.accelerator.clip_grad_norm_(self.policy_parameters(), float("inf"))
        return super()._get_grad_norm(model, grad_norm=grad_norm)

    def create_optimizer(self, model: Any = None) -> Any:
        return super().create_optimizer(self.trained if model is None else model)

    # --- logging and saving ---

    def figures(self) -> dict[str, float]:
        return self._window.drain() | {"episode": float(self._sampled)}

    def may_save(self) -> bool:
        """Between rounds: the answers of a round are not kept."""
        return self._at_boundary

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        before = int(self.state.epoch or 0) if self._epoch is None else self._epoch
        # transformers counts from where a resumed run began, and takes the whole run for one epoch
        self.state.epoch = self._sampled / (self.answers_per_prompt * len(self.prompts))
        self._epoch = int(self.state.epoch)
        by_epoch = str(getattr(self.args.save_strategy, "value", self.args.save_strategy)) == "epoch"
        self.control.should_save |= by_epoch and self._epoch > before
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def checkpoint_facts(self) -> dict[str, Any]:
        return {**super().checkpoint_facts(), "rounds": self._rounds, "sampled": self._sampled}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._window.restore(state["window"])
        if self.guard is not None and state.get("guard"):
            self.guard.restore(state["guard"])

    def card(self) -> str:
        return model_card.online_card(self)

    # --- inner parts ---

    def _prepare_input(self, data: Any) -> Any:
        return data if isinstance(data, FreshStep) else super()._prepare_input(data)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        if self.args.include_num_input_tokens_seen != "no":
            self.state.num_input_tokens_seen += sum(group.tokens for group in inputs[STEP].groups)
