"""`preftune convert-recipe`: a YAML recipe of LLaMA-Factory or Axolotl as one of preftune."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from preftune.cli.flags.field_names import names_of
from preftune.cli.flags.messages import tell
from preftune.cli.flags.plain_parser import PlainParser
from preftune.cli.flags.recipe import typed_values
from preftune.cli.recipes import axolotl, llama_factory
from preftune.cli.recipes.carried import Carried
from preftune.cli.train.train_command import method_of
from preftune.errors import RequestError
from preftune.log import printable
from preftune.secret_values import is_secret
from preftune.shell_words import path_word


def run(argv: Sequence[str]) -> int:
    """Runs `preftune convert-recipe` and returns its exit code."""
    parser = PlainParser(
        prog="preftune convert-recipe",
        description="Convert a YAML recipe of LLaMA-Factory or Axolotl to one of preftune. Keys that are not carried "
        "over are listed.",
    )
    parser.add_argument("recipe", metavar="RECIPE.yaml", help="recipe of the other tool")
    parser.add_argument("-o", "--output", metavar="OUT.yaml", help="file to write (default: standard output)")
    asked = parser.read(argv)
    values = typed_values(asked.recipe)
    carried = _read(values, Path(asked.recipe).expanduser().parent, asked.recipe)
    known = _known(carried.command)
    carried.finish(known)
    carried.settings = {name: value for name, value in carried.settings.items() if known(name) or _lose(carried, name)}
    for name in [name for name in carried.settings if is_secret(name)]:
        del carried.settings[name]
        carried.lost[name] = "It is a secret, which stays out of files: hf auth login, or HF_TOKEN in the environment."
    text = _text(carried, asked.recipe)
    if asked.output is None:
        print(text, end="")
    else:
        Path(asked.output).expanduser().write_text(text, encoding="utf-8")
        for key, reason in carried.lost.items():
            tell(f"Not carried over: {key}. {reason}")
        tell(f"Train with:   preftune {carried.command} --config {path_word(asked.output)}")
    return 0


def _read(values: dict[str, Any], folder: Path, name: str) -> Carried:
    if llama_factory.is_llama_factory(values):
        return llama_factory.read(values, folder)
    if axolotl.is_axolotl(values):
        return axolotl.read(values)
    raise RequestError(
        f"{name} is not a recipe of LLaMA-Factory (stage: dpo, ...) or Axolotl (base_model: ...). TRL's recipes need "
        "no conversion: preftune dpo --config takes them as they are."
    )


def _known(command: str) -> Any:
    method = method_of(command)
    names = names_of(method.data_arguments, method.model_arguments, method.config)
    return lambda name: names is None or name in names


def _lose(carried: Carried, name: str) -> bool:
    carried.lost[name] = f"preftune {carried.command} has no such option."
    return False


def _text(carried: Carried, source: str) -> str:
    lines = [printable(f"# {Path(source).name} for: preftune {carried.command} --config THIS_FILE")]
    lines += [
        " ".join(printable(f"# not carried over: {key}: {reason}").split()) for key, reason in carried.lost.items()
    ]
    return "\n".join(lines) + "\n" + yaml.safe_dump(carried.settings, sort_keys=False, allow_unicode=True)
