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
        BCOConfig,
        BCOTrainer,
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
        TPOConfig,
        TPOTrainer,
    )
    from preftune.training.online import (
        GRPOConfig,
        GRPOTrainer,
        NashMDConfig,
        NashMDTrainer,
        OnlineDPOConfig,
        OnlineDPOTrainer,
        RLOOConfig,
        RLOOTrainer,
        XPOConfig,
        XPOTrainer,
    )
    from preftune.training.ppo import PPOConfig, PPOTrainer

_HOME = {
    name: module
    for module, names in {
        "preftune.data": "load_demonstrations load_pairs",
        "preftune.errors": "PreftuneError",
        "preftune.models": "load_model load_tokenizer merge",
        "preftune.training": "BCOConfig BCOTrainer CPOConfig CPOTrainer DPOConfig DPOTrainer KTOConfig KTOTrainer "
        "ORPOConfig ORPOTrainer RewardConfig RewardTrainer SFTConfig SFTTrainer TPOConfig TPOTrainer",
        "preftune.training.online": "GRPOConfig GRPOTrainer NashMDConfig NashMDTrainer OnlineDPOConfig "
        "OnlineDPOTrainer RLOOConfig RLOOTrainer XPOConfig XPOTrainer",
        "preftune.training.ppo": "PPOConfig PPOTrainer",
    }.items()
    for name in names.split()
}

__all__ = [
    "BCOConfig",
    "BCOTrainer",
    "CPOConfig",
    "CPOTrainer",
    "DPOConfig",
    "DPOTrainer",
    "GRPOConfig",
    "GRPOTrainer",
    "KTOConfig",
    "KTOTrainer",
    "NashMDConfig",
    "NashMDTrainer",
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
    "TPOConfig",
    "TPOTrainer",
    "XPOConfig",
    "XPOTrainer",
    "__version__",
    "load_demonstrations",
    "load_model",
    "load_pairs",
    "load_tokenizer",
    "merge",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        from preftune.from_trl import INSTEAD

        if name in INSTEAD:  # an AttributeError would lose the hint in `from preftune import NAME`
            raise ImportError(f"preftune has no {name}. {INSTEAD[name]} docs/from-trl.md lists what differs from TRL.")
        raise AttributeError(f"module 'preftune' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
