"""How well a model still predicts plain text: bits per byte, which models with different tokenisers share.

The text is cut into documents of at least 800 letters at blank lines. Each is scored in windows that overlap by half,
so that every token but those of the first window has at least half a window before it (the strided perplexity of
transformers' documentation), by the engine that training uses. Bits per byte are the negative log-probability of all
tokens in bits over the bytes of the text; perplexity per token is given as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from preftune.errors import DatasetError
from preftune.evaluation.two_models.pair_logps import LogpScorer, read_values, values_of_both
from preftune.generation.protocol import Side
from preftune.statistics.intervals import mean_interval
from preftune.statistics.paired import Comparison
from preftune.storage.jsonl import digest
from preftune.types import TokenizedGroup

if TYPE_CHECKING:
    from preftune.evaluation.two_models.context import PairOfModels

_DOCUMENT = 800
"""Letters of a document, at least; the last may be shorter."""
_WINDOW = 1024
"""Tokens of a window, or the model's positions where it has fewer."""


_BLANK_LINE = re.compile(r"\n[ \t]*(?:\n[ \t]*)*\n")


class Predicted(NamedTuple):
    """One document under one model."""

    bits: float
    """-log2 of its probability."""
    bytes: int
    """UTF-8 bytes of what was predicted."""
    tokens: int


def documents(data: str | Path | None) -> list[str]:
    """The documents of a text file, or of the small text that comes with preftune.

    Raises: DatasetError for a file that cannot be read as text or is empty.
    """
    if data is None:
        text = resources.files("preftune.evaluation.suites").joinpath("plain_text.txt").read_text(encoding="utf-8")
    else:
        try:
            text = Path(data).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(
                f"{data} cannot be read as plain text ({error}). Give a text file in UTF-8 with --suite_data."
            ) from error
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    between = "\n\n" if _BLANK_LINE.search(text.strip()) else "\n"  # a text without blank lines has its lines
    found, part = [], ""
    for paragraph in _BLANK_LINE.split(text) if between == "\n\n" else text.split("\n"):
        part = f"{part}{between}{paragraph}" if part else paragraph
        if len(part) >= _DOCUMENT:
            found.append(part.strip("\n"))
            part = ""
    if part.strip():
        found.append(part.strip("\n"))
    if not found:
        raise DatasetError(f"{data} holds no text. Give a text file with --suite_data.")
    return found


def predict_both(
    models: PairOfModels,
    texts: Sequence[str],
    *,
    settings: Mapping[str, Any],
    path: Path,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Predicted], list[Predicted]]:
    """Every document under the baseline and the aligned model; appended to `path`, and found there again."""
    keys: dict[Side, list[str]] = {
        side: [digest([side, text, _WINDOW, settings]) for text in texts] for side in ("base", "aligned")
    }

    def scorer(side: Side, model: Any, tokenizer: Any) -> Callable[[Sequence[int]], list[Any]]:
        predict = _predictor(model, tokenizer)
        return lambda at: [list(predict(texts[i])) for i in at]

    known = read_values(path, "predicted")
    values_of_both(models, keys, known, scorer, path=path, name="predicted", at_once=1, progress=progress)
    base, aligned = ([Predicted(*known[key]) for key in of_side] for of_side in keys.values())
    return base, aligned


def _predictor(model: Any, tokenizer: Any) -> Callable[[str], Predicted]:
    """Scores a document with this model."""
    scorer = LogpScorer(model)
    window = min(_WINDOW, scorer.longest or _WINDOW)

    def predict(text: str) -> Predicted:
        ids, size = _token_ids(text, tokenizer)
        nats = 0.0
        for group in windows(ids, window):
            nats -= float(scorer.read([group], lambda found, batch: found.token_logps_T).sum())
        return Predicted(nats / math.log(2), size, len(ids) - 1)

    return predict


def _token_ids(text: str, tokenizer: Any) -> tuple[list[int], int]:
    """The ids, the first of which predicts and is not predicted; and the bytes of what is predicted."""
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is not None:
        return [start, *ids], len(text.encode())
    first = tokenizer.decode(ids[:1])
    return ids, len(text.encode()) - len(first.encode())


def windows(ids: Sequence[int], window: int) -> Iterator[TokenizedGroup]:
    """Windows of at most `window` tokens that predict every token but the first exactly once.

    The first predicts all it holds; each further one half a window of new tokens, after the half before them.
    """
    end = min(window, len(ids))
    if end > 1:
        yield _group(ids[:1], ids[1:end])
    half = max(1, window // 2)
    while end < len(ids):
        new = ids[end : end + half]
        yield _group(ids[max(0, end - (window - len(new))) : end], new)
        end += len(new)


def _group(context: Sequence[int], new: Sequence[int]) -> TokenizedGroup:
    return TokenizedGroup(prompt_ids=list(context), completions=(list(new),), pairs=())


def compare_bits(base: Sequence[Predicted], aligned: Sequence[Predicted], *, confidence: float) -> Comparison:
    """Bits per byte of both models; the interval is over documents, paired (the linearised ratio of sums)."""
    bits = np.array([[b.bits, a.bits] for b, a in zip(base, aligned, strict=True)])
    sizes = np.array([[b.bytes, a.bytes] for b, a in zip(base, aligned, strict=True)], dtype=np.float64)
    totals = bits.sum(0) / sizes.sum(0)
    # each document's part in the difference of the two ratios, so that its mean is that difference
    residual = (bits - totals * sizes) / sizes.mean(0)
    difference = float(totals[1] - totals[0])
    interval = mean_interval(residual[:, 1] - residual[:, 0] + difference, confidence=confidence)
    more: dict[str, Any] = {"better": "lower", "n": len(base), "unit": "bits per byte", "confidence": confidence}
    change = interval._replace(mean=difference)
    return Comparison.of("bits per byte of plain text", float(totals[0]), float(totals[1]), change, **more)


def perplexity(predicted: Sequence[Predicted]) -> float:
    """Per token."""
    return float(2 ** (sum(one.bits for one in predicted) / max(1, sum(one.tokens for one in predicted))))
