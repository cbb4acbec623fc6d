"""The result of converting another tool's recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preftune.errors import RequestError
from preftune.shell_words import path_word
from preftune.zero_stages import as_fsdp


@dataclass
class Carried:
    """A recipe that is being converted: the keys still to be read, and the result so far."""

    left: dict[str, Any]
    command: str = "dpo"
    settings: dict[str, Any] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    """Key -> why it has no counterpart; the reason is a sentence."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Name of a setting -> the key of the other tool that it was carried over from."""

    def take(self, key: str, default: Any = None) -> Any:
        """Removes a key and returns its value, or `default`."""
        value = self.left.pop(key, None)
        return default if value is None else value

    def rename(self, names: Mapping[str, str]) -> None:
        """Carries over keys whose values mean the same under another name; of two keys for one setting the first."""
        for theirs, ours in names.items():
            value = self.take(theirs)
            if value is None:
                continue
            first = self.renamed.setdefault(ours, theirs)
            if first == theirs:
                self.settings[ours] = value
            elif value != self.settings[ours]:
                self.lost[theirs] = f"{first} sets {ours} too, to another value, which is used."

    def same(self, names: Iterable[str]) -> None:
        """Carries over keys that mean the same in preftune."""
        self.rename({name: name for name in names})

    def held_out(self, places: Sequence[str], key: str) -> None:
        """Carries over the data to evaluate on; preftune takes one set."""
        self.settings["eval_dataset_name"] = places[0]
        if places[1:]:
            self.lost[f"{key}: {', '.join(places[1:])}"] = "preftune evaluates on one set: join the files."

    def held_out_share(self, key: str) -> None:
        """Carries over how much is held out for evaluation: a share; a number of rows has no counterpart."""
        size = self.take(key)
        if isinstance(size, int | float) and size >= 1:
            self.lost[f"{key}: {size}"] = (
                "It is a number of rows, and preftune holds out a share of the prompts. Give a share with "
                "--eval_fraction (0.05), or hold rows out with preftune convert --split."
            )
        elif size is not None:
            self.settings["eval_fraction"] = size

    def sharding(self, folder: Path | None = None) -> None:
        """Carries over `fsdp` and `fsdp_config` as they are, and a DeepSpeed config as what does the same in FSDP2.

        Args:
            folder: to which the path of a DeepSpeed config is relative.
        """
        deepspeed = self.take("deepspeed")
        if deepspeed:
            words = as_fsdp(deepspeed, folder)
            if words:
                self.settings["fsdp"] = words
            elif words is None:
                self.lost["deepspeed"] = "Its ZeRO stage is not to be found: fsdp: full_shard is stage 3."
            else:
                self.lost["deepspeed"] = "Stage 0 divides nothing among the ranks."
        version = self.take("fsdp_version")
        if version not in (None, 2, "2"):
            self.lost[f"fsdp_version: {version}"] = "FSDP2 is used."
        words = self.take("fsdp")
        if words:
            self.settings["fsdp"] = " ".join(words) if isinstance(words, list | tuple) else str(words)
        self.same(["fsdp_config"])

    def warmup(self, default: Any = None, *, zero_counts: bool = True) -> None:
        """Carries over the share of the steps in which the rate rises; `warmup_steps` counts if both are given.

        Args:
            zero_counts: whether `warmup_steps: 0` does too.
        """
        ratio = self.take("warmup_ratio")
        if ratio and not zero_counts and not self.left.get("warmup_steps"):
            self.left.pop("warmup_steps", None)
        if self.left.get("warmup_steps") is None:
            self.settings |= {"warmup_steps": share} if (share := default if ratio is None else ratio) else {}
        elif ratio:
            self.lost["warmup_ratio"] = "warmup_steps is given too, and is used."

    def without_effect(self, keys: Iterable[str], reason: str) -> None:
        """Records the keys of a recipe that have no effect in the other tool either."""
        self.lose(dict.fromkeys(keys, f"It has no effect {reason}."))

    def lose(self, reasons: Mapping[str, str]) -> None:
        """Records keys that have no counterpart; false and empty values are ignored."""
        for key, reason in reasons.items():
            if self.take(key):
                self.lost[key] = reason

    def finish(self, known: Callable[[str], bool]) -> None:
        """Carries over transformers' keys that both tools pass on, and records all other keys as lost.

        Args:
            known: whether preftune's command has an option of a name.
        """
        for key, value in self.left.items():
            if value is None:
                continue
            if not known(key):
                self.lost[key] = "preftune has no option of this name."
            elif self.settings.setdefault(key, value) != value:
                self.lost[key] = f"Other keys of the recipe make it {self.settings[key]!r}, which is used."
        self.left = {}


def listed(names: Any) -> list[str]:
    """The names of a list, or of a text with commas."""
    parts = names.split(",") if isinstance(names, str) else [str(one) for one in names or ()]
    return [part.strip() for part in parts if part.strip()]


def adapter(carried: Carried, *, rank: Any, alpha: Any, dropout: Any, targets: Any) -> None:
    """Carries over the options of LoRA; the target "all" is preftune's default."""
    given = {"lora_r": rank, "lora_alpha": alpha, "lora_dropout": dropout}
    carried.settings |= {name: value for name, value in given.items() if value is not None}
    names = listed(targets)
    if names and names not in (["all"], ["all-linear"]):
        carried.settings["lora_target_modules"] = names


def continued(carried: Carried, key: str, *, trains_adapter: bool, fresh: bool = False) -> None:
    """Carries over the key of an adapter that is trained further: it is preftune's model, on the recipe's own base.

    Its rank, scale and targets are those that it was saved with.

    Args:
        trains_adapter: whether the recipe trains an adapter, and not all weights.
        fresh: whether the adapter is merged into its base, and a new one is trained.
    Raises: RequestError for several adapters, and for one that has to be merged first.
    """
    given = carried.take(key)
    if given is None:
        return
    names = listed(given)
    if len(names) > 1 or fresh or not trains_adapter:
        merged, last = (names, None) if fresh or not trains_adapter else (names[:-1], names[-1])
        then = f"keep {key}: {last}" if last else f"leave out {key}{' and create_new_adapter' * fresh}"
        raise RequestError(
            f"{key}: {', '.join(names)} means that {' and '.join(merged)} must be merged into the base "
            f"before training. Do it first: preftune merge {path_word(merged[0])} -o MERGED. Then write "
            f"MERGED as the model of this recipe, {then}, and convert it again."
        )
    (name,) = names
    bits = next((one for one in ("load_in_4bit", "load_in_8bit") if carried.settings.pop(one, None)), None)
    for own in [
        own for own in carried.settings if own == "use_peft" or own.startswith(("lora_", "use_dora", "use_rs"))
    ]:
        del carried.settings[own]
    for own in ("use_dora", "use_rslora", "peft_use_dora", "peft_use_rslora", "lora_modules_to_save"):
        if carried.take(own):
            carried.lost[own] = f"{name} keeps what it was saved with."
    base = carried.take("model_name_or_path") or carried.take("base_model")
    carried.settings |= {"model_name_or_path": name, "base_model": base}
    if bits:
        carried.settings["model_init_kwargs"] = {bits: True}  # as flags they would ask for a new adapter
    reference = " The reference is the adapter as it is now, not the model without it."
    carried.lost[f"{key}: as a key of its own"] = (
        f"{name} is trained further as model_name_or_path, on base_model, with the rank and scale that it was saved "
        f"with.{reference * (carried.command in ('dpo', 'kto', 'ppo'))}"
    )
