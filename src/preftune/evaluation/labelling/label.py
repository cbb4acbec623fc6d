"""Makes preference pairs from samples and a judge, in the canonical form that training reads.

pairs.jsonl                 id, prompt, chosen, rejected, score_chosen, score_rejected
pairs.jsonl.manifest.json   the judge, the settings, and the reasons for samples without a pair

The difference of the two scores is the pair's strength: points of the scorer, or comparisons won.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from preftune.errors import RequestError
from preftune.evaluation.labelling.pair_selection import Which, rank
from preftune.evaluation.labelling.sample import manifest_of
from preftune.evaluation.labelling.sample_groups import Group, LabelCounts, read_groups
from preftune.evaluation.labelling.scoring import Progress, Rated, Rater
from preftune.storage.atomic import sha256_of
from preftune.storage.jsonl import prepare_folder, read_object, staged_lines, write_json
from preftune.types import Text
from preftune.version import __version__


def label(
    samples: str | Path,
    output: str | Path,
    rater: Rater,
    *,
    which: Which = "best-worst",
    min_gap: float = 0.0,
    margin_from_scores: float | None = None,
    finished_only: bool = False,
    judge_thoughts: bool = False,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    before: Callable[[list[Group]], None] | None = None,
) -> LabelCounts:
    """Writes the pairs of a file of samples, atomically.

    Args:
        which, min_gap: see `rank`.
        margin_from_scores: nats of margin per unit of strength, for a column `margin`; None writes none.
        finished_only: leave out answers that were cut before their end.
        judge_thoughts: show the judge what a thinking model wrote before its answer; pairs hold it either way.
        settings: more about the judge, for the manifest.
        before: called with the groups before the judge is called.
    Raises: DatasetError for a file without samples; RequestError if `output` was not written by preftune label.
    """
    samples, output = Path(samples), Path(output)
    _check_output(samples, output)
    counts = LabelCounts()
    groups = read_groups(samples, counts, finished_only=finished_only, thoughts=judge_thoughts)
    if before is not None:
        before(groups)
    prepare_folder(output.parent)
    rows: list[dict[str, Any]] = []
    for group, rated in zip(groups, rater.rate(groups, counts, progress), strict=True):
        rows += _pairs(group, rated, counts, which=which, min_gap=min_gap, scale=margin_from_scores)
    counts.pairs = len(rows)
    used = {
        "judge": rater.name,
        "pairs": which,
        "min_gap": min_gap,
        "margin_from_scores": margin_from_scores,
        "finished_only": finished_only,
        "judge_thoughts": judge_thoughts,
        **(settings or {}),
    }
    source = {"samples": str(samples), "sha256": sha256_of(samples)}
    # Pairs without their manifest would be taken for another program's.
    with staged_lines(output, rows):
        write_json(
            manifest_of(output),
            {"preftune": __version__, "settings": used, "data": source, "counts": asdict(counts)},
        )
    return counts


def _pairs(
    group: Group, rated: Rated, counts: LabelCounts, *, which: Which, min_gap: float, scale: float | None
) -> list[dict[str, Any]]:
    places = [place for place, score in enumerate(rated.scores) if score is not None]
    scores = [score for score in rated.scores if score is not None]
    if len(scores) < 2:
        counts.single += 1
        return []
    ranked = rank(scores, which=which, min_gap=min_gap, comparisons=rated.comparisons)
    counts.tied += ranked.tied
    counts.close += ranked.close
    made = []
    for pair in ranked.pairs:
        chosen, rejected = places[pair.chosen], places[pair.rejected]
        row: dict[str, Any] = {
            "id": f"{group.id}-{group.samples[chosen]}-{group.samples[rejected]}",
            "prompt": group.prompt,
            "chosen": _side(group.prompt, group.answers[chosen]),
            "rejected": _side(group.prompt, group.answers[rejected]),
            "score_chosen": scores[pair.chosen],
            "score_rejected": scores[pair.rejected],
            **group.carried,
        }
        made.append(row if scale is None else {**row, "margin": scale * pair.strength})
    return made


def _side(prompt: Text, answer: str) -> Text:
    return answer if isinstance(prompt, str) else [{"role": "assistant", "content": answer}]


def _check_output(samples: Path, output: Path) -> None:
    if output.exists() and samples.exists() and output.samefile(samples):
        raise RequestError(f"The pairs would be written over the samples {samples}. Give another file with -o.")
    if not output.exists() or output.stat().st_size == 0:
        return
    if "judge" not in (read_object(manifest_of(output)).get("settings") or ()):
        raise RequestError(
            f"{output} exists, and has no manifest which says that preftune label wrote it. Give another file with -o."
        )
