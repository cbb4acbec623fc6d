"""The configuration of the trainers.

`base` holds the common options; each method has its own module. Options of TRL and transformers that are not
honoured are refused with the reason (`refused`).

    base     PackedConfig: options of all trainers on packed groups
    dpo      DPOConfig
    eval_judge  options of a judge that compares answers at every evaluation
    kto      KTOConfig
    kinds    checks that values have the type of their field
    losses   LossFields: losses and their options
    options  a field with its help text
    reference_free  CPOConfig, ORPOConfig, TPOConfig
    referenced  ReferencedConfig: options of trainers with a reference
    refused  options that are not honoured, with the reason
    reward   RewardConfig
    sft      SFTConfig
    sharding  how a model is divided among devices
    trackers  checks of report_to
"""

__all__ = [
    "base",
    "dpo",
    "eval_judge",
    "kinds",
    "kto",
    "losses",
    "options",
    "reference_free",
    "referenced",
    "refused",
    "reward",
    "sft",
    "sharding",
    "trackers",
]
