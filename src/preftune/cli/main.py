"""The entry point: finds a command, runs it, and turns every error into one paragraph and an exit code.

Nothing heavy is imported here: `preftune --help` reads a table. Each command is a module with `run(argv) -> int`,
imported when it is called.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from preftune.cli.flags.messages import echo, paragraph
from preftune.errors import PreftuneError, RequestError, did_you_mean
from preftune.version import __version__


class Command(NamedTuple):
    """One row of the help page, and where the command lives."""

    module: str
    summary: str


COMMANDS: dict[str, Command] = {
    name: Command(f"preftune.cli.{folder}.{name.replace('-', '_')}", summary)
    for folder, name, summary in (
        ("commands", "demo", "train, evaluate and report on an embedded model and dataset, on a laptop CPU"),
        ("commands", "audit", "find what is wrong with preference data before training on them"),
        ("commands", "convert", "convert any known format to the canonical one, with filters and a manifest"),
        ("train", "sft", "train on demonstrations: messages, prompt and completion, Alpaca, text"),
        ("train", "dpo", "train on preference pairs (--config recipe.yaml, and any field as a flag)"),
        ("train", "kto", "train on single answers that are good or bad (or on both sides of pairs)"),
        ("train", "reward", "train a reward model on preference pairs, for judging and for training"),
        ("train", "ppo", "train on the model's own answers, rated by a reward model, rule or endpoint (PPO)"),
        ("train", "grpo", "train on rewarded answers; those of one prompt are each other's baseline"),
        ("train", "rloo", "the same with the leave-one-out baseline"),
        ("train", "online", "train with DPO on the model's own answers, compared by a judge"),
        ("train", "xpo", "the same against answers of the reference, with an exploration term"),
        ("train", "nash-md", "train against a mixture of model and reference, compared by a judge"),
        ("commands", "compare", "compare training methods with the same model, data, budget and judge"),
        ("recipes", "plan", "forecast memory, time and cost of a training, and what makes it fit"),
        ("recipes", "score", "compute all reference scores beforehand: the training then computes none"),
        ("recipes", "launch", "start a training on several machines of a Ray cluster"),
        ("recipes", "sweep", "a recipe with ranges: many trials, the best settings, one page"),
        ("recipes", "convert-recipe", "convert a recipe of LLaMA-Factory or Axolotl to one of preftune"),
        ("commands", "sample", "sample several completions per prompt, from a model or an endpoint"),
        ("commands", "label", "make preference pairs of them with a judge"),
        ("commands", "report", "show runs on one page: verdict, answers, curves, alarms, settings; md, png"),
        ("commands", "judge-check", "measure a judge's agreement with people, and its biases"),
        ("commands", "eval", "measure whether the model got better: win rate with its interval; suites"),
        ("deploy", "export", "export a trained model: whole, adapter, GGUF, Ollama; with template, card and hashes"),
        ("deploy", "verify", "compare what is served with what was trained, by tokens, scores and answers"),
        ("deploy", "serve", "serve a run and its base behind an OpenAI-compatible address"),
        ("deploy", "push", "upload an exported artefact to the hub, with its card"),
        ("deploy", "merge", "merge a trained adapter into its base model"),
        ("commands", "chat", "talk to a model, side by side with the one it was trained from"),
        ("commands", "cache", "manage what is kept on disk (scores, tokens, verdicts, ...): ls, prune, verify"),
        ("commands", "env", "print versions, hardware, number formats and disk space, for bug reports"),
    )
}

EXIT_STOPPED = 130
"""The exit code that a shell reports for a program ended by Ctrl-C."""


def help_page() -> str:
    """The text of `preftune --help`."""
    width = max(map(len, COMMANDS)) + 2
    rows = "\n".join(f"  {name:<{width}}{command.summary}" for name, command in COMMANDS.items())
    return (
        f"preftune {__version__}: preference pairs in, an aligned model out, and honest evidence of whether it got "
        f"better.\n\nusage: preftune COMMAND [options]\n\n{rows}\n\n"
        "  preftune COMMAND --help   what a command takes\n"
        "  preftune --version        the version alone\n"
        "  --traceback               with any command: the whole traceback of an error\n\n"
        "first steps:\n"
        "  preftune demo\n"
        "  preftune dpo --model HuggingFaceTB/SmolLM2-135M-Instruct --data pairs.jsonl --use_peft\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (default: `sys.argv`) and returns its exit code: 0 done, 1 failed, 2 a wrong request."""
    # Threads that spin while they wait make torch several times slower on a machine that does anything else as well.
    # OpenMP reads this when torch is imported, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if argv is None else argv)
    traceback = "--traceback" in words
    words = [word for word in words if word != "--traceback"]
    try:
        return _dispatch(words)
    except SystemExit as stop:  # argparse, when it has printed a help page
        return int(stop.code or 0)
    except KeyboardInterrupt as stop:
        if traceback:
            raise
        echo(str(stop) or "Stopped.")
        return EXIT_STOPPED
    except BrokenPipeError:  # `preftune env | head -1`: the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if traceback:
            raise
        echo(paragraph(error))
        return error.exit_code if isinstance(error, PreftuneError) else 1


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_page(), end="")
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"preftune {__version__}")
        return 0
    name, *rest = words
    if name not in COMMANDS:
        names = ", ".join(COMMANDS)
        if name.startswith("-"):
            raise RequestError(f"{name}: the command comes first ({names}), its options after it. See preftune --help.")
        hint = did_you_mean(name, COMMANDS, otherwise="See preftune --help.")
        raise RequestError(f"There is no command {name!r} (there are {names}). {hint}")
    return int(importlib.import_module(COMMANDS[name].module).run(rest))


if __name__ == "__main__":
    sys.exit(main())
