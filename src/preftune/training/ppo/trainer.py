"""`PPOTrainer`: proximal policy optimisation of a language model, with one base model in memory where that is possible.

In a round, the policy answers prompts, the engine computes log-probabilities of policy and reference, the value
function computes values, and a scorer computes scores; a few epochs of clipped mini-batch steps follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from preftune.errors import ConfigError, ModelError
from preftune.generation.lazy_model import ModelSource, contents
from preftune.judges.reward_model import RewardModel
from preftune.judges.reward_model_input import form_of
from preftune.judges.user_rules import adapted
from preftune.log import say
from preftune.logps.batch import PackedBatch
from preftune.losses.advantages import Moments
from preftune.losses.ppo import AdaptiveKL
from preftune.models.roles import Scalar, trained_as_it_was
from preftune.training.online.fresh import FreshStep, scale_logps
from preftune.training.online.rollout import Rollout
from preftune.training.online.scoring import Score, Scores, judge_options, open_score
from preftune.training.online.trainer import OnlineTrainer
from preftune.training.ppo.cast import Cast, cast_roles, kept_off_disk
from preftune.training.ppo.config import PPOConfig
from preftune.training.ppo.experience import Experience, Shaping, make_experience, mini_batches
from preftune.training.ppo.update import Clips, backward_part
from preftune.training.setup.arguments import own_config
from preftune.training.step.shares import shared
from preftune.types import TokenizedGroup

_VALUE_FILE = "value.safetensors"


class PPOTrainer(OnlineTrainer):
    """Trains a policy for a higher reward with a KL penalty to its reference.

    Args:
        model: the policy, usually a supervised fine-tuned model: a model, a hub id or a folder. With an adapter (its
            own, or `peft_config`), policy, value and reference share one base, and so does a reward model that is an
            adapter on the same base.
        reward: rates an answer in place of `PPOConfig.reward_model`: a function of prompt, answer and row, a `Scorer`,
            or a list of them as an ensemble.
        args, train_dataset, ref_model, processing_class, peft_config, quantization_config, callbacks, optimizers,
            sampler: as for `OnlineTrainer`.
    Raises: ConfigError unless exactly one of `reward` and `PPOConfig.reward_model` is given.
    """

    args: PPOConfig
    method = "ppo"
    holds_back = "kl_coef (double it), or give kl_target=6"
    repeats = "num_ppo_epochs"

    def __init__(
        self, model: Any = None, args: PPOConfig | None = None, train_dataset: Any = None, *, reward: Any = None,
        **options: Any,
    ) -> None:  # fmt: skip
        args = own_config(args, PPOConfig, method="ppo")
        reward = None if isinstance(reward, list | tuple) and not reward else reward
        if (reward is None) == (not args.reward_model):
            raise ConfigError(
                "a reward must rate the answers: pass reward=..., or name it in PPOConfig(reward_model=...) "
                "(--reward_model)."
            )
        self._reward, self._opened = reward, ExitStack()
        self._moments, self._experience = Moments(), dict[int, Experience]()
        self.penalty = AdaptiveKL(args.kl_coef, target=args.kl_target, horizon=args.kl_horizon)
        super().__init__(model, args, train_dataset, **options)

    # --- roles ---

    def _what_trains(self) -> nn.Module:
        self._policys = [p for p in self.model.parameters() if p.requires_grad]
        names = self.args.reward_model if self._reward is None else []
        self.cast: Cast = cast_roles(self.model, self.args, names, packed=self.engine.name == "packed")
        for line in self.cast.lines:
            say(line)
        self.score = self._scorer()
        self.rated_by, self.rated_with = self.score.name, self.score.keys
        return self.cast.trained

    def _scorer(self) -> Score:
        how: dict[str, Any] = {"ensemble": self.args.reward_ensemble, "thoughts": self.args.judge_thoughts}
        if self._reward is not None:
            scorers = self._reward if isinstance(self._reward, list | tuple) else [self._reward]
            if self.args.max_disagreement is not None and len(scorers) < 2:
                raise ConfigError("max_disagreement needs an ensemble: pass several as reward, or leave it out.")
            rules = [adapted(scorer) for scorer in scorers]
            if not all(rule.scores for rule in rules):
                raise ConfigError(
                    "reward compares two answers, but PPO needs a score for one. Give a scorer, or use online."
                )
            return Score([rule.call for rule in rules], **how)
        if self.cast.reward is None:
            return open_score(self.cast.by_text, self._opened, options=judge_options(self.args), **how)
        return Score([RewardOnBase(self.model, self.cast.reward_name, self._of_reward)], **how)

    def _of_reward(self, groups: Sequence[TokenizedGroup]) -> list[Tensor]:
        """Scores of the reward on the policy's base, read at the last token of each group's completion."""
        reward: Any = self.cast.reward

        def rate(part: PackedBatch) -> Tensor:
            with reward.acting():
                scores: Tensor = reward.of_completions(part)
                return scores

        return self.in_parts(groups, rate, per_token=False)

    def policy_parameters(self) -> list[nn.Parameter]:
        return self._policys

    def create_optimizer(self, model: Any = None) -> Any:
        """transformers' optimiser, with separate groups for the value function if `value_learning_rate` is set."""
        rate = self.args.value_learning_rate
        made = super().create_optimizer(model)
        if rate is None or getattr(self, "_split", False):
            return made
        self._split = True
        values = {id(parameter) for parameter in self.cast.value_parameters}
        for group in list(made.param_groups):
            own = [parameter for parameter in group["params"] if id(parameter) in values]
            if own:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in values]
                made.add_param_group({**group, "params": own, "lr": rate})
        return made

    def _after_check(self) -> None:
        scale_logps(self, self.args.temperature)

    # --- a round ---

    def _plan_round(self, args: Any, step: int) -> None:
        self.prompts_per_round = step * args.num_mini_batches
        if args.kl_target is not None and args.kl_horizon < self.prompts_per_round:
            raise ConfigError(
                f"kl_horizon={args.kl_horizon:g} is less than the number of answers in a round "
                f"({self.prompts_per_round}), so one round could change kl_coef too much, even to below zero. 10000 is "
                "usual."
            )
        self.steps_per_round = args.num_ppo_epochs * args.num_mini_batches

    def make_steps(self, rollouts: Sequence[Rollout], round_number: int) -> list[list[TokenizedGroup]]:
        args = self.args
        rated = self._rated(rollouts)
        kept = [place for place in range(len(rollouts)) if self._fit(rated, place)]
        self._window.add({"objective/filtered": 1 - len(kept) / len(rollouts)})
        known = torch.tensor([score for score in rated.scores if score is not None])
        if len(known):  # of all answers, with those that are filtered out
            of_scores = {"objective/scores": known.mean(), "objective/scores_std": known.std(unbiased=False)}
            self._window.add({name: float(value) for name, value in of_scores.items()}, weight=len(known))
        spreads = [spread for spread in rated.spread if spread is not None]
        if spreads:
            self._window.add({"objective/scores_disagreement": sum(spreads) / len(spreads)})
        if not kept:
            return []
        groups = [rollouts[place].group for place in kept]
        logps, reference, values = self._measured(groups)
        shaped = make_experience(
            groups,
            logps=logps,
            reference=reference,
            values=values,
            scores=[float(rated.scores[place] or 0.0) for place in kept],
            finished=[rollouts[place].finished for place in kept],
            shaping=self._shaping(),
            moments=self._moments,
        )
        self._moments = shaped.moments
        self._window.add(shaped.figures, weight=len(kept))
        self.penalty.update(shaped.kl, len(kept))
        self._experience = {id(one.group): one for one in shaped.experience}
        self.step_has_weight = any(bool(one.advantages.any()) for one in shaped.experience)
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + round_number)
        steps = mini_batches(
            shaped.experience, epochs=args.num_ppo_epochs, parts=args.num_mini_batches, generator=generator
        )
        return [[one.group for one in step] for step in steps]

    def _rated(self, rollouts: Sequence[Rollout]) -> Scores:
        """The scores of all answers. The ranks divide the work here, or, for a reward on the policy's base, when it is
        computed (`in_parts`).
        """
        if self.cast.reward is not None:
            return self.score(rollouts)

        def score(places: range) -> list[tuple[float | None, float | None]]:
            of = self.score(rollouts[places.start : places.stop])
            return list(zip(of.scores, of.spread, strict=True))

        rated = shared(self, len(rollouts), score)
        return Scores([one for one, _ in rated], [spread for _, spread in rated])

    def _shaping(self) -> Shaping:
        args = self.args
        names = [name for name in Shaping.__dataclass_fields__ if name != "kl_coef"]
        return Shaping(kl_coef=self.penalty.coefficient, **{name: getattr(args, name) for name in names})

    def _fit(self, rated: Scores, place: int) -> bool:
        score, spread = rated.scores[place], rated.spread[place]
        if score is None:
            return False
        if self.args.score_threshold is not None and score < self.args.score_threshold:
            return False
        return self.args.max_disagreement is None or spread is None or spread <= self.args.max_disagreement

    def _measured(self, groups: Sequence[TokenizedGroup]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Log-probabilities of policy and reference in nats, and values, of every token: a tensor for each answer."""
        value: Scalar = self.cast.value

        def of_value(part: PackedBatch) -> Tensor:
            with value.acting():
                return value.of_tokens(part)

        policy = self.in_parts(groups, lambda part: self.engine(self.model, part).token_logps_T)
        reference = self.in_parts(groups, lambda part: self.reference.score(self.model, part, self.engine))
        return policy, reference, self.in_parts(groups, of_value)

    # --- a step ---

    def compute_part(self, part: PackedBatch, step: FreshStep) -> tuple[Tensor, Mapping[str, Tensor], Tensor]:
        return backward_part(
            self.model,
            self.engine,
            self.cast.value,
            part,
            [self._experience[id(group)] for group in part.groups],
            step_tokens=sum(len(group.completions[0]) for group in step.groups),
            clips=Clips(self.args.cliprange, self.args.cliprange_value, self.args.vf_coef),
            backward=self.accelerator.backward,
            autocast=self.autocast,
        )

    def figures(self) -> dict[str, float]:
        figures = super().figures()
        square = figures.pop("val/ratio_square", None)
        if square is not None:
            figures["val/ratio_var"] = max(0.0, square - figures["val/ratio"] ** 2)
        return figures

    # --- saving ---

    def checkpoint_facts(self) -> dict[str, Any]:
        return {**super().checkpoint_facts(), "kl_coef": self.penalty.coefficient, "moments": list(self._moments)}

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self.penalty.coefficient = state["kl_coef"]
        self._moments = Moments(*state["moments"])

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save only the policy, as every other trainer does, so that loading it needs no value function."""
        with kept_off_disk(self.model):
            super()._save(output_dir, state_dict)

    def write_more(self, folder: Path) -> None:
        save_file({name: p.detach().cpu().contiguous() for name, p in self.cast.value_state()}, folder / _VALUE_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with trained_as_it_was(self.cast.trained), kept_off_disk(self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        file = Path(resume_from_checkpoint) / _VALUE_FILE
        if not (Path(resume_from_checkpoint) / "trainer_state.json").is_file():  # the policy of a run that has ended
            return
        if not file.is_file():
            raise ConfigError(
                f"{resume_from_checkpoint} has no value function ({_VALUE_FILE}), so it is not a checkpoint of PPO. "
                "Name a checkpoint of this run, or start without resume_from_checkpoint."
            )
        saved = load_file(file)
        with torch.no_grad():
            for name, parameter in self.cast.value_state():
                parameter.copy_(saved[name])


class RewardOnBase(RewardModel):
    """A reward model that is an adapter on the policy's base. It gives the same scores as the model loaded separately,
    because it renders prompt and answer with its own template and the end of the turn, which the policy's tokens lack.
    """

    def __init__(self, policy: Any, name: str, measure: Callable[[Sequence[TokenizedGroup]], Sequence[Tensor]]) -> None:
        """
        Args:
            policy: the policy, which holds the base.
            name: folder or hub id of the reward model.
            measure: computes a score for each group, read at the last token of its completion.
        """
        source = ModelSource(name)
        loaded = (policy, source.tokenizer)
        # every answer is new, so scores are not cached; a resumed run compares the identity of its reward model
        identity = contents(source.place).hex()
        super().__init__(lambda: loaded, name=f"reward:{name}", identity=identity, form=form_of(source.place.name))
        self._loaded = loaded  # the policy keeps its mode
        self._measure = measure

    def _score(self, encoded: Sequence[Mapping[str, list[int]]]) -> list[float]:
        rows = [row["input_ids"] for row in encoded]
        groups = [TokenizedGroup(row[:-1], (row[-1:],), (), id=str(place)) for place, row in enumerate(rows)]
        scores = [float(score) for score in self._measure(groups)]
        if not all(map(math.isfinite, scores)):
            raise ModelError(f"{self.name} gives scores that are not finite. Load the policy with --dtype float32.")
        return scores
