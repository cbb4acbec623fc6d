"""Repeated prompts and pairs, contradicting pairs, and prompts in both training and evaluation data."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from preftune.amounts import counted
from preftune.audit.checks.check import Check, Setting
from preftune.audit.finding import EXAMPLES, Example, Finding, Kind, Places, Rows
from preftune.audit.opening import Fault
from preftune.audit.seen import SeenPair, see
from preftune.data.pairs.blocks import BLOCK
from preftune.text_quality.near_duplicates import Signatures, clusters, near_pairs, signatures

_APART = "Keep a prompt on one side: preftune dpo --eval_fraction 0.05 splits by prompt."

DUPLICATE = Kind(
    "duplicate_pairs",
    "warning",
    "Copies of pairs",
    "Each copy counts as a separate pair, and is memorised.",
    "preftune convert --dedupe keeps one of each.",
)
NEAR_DUPLICATE = Kind(
    "near_duplicate_pairs",
    "warning",
    "Near copies of pairs",
    "They count as several pairs but teach no more than one.",
    "Check the examples; preftune convert --dedupe near keeps one of each.",
)
CONTRADICTION = Kind(
    "contradictions",
    "error",
    "The same two answers, preferred both ways",
    "The two have opposite effects on the model, which cancel out.",
    "Keep one of them, or leave both out: preftune convert --drop-contradictions.",
)
REPEATED = Kind(
    "repeated_prompts",
    "info",
    "Several pairs of one prompt",
    "They are not independent: intervals in this audit count prompts, and a random split would put one prompt on "
    "both sides.",
    "preftune dpo --group_by_prompt computes a prompt once; --eval_fraction splits by prompt.",
)
NEAR_PROMPT = Kind(
    "near_duplicate_prompts",
    "info",
    "Prompts that are nearly the same",
    "They ask the same in nearly the same words, so there are fewer different prompts than it seems.",
    "Check the examples; keep them on the same side when you split.",
)
OVERLAP = Kind(
    "eval_overlap",
    "error",
    "Evaluation prompts that are trained on",
    "Evaluation measures memorisation: it rises while the model does not improve.",
    _APART,
)
NEAR_OVERLAP = Kind(
    "eval_near_overlap",
    "warning",
    "Evaluation prompts nearly the same as trained ones",
    "Evaluation partly measures memorisation.",
    _APART,
)


class _Keys(Places):
    """Hashes of many pairs, with their positions and rows: 40 bytes each."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt, self.chosen, self.rejected = array("Q"), array("Q"), array("Q")

    def add(self, seen: SeenPair) -> None:
        self.keep(seen.index, seen.row)
        self.prompt.append(seen.prompt_key)
        self.chosen.append(seen.chosen_key)
        self.rejected.append(seen.rejected_key)

    def extend(self, other: Self) -> None:
        super().extend(other)
        self.prompt.extend(other.prompt)
        self.chosen.extend(other.chosen)
        self.rejected.extend(other.rejected)

    def __len__(self) -> int:
        return len(self.index)

    def numbers(self, name: str) -> NDArray[Any]:
        values: array[int] = getattr(self, name)
        return np.frombuffer(values, dtype=np.int64 if values.typecode == "q" else np.uint64)

    def example(self, place: int, note: str) -> Example:
        return Example(self.row[place], self.index[place], note)


class _Prompts:
    """The distinct prompts, with their MinHash signatures if `sketch` is set."""

    def __init__(self, *, sketch: bool) -> None:
        self.sketch = sketch
        self.places: dict[int, int] = {}
        """Hash of a prompt -> the place of its first pair."""
        self.parts: list[Signatures] = []

    def add(self, batch: Sequence[SeenPair], first: int) -> None:
        """Add the prompts of pairs whose places start at `first`."""
        texts = []
        for place, seen in enumerate(batch, start=first):
            if seen.prompt_key not in self.places:
                self.places[seen.prompt_key] = place
                texts.append(seen.prompt if seen.prompt.strip() else f"{seen.chosen}\n{seen.rejected}")
        if self.sketch and texts:
            self.parts.append(signatures(texts))

    def extend(self, other: _Prompts, first: int) -> None:
        """Add the prompts of pairs that follow, whose places start at `first`."""
        new = [key not in self.places for key in other.places]
        self.places |= {key: first + place for key, place in other.places.items() if key not in self.places}
        if self.sketch and any(new):
            self.parts.append(other.signatures()[new])

    def signatures(self) -> Signatures:
        return np.concatenate(self.parts) if self.parts else signatures([])


class DuplicatesCheck(Check):
    """Finds exact copies by hashes of whole texts, and near copies by MinHash."""

    kinds = (CONTRADICTION, OVERLAP, DUPLICATE, NEAR_DUPLICATE, NEAR_OVERLAP, REPEATED, NEAR_PROMPT)
    section = "duplicates"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.keys = _Keys()
        self.prompts = _Prompts(sketch=setting.near_duplicates)
        self.held_out_prompts: int | None = None

    def see(self, batch: Sequence[SeenPair], faults: Sequence[Fault]) -> None:
        whole = [seen for seen in batch if not seen.blank]
        self.prompts.add(whole, len(self.keys))
        for seen in whole:
            self.keys.add(seen)

    def extend(self, other: Self) -> None:
        self.prompts.extend(other.prompts, len(self.keys))
        self.keys.extend(other.keys)

    def findings(self, pairs: int) -> Iterator[Finding]:
        if not len(self.keys):
            return
        yield from CONTRADICTION.found(self._contradictions(), of=pairs)
        yield from DUPLICATE.found(self._duplicates(), of=pairs)
        _, repeated = _first_of(self.keys.numbers("prompt"))
        rows = self.keys.rows(np.flatnonzero(repeated >= 0), lambda p: f"as in row {self.keys.row[repeated[p]]}")
        detail = f"{counted(pairs, 'pair')} with {counted(len(self.prompts.places), 'different prompt')}."
        yield from REPEATED.found(rows, of=pairs, detail=detail, prompts=len(self.prompts.places))
        near = np.empty((0, 2), dtype=np.int64)
        sketches = self.prompts.signatures()
        if self.setting.near_duplicates:
            near = near_pairs(sketches)
            yield from NEAR_PROMPT.found(self._near_prompts(near), of=len(self.prompts.places))
            yield from NEAR_DUPLICATE.found(self._near_duplicates(near), of=pairs)
        if self.setting.held_out is not None:
            yield from self._overlap(sketches)

    def figures(self) -> Mapping[str, Any]:
        _, counts = np.unique(self.keys.numbers("prompt"), return_counts=True)
        return {
            "prompts": len(self.prompts.places),
            "pairs_per_prompt": round(float(counts.mean()), 3) if len(counts) else None,
            "most_pairs_of_a_prompt": int(counts.max()) if len(counts) else 0,
            "near_duplicates": self.setting.near_duplicates,
            "held_out_prompts": self.held_out_prompts,
        }

    def _contradictions(self) -> Rows:
        """All pairs whose opposite is in the data too."""
        chosen, rejected = self.keys.numbers("chosen"), self.keys.numbers("rejected")
        low, high = np.minimum(chosen, rejected), np.maximum(chosen, rejected)
        group, _ = _first_of(self.keys.numbers("prompt"), low, high)
        forward = np.bincount(group, weights=chosen < rejected)
        backward = np.bincount(group, weights=chosen > rejected)
        both = (forward > 0) & (backward > 0)
        rows = Rows(int(both[group].sum()))
        for number in np.flatnonzero(both)[:EXAMPLES]:
            places = np.flatnonzero(group == number)
            first = int(places[0])
            opposite = (chosen[places] < rejected[places]) != (chosen[first] < rejected[first])
            other = int(places[opposite][0])
            for one, against in ((first, other), (other, first)):
                note = f"the opposite in row {self.keys.row[against]}"
                rows.examples.append(self.keys.example(one, note))
        del rows.examples[EXAMPLES:]
        return rows

    def _duplicates(self) -> Rows:
        _, first = _first_of(*(self.keys.numbers(name) for name in ("prompt", "chosen", "rejected")))
        return self.keys.rows(np.flatnonzero(first >= 0), lambda place: f"as row {self.keys.row[first[place]]}")

    def _near_prompts(self, near: NDArray[np.int64]) -> Rows:
        """Prompts that are nearly the same as an earlier one."""
        first_places = list(self.prompts.places.values())
        later, at = np.unique(near[:, 1], return_index=True)
        examples = [
            self.keys.example(first_places[second], f"like row {self.keys.row[first_places[first]]}")
            for first, second in near[at[:EXAMPLES]].tolist()
        ]
        return Rows(len(later), examples)

    def _near_duplicates(self, near: NDArray[np.int64]) -> Rows:
        """Pairs with nearly the same prompt, chosen and rejected as an earlier pair, without exact copies."""
        number = {key: place for place, key in enumerate(self.prompts.places)}
        prompt = np.asarray([number[key] for key in self.keys.prompt], dtype=np.int64)
        cluster = clusters(len(number), near)[prompt]
        _, exact = _first_of(*(self.keys.numbers(name) for name in ("prompt", "chosen", "rejected")))
        several = np.bincount(cluster)[cluster] > 1
        places = np.flatnonzero(several & (exact < 0))
        if len(places) < 2:
            return Rows()
        indices = self.keys.numbers("index")[places]
        alike = near_pairs(*self._answers(indices), within=cluster[places])
        later = {places[other]: places[one] for one, other in reversed(alike.tolist())}
        return self.keys.rows(np.array(sorted(later), dtype=np.int64), lambda p: f"like row {self.keys.row[later[p]]}")

    def _answers(self, indices: NDArray[Any]) -> tuple[Signatures, Signatures]:
        """Signatures of the two sides of these pairs, which are read a second time."""
        chosen, rejected = [], []
        for start in range(0, len(indices), BLOCK):
            seen = [see(pair, index) for index, pair in self.setting.data.at(indices[start : start + BLOCK])]
            chosen.append(signatures(pair.chosen for pair in seen))
            rejected.append(signatures(pair.rejected for pair in seen))
        return np.concatenate(chosen), np.concatenate(rejected)

    def _overlap(self, sketches: Signatures) -> Iterator[Finding]:
        """Prompts of the evaluation data that are, exactly or nearly, in the training data."""
        held_out = self.setting.held_out
        assert held_out is not None
        theirs = _Prompts(sketch=self.setting.near_duplicates)
        keys = _Keys()
        exact, near_rows = Rows(), Rows()
        for good, _ in held_out.batches():
            batch = [seen for index, pair in good if not (seen := see(pair, index)).blank]
            theirs.add(batch, len(keys))
            for seen in batch:
                keys.add(seen)
                if (place := self.prompts.places.get(seen.prompt_key)) is not None:
                    note = f"of the evaluation data, as training row {self.keys.row[place]}"
                    exact.add(seen.row, seen.index, note, held_out=True)
        self.held_out_prompts = len(theirs.places)
        yield from OVERLAP.found(exact, of=len(keys))
        if not self.setting.near_duplicates:
            return
        ours_first, theirs_first = list(self.prompts.places.values()), list(theirs.places.items())
        found: dict[int, int] = {}
        both = np.concatenate([sketches, theirs.signatures()])
        for ours, place in near_pairs(both, across=len(sketches)).tolist():
            other = place - len(sketches)
            if theirs_first[other][0] not in self.prompts.places:
                found.setdefault(other, ours)
        for other, ours in found.items():
            at = theirs_first[other][1]
            note = f"of the evaluation data, like training row {self.keys.row[ours_first[ours]]}"
            near_rows.add(int(keys.row[at]), int(keys.index[at]), note, held_out=True)
        yield from NEAR_OVERLAP.found(near_rows, of=len(theirs.places))


def _first_of(*columns: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Groups of rows that are equal in all columns.

    Args:
        columns: each of shape (n,).
    Returns: the number of each row's group, shape (n,); and the first row of its group, shape (n,), -1 for the first
        row itself.
    """
    order = np.lexsort(columns[::-1])
    new = np.zeros(len(order), dtype=bool)
    new[:1] = True
    for column in columns:
        ordered = column[order]
        new[1:] |= ordered[1:] != ordered[:-1]
    number = np.cumsum(new) - 1
    group = np.empty(len(order), dtype=np.int64)
    group[order] = number
    first_place = order[new][group]  # lexsort is stable, so it keeps the first of a group first
    places = np.arange(len(order))
    return group, np.where(first_place == places, -1, first_place)
