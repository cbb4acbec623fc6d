"""`preftune merge`: merges an adapter into its base model."""

from __future__ import annotations

from collections.abc import Sequence

from preftune.cli.flags.messages import tell
from preftune.cli.flags.plain_parser import PlainParser
from preftune.shell_words import path_word


def run(argv: Sequence[str]) -> int:
    """Runs `preftune merge` and returns its exit code."""
    parser = PlainParser(
        prog="preftune merge",
        description="Fold a trained adapter into its base model. The result is an ordinary model folder.",
    )
    parser.add_argument("adapter", metavar="ADAPTER", help="output folder of a LoRA run, or an adapter on the hub")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="a new or empty folder")
    parser.add_argument(
        "--base",
        "--base_model",
        dest="base",
        metavar="MODEL",
        help="base model to use instead of the one that the adapter names",
    )
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float16", "float32"], help="number format of the result (default: the base's)"
    )
    parser.add_argument("--trust_remote_code", action="store_true", help="allow models that bring their own code")
    asked = parser.read(argv)

    from preftune.models import merge

    merged = merge(
        asked.adapter,
        asked.output,
        base_model=asked.base,
        dtype=asked.dtype,
        trust_remote_code=asked.trust_remote_code,
    )
    tell(f"The merged model is in {asked.output}.")
    place = path_word(asked.output)
    if hasattr(merged, "score"):  # a reward model says nothing
        tell(f"Judge with it:   preftune eval --judge reward:{place} ...")
    else:
        tell(f"Talk to it:   preftune chat --model {place}")
    return 0
