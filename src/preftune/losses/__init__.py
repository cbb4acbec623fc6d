"""Losses: pure functions of log-probabilities and scores.

The DPO loss is `pairwise.sigmoid`. A new loss of pairs is a function in `pairwise` or `reference_free` and an entry in
`registry`. Losses of pairs return one value per pair; the trainer divides their sum by the pairs of the whole optimiser
step.

    advantages      generalised advantage estimation
    group_relative  advantages and losses of GRPO and RLOO
    listwise        losses of ranked and scored lists: plackett_luce, lipo, info_nca, nca
    moments         losses that follow running moments: beta_dpo, alpha_dpo
    objective       the weighted sum of losses that a run minimises
    pairs           inputs and outputs of a loss of pairs; f-divergences
    pairwise        losses with a reference: sigmoid (DPO), ipo, hinge, robust, ...
    ppo             clipped losses, KL estimators
    reference_free  losses without a reference: simpo, cpo, orpo, ...
    registry        LOSSES: every loss of pairs by its name, with its options and its authors' settings
    reward          the Bradley-Terry loss
    surrogates      what the losses of groups make of ratio and advantage: clipped, CISPO, SAPO, VESPO
    unpaired        KTO and APO on single answers with a label
"""

from preftune.losses.listwise import Lists
from preftune.losses.moments import RunningMoments
from preftune.losses.objective import Objective
from preftune.losses.pairs import LossOutput, Pairs
from preftune.losses.registry import LOSSES, Loss, get_loss

__all__ = [
    "LOSSES",
    "Lists",
    "Loss",
    "LossOutput",
    "Objective",
    "Pairs",
    "RunningMoments",
    "advantages",
    "get_loss",
    "group_relative",
    "listwise",
    "moments",
    "objective",
    "pairwise",
    "ppo",
    "registry",
    "reward",
    "surrogates",
    "unpaired",
]
