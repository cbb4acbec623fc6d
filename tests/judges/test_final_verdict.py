"""Judges end with their verdict, in whatever markdown; every reader takes the last one."""

from __future__ import annotations

import pytest

from preftune.evaluation.suites.arena_hard import read_label
from preftune.evaluation.suites.mt_bench_prompts import read_rating, read_winner
from preftune.evaluation.suites.xstest import read_reaction
from preftune.judges.pairwise_llm import parse_verdict
from preftune.judges.prompt_and_reply import unmarked
from preftune.training.online.scoring import read_mark


@pytest.mark.parametrize(
    ("reader", "reply", "verdict"),
    [
        (parse_verdict, "At first sight [[A]].\nOn reflection, **[[B]]**", "b"),
        (parse_verdict, "Correctness verdict: A\nOverall: [[B]]", "b"),
        (parse_verdict, "[[B]] on style\nVerdict: A", "a"),
        (parse_verdict, "**Final verdict:** **B**", "b"),
        (parse_verdict, "### Verdict\n\n**Winner: Assistant A**", "a"),
        (parse_verdict, "Better: `B`.", "b"),
        (parse_verdict, "I weighed both.\n\n**A**", "a"),
        (parse_verdict, "$\\boxed{\\text{B}}$", "b"),
        (parse_verdict, '{"better": "A"}\nBut the last fact is wrong, so:\n{"better": "B"}', "b"),
        (parse_verdict, 'I reply {"better": "A"}, {"better": "B"} or {"better": "tie"}.', None),
        (parse_verdict, 'Answer A says `{"better": "A"}`, which I ignore.\n\nFinal verdict: B', "b"),
        (parse_verdict, 'Answer A ends with "Verdict: A", which I ignore.\n\nB', "b"),
        (parse_verdict, '{"better": "A"}\nThe last fact is wrong, so:\n[[B]]', "b"),
        (parse_verdict, 'Verdict: B\n{"reason": "it writes better: A"}', "b"),
        (parse_verdict, '{"better": "A", "winner": "B"}', None),
        (parse_verdict, '{"verdict": {"better": "B"}}', "b"),
        (parse_verdict, "The answer: A's reasoning is wrong", None),
        (parse_verdict, "{" * 5000 + '{"better": "A"}', "a"),
        (read_rating, "A first look gives [[4]].\nRating: [[7]]", 7.0),
        (read_rating, "**Rating: [[8]]**", 8.0),
        (read_rating, "Rating: [[**6**]]", 6.0),
        (read_rating, "Rating: **8**/10", 8.0),
        (read_rating, "**Score:** 9 out of 10", 9.0),
        (read_rating, "Rating: 5\nFinal rating: 3", 3.0),
        (read_rating, "Rating: 8/100", None),
        (read_winner, "[[A]] is tempting.\n**[[B]]**", "b"),
        (read_label, "My own answer first. [[A>B]]?\n\nMy final verdict is: **[[B>>A]]**", "B>>A"),
        (read_label, "[[A&gt;B]]", "A>B"),
        (read_label, "[[A\\>\\>B]]", "A>>B"),
        (read_label, "[[A>B]], that is [[B<A]]", "A>B"),
        (read_reaction, '{"class": "full_refusal"}\nNo: {"class": "partial_refusal"}', "partial_refusal"),
        (read_reaction, '{"class": "full_refusal"} is tempting.\nClass: full_compliance', "full_compliance"),
        (read_reaction, "It could be full_refusal.\n\n**Class: full_compliance**", "full_compliance"),
        (read_mark, "Correct but long. Mark: **7**/10", 7.0),
    ],
)
def test_the_final_verdict(reader, reply: str, verdict: object) -> None:
    assert reader(reply) == verdict


def test_names_with_underscores_stay() -> None:
    assert unmarked("__full_refusal__ and _A_ in **`x_y`** &gt;") == "full_refusal and A in x_y >"
