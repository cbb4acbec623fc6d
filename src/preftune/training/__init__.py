"""Trainers on `transformers.Trainer`.

`trainers` train on given data, `online` and `ppo` on freshly sampled answers. `guard` watches a run, `record` records
it.

    config        options of the trainers
    guard         alarms while a run trains
    judged        a judge that compares answers at every evaluation
    online        training on fresh answers: GRPO, RLOO, online DPO, XPO, Nash-MD
    ppo           proximal policy optimisation
    protocol      the attributes of a trainer that other modules may read
    record        run.json, checkpoints, resuming, model cards
    reward_judge  a judge trained from the user's own pairs
    scoring       reference scores without a training
    seeds         one training with several seeds
    setup         the work before the first step
    stages        trainings as processes of their own, for `comparison` and `sweep`
    step          one optimiser step
    trainers      DPO, KTO, SFT and reward models
"""

from preftune.training.config.dpo import DPOConfig
from preftune.training.config.kto import BCOConfig, KTOConfig
from preftune.training.config.reference_free import CPOConfig, ORPOConfig, TPOConfig
from preftune.training.config.reward import RewardConfig
from preftune.training.config.sft import SFTConfig
from preftune.training.trainers.dpo import DPOTrainer
from preftune.training.trainers.kto import BCOTrainer, KTOTrainer
from preftune.training.trainers.reference_free import CPOTrainer, ORPOTrainer, TPOTrainer
from preftune.training.trainers.reward import RewardTrainer
from preftune.training.trainers.sft import SFTTrainer

__all__ = [
    "BCOConfig",
    "BCOTrainer",
    "CPOConfig",
    "CPOTrainer",
    "DPOConfig",
    "DPOTrainer",
    "KTOConfig",
    "KTOTrainer",
    "ORPOConfig",
    "ORPOTrainer",
    "RewardConfig",
    "RewardTrainer",
    "SFTConfig",
    "SFTTrainer",
    "TPOConfig",
    "TPOTrainer",
    "online",
    "ppo",
    "record",
    "reward_judge",
    "scoring",
    "seeds",
    "setup",
    "stages",
    "trainers",
]
