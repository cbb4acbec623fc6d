"""docs/methods.md is what the registry of losses says."""

from __future__ import annotations

from methods_page import EQUAL_TO_TRL, PAGE, page

from tests.training.trainers import test_reference_free, test_trl_parity


def test_the_committed_page_is_the_generated_one():
    """If this fails: `python benchmarks/methods_page.py`."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_losses_that_are_said_to_equal_trl_s_are_compared_with_them():
    compared = {"sigmoid", "cpo", "orpo"}  # without a loss_type of their own
    for options, _ in test_trl_parity.CASES.values():
        compared |= {*options.get("loss_type", [])}
    compared |= {
        "alphapo" if case.get("alpha") else case.get("loss_type", "cpo") for case in test_reference_free.CASES.values()
    }
    for case in test_reference_free.TPO_CASES.values():
        compared.add({"tpo-l": "tpo_l"}.get(case.get("loss_type", "tpo"), case.get("loss_type", "tpo")))
    assert compared == EQUAL_TO_TRL
