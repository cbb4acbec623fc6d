"""What a run writes and how it is resumed.

run.json and metrics.jsonl, checkpoints with a manifest, model cards, trackers, and the lock of a run directory.

    checkpoint        what preftune adds to a checkpoint
    earlier_run       an earlier run's files are put aside
    limits            an end after a number of seconds or tokens
    manifest          the files of a checkpoint, with digests
    model_card        model cards
    resuming          which checkpoint a run continues
    run_record        run.json, metrics.jsonl, audit.json
    same_run          whether a checkpoint belongs to this run
    saved_model       dtype and generation config of saved models
    sharded           whole files of a model that is divided among ranks
    stopping          signals end a run after the current step
    trackers          run.json for TensorBoard, W&B, MLflow, Trackio
    whole_checkpoint  checkpoints that are whole or not there
"""

__all__ = [
    "checkpoint",
    "earlier_run",
    "limits",
    "manifest",
    "model_card",
    "resuming",
    "run_record",
    "same_run",
    "saved_model",
    "sharded",
    "stopping",
    "trackers",
    "whole_checkpoint",
]
