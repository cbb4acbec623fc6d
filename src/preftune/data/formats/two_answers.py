"""Formats with two answers per row and a verdict: SHP, PKU-SafeRLHF, HelpSteer2 and 3, WebGPT, summaries.

- `shp`: `history`, `human_ref_A`, `human_ref_B`, `labels` (1: A is preferred), `score_ratio` (votes of the better
  answer over those of the worse one). Strength is ln(score_ratio): the log-odds of the votes, 0.69 for twice as many.
- `safe-rlhf`: `prompt`, `response_0`, `response_1`, `better_response_id`; `safe-rlhf-safer` uses `safer_response_id`
    instead, and has to be named if both columns exist.
- `helpsteer3`: `context` (messages), `response1`, `response2`, `overall_preference` from -3 (the first is much better)
  to 3, `individual_preference` [{score, ...}]. Strength is its absolute value; agreement is the share of annotators on
  the side of the verdict. `helpsteer2-preference` is the same with `prompt`, `response_1`, `response_2` and
  `preference_strength`.
- `webgpt`: `question` {full_text}, `answer_0`, `answer_1`, `score_0`, `score_1`: openai/webgpt_comparisons.
- `summaries`: `info` {post, title, subreddit or article}, `summaries` [{text}, {text}], `choice` 0 or 1:
  openai/summarize_from_feedback. The prompt has the form in which the summaries were requested.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from preftune.data.formats.adapter import Adapter, Left, Made, Row, Sample, number, rated_pairs, records
from preftune.data.formats.several_answers import marked_turns


def _is_shp(sample: Sample) -> bool:
    return sample.has("history", "human_ref_A", "human_ref_B", "labels")


def _shp_rows(row: Row) -> Iterator[Made]:
    answers, label = (row.get("human_ref_B"), row.get("human_ref_A")), number(row.get("labels"))
    if label is None:
        yield Left("unrated")
    elif label not in (0, 1) or row.get("history") is None or None in answers:
        yield Left("other_shape")
    else:
        ratio = number(row.get("score_ratio"))
        strength = math.log(ratio) if ratio is not None and ratio >= 1 else None
        yield _made(row["history"], answers, int(label), strength=strength)


def _is_safe_rlhf(column: str, sample: Sample) -> bool:
    return sample.has("prompt", "response_0", "response_1", column)


def _safe_rlhf_rows(column: str, row: Row) -> Iterator[Made]:
    answers, better = (row.get("response_0"), row.get("response_1")), number(row.get(column))
    if better is None or better == -1:
        yield Left("unrated")
    elif better not in (0, 1) or row.get("prompt") is None or None in answers:
        yield Left("other_shape")
    else:
        yield _made(row["prompt"], answers, int(better))


_HELPSTEER = {
    "helpsteer3": ("context", "response1", "response2", "overall_preference"),
    "helpsteer2-preference": ("prompt", "response_1", "response_2", "preference_strength"),
}
"""The columns of the prompt, two answers and the verdict, by format."""
_VOTES = (("individual_preference", "score"), ("all_preferences_unprocessed", "strength"))
"""The columns of the annotators' own verdicts."""


def _is_helpsteer(format: str, sample: Sample) -> bool:
    return sample.has(*_HELPSTEER[format])


def _helpsteer_rows(format: str, row: Row) -> Iterator[Made]:
    prompt, *answers, said = (row.get(column) for column in _HELPSTEER[format])
    verdict = number(said)
    if verdict is None:
        yield Left("unrated")
    elif prompt is None or None in answers:
        yield Left("other_shape")
    elif verdict == 0:
        yield Left("tied")
    else:
        items = [(item, key) for column, key in _VOTES for item in records(row.get(column)) if _is_object(item)]
        votes = [vote for item, key in items if (vote := number(item.get(key))) is not None]
        agreement = sum(vote * verdict > 0 for vote in votes) / len(votes) if votes else None
        sides = (answers[0], answers[1])
        yield _made(marked_turns(prompt), sides, int(verdict > 0), strength=abs(verdict), agreement=agreement)


def _helpsteer_uses(format: str, sample: Sample) -> list[str]:
    return [*_HELPSTEER[format], *(column for column, _ in _VOTES)]


def _is_webgpt(sample: Sample) -> bool:
    question = sample.first("question")
    return (
        sample.has("answer_0", "answer_1", "score_0", "score_1")
        and isinstance(question, Mapping)
        and "full_text" in question
    )


def _webgpt_rows(row: Row) -> Iterator[Made]:
    asked, answers = row.get("question"), (row.get("answer_0"), row.get("answer_1"))
    scores = [number(row.get(name)) for name in ("score_0", "score_1")]
    if not isinstance(asked, Mapping) or not isinstance(asked.get("full_text"), str) or None in answers:
        yield Left("other_shape")
        return
    yield from rated_pairs(asked["full_text"], list(zip(answers, scores, strict=True)), id=asked.get("id"))


def _is_summaries(sample: Sample) -> bool:
    return sample.has("info", "summaries", "choice") and isinstance(sample.first("info"), Mapping)


def _summaries_rows(row: Row) -> Iterator[Made]:
    choice = number(row.get("choice"))
    texts = [item.get("text") for item in records(row.get("summaries")) if _is_object(item)]
    prompt = _to_summarise(row.get("info"))
    if choice is None:
        yield Left("unrated")
    elif choice not in (0, 1) or prompt is None or len(texts) != 2 or not all(isinstance(text, str) for text in texts):
        yield Left("other_shape")
    else:
        yield _made(prompt, (" " + texts[0].strip(), " " + texts[1].strip()), int(choice))


def _to_summarise(info: Any) -> str | None:
    """The request for a summary of a Reddit post or an article."""
    if not isinstance(info, Mapping):
        return None
    if isinstance(info.get("post"), str):
        parts = (("SUBREDDIT", "subreddit"), ("TITLE", "title"), ("POST", "post"))
        lines = [f"{name}: {info[key].strip()}" for name, key in parts if isinstance(info.get(key), str)]
        return "\n\n".join([*lines, "TL;DR:"])
    return f"Article:\n{info['article'].strip()}\n\nTL;DR:" if isinstance(info.get("article"), str) else None


def _is_object(value: object) -> bool:
    return isinstance(value, Mapping)


def _made(prompt: Any, answers: tuple[Any, Any], better: int, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": answers[better], "rejected": answers[1 - better], **more}


_SAFE = ("prompt", "response_0", "response_1")

ADAPTERS = (
    Adapter(
        "shp",
        "a post and two comments with their votes",
        _is_shp,
        rows=_shp_rows,
        uses=lambda sample: ("history", "human_ref_A", "human_ref_B", "labels", "score_ratio"),
    ),
    Adapter(
        "safe-rlhf",
        "two answers and which is better",
        partial(_is_safe_rlhf, "better_response_id"),
        rows=partial(_safe_rlhf_rows, "better_response_id"),
        uses=lambda sample: (*_SAFE, "better_response_id"),
    ),
    Adapter(
        "safe-rlhf-safer",
        "two answers and which is safer",
        lambda sample: "better_response_id" not in sample and _is_safe_rlhf("safer_response_id", sample),
        rows=partial(_safe_rlhf_rows, "safer_response_id"),
        uses=lambda sample: (*_SAFE, "safer_response_id"),
    ),
    *(
        Adapter(
            format,
            holds,
            partial(_is_helpsteer, format),
            rows=partial(_helpsteer_rows, format),
            uses=partial(_helpsteer_uses, format),
        )
        for format, holds in (
            ("helpsteer3", "a conversation, two answers, a verdict from -3 to 3"),
            ("helpsteer2-preference", "a prompt, two answers, a verdict from -3 to 3"),
        )
    ),
    Adapter(
        "webgpt",
        "a question and two answers with scores",
        _is_webgpt,
        rows=_webgpt_rows,
        uses=lambda sample: ("question", "answer_0", "answer_1", "score_0", "score_1"),
    ),
    Adapter(
        "summaries",
        "a text, two summaries and which is better",
        _is_summaries,
        rows=_summaries_rows,
        uses=lambda sample: ("info", "summaries", "choice"),
    ),
)
