"""The names of all flags of a training command, read from the source of its settings, without heavy imports.

Settings are dataclasses on top of transformers' TrainingArguments, whose import brings torch and takes seconds.
Misspelt names in a recipe are reported before that, all at once."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import preftune
from preftune.cli.flags.plain_parser import not_a_choice
from preftune.cli.flags.recipe import Recipe
from preftune.errors import RequestError, did_you_mean

OWN = ("resume", "seeds", "config", "report", "no_report", "allow_env", "verbose", "help", "help_all")
"""Flags that are not fields."""

HISTORY = {
    "torch_dtype": "it is now called dtype",
    "evaluation_strategy": "it is now called eval_strategy",
    "group_by_length": "sequences are packed without padding, so there is nothing to gain; remove it",
    "no_cuda": "it is now called use_cpu",
    "use_mps_device": "the device is chosen automatically (--use_cpu selects the CPU); remove it",
    "use_ipex": "transformers no longer has it; remove it",
    "xpu_backend": "transformers no longer has it; remove it",
    "tpu_num_cores": "transformers no longer has it; remove it",
    "fp16_backend": "bf16 and fp16 choose the precision; remove it",
    "half_precision_backend": "bf16 and fp16 choose the precision; remove it",
    "fp16_opt_level": "it belonged to apex; remove it",
    "per_gpu_train_batch_size": "it is now called per_device_train_batch_size",
    "per_gpu_eval_batch_size": "it is now called per_device_eval_batch_size",
    "adafactor": "write optim: adafactor (--optim adafactor)",
    "warmup_ratio": "write warmup_steps: a share below 1 is a share of all steps",
    "save_safetensors": "weights are always saved as safetensors; remove it",
    "logging_dir": "logs are in output_dir; remove it, or set TENSORBOARD_LOGGING_DIR",
    "push_to_hub_model_id": "it is now called hub_model_id",
    "push_to_hub_organization": "write hub_model_id: ORGANISATION/NAME",
    "push_to_hub_token": "it is now called hub_token",
    "include_inputs_for_metrics": "compute_metrics gets the rewards of every pair; remove it",
    "dispatch_batches": "write accelerator_config: {dispatch_batches: ...}",
    "split_batches": "write accelerator_config: {split_batches: ...}",
    "past_index": "it was for models with a memory; remove it",
    "jit_mode_eval": "transformers no longer has it; remove it",
    "torchdynamo": "it is now called torch_compile_backend",
    "max_target_length": "its successor is max_length, together with max_prompt_length",
    "max_seq_length": "it is now called max_length",
    "max_seq_len": "it is called max_length",
    "sequence_len": "it is called max_length",
    "cutoff_len": "it is called max_length",
    "is_encoder_decoder": "only causal language models are trained; remove it",
    "tokenizer_name_or_path": "the tokenizer is the model's own; remove it",
    "dataset_text_field": "write columns: text=YOURS",
    "dataset_path": "it is called data",
    "train_file": "it is called data",
    "lora_rank": "it is called lora_r",
    "lora_target": "it is called lora_target_modules",
    "lora_target_linear": "all linear layers get an adapter by default; remove it",
    "finetuning_type": "use_peft trains an adapter, without it all weights are trained",
    "quantization_bit": "write load_in_4bit: true or load_in_8bit: true",
    "pref_beta": "it is called beta",
    "pref_loss": "it is called loss_type",
    "dpo_beta": "it is called beta",
    "rl_beta": "it is called beta",
    "kl_beta": "it is called beta",
    "dpo_loss": "it is called loss_type",
    "rl": "the command chooses it: preftune dpo",
    "ref_model": "an adapter is its own reference, and full fine-tuning scores the reference first; remove it",
    "lr": "it is called learning_rate",
    "epochs": "it is called num_train_epochs",
    "num_epochs": "it is called num_train_epochs",
    "batch_size": "it is called per_device_train_batch_size",
    "micro_batch_size": "it is called per_device_train_batch_size",
    "val_set_size": "it is called eval_fraction",
    "val_size": "it is called eval_fraction",
    "max_samples": "write dataset_train_split: train[:1000]",
    "adapter": "write use_peft: true",
    "dataset": "it is called data",
    "optimizer": "it is called optim",
    "lr_scheduler": "it is called lr_scheduler_type",
    "template": "the chat template is the model's own; remove it",
    "chat_template": "the chat template is the model's own; remove it",
    "sweep": "its ranges are for preftune sweep; remove it, or run preftune sweep",
    "stage": "the command chooses it: preftune dpo, sft, reward or ppo",
    "preprocessing_num_workers": "the tokenizer has its own threads; remove it",
    "overwrite_cache": "caches are found by their content; remove it",
    "plot_loss": "the report has the curves; remove it",
    "flash_attention": "attention is chosen automatically; remove it",
    "flash_attn": "attention is chosen automatically; remove it",
    "sample_packing": "sequences are packed anyway; remove it",
    "wandb_project": "set WANDB_PROJECT, and report_to: wandb",
}
"""Names of earlier versions and of other tools -> what to write instead."""

_BY_VLLM = "use_vllm runs vLLM within the training and sets it up itself; remove it"
FRESH_HISTORY = {
    "reward_funcs": "rewards are named with reward_model: a reward model, exact, key-fact, length:WORDS, format:REGEX, "
    "or rule:FILE.py:FUNCTION for a function of your own, which takes (prompt, answer, row)",
    "reward_model_name_or_path": "it is called reward_model",
    "reward_model_path": "it is called reward_model",
    "reward_function": "rewards are named with reward_model (rule:FILE.py:FUNCTION for a function of your own)",
    "sft_model_path": "it is called model_name_or_path",
    "ref_model_path": "the reference is the model before training; remove it",
    "judge": "a reward rates the answers: name it with reward_model; preftune online takes a judge",
    "datasets": "prompts come from one dataset: write data",
    "dataset_config": "prompts come from the default configuration: for another one, write its folder as data",
    "dataset_streaming": "prompts are read whole; remove it",
    "ignore_bias_buffers": "it is not needed to train on fresh answers; remove it",
    "num_completions_to_print": "answers are in samples.jsonl and the report; remove it",
    "log_completions": "answers are in samples.jsonl and the report; remove it",
    "log_unique_prompts": "answers are in samples.jsonl and the report; remove it",
    "cache_implementation": "the cache of generation is chosen automatically; remove it",
    "use_transformers_paged": "batches of generation are chosen automatically; remove it",
    "use_transformers_continuous_batching": "batches of generation are chosen automatically; remove it",
    "router_aux_loss_coef": "no auxiliary router loss is added; remove it",
    "cast_lm_head_to_fp32": "everything from the logits on is computed in float32; remove it",
    "ds3_gather_for_generation": "it belongs to DeepSpeed, which is not used; remove it",
    **dict.fromkeys(
        (
            *("vllm_mode", "vllm_model_impl", "vllm_enable_sleep_mode", "vllm_server_base_url", "vllm_server_host"),
            *("vllm_server_port", "vllm_server_timeout", "vllm_group_port", "vllm_gpu_memory_utilization"),
            *("vllm_max_model_length", "vllm_tensor_parallel_size"),
        ),
        _BY_VLLM,
    ),
}
"""The same for commands that train on fresh answers, of TRL's scripts for GRPO, RLOO, PPO and online DPO."""


def check_names(names: frozenset[str], argv: Sequence[str], recipe: Recipe | None, *, prog: str) -> None:
    """Checks every flag and every key of a recipe.

    Raises: RequestError that lists all unknown keys of the recipe, or names the first unknown flag.
    """
    unknown = [entry for entry in (recipe.entries if recipe is not None else ()) if _plain(entry.key) not in names]
    if unknown and recipe is not None:
        explained = [f"line {entry.line}: {what_of(entry.key, names, prog=prog)}" for entry in unknown]
        if len(explained) == 1:
            (entry,) = unknown
            raise RequestError(f"The recipe {recipe.path}, line {entry.line}: {what_of(entry.key, names, prog=prog)}")
        raise RequestError(f"The recipe {recipe.path} has {len(explained)} unknown keys. {' '.join(explained)}")
    for word in argv:
        flag = word.partition("=")[0]
        if flag.startswith("--") and len(flag) > 2 and _plain(flag[2:]) not in names:
            raise RequestError(what_of(flag, names, prog=prog))


def check_choices(fields: Sequence[Field], argv: Sequence[str], recipe: Recipe | None) -> None:
    """Checks the values of fields that have a list of them, so that a misspelt one costs no import.

    Raises: RequestError with the nearest value.
    """
    known = {_plain(name): field for field in fields for name in (field.name, *field.aliases)}
    given = [(f"The recipe {recipe.path}, line {entry.line}: " if recipe else "", entry.key, entry.value)
             for entry in (recipe.entries if recipe is not None else ())]  # fmt: skip
    flags: list[tuple[str, str, Any]] = []
    for word, after in zip(argv, [*argv, None][1:], strict=True):
        flag, equals, value = word.partition("=")
        if flag.startswith("--"):
            flags.append(("", flag[2:], value if equals else after))
    for place, name, value in (*given, *flags):
        field = known.get(_plain(name))
        choices = () if field is None else field.choices or _enum_values(field.kind)
        if field is not None and choices and isinstance(value, str) and value not in (*choices, *_NO_VALUE):
            raise RequestError(f"{place}Argument --{field.name}: {not_a_choice(value, choices)}")


_NO_VALUE = ("auto", "", "none", "None", "null", "~", "no", "off", "false", "False")
"""Words that mean something to some fields; those are left to the parser."""


@lru_cache(maxsize=64)
def _enum_values(kind: str) -> tuple[str, ...]:
    """The texts of an enum of transformers in an annotation such as `SchedulerType | str`."""
    names = {name.strip() for name in kind.split("|")}
    for module in ("transformers.training_args", "transformers.trainer_utils") if "| str" in kind else ():
        try:
            _, tree = _source(module)
        except (OSError, SyntaxError, LookupError):
            return ()
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name in names:
                texts = (_literal(one.value) for one in node.body if isinstance(one, ast.Assign))
                return tuple(text for text in texts if isinstance(text, str))
    return ()


def what_of(name: str, names: Iterable[str], *, prog: str) -> str:
    """The sentence about an unknown flag or key: its successor, or the nearest name."""
    flag = name.startswith("-")
    plain = _plain(name.lstrip("-"))
    missing = f"There is no flag {name}" if flag else f"there is no field {name!r}"
    if plain in HISTORY:
        return f"{missing}: {HISTORY[plain]}."
    names = list(names)
    if "reward_model" in names and plain in FRESH_HISTORY:
        return f"{missing}: {FRESH_HISTORY[plain]}."
    negated = plain.startswith("no_")
    alike = [known for known in names if known.startswith("no_") == negated]
    listing = f"{prog} --help-all lists {'them ' if flag else ''}all."
    return f"{missing}. {did_you_mean(plain, alike, otherwise=listing, shown='--{}' if flag else '{!r}')}"


def spoken_as_flags(error: RequestError, names: Iterable[str]) -> RequestError:
    """The same error in the words of a command line: `--max_length 512` in place of `max_length=512`."""
    fields = [name for name in names if name not in _WORDS]
    if not fields:
        return error
    known = "|".join(sorted(map(re.escape, fields), key=len, reverse=True))
    text = str(error)

    def as_flag(found: re.Match[str]) -> str:
        return f"--{found[1]}" if "_" in found[1] or found.start() == 0 else found[1]

    text = re.sub(rf"(?<![-\w.'\"{{(/])({known})=(?=[^\s=])", r"--\1 ", text)
    text = re.sub(rf"(?<![-\w.'\"{{(/])({known})(?= (?:is|must|can|needs) )", as_flag, text)
    if text == str(error):
        return error
    made: RequestError = type(error)(text)
    return made


_WORDS = frozenset(
    {"columns", "format", "data", "as_chat", "model", "report", "config", "help", "resume", "datasets", "seed"}
)
"""Names of flags that are also ordinary words, or that messages show as Python on purpose."""


def names_of(data: type, model: type, config: str) -> frozenset[str] | None:
    """Every flag of a command, with underscores; None where the source cannot be read.

    Args:
        config: `module:class` of the settings.
    """
    fields = fields_of(data, model, config)
    if fields is None:
        return None
    known = [name for field in fields for name in (field.name, *field.aliases)]
    negated = [f"no_{name}" for field in fields if field.is_bool for name in (field.name, *field.aliases)]
    return frozenset(map(_plain, (*known, *negated, *OWN)))


class Field(NamedTuple):
    """A field of the settings, as read from the source."""

    name: str
    kind: str
    """The annotation."""
    help: str = ""
    default: str = ""
    """As Python code; empty where the field has no default, or None."""
    aliases: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    @property
    def is_bool(self) -> bool:
        return "bool" in self.kind


def fields_of(data: type, model: type, config: str) -> list[Field] | None:
    """Every field that is a flag of a command; None where the source cannot be read. Arguments: those of `names_of`."""
    module, _, name = config.partition(":")
    try:
        settings = _fields_of(module, name)
    except (OSError, SyntaxError, LookupError):
        return None
    fields = {entry.name: _made(entry) for kind in (data, model) for entry in dataclasses.fields(kind)}
    return list((fields | {field.name: field for field in settings}).values())


def _made(entry: dataclasses.Field[Any]) -> Field:
    default = entry.default
    if default is dataclasses.MISSING:
        default = entry.default_factory() if entry.default_factory is not dataclasses.MISSING else None
    aliases = tuple(alias.lstrip("-") for alias in entry.metadata.get("aliases", ()))
    shown = "" if default is None else repr(default)
    choices = tuple(map(str, entry.metadata.get("choices", ())))
    return Field(entry.name, str(entry.type), str(entry.metadata.get("help", "")), shown, aliases, choices)


def _plain(name: str) -> str:
    return name.replace("-", "_")


@lru_cache(maxsize=64)
def _fields_of(module: str, name: str) -> tuple[Field, ...]:
    """The fields of a class and of its base classes; a later field replaces an earlier one."""
    path, tree = _source(module)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            inherited = [field for base in reversed(node.bases) for field in _inherited(base, module, tree)]
            return tuple({field.name: field for field in (*inherited, *_own(node))}.values())
    place = next((place for place, local in _imports(tree) if local == name), None)
    if place is None and path.name == "__init__.py":
        folder = path.parent
        files = (file for file in sorted(folder.glob("*.py")) if f"class {name}(" in file.read_text(encoding="utf-8"))
        place = next((f"{module}.{file.stem}" for file in files), None)
    if place is None:
        raise LookupError(name)
    return _fields_of(place, name)


def _inherited(base: ast.expr, module: str, tree: ast.Module) -> tuple[Field, ...]:
    name = base.id if isinstance(base, ast.Name) else base.attr if isinstance(base, ast.Attribute) else ""
    if name == "TrainingArguments":
        return _fields_of("transformers.training_args", name)
    place = next((place for place, local in _imports(tree) if local == name), module)
    return _fields_of(place, name) if place.startswith("preftune") else ()


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.asname or alias.name) for alias in node.names)


def _own(node: ast.ClassDef) -> Iterator[Field]:
    for entry in node.body:
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
            kind = ast.unparse(entry.annotation)
            if not kind.startswith("ClassVar") and not entry.target.id.startswith("_"):
                value = entry.value
                aliases = tuple(name.lstrip("-") for name in _texts("aliases", value))
                yield Field(
                    entry.target.id, kind, _help(value), _default(value), aliases, tuple(_texts("choices", value))
                )


def _help(value: ast.expr | None) -> str:
    """`metadata={"help": ...}` of a dataclass field, or the second argument of `option(default, help)`."""
    if not isinstance(value, ast.Call):
        return ""
    texts = [value.args[1]] if len(value.args) > 1 else []
    for node in ast.walk(value):
        if isinstance(node, ast.keyword) and node.arg == "help":
            texts.append(node.value)
        if isinstance(node, ast.Dict):
            texts += [item for key, item in zip(node.keys, node.values, strict=True) if _literal(key) == "help"]
    return next((text for text in map(_literal, texts) if isinstance(text, str)), "")


def _default(value: ast.expr | None) -> str:
    if isinstance(value, ast.Call):
        named = next((keyword.value for keyword in value.keywords if keyword.arg == "default"), None)
        value = value.args[0] if value.args else named
    return "" if value is None or _literal(value) is None else repr(_literal(value))


def _literal(node: ast.expr | None) -> Any:
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None


def _texts(name: str, default: ast.expr | None) -> Iterator[str]:
    """The texts of a list in a field's default (`aliases=["--other"]`)."""
    for node in ast.walk(default) if default is not None else ():
        if isinstance(node, ast.keyword) and node.arg == name and isinstance(node.value, ast.List):
            yield from (str(item.value) for item in node.value.elts if isinstance(item, ast.Constant))


@lru_cache(maxsize=64)
def _source(module: str) -> tuple[Path, Any]:
    """A module's file and its syntax tree; packages are found without importing them."""
    top, *rest = module.split(".")
    if top == "preftune":
        folder = Path(preftune.__file__).parent
    else:
        found = importlib.util.find_spec(top)
        if found is None or found.origin is None:
            raise LookupError(module)
        folder = Path(found.origin).parent
    path = folder.joinpath(*rest)
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return path, ast.parse(path.read_text(encoding="utf-8"))
