"""Training on answers that the policy gives while it is trained.

config        options of online training
fresh         data loader, reference and sampler of a trainer
group_trainer     GRPOTrainer and RLOOTrainer
grpo_config       their options
preference    OnlineDPOTrainer
prompts       prompts, encoded once, in a seeded order
reward_functions  rewards as TRL takes them, and sums of several
reward_rules  rewards that ship: exact, key-fact, length, format
rollout       answers as token ids
scoring       reward models, ensembles, rules and chat models as scorers
trainer       OnlineTrainer: what PPO and online DPO share
vllm_rollout  answers from vLLM (experimental: not tested on a GPU here)
watch         the guard of online training
"""

from preftune.training.online.config import OnlineDPOConfig
from preftune.training.online.group_trainer import GRPOTrainer, RLOOTrainer
from preftune.training.online.grpo_config import GRPOConfig, RLOOConfig
from preftune.training.online.preference import OnlineDPOTrainer

__all__ = [
    "GRPOConfig",
    "GRPOTrainer",
    "OnlineDPOConfig",
    "OnlineDPOTrainer",
    "RLOOConfig",
    "RLOOTrainer",
    "config",
    "fresh",
    "prompts",
    "rollout",
    "scoring",
    "trainer",
]
