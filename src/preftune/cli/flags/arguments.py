"""The flags of `preftune dpo` besides the fields of `DPOConfig`: the data, the model and its adapter.

Names are those of TRL's `ScriptArguments` and `ModelConfig`, so that its command lines and recipes run. Every field is
honoured, or refused here with the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from preftune.errors import ConfigError, RequestError, did_you_mean

if TYPE_CHECKING:
    from peft import LoraConfig


def option(default: Any, help: str, **metadata: Any) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help, **metadata})
    return field(default=default, metadata={"help": help, **metadata})


def column_names(words: Sequence[str]) -> dict[str, str | None] | None:
    """`["chosen=good"]` as `{"chosen": "good"}`; None if the list is empty. Raises: ConfigError."""
    names: dict[str, str | None] = {}
    for word in words:
        canonical, equals, own = word.partition("=")
        if not equals or not canonical:
            raise ConfigError(
                f"--columns {word}: write canonical=yours, for example --columns chosen=good rejected=bad."
            )
        if canonical in names:
            raise ConfigError(f"--columns names {canonical!r} twice.")
        names[canonical] = own or None  # margin= leaves the column unread
    return names or None


class MixtureEntry(NamedTuple):
    """One entry of TRL's `datasets`."""

    path: str
    name: str | None = None
    """Configuration of a hub dataset."""
    split: str = "train"
    columns: list[str] | dict[str, str | None] | None = None
    """The columns to read, as in TRL; or canonical name -> the dataset's own, for this entry; None for all."""
    proportion: float | None = None


def mixture_entry(text: str) -> MixtureEntry:
    """Parses an entry of a recipe, which is given as JSON. Raises: ConfigError; DatasetError for an invalid
    proportion.
    """
    try:
        entry = json.loads(text)
    except ValueError:
        entry = None
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
        raise ConfigError(
            f"datasets: {text} is not an entry with a path. Write '- path: a.jsonl' in the recipe, or use --data."
        )
    entry = {key: value for key, value in entry.items() if value is not None}
    for key in entry:
        if key not in MixtureEntry._fields:
            known = ", ".join(MixtureEntry._fields)
            raise ConfigError(
                f"datasets: {key!r} of {entry['path']} is not honoured (known keys: {known}). Name the file or folder "
                "itself as the path."
            )
    columns = entry.get("columns", [])
    words: Any = [*columns, *columns.values()] if isinstance(columns, dict) else columns
    if not isinstance(words, list) or not all(isinstance(word, str | None) for word in words):
        raise ConfigError(
            f"datasets: columns of {entry['path']} are {columns!r:.60}. Write the columns to read, [prompt, "
            "completion, label], or their names, {prompt: question, completion: answer, label: good}."
        )
    if "proportion" in entry:
        from preftune.data.pairs.mixture import check_proportion

        check_proportion(entry["path"], entry["proportion"])
    return MixtureEntry(**entry)


@dataclass
class DataArguments:
    """Where the preference pairs come from."""

    dataset_name: list[str] = option(
        [],
        "Pairs: a path (jsonl, json, csv, parquet; .gz too), a folder, a hub id, or -. Several are mixed, with "
        "proportions as in a.jsonl:0.7 b.jsonl:0.3",
        aliases=["--data"],
    )
    dataset_config: str | None = option(None, "Configuration of a hub dataset.")
    dataset_train_split: str = option("train", "Split to train on; slices work: train[:1000].")
    dataset_test_split: str = option("test", "Split to evaluate on, when --eval_strategy asks for evaluation.")
    dataset_streaming: bool = option(
        False,
        "Train on rows while they are read, without a copy on disk or in memory; needs --max_steps.",
        aliases=["--streaming"],
    )
    columns: list[str] = option([], "Renames: chosen=good rejected=bad (canonical name = your column).")
    format: str | None = option(
        None, "Format of the data, if it cannot be recognised, such as openai, sharegpt, ultrafeedback or kto."
    )
    margin_from_scores: float | None = option(
        None, "Nats of reward margin per point of rating difference. By default ratings have no effect."
    )
    as_chat: bool = option(False, "Plain prompts and answers become messages of a conversation, for chat models.")
    eval_dataset_name: str | None = option(None, "Separate pairs to evaluate on: a path or a hub id.")
    eval_fraction: float | None = option(
        None, "Share of the training prompts to hold out for evaluation, 0 to 1.", aliases=["--test_split_size"]
    )
    split_seed: int | None = option(
        None, "Seed of the held-out split by eval_fraction and of the order of mixtures. Default: data_seed, or seed."
    )
    ignore_bias_buffers: bool = option(False, "Boolean buffers are left out of DistributedDataParallel's broadcast.")
    datasets: list[str] = option(
        [], "TRL's mixtures, for recipes: entries with path, name, split, columns, and optionally a proportion."
    )

    def __post_init__(self) -> None:
        if isinstance(self.dataset_name, str):
            self.dataset_name = [self.dataset_name]
        self.mixture = [mixture_entry(entry) for entry in self.datasets]
        if self.mixture and self.dataset_name:
            raise ConfigError("datasets and dataset_name both name the training data. Give one of them.")
        if self.mixture:
            self.dataset_name = [entry.path for entry in self.mixture]
        if self.eval_fraction is not None and not 0 < self.eval_fraction < 1:
            raise ConfigError(
                f"--eval_fraction {self.eval_fraction} is not between 0 and 1. Give a share such as 0.05."
            )
        if self.eval_fraction is not None and self.eval_dataset_name is not None:
            raise ConfigError(
                "--eval_fraction and --eval_dataset_name both name the evaluation data. Give one of them."
            )
        self.column_names()

    @property
    def dataset_names(self) -> str | list[str]:
        """The training data without their proportions, for a model card."""
        from preftune.data.pairs.mixture import parse_sources

        names = [str(name) for name, _ in parse_sources(self.dataset_name)]
        return names[0] if len(names) == 1 else names

    def column_names(self) -> dict[str, str | None] | None:
        """`["chosen=good"]` as `{"chosen": "good"}`; None when nothing is renamed."""
        return column_names(self.columns)


@dataclass
class ModelArguments:
    """The model, its number format and its adapter."""

    task_types: ClassVar[tuple[str, ...]] = ("CAUSAL_LM",)
    """Accepted names of an adapter's task."""

    model_name_or_path: str | None = option(None, "Model to align: a path or a hub id.", aliases=["--model"])
    base_model: str | None = option(
        None, "Base model of an adapter that is trained further, instead of the base that it names.", aliases=["--base"]
    )
    model_revision: str = option("main", "Branch, tag or commit of a model on the hub.")
    dtype: str | None = option(
        None,
        "Number format of the weights; by default the precision policy chooses it for this hardware.",
        choices=["auto", "bfloat16", "float16", "float32"],
    )
    attn_implementation: str | None = option(
        None, "Attention implementation outside the packed engine (sdpa, eager, ...)."
    )
    use_peft: bool = option(False, "Train a LoRA adapter instead of all weights.")
    lora_r: int = option(16, "Rank of the adapter.")
    lora_alpha: int = option(32, "Scale of the adapter: updates are multiplied by lora_alpha / lora_r.")
    lora_dropout: float = option(0.05, "Its dropout.")
    lora_target_modules: list[str] | None = option(None, "Layers that get an adapter; by default all linear layers.")
    lora_target_parameters: list[str] | None = option(
        None, "Parameters outside linear layers that get an adapter (experts)."
    )
    lora_modules_to_save: list[str] | None = option(None, "Layers trained in full, in addition to the adapter.")
    lora_task_type: str = option("CAUSAL_LM", "Only CAUSAL_LM, or SEQ_CLS for preftune reward.")
    use_rslora: bool = option(False, "Scale by lora_alpha / sqrt(lora_r).")
    use_dora: bool = option(False, "Weight-decomposed LoRA.")
    load_in_8bit: bool = option(False, "Frozen base in 8 bits (extra: quant); implies --use_peft.")
    load_in_4bit: bool = option(False, "Frozen base in 4 bits: QLoRA (extra: quant); implies --use_peft.")
    bnb_4bit_quant_type: str = option("nf4", "4-bit format.", choices=["nf4", "fp4"])
    use_bnb_nested_quant: bool = option(False, "Quantise the 4-bit scales too.")
    bnb_4bit_quant_storage: str | None = option(None, "Format in which the 4-bit weights are stored (for FSDP).")

    def __post_init__(self) -> None:
        if self.load_in_4bit and self.load_in_8bit:
            raise ConfigError("--load_in_4bit and --load_in_8bit exclude each other. Give one of them.")
        if self.lora_task_type.upper() not in self.task_types:
            known = " or ".join(self.task_types)
            raise ConfigError(
                f"--lora_task_type {self.lora_task_type} is not trained by this command, which trains {known}. Leave "
                "it out."
            )
        if not self.adapter:
            self._refuse_unused("--use_peft", [name for name in _names(self) if name.startswith("lora_")])
            self._refuse_unused("--use_peft", ["use_rslora", "use_dora"])
        if not self.load_in_4bit:
            names = ["bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"]
            self._refuse_unused("--load_in_4bit", names)
        if self.lora_r < 1:
            raise ConfigError(f"--lora_r {self.lora_r}: the rank of the adapter must be at least 1; 16 is usual.")
        if not 0 <= self.lora_dropout < 1:
            raise ConfigError(f"--lora_dropout {self.lora_dropout} is not a share from 0 to below 1. 0 is usual.")

    @property
    def adapter(self) -> bool:
        """Whether an adapter is trained; a quantised base can only be trained through an adapter."""
        return self.use_peft or self.load_in_4bit or self.load_in_8bit

    @property
    def revision(self) -> str | None:
        return None if self.model_revision == "main" else self.model_revision

    def lora_config(self) -> LoraConfig | None:
        """The configuration of the requested adapter, or None for full fine-tuning."""
        if not self.adapter:
            return None
        from peft import LoraConfig

        targets: Any = _several(self.lora_target_modules)
        if targets is not None and len(targets) == 1:
            targets = targets[0]  # "all-linear", or a regular expression
        elif targets is None and not self.lora_target_parameters:
            targets = "all-linear"
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.lora_r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=targets,
            target_parameters=self.lora_target_parameters,
            modules_to_save=_several(self.lora_modules_to_save),
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            bias="none",
        )

    def _refuse_unused(self, needs: str, names: list[str]) -> None:
        for entry in fields(self):
            if entry.name in names and entry.default is not MISSING and getattr(self, entry.name) != entry.default:
                raise ConfigError(f"--{entry.name} has no effect without {needs}. Add {needs}, or leave it out.")


@dataclass
class RewardModelArguments(ModelArguments):
    """The same for a reward model; its recipes call the adapter's task SEQ_CLS."""

    task_types: ClassVar[tuple[str, ...]] = ("CAUSAL_LM", "SEQ_CLS")


def _names(arguments: Any) -> list[str]:
    return [entry.name for entry in fields(arguments)]


def _several(names: list[str] | None) -> list[str] | None:
    """Splits `["q_proj,v_proj"]`, where a recipe or shell gives several names as one text; a regular expression stays
    whole.
    """
    if names is None or len(names) != 1 or not re.fullmatch(r"[\w.]+(?:[,\s]+[\w.]+)+", names[0].strip()):
        return names
    return re.split(r"[,\s]+", names[0].strip())


def take_command(argv: Sequence[str], commands: Sequence[str], *, prog: str, which: str) -> tuple[str, list[str]]:
    """The training command that begins a command line, `dpo` if it begins with a flag, and the other words.

    Args:
        commands: those that are covered.
        which: what they have in common, for the message.
    Raises: RequestError for another command.
    """
    words = list(argv)
    name = words.pop(0) if words and not words[0].startswith("-") else "dpo"
    if name not in commands:
        raise RequestError(
            f"{prog} does not cover {name}, only {', '.join(commands[:-1])} and {commands[-1]}, which {which}. "
            f"{did_you_mean(name, commands, otherwise=f'See {prog} --help.')}"
        )
    return name, words
