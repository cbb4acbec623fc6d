"""Abilities that alignment may damage: the prediction of plain text, and tasks.

Bits per byte on plain text (`perplexity`), and tasks of lm-evaluation-harness (`harness`): truthfulqa_mc2, gsm8k,
hellaswag, arc_challenge and ifeval unless others are named. Where the harness is not installed and no task was named,
the text alone is measured, and the result says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from preftune.amounts import counted
from preftune.errors import DatasetError, PreftuneError
from preftune.evaluation.suites import harness
from preftune.evaluation.suites.asking import need_models
from preftune.evaluation.suites.perplexity import compare_bits, documents, perplexity, predict_both
from preftune.evaluation.suites.result import SuiteResult
from preftune.evaluation.suites.sources import look_at_some
from preftune.progress import Counting

if TYPE_CHECKING:
    from preftune.evaluation.two_models.context import Contest

SUITE = "general"


def run(
    contest: Contest,
    *,
    data: str | Path | None,
    limit: int | None,
    folder: Path,
    tasks: Sequence[str] | None = None,
) -> SuiteResult:
    """Plain text and tasks under both models.

    Args:
        data: a text file in UTF-8, or a folder with the user's own tasks as YAML files of the harness.
        tasks: names of tasks; an empty list for none.
    """
    include, text = _what(data)
    if tasks is not None:
        tasks = [name for several in tasks for name in several.split(",") if name]
    if tasks:
        harness.need_harness()
    wanted = tuple(harness.DEFAULT_TASKS if tasks is None else tasks) if harness.installed() else ()
    texts = documents(text)
    rows, part = look_at_some([{"text": one} for one in texts], limit)
    texts = [row["text"] for row in rows]
    models = need_models(contest, SUITE)
    with Counting(f"{SUITE}: scoring", unit="documents") as progress:
        base, aligned = predict_both(
            models, texts, settings=contest.settings, path=folder / "text_scores.jsonl", progress=progress
        )
    found, failures = harness.Tasks({}, {})
    if wanted:
        found, failures = harness.run_tasks(contest, models, wanted, limit=limit, include=include, folder=folder)
    if failures and tasks:
        raise PreftuneError(
            f"lm-evaluation-harness failed on {_list(failures)}. Finished tasks are kept in {folder}. Check that the "
            "task's data can be downloaded, or leave it out of --tasks."
        )
    compared = [harness.compare_task(task, *both, confidence=contest.confidence) for task, both in found.items()]
    return SuiteResult(
        SUITE,
        comparisons=[
            compare_bits(base, aligned, confidence=contest.confidence),
            *(one for one in compared if one is not None),
        ],
        notes=_notes(text is None, tasks, limit, failures),
        part=part,
        details={
            "perplexity": {"base": perplexity(base), "aligned": perplexity(aligned)},
            "text": "the text that comes with preftune" if text is None else str(text),
            "failed_tasks": failures,
            "tasks": {
                task: {
                    side: {"metrics": r.metrics, "stderr": r.errors, "n": r.n}
                    for side, r in zip(("base", "aligned"), both, strict=True)
                }
                for task, both in found.items()
            },
        },
    )


def _what(data: str | Path | None) -> tuple[Path | None, Path | None]:
    """A folder of tasks, or a file of text."""
    if data is None:
        return None, None
    path = Path(data).expanduser()
    if path.is_dir():
        return path, None
    if not path.exists():
        raise DatasetError(f"{path} does not exist. Give a text file, or a folder of tasks, with --suite_data.")
    return None, path


def _list(failures: Mapping[str, str]) -> str:
    return "; ".join(f"{task} ({problem})" for task, problem in failures.items())


def _notes(own_text: bool, tasks: Sequence[str] | None, limit: int | None, failures: Mapping[str, str]) -> list[str]:
    notes = []
    if failures:
        notes.append(f"Tasks that could not be run: {_list(failures)}.")
    if own_text:
        notes.append(
            "The text is a small one that comes with preftune: enough for a warning. For your own domain give a text "
            "file with --suite_data."
        )
    if tasks is None and not harness.installed():
        notes.append("No task was run: lm-evaluation-harness is not installed (pip install 'preftune[harness]').")
    if limit is not None:
        notes.append(f"At most {counted(limit, 'document')} of the text and of each task were used.")
    return notes
