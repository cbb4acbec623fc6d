from __future__ import annotations

import pytest

from preftune.errors import DatasetError
from preftune.judges.exact_match import ExactJudge, expected_answers, is_exact


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("Paris", "paris", True),
        ("Paris.", "Paris", True),
        ("**The Moon**", "moon", True),
        ("It is Paris.", "Paris", False),
        ("Not Paris, but Lyon", "Paris", False),
        ("The answer is Paris.", "Paris", True),
        ("Let me think.\nParis", "Paris", True),
        ("Answer: (B)", "B", True),
        ("First 3, then 4, so\n#### 12", "12", True),
        ("12 apples less 5 are 7", "7", True),
        ("12 apples less 5 are 7", "12", False),
        ("It costs $1,250.00 in all.", "1250", True),
        ("It is -3.", "3", False),
        ("It is 3.5", "3", False),
        (r"So $\boxed{\frac{1}{2}}$", r"\frac{1}{2}", True),
        ("", "0", False),
        ("seven", 7, False),
        ("7", 7, True),
        ("Genf", ["Geneva", "Genf"], True),
        ("The answer is \u22125.", "5", False),
        ("The answer is \u22125.", "-5", True),
        ("Es sind 3,5 km", "5", False),
        ("Es sind 3,5 km", "3,5", True),
        ("#### Step 7: check\nso it is 9\n\\boxed{9}", "7", False),
        ("#### Step 7: check\nso it is 9\n\\boxed{9}", "9", True),
        ("#### Answer\n9", "9", True),
        ("#### 42\n\nAsk if more is unclear.", "42", True),
        ("**Final Answer:** \\(\\boxed{\\text{Paris}}\\)", "Paris", True),
        ("It is 1/2", "2", False),
        ("At 3:30", "30", False),
        ("It is 10^5", "5", False),
        ("On 2024-05-07", "7", False),
        ("It is 1'234", "1234", True),
        ("It is 1\u202f234", "1234", True),
        ("It is \u0663\u066b\u0665", "3.5", True),
        ("Paris\u200f", "Paris", True),
        ("Pa\u200bris", "Paris", True),
        ("It is 7, not 9.", "7", True),
        ("It is 7, not 9.", "9", False),
        ("It is not 9 but 7", "7", True),
        ("7 instead of $9", "7", True),
        ("7 rather than -9", "7", True),
        ("It is not 9.", "9", False),
    ],
)
def test_the_final_answer_is_what_counts(answer: str, expected: object, right: bool) -> None:
    assert is_exact(answer, {"answer": expected}) is right


def test_where_the_key_is_looked_for() -> None:
    assert expected_answers({"answer": "long reasoning\n#### 8", "key_fact": "no"}) == ["8"]
    assert expected_answers({"answer": None, "expected": "x"}) == ["x"]
    assert expected_answers({"key_fact": ["a", "b"]}) == ["a", "b"]
    for row in ({}, {"answer": ""}, {"answer": []}, {"expected": "..."}, {"answer": {"a": 1}}):
        with pytest.raises(DatasetError, match="A row has no expected answer"):
            expected_answers(row)


def test_right_wins_and_length_is_no_merit() -> None:
    judge, row = ExactJudge(), {"answer": "4"}
    assert judge("2+2?", "4", "5", row) == "a"
    assert judge("2+2?", "five", "well, that is 4", row) == "b"
    assert judge("2+2?", "4", "it is, of course, 4", row) == "tie"
    assert judge("2+2?", "5", "6", row) == "tie"
    assert judge.symmetric
