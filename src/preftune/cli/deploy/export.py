"""`preftune export`: a run in the forms that servers load, each verified."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from preftune.amounts import counted
from preftune.cli.deploy.verify import add_questions, page
from preftune.cli.flags.messages import echo, tell
from preftune.cli.flags.model_flags import refuse
from preftune.cli.flags.plain_parser import PlainParser
from preftune.shell_words import path_word

if TYPE_CHECKING:
    from preftune.deploy import Exported


def run(argv: Sequence[str]) -> int:
    """Runs `preftune export` and returns its exit code: 1 if what was exported is not what was trained."""
    asked = _parser().read(argv)

    if asked.no_verify:
        refuse(asked, ["data"], unless="the artefacts are verified")
    from preftune.deploy import Trained, export, questions_of, verify

    trained = None
    if not asked.no_verify:
        questions = questions_of(asked.data, limit=asked.limit, max_new_tokens=asked.max_new_tokens)
        code = asked.trust_remote_code
        trained = Trained(asked.model, questions, base_model=asked.base, trust_remote_code=code)
        trained.base_name()  # an error, if it has none, before anything is written
    holds = []

    def report(exported: Exported) -> None:
        files = len(exported.manifest.files)
        tell(f"{exported.folder}: {exported.manifest.kind}, {exported.manifest.form}, {counted(files, 'file')}.")
        for note in exported.notes:
            echo(note)
        if trained is not None:
            found = verify(exported.folder, trained)
            holds.append(found.holds)
            tell(page(found))

    export(
        asked.model,
        asked.output,
        asked.to,
        dtype=asked.dtype,
        base_model=asked.base,
        trust_remote_code=asked.trust_remote_code,
        report=report,
    )
    if trained is None:
        tell(f"Verify:   preftune verify {path_word(asked.output)}/... --against {path_word(asked.model)}")
    return 0 if all(holds) else 1


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="preftune export",
        description="Export a trained model as a whole model, an adapter, a GGUF file or for Ollama, each with its "
        "chat template, end tokens, card and hashes, and verify it against the run.",
    )
    parser.add_argument("model", metavar="RUN", help="a run directory, an adapter or a whole model")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="a subfolder per target is made here")
    parser.add_argument(
        "--to",
        nargs="+",
        default=["merged"],
        metavar="TARGET",
        help="merged (default), adapter, gguf:TYPE, ollama:TYPE; types: f32, f16 (default), bf16, q8_0, q6_k, q5_k_m, "
        "q4_k_m and llama.cpp's others",
    )
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float16", "float32"], help="number format of merged (default: the base's)"
    )
    parser.add_argument(
        "--base", "--base_model", dest="base", metavar="MODEL", help="base to use instead of the one an adapter names"
    )
    parser.add_argument("--trust_remote_code", action="store_true", help="allow models that bring their own code")
    parser.add_argument("--no_verify", action="store_true", help="do not compare the artefacts with the run")
    add_questions(parser)
    return parser
