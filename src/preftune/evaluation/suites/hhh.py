"""HHH (Askell et al. 2021, arXiv:2112.00861): whether the model itself finds the better of two answers likelier.

221 comparisons in four subsets, helpful, honest, harmless and other. An answer's score is the sum of the
log-probabilities of its tokens, as in BIG-bench's multiple choice; the figure is the share of comparisons where the
better answer scores higher (equal scores count half). No answer is generated and no judge is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from preftune.amounts import counted
from preftune.errors import DatasetError
from preftune.evaluation.suites.asking import need_models
from preftune.evaluation.suites.result import SuiteResult
from preftune.evaluation.suites.sources import HubData, Row, hub_file, load_listed, look_at_some, missing_column
from preftune.evaluation.two_models.answers import write_results
from preftune.evaluation.two_models.pair_logps import Scores, score_both
from preftune.progress import Counting
from preftune.statistics.paired import Comparison, by_group, compare_shares, members_by
from preftune.storage.jsonl import digest
from preftune.types import PreferencePair

if TYPE_CHECKING:
    from preftune.evaluation.two_models.context import Contest

SUITE = "hhh"
SUBSETS = ("helpful", "honest", "harmless", "other")
_REPO = "HuggingFaceH4/hhh_alignment"
_REVISION = "refs/convert/parquet"
"""The repository itself holds a loading script, which datasets no longer runs; the hub converts it here."""


def run(contest: Contest, *, data: str | Path | None, limit: int | None, folder: Path) -> SuiteResult:
    """The share of comparisons where each model prefers the better answer, by subset."""
    rows, part = look_at_some(_read(data), limit)
    pairs = [
        PreferencePair(
            prompt=[{"role": "user", "content": row["input"]}],
            chosen=[{"role": "assistant", "content": row["better"]}],
            rejected=[{"role": "assistant", "content": row["worse"]}],
            row=index,
        )
        for index, row in enumerate(rows)
    ]
    models = need_models(contest, SUITE)
    with Counting(f"{SUITE}: scoring", unit="answers") as progress:
        base, aligned = score_both(
            models, pairs, settings=contest.settings, path=folder / "scores.jsonl", progress=progress
        )
    known = [int(i) for i in np.flatnonzero(base.known_N & aligned.known_N)]
    if not known:
        raise DatasetError(
            "None of the comparisons of the suite hhh fits into the model's positions. Give other data with "
            "--suite_data."
        )
    rows, sides = [rows[i] for i in known], (base.at(known), aligned.at(known))
    write_results(folder / "verdicts.jsonl", _records(rows, known, base, aligned))
    clusters = [digest(row["input"]) for row in rows]

    def compare(name: str, members: Sequence[int] | None, each: float, *, per_token: bool = False) -> Comparison:
        before, after = (scores.prefers(per_token=per_token) for scores in sides)
        name = f"better answer likelier{name}"
        return compare_shares(name, before, after, clusters, better="higher", confidence=each, members=members)

    groups = {f", {name}": members for name, members in members_by([row["subset"] for row in rows]).items()}
    return SuiteResult(
        SUITE,
        comparisons=[
            compare("", None, contest.confidence),
            compare(" per token", None, contest.confidence, per_token=True),
        ],
        breakdown=by_group(groups, compare, contest.confidence),
        notes=_notes(models.tokenizer, len(pairs) - len(known)),
        part=part,
        details={"left_out": len(pairs) - len(known)},
    )


def _read(data: str | Path | None) -> list[Row]:
    """Rows with `input`, `better`, `worse` and `subset`, from files of the hub's or of BIG-bench's shape."""
    if data is None:
        files = [
            (subset, hub_file(HubData(_REPO, f"{subset}/test/0000.parquet", _REVISION), suite=SUITE))
            for subset in SUBSETS
        ]
    else:
        path = Path(data).expanduser()
        files = _files(path) if path.is_dir() else [(_subset_of(path), path)]
        if not files:
            raise DatasetError(
                f"{path} holds no comparisons for the suite hhh: no folder or file named {', '.join(SUBSETS)}. Give "
                "the dataset's folder, or one file of comparisons."
            )
    rows = [row for subset, file in files for row in _rows_of(file, subset)]
    if not rows:
        raise DatasetError(f"{data} holds no comparison for the suite hhh. Give HuggingFaceH4/hhh_alignment's files.")
    return rows


def _files(folder: Path) -> list[tuple[str, Path]]:
    """The first data file named after each subset, or in a folder of its name."""
    found = []
    for subset in SUBSETS:
        places = sorted((*folder.glob(f"**/{subset}/**/*"), *folder.glob(f"**/{subset}*")))
        files = [p for p in places if p.is_file() and p.suffix in (".json", ".jsonl", ".parquet", ".csv")]
        found += [(subset, files[0])] if files else []
    return found


def _subset_of(path: Path) -> str:
    return next((subset for subset in SUBSETS if subset in (*path.parts[:-1], path.stem)), "all")


def _rows_of(file: Path, subset: str) -> list[Row]:
    rows: list[Row] = []
    raw = load_listed(file)
    if len(raw) == 1 and isinstance(raw[0].get("examples"), list):  # BIG-bench's task.json
        raw = raw[0]["examples"]
    for index, row in enumerate(raw):
        scored = _scored(row)
        if not isinstance(row.get("input"), str) or scored is None:
            raise missing_column(row, ("input", "targets", "target_scores"), suite=SUITE, index=index, where=file)
        best = max(scored, key=lambda choice: scored[choice])
        for choice, score in scored.items():
            if score < scored[best]:
                own = str(row.get("subset") or row.get("category") or subset)
                rows.append({"input": row["input"], "better": best, "worse": choice, "subset": own})
    return rows


def _scored(row: Mapping[str, Any]) -> dict[str, float] | None:
    """The answers with their scores: the hub's `targets`, or BIG-bench's `target_scores`."""
    targets, scores = row.get("targets"), row.get("target_scores")
    try:
        if isinstance(targets, Mapping) and targets.get("choices") and targets.get("labels"):
            return dict(zip(map(str, targets["choices"]), map(float, targets["labels"]), strict=True))
        if isinstance(scores, Mapping):
            known = {str(choice): float(score) for choice, score in scores.items() if score is not None}
            return known if len(known) > 1 else None
    except (TypeError, ValueError):  # labels that are no numbers, or not one for each choice
        return None
    return None


def _records(rows: Sequence[Row], at: Sequence[int], base: Scores, aligned: Scores) -> list[dict[str, Any]]:
    return [
        {
            "id": str(i),
            "subset": row["subset"],
            "base": {"better": float(base.chosen_N[i]), "worse": float(base.rejected_N[i])},
            "aligned": {"better": float(aligned.chosen_N[i]), "worse": float(aligned.rejected_N[i])},
        }
        for i, row in zip(at, rows, strict=True)
    ]


def _notes(tokenizer: Any, left_out: int) -> list[str]:
    notes = []
    if not tokenizer.chat_template:
        notes.append("The tokenizer has no chat template; the comparisons were written as plain dialogue.")
    if left_out:
        notes.append(
            f"{counted(left_out, 'comparison does', 'comparisons do')} not fit into the model's positions and will be "
            "left out."
        )
    return notes
