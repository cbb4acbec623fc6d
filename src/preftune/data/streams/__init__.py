"""Rows that are trained on while they are read, for data that are larger than disk or memory, or without an end.

examples  rows of a stream as examples: pairs, answers with labels, demonstrations
groups    StreamedGroups: token ids made while rows are read, in an order that can be continued
rows      raw rows in passes, shuffled in a buffer
"""

__all__ = ["examples", "groups", "rows"]
