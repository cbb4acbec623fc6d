"""A judge compared with people: agreement, and the labels that it is measured against.

agreement  agreement with intervals, and the biases of a judge
labels     people's labels, from preference data or rows with two answers and a label
"""

__all__ = ["agreement", "labels"]
