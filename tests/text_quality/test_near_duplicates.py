"""Near-duplicates against exact Jaccard similarity."""

from __future__ import annotations

import json
import random

import numpy as np

from preftune.text_quality.near_duplicates import clusters, near_pairs, shingles, signatures
from tests.audit.made_up import run, sentence


def jaccard(left: str, right: str) -> float:
    ours, theirs = set(shingles(left)), set(shingles(right))
    return len(ours & theirs) / len(ours | theirs)


def changed(text: str, words: int, random_: random.Random) -> str:
    parts = text.split()
    for place in random_.sample(range(len(parts)), words):
        parts[place] = f"other{place}"
    return " ".join(parts)


def test_clear_cases_agree_with_exact_similarity() -> None:
    random_ = random.Random(0)
    originals = [sentence(60, random_) for _ in range(60)]
    copies = [changed(text, number % 12, random_) for number, text in enumerate(originals)]
    texts = originals + copies
    met = {tuple(pair) for pair in near_pairs(signatures(texts)).tolist()}
    for number in range(60):
        similar = jaccard(texts[number], texts[number + 60])
        if similar >= 0.93:
            assert (number, number + 60) in met
        elif similar <= 0.65:
            assert (number, number + 60) not in met
    assert all(second == first + 60 for first, second in met)


def test_case_and_punctuation_do_not_count() -> None:
    near = near_pairs(
        signatures(
            ["Is this, really, the same text?", "something quite different here", "is THIS really the same text"]
        )
    )
    assert near.tolist() == [[0, 2]]


def test_short_texts_are_near_only_if_equal() -> None:
    assert near_pairs(signatures(["yes", "no", "yes!", "", "maybe so", "maybe not"])).tolist() == [[0, 2]]


def test_nothing_to_compare() -> None:
    assert near_pairs(signatures([])).shape == (0, 2)
    assert near_pairs(signatures(["alone"])).shape == (0, 2)


def test_across_two_sets_only() -> None:
    sketches = signatures(["same old text here", "same old text here", "another one of those", "same old text here"])
    assert near_pairs(sketches, across=2).tolist() == [[0, 3]]


def test_both_sides_must_be_near_and_the_group_the_same() -> None:
    chosen = signatures(["the first answer of all", "the first answer of all", "the first answer of all"])
    rejected = signatures(["a bad answer to it", "something else was said", "a bad answer to it"])
    assert near_pairs(chosen, rejected).tolist() == [[0, 2]]
    assert near_pairs(chosen, rejected, within=np.array([0, 0, 1])).tolist() == []


def test_clusters_join_what_is_linked() -> None:
    assert clusters(5, np.array([[0, 3], [3, 4]])).tolist() == [0, 1, 2, 0, 0]


def test_convert_dedupe_near_leaves_nothing_that_audit_would_find(tmp_path):

    from preftune.cli.main import main
    from preftune.data import load_pairs, load_rows

    draw = random.Random(1)
    words = [f"word{number}" for number in range(400)]
    rows = []
    for number in range(60):
        prompt, good, bad = (" ".join(draw.choices(words, k=40)) for _ in range(3))
        rows.append({"prompt": prompt, "chosen": good, "rejected": bad})
        for copy in range(number % 4):  # chains: each copy differs from the one before by one word
            last = rows[-1]
            changed = {side: text.replace(text.split()[copy * 7], f"new{copy}", 1) for side, text in last.items()}
            rows.append(changed)
    rows.append(dict(rows[0]))
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    before = {finding.name: finding.count for finding in run(load_rows(source)).findings}
    assert before["near_duplicate_pairs"] > 20
    assert main(["convert", "--dedupe", str(source), "-o", str(tmp_path / "exact.jsonl")]) == 0
    assert len(load_pairs(tmp_path / "exact.jsonl")) == len(rows) - 1
    assert main(["convert", str(source), "--dedupe", "near", "-o", str(tmp_path / "near.jsonl")]) == 0
    after = {finding.name for finding in run(load_rows(tmp_path / "near.jsonl")).findings}
    assert not after & {"near_duplicate_pairs", "duplicate_pairs"}
    assert 60 <= len(load_pairs(tmp_path / "near.jsonl")) < len(rows) - before["near_duplicate_pairs"] // 2
    manifest = json.loads((tmp_path / "near.jsonl.manifest.json").read_text(encoding="utf-8"))
    assert manifest["filters"]["dedupe"] == "near"
    assert {entry["reason"] for entry in manifest["dropped"]} == {"duplicate", "near_duplicate"}
