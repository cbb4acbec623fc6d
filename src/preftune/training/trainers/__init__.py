"""The trainers on given data: DPO, KTO, SFT and reward models.

`base.PackedTrainer` is what they share. `recorded.RecordedTrainer`, the base of online trainers too, settles how a
model is computed and writes logs, checkpoints and cards; `resumable.ResumableTrainer` below it records, stops and
resumes a run. A new method is a subclass with `batch_loss`.

    base        PackedTrainer: what trainers on packed groups share
    dpo         DPOTrainer
    kto         KTOTrainer and BCOTrainer
    evaluation  EvaluatedTrainer: evaluation over ranks and items
    recorded    RecordedTrainer: precision, engine, finite check, logs, checkpoints
    referenced  ReferencedTrainer: what trainers with a reference share
    reference_free  CPOTrainer, ORPOTrainer, TPOTrainer
    resumable   ResumableTrainer: recorded, resumed, stopped
    reward      RewardTrainer
    sft         SFTTrainer
"""

__all__ = ["dpo", "kto", "recorded", "reference_free", "reward", "sft"]
