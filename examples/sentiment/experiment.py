"""Every size and setting of the experiment in one place: the whole of it, and a version for continuous integration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple


class Run(NamedTuple):
    """One training run: a file of results."""

    method: str
    strength: float
    """What holds the policy back: beta of DPO, target of the KL to the reference of PPO (nats per completion)."""
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.strength:g}-seed{self.seed}"


@dataclass(frozen=True)
class Model:
    """The language model, a Llama of this shape, and how long it is trained."""

    vocabulary: int = 4096
    hidden: int = 192
    layers: int = 4
    heads: int = 4
    feed_forward: int = 512
    epochs: int = 2
    tokens_per_step: int = 4096
    learning_rate: float = 4e-3
    warmup_steps: int = 100
    sentences: int | None = None
    """Trained on so many at most, from all over the corpus; None takes all."""


@dataclass(frozen=True)
class DPO:
    """Direct preference optimisation, all weights."""

    betas: tuple[float, ...] = (0.05, 0.1, 0.3, 1.0)
    learning_rate: float = 3e-4
    prompts_per_step: int = 16
    epochs: float = 1.0


@dataclass(frozen=True)
class PPO:
    """Proximal policy optimisation, all weights, a value function of its own; the rest as `PPOConfig` has it."""

    kl_targets: tuple[float, ...] = (3.0, 6.0, 9.0, 12.0)
    """The paper's."""
    learning_rate: float = 3e-4
    value_learning_rate: float = 1e-3
    rounds: int = 24
    answers_per_step: int = 32
    steps_per_epoch: int = 4
    epochs_per_round: int = 2
    first_penalty: float = 1.2
    """Reward taken off at the target when a run begins: its first coefficient is this over the target, in nats. With
    one coefficient for all, the runs of all targets would be the same run until their KL nears the targets."""
    horizon: float = 512.0
    """Answers over which the coefficient follows the target. Four rounds', so it changes by a twentieth after each at
    most: there are tens of rounds here, where Ziegler et al., with two hundredths, had thousands."""


@dataclass(frozen=True)
class Experiment:
    """All that decides a result; kept with it, and compared when a killed experiment goes on."""

    seeds: tuple[int, ...] = (0, 1, 2)
    model: Model = field(default_factory=Model)
    prefix_tokens: tuple[int, int] = (2, 8)
    """Shortest and longest prompt, as in the paper."""
    new_tokens: int = 32
    """Longest completion; it ends earlier where the model ends its sentence."""
    train_prompts: int = 2048
    completions_per_prompt: int = 4
    """All pairs among them are trained on, as in the paper."""
    test_prompts: int = 256
    samples_per_test_prompt: int = 2
    """Fresh completions of each test prompt at each point."""
    best_of: tuple[int, ...] = (2, 4, 8, 16)
    points: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0)
    """At which shares of a run the policy is measured."""
    kl_limit: float = 20.0
    """Nats; up to here a rise of the reward counts."""
    dpo: DPO = field(default_factory=DPO)
    ppo: PPO = field(default_factory=PPO)

    def runs(self) -> Iterator[Run]:
        """All runs: every method at every strength, seed by seed, so that an early stop leaves whole seeds."""
        for seed in self.seeds:
            for beta in self.dpo.betas:
                yield Run("dpo", beta, seed)
            for target in self.ppo.kl_targets:
                yield Run("ppo", target, seed)

    def record(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


WHOLE = Experiment()

SMOKE = replace(
    WHOLE,
    seeds=(0,),
    model=Model(
        vocabulary=512,
        hidden=64,
        layers=2,
        heads=2,
        feed_forward=128,
        epochs=2,
        tokens_per_step=1024,
        warmup_steps=10,
        sentences=4000,
    ),
    new_tokens=16,
    train_prompts=160,
    test_prompts=64,
    best_of=(2, 4),
    points=(0.5, 1.0),
    dpo=DPO(betas=(0.1, 1.0), learning_rate=1e-3),
    ppo=PPO(kl_targets=(3.0, 12.0), learning_rate=1e-3, rounds=4, answers_per_step=16),
)
"""One seed on a tiny model: whether everything runs, in less than a minute. Its numbers mean nothing."""
