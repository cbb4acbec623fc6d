"""A reference that follows the policy: TR-DPO, Gorbatovski et al. 2024 (arXiv:2404.09656), eq. 7 and 8.

Every tau steps `reference <- alpha * policy + (1 - alpha) * reference` in the trainable weights: all weights, or those
of an adapter. With alpha = 1 (hard) the reference becomes the policy; below (soft) it is a mixture. For LoRA the
factors are mixed, which is not the mixture of their products, but begins and ends at the same models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from preftune.errors import CheckpointError, ConfigError, ReferenceMismatchError
from preftune.models.shards import like, whole
from preftune.reference.fingerprint import fingerprint
from preftune.reference.sources import FrozenCopy, trainable, unwrap


class MovingCopy(FrozenCopy):
    """A copy of the trainable weights that is moved towards them. It costs a copy of the trainable weights and one
    forward pass per step.

    Its scores are valid only until the next move, so they are not cached.
    """

    description = "a copy of the trainable weights, which follows them (sync_ref_model)"

    def __init__(self, model: nn.Module, *, start: nn.Module | None = None) -> None:
        """
        Args:
            model: the policy, as received.
            start: an explicit initial reference of the same architecture; by default the policy.
        Raises: ConfigError if the two models do not have the same weights.
        """
        super().__init__(model)
        self.moves = 0
        self.lost = False
        if start is not None:
            self._begin_with(dict(unwrap(start).named_parameters()), dict(unwrap(model).named_parameters()))
            self.received = False
            self.fingerprint = fingerprint(unwrap(start), adapters=True)
            self.description = "a copy of ref_model's weights, which follows the trained ones (sync_ref_model)"

    @property
    def size(self) -> int:
        """Size of the copy in bytes."""
        return sum(weight.numel() * weight.element_size() for weight in self._received.values())

    def unchanged(self, model: nn.Module) -> bool:
        """An explicit one is not made of the policy's weights, so that only weights to mix can be lacking.

        Raises: ConfigError, if they are.
        """
        if self.received or self.moves:
            return self.moves > 0 or super().unchanged(model)
        if unfrozen := sorted(trainable(model) - self._received.keys()):
            raise ConfigError(
                f"{len(unfrozen)} parameters were unfrozen after the trainer was made ({unfrozen[0]}), and "
                "sync_ref_model would not move them. Unfreeze them first, then make the trainer."
            )
        return True

    @torch.no_grad()
    def follow(self, model: nn.Module, alpha: float) -> None:
        """Moves the reference by the fraction `alpha` towards the policy."""
        now = dict(unwrap(model).named_parameters())
        for name, weight in self._received.items():
            weight.lerp_(now[name].detach().to(weight.device, weight.dtype), alpha)
        self.moves += 1

    def lose(self) -> None:
        """Called when weights are loaded whose reference was not kept: from then on nothing can be scored."""
        self.lost = True

    @contextmanager
    def acting(self, model: nn.Module) -> Iterator[nn.Module]:
        """Raises: ReferenceMismatchError if the reference was not kept."""
        if self.lost:
            raise ReferenceMismatchError(
                "the reference of this run moved (sync_ref_model), and no checkpoint of its last step holds it, so "
                "nothing can be compared with it. Keep checkpoints (save_strategy other than 'no'), or evaluate before "
                "the program ends."
            )
        with super().acting(model) as acting:
            yield acting

    def save(self, file: Path) -> None:
        """The weights, for a checkpoint."""
        weights = {name: whole(weight.detach()).cpu().contiguous() for name, weight in self._received.items()}
        save_file(weights, file)

    def load(self, file: Path) -> None:
        """Raises: CheckpointError if the file is missing or holds other weights."""
        if not file.is_file():
            raise CheckpointError(
                f"{file.parent} holds no reference ({file.name}), which this run moves (sync_ref_model). Name a "
                "checkpoint of this run, or start without resume_from_checkpoint."
            )
        saved = load_file(file)
        if saved.keys() != self._received.keys():
            raise CheckpointError(f"{file} holds the reference of another model. Name a checkpoint of this run.")
        for name, weight in saved.items():
            self._received[name].copy_(like(weight, self._received[name]))
        self.lost = False
        self.moves = max(1, self.moves)  # from here on it is not the policy as received

    def _begin_with(self, weights: Mapping[str, Tensor], policys: Mapping[str, Tensor]) -> None:
        wanted = {name: weight.shape for name, weight in self._received.items()}
        if any(name not in weights or weights[name].shape != shape for name, shape in wanted.items()):
            raise ConfigError(
                "sync_ref_model mixes the weights of ref_model and policy, but these do not have the same weights. "
                "Leave ref_model out: the reference then starts as the policy."
            )
        for name, frozen in policys.items():
            if name not in wanted and not _same(weights.get(name), frozen):
                raise ConfigError(
                    f"sync_ref_model moves what trains, and what does not is another in ref_model ({name}). Train all "
                    "weights, or give a ref_model on the same base."
                )
        for name, weight in self._received.items():
            weight.copy_(like(weights[name].detach(), weight))


def _same(weight: Tensor | None, other: Tensor) -> bool:
    if weight is None:
        return False
    own = whole(other.detach())
    return torch.equal(whole(weight.detach()).to(own.device, own.dtype), own)
