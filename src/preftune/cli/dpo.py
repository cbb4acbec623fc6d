"""`preftune dpo`: pairs and a model in, an aligned model and its run directory out."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.cli.arguments import DataArguments, ModelArguments
from preftune.cli.dpo_help import HELP
from preftune.cli.recipe import Recipe, read_recipe
from preftune.errors import RequestError

if TYPE_CHECKING:
    from preftune.cli.progress import ShownProgress
    from preftune.training import DPOConfig, DPOTrainer

PROG = "preftune dpo"
DEFAULT_OUTPUT = "runs/dpo"
GUARD = "warn"
"""Who types a command sees what the guard says; a program (`DPOConfig`) has it off until it asks."""


@dataclass(frozen=True, slots=True)
class Request:
    """What one command line asks for, checked as far as it can be without the model."""

    data: DataArguments
    model: ModelArguments
    config: DPOConfig
    words: tuple[str, ...]
    """The command line itself, for the hint how to resume."""
    report: bool = True
    """Write report.html at the end."""


def run(argv: Sequence[str]) -> int:
    """Runs `preftune dpo` and returns its exit code.

    Raises: PreftuneError; KeyboardInterrupt with a sentence that says what is kept and how to go on.
    """
    if "-h" in argv or "--help" in argv:
        print(HELP, end="")
        return 0
    recipe = _recipe(argv)
    if recipe is not None:
        os.environ.update(recipe.environment)  # before torch and the hub client read theirs
    if "--help-all" in argv or "--help_all" in argv:
        _parser().print_help()
        return 0
    request = read_request(argv, recipe)
    trainer, progress = _prepare(request)
    try:
        trainer.train(resume_from_checkpoint=request.config.resume_from_checkpoint)
        return _finish(trainer, request)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(_stopped(request)) from stop
    finally:
        progress.close()


def read_request(argv: Sequence[str], recipe: Recipe | None = None) -> Request:
    """Flags and recipe as checked settings.

    Raises:
        RequestError: an unknown name, an impossible value, no model or no data named, a checkpoint that is not there.
    """
    from preftune.training import DPOConfig

    parser = _parser()
    values = parser.parse(argv, recipe)
    if values.output_dir is None:
        values.output_dir = DEFAULT_OUTPUT
    if values.disable_tqdm is None and not sys.stderr.isatty():
        values.disable_tqdm = True  # plain lines in a log
    values.resume_from_checkpoint = _resume(values)
    data, model = parser.build(DataArguments, values), parser.build(ModelArguments, values)
    for name, flag in (
        (model.model_name_or_path, "--model NAME_OR_PATH"),
        (data.dataset_name, "--data FILE_OR_HUB_ID"),
    ):
        if not name:
            what = "model to align" if "model" in flag else "preference pairs to train on"
            raise RequestError(f"No {what}: name it with {flag}. See {PROG} --help.")
    return Request(data, model, parser.build(DPOConfig, values), tuple(argv), report=values.report)


def _prepare(request: Request) -> tuple[DPOTrainer, ShownProgress]:
    """Everything cheap first: what is wrong is told before a model is loaded."""
    from preftune.cli.datasets import open_datasets
    from preftune.cli.progress import show_progress
    from preftune.log import warn
    from preftune.models.load import load_tokenizer
    from preftune.models.locate import locate
    from preftune.training import DPOTrainer
    from preftune.training.run_directory import check_writable

    data, model, config = request.data, request.model, request.config
    name, revision = str(model.model_name_or_path), _revision(model)
    check_writable(str(config.output_dir))
    if (Path(str(config.output_dir)) / "run.json").is_file() and config.resume_from_checkpoint is None:
        warn(f"{config.output_dir} holds an earlier run, which this one replaces (--output_dir FOLDER keeps it).")
    locate(name, revision=revision)
    lora = model.lora_config()
    evaluate = str(getattr(config.eval_strategy, "value", config.eval_strategy)) != "no"
    seed = config.seed if config.data_seed is None else config.data_seed
    train, held_out = open_datasets(data, evaluate=evaluate, seed=seed)
    tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=config.trust_remote_code)
    config.model_init_kwargs = _loading(model, config, is_trainable=lora is None)
    trainer = DPOTrainer(
        model=name,  # by name: the trainer tokenises first and loads then
        args=config,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=lora,
    )
    progress = show_progress(trainer)
    if data.ignore_bias_buffers:
        import torch

        policy: Any = trainer.model
        skipped = [name for name, buffer in policy.named_buffers() if buffer.dtype == torch.bool]
        policy._ddp_params_and_buffers_to_ignore = skipped
    return trainer, progress


def _loading(model: ModelArguments, config: DPOConfig, *, is_trainable: bool) -> dict[str, Any]:
    """How the trainer loads the model: the flags, over them what `--model_init_kwargs` says."""
    options = {
        "dtype": model.dtype or "auto",
        "revision": _revision(model),
        "trust_remote_code": config.trust_remote_code,
        "attn_implementation": model.attn_implementation,
        "is_trainable": is_trainable,
    }
    if model.load_in_8bit:
        options["load_in_8bit"] = True
    if model.load_in_4bit:
        options |= {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": model.bnb_4bit_quant_type,
            "use_bnb_nested_quant": model.use_bnb_nested_quant,
            "bnb_4bit_quant_storage": model.bnb_4bit_quant_storage,
        }
    return {**options, **(config.model_init_kwargs or {})}  # type: ignore[dict-item]


def _finish(trainer: DPOTrainer, request: Request) -> int:
    config = request.config
    trainer.save_model()
    metrics = _held_out(trainer)
    if config.push_to_hub:
        trainer.push_to_hub(dataset_name=request.data.dataset_names)
    if trainer.is_world_process_zero():
        print("\n".join(_report(trainer, request, metrics)))
        if request.report:
            _write_page(str(config.output_dir))
    return 0


def _held_out(trainer: DPOTrainer) -> dict[str, float] | None:
    """The held-out numbers of the final model: those of the last step if they are there, else measured now."""
    if trainer.eval_dataset is None:
        return None
    last = next((entry for entry in reversed(trainer.state.log_history) if "eval_loss" in entry), None)
    if last is not None and last.get("step") == trainer.state.global_step and not trainer.args.load_best_model_at_end:
        return last
    return dict(trainer.evaluate())


def _report(trainer: DPOTrainer, request: Request, metrics: dict[str, float] | None) -> list[str]:
    output = str(request.config.output_dir)
    place = shlex.quote(output)
    adapter = request.model.adapter or (Path(output) / "adapter_config.json").is_file()
    kind = "adapter" if adapter else "model"
    lines = [
        f"Done after {trainer.state.global_step} steps. The {kind} lies in {output}, its run in {output}/run.json."
    ]
    if metrics is not None:
        margin, accuracy = metrics.get("eval_rewards/margins"), metrics.get("eval_rewards/accuracies")
        if margin is not None and accuracy is not None:
            lines.append(f"Held out: margin {margin:.3f}, accuracy {accuracy:.1%}.")
    else:
        lines.append("Nothing was held out, so there is no number on new prompts (--eval_fraction 0.05 gives one).")
    base = "" if adapter else f" --baseline {shlex.quote(str(request.model.model_name_or_path))}"
    lines.append(f"Talk to it:   preftune chat --model {place}{base}")
    if adapter:
        lines.append(f"Fold it in:   preftune merge {place} -o {shlex.quote(output.rstrip('/') + '-merged')}")
    return lines


def _write_page(folder: str) -> None:
    from preftune.cli.report import report_at_end

    page = report_at_end(folder)
    if page is not None:
        print(f"Its report:   {page}")


def _stopped(request: Request) -> str:
    output = str(request.config.output_dir)
    kept = _last_checkpoint(output) if Path(output).is_dir() else None
    if kept is None:
        steps = int(request.config.save_steps)
        return f"Stopped before the first checkpoint (--save_steps {steps}): nothing to resume. {output} keeps the log."
    again = shlex.join(["preftune", "dpo", *request.words, "--resume"])  # the last of two --resume counts
    return f"Stopped. {kept} is kept. Go on from it with: {again}"


def _resume(values: argparse.Namespace) -> str | None:
    """`--resume` and `--resume_from_checkpoint` as a folder that exists."""
    from preftune.cli.parsing import LAST

    asked = values.resume if values.resume is not None else values.resume_from_checkpoint
    if asked is None or str(asked).lower() in ("false", "none"):
        return None
    if asked != LAST and str(asked).lower() != "true":
        folder = Path(str(asked)).expanduser()
        if not (folder / "trainer_state.json").is_file():
            raise RequestError(
                f"--resume {asked} is no checkpoint (no trainer_state.json in it). Name a checkpoint-N folder of the "
                "run, or give --resume without a value for the last one in --output_dir."
            )
        return str(folder)
    output = Path(values.output_dir).expanduser()
    found = _last_checkpoint(str(output)) if output.is_dir() else None
    if found is None:
        raise RequestError(
            f"--resume: there is no checkpoint in {output}. Name the run with --output_dir, or leave --resume out."
        )
    return str(found)


def _last_checkpoint(folder: str) -> str | None:
    from transformers import trainer_utils

    found: str | None = trainer_utils.get_last_checkpoint(folder)  # type: ignore[no-untyped-call]
    return found


def _revision(model: ModelArguments) -> str | None:
    return None if model.model_revision == "main" else model.model_revision


def _recipe(argv: Sequence[str]) -> Recipe | None:
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config", action="append", default=[])
    try:
        found, _ = finder.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise RequestError("--config needs the name of a YAML file behind it.") from error
    if len(found.config) > 1:
        raise RequestError(f"--config is there {len(found.config)} times. Give one recipe; flags override its values.")
    return read_recipe(found.config[0]) if found.config else None


def _parser() -> Any:
    from preftune.cli.parsing import FieldParser
    from preftune.training import DPOConfig

    parser = FieldParser((DataArguments, ModelArguments, DPOConfig), prog=PROG)
    parser.set_defaults(guard=GUARD)
    parser.add_argument("--report", action="store_true", default=True, help="write report.html when it is done")
    parser.add_argument("--no_report", "--no-report", dest="report", action="store_false")
    return parser
