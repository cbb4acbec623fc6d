"""What `preftune ppo` and `preftune online` share: prompts and a policy in, an aligned model out."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from preftune.cli.arguments import ModelArguments, column_names
from preftune.cli.arguments import _option as option
from preftune.cli.dpo import GUARD
from preftune.cli.dpo import _last_checkpoint as last_checkpoint
from preftune.cli.dpo import _loading as loading_options
from preftune.cli.dpo import _recipe as recipe_of
from preftune.cli.dpo import _resume as resumed_from
from preftune.cli.dpo import _revision as revision_of
from preftune.cli.recipe import Recipe
from preftune.errors import RequestError


@dataclass
class PromptArguments:
    """Where the prompts come from."""

    dataset_name: str | None = option(
        None,
        "Prompts: rows with a prompt or messages, one prompt a line (.txt), or pairs, whose prompts are taken; a path, "
        "a folder, a hub id, or -.",
        aliases=["--data"],
    )
    dataset_train_split: str = option("train", "Split whose prompts are asked; slices work: train[:1000].")
    columns: list[str] = option([], "Renames: prompt=question (canonical name = your column).")
    format: str | None = option(None, "Format of the data, where its shape does not tell.")
    as_chat: bool = option(False, "Plain prompts become messages of a conversation, for chat models.")

    def __post_init__(self) -> None:
        column_names(self.columns)


class Method(NamedTuple):
    """One of the commands."""

    name: str
    help: str
    output_dir: str
    config: str
    trainer: str
    """Names in `preftune.training.ppo` or `preftune.training.online`."""
    module: str
    needs: tuple[str, ...]
    """Fields of the config one of which says what is better."""
    needs_what: str


class Request(NamedTuple):
    """What one command line asks for, checked as far as it can be without the model."""

    data: PromptArguments
    model: ModelArguments
    config: Any
    words: tuple[str, ...]
    report: bool


def run_method(method: Method, argv: Sequence[str]) -> int:
    """Runs one of the commands and returns its exit code.

    Raises: PreftuneError; KeyboardInterrupt with a sentence that says what is kept and how to go on.
    """
    if "-h" in argv or "--help" in argv:
        print(method.help, end="")
        return 0
    recipe = recipe_of(argv)
    if recipe is not None:
        os.environ.update(recipe.environment)  # before torch and the hub client read theirs
    if "--help-all" in argv or "--help_all" in argv:
        _parser(method).print_help()
        return 0
    request = read_request(method, argv, recipe)
    trainer, progress = _prepare(method, request)
    try:
        trainer.train(resume_from_checkpoint=request.config.resume_from_checkpoint)
        return _finish(trainer, request)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(_stopped(method, request)) from stop
    finally:
        progress.close()


def read_request(method: Method, argv: Sequence[str], recipe: Recipe | None = None) -> Request:
    """Flags and recipe as checked settings.

    Raises:
        RequestError: an unknown name, an impossible value, no model, data or judge named, no such checkpoint.
    """
    parser = _parser(method)
    values = parser.parse(argv, recipe)
    if values.output_dir is None:
        values.output_dir = method.output_dir
    if values.disable_tqdm is None and not sys.stderr.isatty():
        values.disable_tqdm = True  # plain lines in a log
    values.resume_from_checkpoint = resumed_from(values)
    data, model = parser.build(PromptArguments, values), parser.build(ModelArguments, values)
    prog = f"preftune {method.name}"
    if not model.model_name_or_path:
        raise RequestError(f"No model to align: name it with --model NAME_OR_PATH. See {prog} --help.")
    if not data.dataset_name:
        raise RequestError(f"No prompts to train on: name them with --data FILE_OR_HUB_ID. See {prog} --help.")
    if not any(getattr(values, name) for name in method.needs):
        raise RequestError(f"Nothing says which answers are good: {method.needs_what}. See {prog} --help.")
    return Request(data, model, parser.build(_config(method), values), tuple(argv), values.report)


def _prepare(method: Method, request: Request) -> tuple[Any, Any]:
    """Everything cheap first: what is wrong is told before a model is loaded."""
    from preftune.cli.progress import show_progress
    from preftune.log import warn
    from preftune.models.load import load_tokenizer
    from preftune.models.locate import locate
    from preftune.training.online.prompts import open_prompts
    from preftune.training.online.scoring import as_spec
    from preftune.training.run_directory import check_writable

    data, model, config = request.data, request.model, request.config
    name, revision = str(model.model_name_or_path), revision_of(model)
    check_writable(str(config.output_dir))
    if (Path(str(config.output_dir)) / "run.json").is_file() and config.resume_from_checkpoint is None:
        warn(f"{config.output_dir} holds an earlier run, which this one replaces (--output_dir FOLDER keeps it).")
    locate(name, revision=revision)
    for spec in map(as_spec, config.reward_model):
        if spec.startswith("reward:"):
            locate(spec.partition(":")[2])
    lora = model.lora_config()
    prompts = open_prompts(
        data.dataset_name,
        split=data.dataset_train_split,
        columns=column_names(data.columns),
        format=data.format,
        as_chat=data.as_chat,
    )
    tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=config.trust_remote_code)
    config.model_init_kwargs = loading_options(model, config, is_trainable=lora is None)
    trainer = _trainer(method)(name, config, prompts, processing_class=tokenizer, peft_config=lora)
    return trainer, show_progress(trainer)


def _finish(trainer: Any, request: Request) -> int:
    config = request.config
    trainer.save_model()
    if config.push_to_hub:
        trainer.push_to_hub(dataset_name=request.data.dataset_name)
    print("\n".join(_report(trainer, request)))
    if request.report:
        from preftune.cli.dpo import _write_page

        _write_page(str(config.output_dir))
    return 0


def _report(trainer: Any, request: Request) -> list[str]:
    output = str(request.config.output_dir)
    place = shlex.quote(output)
    adapter = request.model.adapter or (Path(output) / "adapter_config.json").is_file()
    lines = [
        f"Done after {trainer.state.global_step} steps. The {'adapter' if adapter else 'model'} lies in {output}, its "
        f"run in {output}/run.json."
    ]
    for name, what, form in (
        ("objective/scores", "Score of its own answers", "{:.3f}"),
        ("objective/kl", "KL to the reference, nats per answer", "{:.2f}"),
    ):
        seen = [entry[name] for entry in trainer.state.log_history if name in entry]
        if seen:
            lines.append(f"{what}: {form.format(seen[0])} at first, {form.format(seen[-1])} at last.")
    base = "" if adapter else f" --baseline {shlex.quote(str(request.model.model_name_or_path))}"
    lines.append("The score is what was trained on. Whether the answers are better, ask another judge: preftune eval.")
    lines.append(f"Talk to it:   preftune chat --model {place}{base}")
    if adapter:
        lines.append(f"Fold it in:   preftune merge {place} -o {shlex.quote(output.rstrip('/') + '-merged')}")
    return lines


def _stopped(method: Method, request: Request) -> str:
    output = str(request.config.output_dir)
    kept = last_checkpoint(output) if Path(output).is_dir() else None
    if kept is None:
        steps = int(request.config.save_steps)
        return f"Stopped before the first checkpoint (--save_steps {steps}): nothing to resume. {output} keeps the log."
    again = shlex.join(["preftune", method.name, *request.words, "--resume"])
    return f"Stopped. {kept} is kept. Go on from it with: {again}"


def _config(method: Method) -> Any:
    import importlib

    return getattr(importlib.import_module(method.module), method.config)


def _trainer(method: Method) -> Any:
    import importlib

    return getattr(importlib.import_module(method.module), method.trainer)


def _parser(method: Method) -> Any:
    from preftune.cli.parsing import FieldParser

    parser = FieldParser((PromptArguments, ModelArguments, _config(method)), prog=f"preftune {method.name}")
    parser.set_defaults(guard=GUARD)
    parser.add_argument("--report", action="store_true", default=True, help="write report.html when it is done")
    parser.add_argument("--no_report", "--no-report", dest="report", action="store_false")
    return parser
