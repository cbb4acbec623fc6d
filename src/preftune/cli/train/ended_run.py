"""What is left to do for a run that has ended or was stopped: figures, page, how to continue."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from preftune.amounts import counted
from preftune.cli.flags.messages import echo, tell
from preftune.errors import PreftuneError, RequestError
from preftune.shell_words import command_line

if TYPE_CHECKING:
    from preftune.training.trainers.recorded import RecordedTrainer


def leave(trainer: RecordedTrainer, report: bool) -> int:
    """A finished run stays as it is; its held-out figures and its report are made if something ended it before that.

    Raises: PreftuneError if training has destroyed the model, as when it ended.
    """
    from preftune.training.setup.broken import broken_by_training

    output = Path(str(trainer.args.output_dir))
    broken = broken_by_training(trainer)
    if broken is not None:
        raise PreftuneError(broken)
    measured = _measure_late(trainer, output)
    if report and trainer.is_world_process_zero() and (measured or not (output / "report.html").exists()):
        write_page(str(output))
    return 0


def _measure_late(trainer: RecordedTrainer, output: Path) -> bool:
    """Whether a finished run lacked the held-out figures of its end, which are written to its metrics now."""
    from preftune.storage.jsonl import read_lines
    from preftune.storage.run_directory import append_line

    step = trainer.state.global_step
    moved = getattr(trainer.args, "sync_ref_model", False) and not (output / f"checkpoint-{step}").is_dir()
    if trainer.eval_dataset is None or moved:  # a reference that followed the policy is in its checkpoint alone
        return False
    ends = [line for line in read_lines(output / "metrics.jsonl") if line.get("step") == step]
    if trainer.args.load_best_model_at_end:  # figures of the last step are not those of the best one
        summary = max((place for place, line in enumerate(ends) if "train_runtime" in line), default=-1)
        ends = ends[summary + 1 :]
    if any("eval_runtime" in line for line in ends):
        return False
    echo("preftune: the run was ended before its held-out rows were measured; they are measured now.")
    figures = trainer.evaluate()
    if trainer.is_world_process_zero():
        append_line(output / "metrics.jsonl", {"step": step, "time": time.time(), **figures})
    return True


def write_page(folder: str) -> None:
    """report.html of a run that has just ended, and where it lies."""
    from preftune.report.write import report_at_end

    page = report_at_end(folder)
    if page is not None:
        tell(f"Its report:   {page}")


def held_out_metrics(trainer: RecordedTrainer) -> dict[str, float] | None:
    """The held-out numbers of the final model: those of the last step if they are there, else measured now."""
    if trainer.eval_dataset is None:
        return None
    last = next((entry for entry in reversed(trainer.state.log_history) if "eval_runtime" in entry), None)
    if last is not None and last.get("step") == trainer.state.global_step and not trainer.args.load_best_model_at_end:
        found: dict[str, float] = last
        return found
    return dict(trainer.evaluate())


def judged_lines(metrics: Mapping[str, float], output: str) -> list[str]:
    """The win rates of an evaluation with `--eval_judge`, in sentences; run.json says of how many prompts."""
    from preftune.storage.run_directory import run_facts

    lines = []
    for name, count in (run_facts(output, "eval_judge").get("prompts") or {}).items():
        prefix = "eval" if name == "eval" else f"eval_{name}"
        rate, low, high = (metrics.get(f"{prefix}_win_rate{end}") for end in ("", "_low", "_high"))
        if rate is not None and low is not None and high is not None:
            of_set = "" if name == "eval" else f" of {name}"
            lines.append(
                f"Judged: wins {rate:.1%} of {counted(count, 'held-out prompt')}{of_set} against the reference (95% "
                f"interval {low:.1%} to {high:.1%})."
            )
    return lines


def stopped(name: str, words: Sequence[str], output: Path) -> str:
    """What a stopped run leaves, and the command that continues it.

    Args:
        name, words: the command line.
        output: the run directory.
    """
    from preftune.storage.file_hashes import DamagedError
    from preftune.storage.run_directory import run_facts
    from preftune.training.record.earlier_run import checkpoints_in, run_id_of
    from preftune.training.record.manifest import read_manifest

    own, kept = run_id_of(run_facts(output)), None
    weights: Path | None = None
    for _, folder in checkpoints_in(output):
        try:
            manifest = read_manifest(folder)
        except DamagedError:
            continue
        if manifest is None or manifest.run != own:
            continue
        if manifest.resumable:
            kept = folder
            break
        weights = weights or folder
    if kept is None and weights is not None:
        return f"Stopped. {weights} is kept, but only the weights: start a new run without --save_only_model."
    if kept is None:
        return f"Stopped before the first checkpoint: nothing to resume. {output} keeps the log."
    again = command_line(
        ["preftune", name, *words, *([] if _resumes_newest(words) else ["--resume"])]
    )  # the last of two counts
    return f"Stopped. {kept} is kept. Continue from it with: {again}"


def _resumes_newest(words: Sequence[str]) -> bool:
    """Whether a command line resumes from the newest checkpoint already, and not from a named one."""
    after = dict(zip(words, [*words, "--"][1:], strict=False))
    value = after.get("--resume", "")
    return "--resume=auto" in words or value == "auto" or value.startswith("-")


def asked_checkpoint(values: argparse.Namespace) -> str | bool | None:
    """`--resume` and `--resume_from_checkpoint` as a trainer takes them: a folder, True (the last one), "auto" or None.
    A missing checkpoint is an error before anything is loaded.
    """
    from preftune.cli.flags.field_parser import LAST
    from preftune.training.record.earlier_run import checkpoints_in
    from preftune.training.record.resuming import AUTO

    asked = values.resume if values.resume is not None else values.resume_from_checkpoint
    if asked is None or str(asked).lower() in ("false", "none"):
        return None
    if str(asked).lower() == AUTO:
        return AUTO
    if asked != LAST and str(asked).lower() != "true":
        folder = Path(str(asked)).expanduser()
        if not (folder / "trainer_state.json").is_file():
            raise RequestError(
                f"--resume {asked} is not a checkpoint (it has no trainer_state.json). Name a checkpoint-N folder of "
                "the run, or give --resume without a value for the last one in --output_dir."
            )
        return str(folder)
    output = Path(values.output_dir).expanduser()
    if not checkpoints_in(output):
        raise RequestError(
            f"--resume: there is no checkpoint in {output}. Name the run with --output_dir, or leave --resume out "
            "(--resume auto starts from the beginning)."
        )
    return True
