"""`OnlineDPOTrainer`: the policy answers, a judge says which answer is better, and a DPO step is made of it.

Guo et al. 2024 (arXiv:2402.04792) with any judge; Xu et al. 2023 (arXiv:2312.16682) for the idea of iterating.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from preftune.errors import ConfigError
from preftune.evaluation.labelling.pair_selection import rank
from preftune.evaluation.labelling.sample_groups import Group, LabelCounts
from preftune.evaluation.labelling.scoring import ByComparison, Rated
from preftune.judges.registry import open_judge
from preftune.judges.user_rules import adapted
from preftune.logps.batch import GroupLogps, PackedBatch
from preftune.training.online.config import OnlineDPOConfig
from preftune.training.online.fresh import FreshStep
from preftune.training.online.rollout import Rollout
from preftune.training.online.scoring import Score, judge_options, open_score, row_of
from preftune.training.online.trainer import OnlineTrainer
from preftune.training.setup.arguments import own_config
from preftune.training.step.collate import chosen_tokens
from preftune.training.step.metrics import PER_PAIR, pair_metrics
from preftune.training.step.pair_loss import pair_loss
from preftune.types import Preference, TokenizedGroup


class OnlineDPOTrainer(OnlineTrainer):
    """Aligns a policy with a judge's preferences between its own answers.

    Args:
        judge: who says what is better, instead of `OnlineDPOConfig.judge` or `reward_model`: a `Judge` (prompt, two
            answers, row) or a `Scorer` (prompt, answer, row).
        model, args, train_dataset, and the rest: as for `OnlineTrainer`.
    """

    args: OnlineDPOConfig
    method = "online-dpo"

    def __init__(
        self,
        model: Any = None,
        args: OnlineDPOConfig | None = None,
        train_dataset: Any = None,
        *,
        judge: Any = None,
        **options: Any,
    ) -> None:
        args = own_config(args, OnlineDPOConfig, method="online")
        if sum((judge is not None, args.judge is not None, bool(args.reward_model))) != 1:
            raise ConfigError(
                "one thing must say which answer is better: pass judge=..., or name it in OnlineDPOConfig(judge=...) "
                "or reward_model=... (--judge, --reward_model)."
            )
        self._opened = ExitStack()
        self.answers_per_prompt = args.num_generations
        self._rater = _rater(judge, args, self._opened)
        self.rated_by, self.rated_with = self._rater.name, self._rater.keys
        super().__init__(model, args, train_dataset, **options)

    def make_steps(self, rollouts: Sequence[Rollout], round_number: int) -> list[list[TokenizedGroup]]:
        """One step: a group per prompt, with its distinct answers and the pairs that the judge made of them."""
        size = self.answers_per_prompt
        asked = [rollouts[start : start + size] for start in range(0, len(rollouts), size)]
        groups = [_judged(answers, thoughts=self.args.judge_thoughts) for answers in asked]
        rated = list(self._rater.rate(groups, LabelCounts(), None))
        made, pairs, tied = [], 0, 0
        for answers, scores in zip(asked, rated, strict=True):
            found = self._pairs(answers, scores)
            tied += found is None
            if found is not None:
                made.append(found)
                pairs += len(found.pairs)
        self._window.add(
            {"judge/prompts_without_pair": tied / len(asked), "judge/pairs_per_prompt": pairs / len(asked)}
        )
        known = [score for one in rated for score in one.scores if score is not None and one.comparisons is None]
        if known:
            self._window.add({"objective/scores": sum(known) / len(known)}, weight=len(known))
        return [made] if made else []

    def _pairs(self, answers: Sequence[Rollout], rated: Rated) -> TokenizedGroup | None:
        """The group of one prompt, with the answers that are in a pair; None if the judge prefers none."""
        penalty = self.args.missing_eos_penalty or 0.0
        places = [place for place, score in enumerate(rated.scores) if score is not None]
        scores = [float(rated.scores[p] or 0.0) - penalty * (not answers[p].finished) for p in places]
        if len(scores) < 2:
            return None
        comparisons = rated.comparisons if len(scores) == len(answers) and not penalty else None
        ranked = rank(scores, which=self.args.which_pairs, comparisons=comparisons)  # type: ignore[arg-type]
        wanted = [(places[pair.chosen], places[pair.rejected]) for pair in ranked.pairs]
        wanted = [(a, b) for a, b in wanted if answers[a].response_ids != answers[b].response_ids]
        if not wanted:
            return None
        used = sorted({side for pair in wanted for side in pair})
        place = {answer: index for index, answer in enumerate(used)}
        return TokenizedGroup(
            answers[0].prompt_ids,
            tuple(answers[answer].response_ids for answer in used),
            tuple(Preference(place[a], place[b]) for a, b in wanted),
            id=f"{answers[0].prompt.id}#{answers[0].number}",
        )

    def compute_part(self, part: PackedBatch, step: FreshStep) -> tuple[Tensor, Mapping[str, Tensor], Tensor]:
        pairs, tokens = sum(len(group.pairs) for group in step.groups), chosen_tokens(step.groups)
        self.model.train()
        with self.autocast():
            known = GroupLogps(self.reference.score(self.model, part, self.engine), part.owner_T, part.completions)
        self.model.train()
        with self.autocast():
            scored = (
                self.engine(self.model, part, squares=True)
                if self.args.use_weighting
                else self.engine(self.model, part)
            )
        output, policy = pair_loss(
            self.args, self.args.objective(), part, scored=scored, known=known, tokens_per_pair=tokens / pairs
        )
        loss = output.loss_N.sum() / pairs
        self.accelerator.backward(loss)
        sums = dict(zip(PER_PAIR, pair_metrics(output, policy).sum(0), strict=True))
        distance = (scored.sum_K.detach() - known.sum_K).sum() / part.completions
        sums["objective/kl"] = distance * part.pairs  # answers of this round's policy: an estimate of its distance
        return loss.detach(), sums, torch.tensor(float(part.pairs), device=loss.device)


class _ByScore:
    """Rates every answer by itself; keeps nothing, where answers never come again."""

    def __init__(self, score: Score) -> None:
        self._score, self.name, self.keys = score, score.name, score.keys

    def rate(self, groups: Sequence[Group], counts: LabelCounts, progress: Any) -> Iterator[Rated]:
        items = [(group.prompt, answer, group.row) for group in groups for answer in group.judged]
        found = iter(self._score.of_items(items).scores)
        for group in groups:
            yield Rated([next(found) for _ in group.judged])


def _rater(judge: Any, args: OnlineDPOConfig, opened: ExitStack) -> _ByScore | ByComparison:
    if args.reward_model:
        scores = open_score(args.reward_model, opened, ensemble=args.reward_ensemble, options=judge_options(args))
        return _ByScore(scores)
    if judge is None:
        found = open_judge(str(args.judge), opened, judge_options(args))
        return ByComparison(found.judge) if found.scorer is None else _ByScore(Score([found.scorer]))
    rule = adapted(judge)
    return _ByScore(Score([rule.call])) if rule.scores else ByComparison(rule.call)


def _judged(answers: Sequence[Rollout], *, thoughts: bool) -> Group:
    """The answers to one prompt as judges are given them."""
    prompt = answers[0].prompt
    return Group(
        id=prompt.id,
        prompt=prompt.prompt,
        answers=tuple(answer.text for answer in answers),
        judged=tuple(answer.judged(thoughts=thoughts) for answer in answers),
        samples=tuple(range(len(answers))),
        row=row_of(prompt),
        carried={},
    )
