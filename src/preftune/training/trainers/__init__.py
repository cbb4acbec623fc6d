"""The trainers on given data: DPO, SFT and reward models.

`base.PackedTrainer` is what they share, and `resumable.ResumableTrainer` records, stops and resumes a run. A new
method is a subclass with `batch_loss`.

    base        PackedTrainer: what trainers on packed groups share
    dpo         DPOTrainer
    evaluation  EvaluatedTrainer: evaluation over ranks and items
    resumable   ResumableTrainer: recorded, resumed, stopped
    reward      RewardTrainer
    sft         SFTTrainer
"""

__all__ = ["dpo", "resumable", "reward", "sft"]
