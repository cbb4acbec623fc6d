"""The files that a run writes, and how it is resumed.

They are run.json, metrics.jsonl, checkpoints with a manifest, and model cards.

    checkpoint        preftune's own state in a checkpoint
    earlier_run       the files of an earlier run are put aside
    limits            the end of a run after a number of seconds or tokens
    manifest          the files of a checkpoint, with digests
    model_card        model cards
    prompt_encoder    the encoder of virtual tokens
    resuming          choice of the checkpoint that a run continues from
    run_record        run.json and metrics.jsonl
    same_run          comparison of a checkpoint's run with the present one
    saved_model       dtype and generation config of saved models
    scaling           the scaling of LoRA layers, in the saved configuration
    sharded           whole files of a model that is divided among ranks
    stopping          signals that end a run after the current step
    trackers          run.json for TensorBoard, W&B, MLflow, Trackio
    whole_checkpoint  checkpoints that are either complete or absent
"""

__all__ = [
    "checkpoint",
    "earlier_run",
    "limits",
    "manifest",
    "model_card",
    "prompt_encoder",
    "resuming",
    "run_record",
    "same_run",
    "saved_model",
    "scaling",
    "sharded",
    "stopping",
    "trackers",
    "whole_checkpoint",
]
