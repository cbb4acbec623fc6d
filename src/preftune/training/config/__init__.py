"""What the trainers can be configured with.

`base` has what all of them share; each method has a module of its own. Options of TRL and transformers that are not
honoured are refused with the reason (`refused`).

    base     PackedConfig: options of all trainers on packed groups
    dpo      DPOConfig
    kto      KTOConfig
    kinds    values of the kind that their field has
    losses   LossFields: losses and their options
    reference_free  CPOConfig, ORPOConfig, TPOConfig
    referenced  ReferencedConfig: options of trainers with a reference
    refused  options that are not honoured, with the reason
    reward   RewardConfig
    sft      SFTConfig
"""

__all__ = ["base", "dpo", "kinds", "kto", "losses", "reference_free", "referenced", "refused", "reward", "sft"]
