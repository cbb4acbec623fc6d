"""A judge that compares the policy's answers with the reference's at every evaluation.

prompts            which held-out prompts are answered
reference_answers  what the reference said, kept under its content
win_rate           the answers of an evaluation, their verdicts, and the metrics
"""

__all__ = ["win_rate"]
