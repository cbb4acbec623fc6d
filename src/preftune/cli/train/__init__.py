"""The commands that train.

`train_command` is what they share: flags and a recipe in, a run directory out.

    auto_judge     --judge auto
    datasets       pairs or demonstrations to train on and to hold out
    dpo            preftune dpo
    ended_run      held-out figures and the page of a run that has ended
    fresh_answers  what ppo and online share
    grpo           preftune grpo
    kto            preftune kto
    nash_md        preftune nash-md
    online         preftune online
    ppo            preftune ppo
    reward         preftune reward
    rloo           preftune rloo
    sft            preftune sft
    train_command  what all of them share
    xpo            preftune xpo
"""

__all__ = ["auto_judge", "dpo", "ppo", "reward", "train_command"]
