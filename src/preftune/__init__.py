"""preftune: preference pairs in, an aligned model out, and honest evidence of whether it got better.

Names are loaded on first use, so that `import preftune` stays quick and imports no torch.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from preftune.version import __version__

# When PEFT imports it, bitsandbytes names, on some processors, a kernel that models/four_bit.py does not use.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

if TYPE_CHECKING:
    from preftune.data import load_demonstrations, load_pairs
    from preftune.errors import PreftuneError
    from preftune.models import load_model, load_tokenizer, merge
    from preftune.training import (
        CPOConfig,
        CPOTrainer,
        DPOConfig,
        DPOTrainer,
        KTOConfig,
        KTOTrainer,
        ORPOConfig,
        ORPOTrainer,
        RewardConfig,
        RewardTrainer,
        SFTConfig,
        SFTTrainer,
    )
    from preftune.training.online import (
        GRPOConfig,
        GRPOTrainer,
        OnlineDPOConfig,
        OnlineDPOTrainer,
        RLOOConfig,
        RLOOTrainer,
    )
    from preftune.training.ppo import PPOConfig, PPOTrainer

_HOME = {
    "CPOConfig": "preftune.training",
    "CPOTrainer": "preftune.training",
    "DPOConfig": "preftune.training",
    "DPOTrainer": "preftune.training",
    "GRPOConfig": "preftune.training.online",
    "GRPOTrainer": "preftune.training.online",
    "KTOConfig": "preftune.training",
    "KTOTrainer": "preftune.training",
    "ORPOConfig": "preftune.training",
    "ORPOTrainer": "preftune.training",
    "OnlineDPOConfig": "preftune.training.online",
    "OnlineDPOTrainer": "preftune.training.online",
    "PPOConfig": "preftune.training.ppo",
    "PPOTrainer": "preftune.training.ppo",
    "PreftuneError": "preftune.errors",
    "RLOOConfig": "preftune.training.online",
    "RLOOTrainer": "preftune.training.online",
    "RewardConfig": "preftune.training",
    "RewardTrainer": "preftune.training",
    "SFTConfig": "preftune.training",
    "SFTTrainer": "preftune.training",
    "load_demonstrations": "preftune.data",
    "load_model": "preftune.models",
    "load_pairs": "preftune.data",
    "load_tokenizer": "preftune.models",
    "merge": "preftune.models",
}

__all__ = [
    "CPOConfig",
    "CPOTrainer",
    "DPOConfig",
    "DPOTrainer",
    "GRPOConfig",
    "GRPOTrainer",
    "KTOConfig",
    "KTOTrainer",
    "ORPOConfig",
    "ORPOTrainer",
    "OnlineDPOConfig",
    "OnlineDPOTrainer",
    "PPOConfig",
    "PPOTrainer",
    "PreftuneError",
    "RLOOConfig",
    "RLOOTrainer",
    "RewardConfig",
    "RewardTrainer",
    "SFTConfig",
    "SFTTrainer",
    "__version__",
    "load_demonstrations",
    "load_model",
    "load_pairs",
    "load_tokenizer",
    "merge",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'preftune' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
