"""Training on answers that the policy gives while it is trained: GRPO, RLOO, online DPO, XPO, Nash-MD.

config            options of online training
fresh             data loader, reference and sampler of a trainer
group_trainer     GRPOTrainer and RLOOTrainer
grpo_config       their options
judged            what online DPO, XPO and Nash-MD share: a judge compares the answers
preference        OnlineDPOTrainer
prompts           prompts, encoded once, in a seeded order
reward_functions  rewards as TRL takes them, and sums of several
reward_rules      rewards that ship: exact, key-fact, length, format
rollout           answers as token ids, and what is measured of them
scoring           reward models, ensembles, rules and chat models as scorers
trainer           OnlineTrainer: what PPO, GRPO and the judged trainers share
two_players       XPOTrainer and NashMDTrainer
vllm_rollout      answers from vLLM (experimental: not tested on a GPU here)
watch             the guard of online training
"""

from preftune.training.online.config import NashMDConfig, OnlineDPOConfig, XPOConfig
from preftune.training.online.group_trainer import GRPOTrainer, RLOOTrainer
from preftune.training.online.grpo_config import GRPOConfig, RLOOConfig
from preftune.training.online.preference import OnlineDPOTrainer
from preftune.training.online.two_players import NashMDTrainer, XPOTrainer

__all__ = [
    "GRPOConfig",
    "GRPOTrainer",
    "NashMDConfig",
    "NashMDTrainer",
    "OnlineDPOConfig",
    "OnlineDPOTrainer",
    "RLOOConfig",
    "RLOOTrainer",
    "XPOConfig",
    "XPOTrainer",
    "config",
    "fresh",
    "prompts",
    "rollout",
    "scoring",
    "trainer",
]
