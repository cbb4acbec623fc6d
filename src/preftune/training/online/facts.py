"""What a run on fresh answers says of itself: in run.json before its first step, in the model card after its last."""

from __future__ import annotations

from typing import Any

from preftune.training.record.cards import card as model_card
from preftune.training.record.run_record import configuration, environment

_WHAT = {
    "ppo": "aligned by proximal policy optimisation (arXiv:1707.06347, arXiv:1909.08593) on its own answers",
    "online-dpo": "aligned by online DPO (arXiv:2402.04792) on its own answers, compared by a judge,",
}


def facts_of(trainer: Any) -> dict[str, Any]:
    name = str(getattr(trainer.model.config, "_name_or_path", ""))
    prompts = trainer.prompts
    return {
        **environment(),
        "method": trainer.method,
        "configuration": configuration(trainer.args),
        "precision": trainer.precision.describe(),
        "engine": {"name": trainer.engine.name, "reason": trainer.support.reason},
        "data": {
            "train": {
                "prompts": len(prompts),
                "tokens": sum(map(len, prompts.token_ids)),
                "too_long": prompts.too_long,
                "fingerprint": prompts.fingerprint,
            }
        },
        "model": {"name": name, "full_fine_tuning": trainer.full},
        "reference": {"source": trainer.reference.description, "fingerprint": trainer.reference.fingerprint},
        "seeds": {"seed": trainer.args.seed, "data_seed": trainer.args.data_seed},
    }


def card(trainer: Any) -> str:
    """README.md of the output directory."""
    history = trainer.state.log_history
    rows = [
        ("prompts", f"{len(trainer.prompts):,}"),
        ("answers sampled", f"{trainer.sampled:,}"),
        ("rated by", trainer.rated_by),
        ("reference", trainer.reference.description),
    ]
    said = []
    for name, what in (("objective/scores", "score"), ("objective/kl", "KL to the reference, nats per answer,")):
        seen = [entry[name] for entry in history if name in entry]
        if seen:
            said.append(f"{what} {seen[0]:.3f} at first and {seen[-1]:.3f} at last")
    result = f"Of its own answers while it was trained: {'; '.join(said)}. " if said else ""
    result += (
        "The score is what was trained on: whether the answers are better must be asked of another judge (preftune "
        "eval)."
    )
    return model_card(trainer, _WHAT[trainer.method], rows, result, pipeline="text-generation", tags=[trainer.method])
