"""Training on answers that the policy gives while it is trained.

config        options of online training
fresh         data loader, reference and sampler of a trainer
preference    OnlineDPOTrainer
prompts       prompts, encoded once, in a seeded order
rollout       answers as token ids
scoring       reward models, ensembles, rules and chat models as scorers
trainer       OnlineTrainer: what PPO and online DPO share
vllm_rollout  answers from vLLM (experimental: not tested on a GPU here)
watch         the guard of online training
"""

from preftune.training.online.config import OnlineDPOConfig
from preftune.training.online.preference import OnlineDPOTrainer

__all__ = [
    "OnlineDPOConfig",
    "OnlineDPOTrainer",
    "config",
    "fresh",
    "prompts",
    "rollout",
    "scoring",
    "trainer",
]
