"""The common part of the training commands: from flags and a recipe to a model and its run directory."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.amounts import counted
from preftune.cli.flags.arguments import DataArguments, ModelArguments
from preftune.cli.flags.field_names import Field, check_choices, check_names, fields_of, names_of, spoken_as_flags
from preftune.cli.flags.help_pages import HelpPage, page
from preftune.cli.flags.messages import echo, tell
from preftune.cli.flags.recipe import Recipe, find_recipe
from preftune.cli.flags.seeds import started_ranks, words_of_each
from preftune.cli.train.ended_run import asked_checkpoint, held_out_metrics, judged_lines, leave, stopped, write_page
from preftune.errors import PlanOnlyError, PreftuneError, RequestError
from preftune.log import say, show_details, warn
from preftune.shell_words import path_word

if TYPE_CHECKING:
    from preftune.training.trainers.recorded import RecordedTrainer

GUARD = "warn"
"""The guard is on for commands, whose output is read, and off by default for programs (`DPOConfig`)."""


@dataclass(frozen=True, slots=True)
class Method:
    """One way of training."""

    name: str
    """Name of the command."""
    trainer: str
    """`module:class`, imported after the request was checked."""
    config: str
    help: HelpPage
    wanted: str
    """Name of the data, for the message that no data are named."""
    open_data: Callable[[Request], tuple[Any, Any]]
    """Opens training and held-out data."""
    report: Callable[[RecordedTrainer, Request, Mapping[str, float] | None], list[str]]
    """Trainer, request, held-out metrics -> prints the summary at the end."""
    aim: str = "train"
    """Verb for the work on the model, for the message that no model is named."""
    data_arguments: type = DataArguments
    model_arguments: type = ModelArguments
    needs: tuple[str, ...] = ()
    """Fields of which one must be given."""
    needs_what: str = ""
    holds_out: bool = True
    """Whether the trainer measures on held-out data."""
    guarded: bool = False
    """Whether the trainer has a guard."""

    @property
    def prog(self) -> str:
        return f"preftune {self.name}"

    def trainer_class(self) -> Any:
        """The trainer, imported now."""
        return _load(self.trainer)

    def fields(self) -> list[Field] | None:
        """Every field that is a flag, read without importing the configurations; None if a source cannot be read."""
        return fields_of(self.data_arguments, self.model_arguments, self.config)

    def help_text(self) -> str:
        """The output of `--help`."""
        return self.help.text(self.fields() or ())

    @property
    def output_dir(self) -> str:
        """Output folder of a run that names none."""
        return f"runs/{self.name}"


@dataclass(frozen=True, slots=True)
class Request:
    """The request of one command line, checked as far as possible without the model."""

    data: Any
    """DataArguments, or a class with the same fields."""
    model: ModelArguments
    config: Any
    words: tuple[str, ...]
    """The command line itself, for the hint on how to resume."""
    report: bool = True
    """Whether to write report.html at the end."""
    seeds: tuple[int, ...] = ()
    """Several seeds to train with."""

    @property
    def splitting(self) -> dict[str, Any]:
        """Whether evaluation during training is requested, and the seed of the split of the data."""
        strategy, config = self.config.eval_strategy, self.config
        seeds = (getattr(self.data, "split_seed", None), config.data_seed, config.seed)
        seed = next(int(one) for one in seeds if one is not None)
        return {"evaluate": str(getattr(strategy, "value", strategy)) != "no", "seed": seed}

    @property
    def place(self) -> str:
        """The run directory, quoted for a shell."""
        return path_word(str(self.config.output_dir))

    @property
    def saves_adapter(self) -> bool:
        """Whether the run saves an adapter instead of a whole model."""
        return self.model.adapter or (Path(str(self.config.output_dir)) / "adapter_config.json").is_file()

    def merging(self) -> list[str]:
        """The command that merges the adapter; empty for a whole model."""
        merged = path_word(str(self.config.output_dir).rstrip("/") + "-merged")
        return [f"preftune merge {self.place} -o {merged}"] if self.saves_adapter else []

    def next_steps(self) -> list[str]:
        """Commands to use next on an aligned model."""
        base = "" if self.saves_adapter else f" --baseline {path_word(str(self.model.model_name_or_path))}"
        talk = f"Talk to it:   preftune chat --model {self.place}{base}"
        return [talk, *(f"Fold it in:   {command}" for command in self.merging())]


def run(method: Method, argv: Sequence[str]) -> int:
    """Runs a training command and returns its exit code.

    Raises: PreftuneError; KeyboardInterrupt with a sentence that says what is kept and how to continue.
    """
    if "-h" in argv or "--help" in argv:
        print(method.help_text(), end="")
        return 0
    if "--help-all" in argv or "--help_all" in argv:
        fields = method.fields()
        print(parser_of(method).format_help() if fields is None else page(method.prog, fields), end="")
        return 0
    with speaking_flags(method):
        return _train(method, requested(method, argv))


@contextmanager
def speaking_flags(method: Method) -> Iterator[None]:
    """Errors of a request name flags as they are typed."""
    try:
        yield
    except RequestError as error:
        names = names_of(method.data_arguments, method.model_arguments, method.config)
        raise spoken_as_flags(error, names or ()) from error


def requested(method: Method, argv: Sequence[str], *, elsewhere: bool = False) -> Request:
    """Flags and their recipe as checked settings; the recipe's environment is set.

    Args:
        elsewhere: the model is computed on other machines, so flags of the device are not checked on this one.
    """
    started_ranks()
    recipe = find_recipe(argv)
    names = names_of(method.data_arguments, method.model_arguments, method.config)
    if names is not None:
        check_names(names, argv, recipe, prog=method.prog)
        check_choices(method.fields() or (), argv, recipe)
    if recipe is not None:
        from preftune.cli.flags.recipe import ALLOW_ENV, set_environment

        allowed = ALLOW_ENV in argv or ALLOW_ENV.replace("_", "-") in argv
        # before torch and the hub client read theirs
        set_environment(recipe.environment, recipe=str(recipe.path), allowed=allowed)
    return read_request(method, argv, recipe, elsewhere=elsewhere)


def _train(method: Method, request: Request) -> int:
    from preftune.storage.run_directory import check_writable
    from preftune.storage.run_lock import locked
    from preftune.training.record.stopping import StoppedError

    output = str(request.config.output_dir)
    if request.config.plan_only:
        return _plan_only(method, request)
    check_writable(output)
    if request.seeds:
        from preftune.training.seeds import train_seeds

        words = words_of_each(request.words, request.seeds, split=hasattr(request.data, "split_seed"))
        with locked(output):
            tell("\n".join(train_seeds(method.name, words, request.seeds, Path(output), echo=echo)))
        return 0
    with locked(output, writes=os.environ.get("RANK", "0") == "0"):
        trainer, progress = prepare(method, request)
        say(f"writing to {output} (all notes: its run.json, or --verbose).")
        try:
            trainer.train(resume_from_checkpoint=request.config.resume_from_checkpoint)
            return _finish(method, trainer, request) if not trainer.nothing_to_do else leave(trainer, request.report)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(stopped(method.name, request.words, Path(str(request.config.output_dir)))) from stop
        except StoppedError as stop:
            echo(stopped(method.name, request.words, Path(str(request.config.output_dir))))
            return stop.exit_code
        finally:
            progress.close()


def _plan_only(method: Method, request: Request) -> int:
    """Prints the plan of the run (the trainer's first note) and leaves nothing behind."""
    try:
        prepare(method, request)
    except PlanOnlyError as stop:
        return stop.exit_code
    raise PreftuneError(f"{method.prog} did not stop after its plan. Please report this.")


def off_device(values: argparse.Namespace) -> None:
    """Resets what depends on the device, for settings that are read where nothing is computed."""
    values.bf16, values.fp16, values.use_cpu, values.tf32 = None, False, True, None
    if hasattr(values, "guard"):
        values.guard = "off"
    values.report_to = "none"


def read_request(
    method: Method, argv: Sequence[str], recipe: Recipe | None = None, *, elsewhere: bool = False
) -> Request:
    """Reads flags and recipe into checked settings.

    Raises:
        RequestError: an unknown name, an impossible value, no model or data named, a checkpoint that does not exist.
    """
    parser = parser_of(method)
    values = parser.parse(argv, recipe)
    show_details(values.verbose)
    if recipe is not None:
        _say_remote_code(recipe)
    if values.output_dir is None:
        values.output_dir = method.output_dir
    if values.disable_tqdm is None and not sys.stderr.isatty():
        values.disable_tqdm = True  # plain lines in a log
    if elsewhere:
        off_device(values)
    values.resume_from_checkpoint = asked_checkpoint(values)
    data, model = parser.build(method.data_arguments, values), parser.build(method.model_arguments, values)
    help = f"See {method.prog} --help."
    if not model.model_name_or_path:
        base = f" (base_model {model.base_model!r} is only the base of an adapter)" * (model.base_model is not None)
        raise RequestError(f"There is no model to {method.aim}{base}. Name it with --model NAME_OR_PATH. {help}")
    if not data.dataset_name:
        raise RequestError(f"There are no {method.wanted}. Name them with --data FILE_OR_HUB_ID. {help}")
    if method.needs and not any(getattr(values, name) for name in method.needs):
        raise RequestError(f"No reward or judge is given; {method.needs_what}. {help}")
    seeds = tuple(values.seeds or ())
    return Request(data, model, parser.build(_load(method.config), values), tuple(argv), values.report, seeds)


def _say_remote_code(recipe: Recipe) -> None:
    """Warns when a recipe lets a model run its own code: the user may not have read the recipe."""
    for entry in recipe.entries:
        inside = entry.value if isinstance(entry.value, dict) else {}
        given = entry.value if entry.key.replace("-", "_") == "trust_remote_code" else inside.get("trust_remote_code")
        if str(given).lower() in ("true", "yes", "on", "1"):
            warn(
                f"{recipe.path}, line {entry.line}: trust_remote_code lets the model's own Python code run on this "
                "machine."
            )


def prepare(method: Method, request: Request, given: tuple[Any, Any] | None = None) -> tuple[Any, Any]:
    """Does everything cheap first: errors are reported before a model is loaded.

    Args:
        given: instead of the training and held-out data of the request.
    """
    from preftune.cli.display.progress import show_progress
    from preftune.models.locate import locate
    from preftune.training.setup.rehearsal import rehearse

    data, model, config = request.data, request.model, request.config
    rehearse(config)
    name, revision = str(model.model_name_or_path), model.revision
    locate(name, revision=revision)
    lora = model.lora_config()
    train, held_out = method.open_data(request) if given is None else given
    tokenizer = tokenizer_of(request)
    config.model_init_kwargs = loading_options(model, config, is_trainable=lora is None)
    trainer = method.trainer_class()(
        model=name,  # by name: the trainer tokenises first and loads then
        args=config,
        train_dataset=train,
        processing_class=tokenizer,
        peft_config=lora,
        **({"eval_dataset": held_out} if method.holds_out else {}),
    )
    trainer.evaluates_at_end = True
    progress = show_progress(trainer)
    if getattr(data, "ignore_bias_buffers", False):
        import torch

        policy = trainer.model
        skipped = [name for name, buffer in policy.named_buffers() if buffer.dtype == torch.bool]
        policy._ddp_params_and_buffers_to_ignore = skipped
    return trainer, progress


def tokenizer_of(request: Request) -> Any:
    """The tokenizer of the model."""
    from preftune.models.load import load_tokenizer

    model = request.model
    return load_tokenizer(
        str(model.model_name_or_path),
        revision=model.revision,
        trust_remote_code=request.config.trust_remote_code,
        base_model=model.base_model,
    )


def _finish(method: Method, trainer: RecordedTrainer, request: Request) -> int:
    from preftune.training.setup.broken import broken_by_training

    config = request.config
    trainer.save_model()
    broken = broken_by_training(trainer)
    metrics = held_out_metrics(trainer)
    if metrics is not None:
        trainer.create_model_card()  # once more, with them
    if config.push_to_hub and broken is None:
        trainer.push_to_hub(dataset_name=request.data.dataset_names)
    if trainer.is_world_process_zero():
        output = str(config.output_dir)
        kind, steps = "adapter" if request.saves_adapter else "model", trainer.state.global_step
        if broken is not None:
            if request.report:
                write_page(output)
            if config.push_to_hub:
                echo("preftune: the model is not pushed to the hub: training has destroyed it.")
            raise PreftuneError(broken)
        tell(f"Done after {counted(steps, 'step')}. The {kind} is in {output}, its record in {output}/run.json.")
        if metrics is None and method.holds_out:
            flag = "--eval_fraction 0.05" if hasattr(request.data, "eval_fraction") else "--eval_dataset_name FILE"
            tell(f"No data were held out, so there is no metric on new prompts ({flag} gives one).")
        tell("\n".join([*judged_lines(metrics or {}, output), *method.report(trainer, request, metrics)]))
        if request.report:
            write_page(output)
    return 0


def loading_options(model: ModelArguments, config: Any, *, is_trainable: bool) -> dict[str, Any]:
    """Options for loading the model: the flags, overridden by `--model_init_kwargs`."""
    options = {
        "dtype": model.dtype or "auto",
        "revision": model.revision,
        "trust_remote_code": config.trust_remote_code,
        "attn_implementation": model.attn_implementation,
        "is_trainable": is_trainable,
    }
    if model.base_model is not None:
        options["base_model"] = model.base_model
    if model.load_in_8bit:
        options["load_in_8bit"] = True
    if model.load_in_4bit:
        options |= {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": model.bnb_4bit_quant_type,
            "use_bnb_nested_quant": model.use_bnb_nested_quant,
            "bnb_4bit_quant_storage": model.bnb_4bit_quant_storage,
        }
    return {**options, **(config.model_init_kwargs or {})}


def parser_of(method: Method) -> Any:
    """All flags of a command."""
    from preftune.cli.flags.field_parser import FieldParser

    parser = FieldParser((method.data_arguments, method.model_arguments, _load(method.config)), prog=method.prog)
    if method.guarded:
        parser.set_defaults(guard=GUARD)
    parser.add_argument("--seeds", nargs="+", type=int, help="train with each of these seeds")
    parser.add_argument("--report", action="store_true", default=True, help="write report.html at the end")
    parser.add_argument(
        "--allow_env", "--allow-env", action="store_true", help="accept every variable that a recipe's env: block sets"
    )
    parser.add_argument("--verbose", action="store_true", help="show all notes; run.json always has them")
    parser.add_argument("--no_report", "--no-report", dest="report", action="store_false")
    return parser


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def method_of(command: str) -> Method:
    """How a command trains, such as `nash-md`."""
    method: Method = _load(f"preftune.cli.train.{command.replace('-', '_')}:METHOD")
    return method
